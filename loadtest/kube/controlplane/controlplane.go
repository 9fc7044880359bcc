// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs the control plane of one local cluster: etcd, kube-apiserver, kube-controller-manager and kube-scheduler of the release, as processes, with
// the authentication, authorization (Node and RBAC) and admission of a usual cluster. It is run inside the rig's network, where the node's address already exists.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// ReadyTimeout bounds the start of an API server on a machine that is busy with other things.
const ReadyTimeout = 3 * time.Minute

// auditPolicy writes one line for each request that changes something.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  verbs: [get, list, watch]
- level: None
  resources: [{group: coordination.k8s.io, resources: [leases]}]
- level: Metadata
`

// ControlPlane is the control plane of one cluster.
type ControlPlane struct {
	cluster   rig.Cluster
	processes []*process
	// Admin may do everything.
	Admin *rest.Config
}

// New writes keys, certificates and kubeconfigs of a cluster; binaries is the directory of the programs.
func New(c rig.Cluster, binaries string, audit bool, log *slog.Logger) (*ControlPlane, error) {
	k, err := writeKeys(c, time.Now())
	if err != nil {
		return nil, err
	}
	p := &ControlPlane{cluster: c}
	if p.Admin, err = loadConfig(c.NodeKubeconfig); err != nil {
		return nil, err
	}
	policy := ""
	if audit {
		policy = filepath.Join(c.Dir, "audit-policy.yaml")
		if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
			return nil, fmt.Errorf("write the audit policy: %w", err)
		}
	}
	logs := filepath.Join(c.Dir, "logs")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of logs: %w", err)
	}
	add := func(name string, args []string) {
		p.processes = append(p.processes, newProcess(name, filepath.Join(binaries, name), filepath.Join(logs, name+".log"), args, log))
	}
	add(Etcd, etcdArgs(c))
	add(APIServer, apiServerArgs(c, k, policy))
	add(ControllerManager, controllerManagerArgs(c, k))
	add(Scheduler, schedulerArgs(k))
	return p, nil
}

// loadConfig reads a kubeconfig for a client without a rate limit of its own: the API server has one.
func loadConfig(path string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	config.QPS = -1
	return config, nil
}

// Run keeps the components up until ctx ends. Controller manager and scheduler start once the API server is ready: they would give up on one that takes its time.
func (p *ControlPlane) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, process := range p.processes {
		g.Go(func() error {
			if process.name == ControllerManager || process.name == Scheduler {
				if err := p.AwaitReady(ctx); err != nil {
					return err
				}
			}
			return process.run(ctx)
		})
	}
	return g.Wait()
}

// AwaitReady returns when the API server says that it is ready.
func (p *ControlPlane) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ReadyTimeout)
	defer cancel()
	client, err := kubernetes.NewForConfig(p.Admin)
	if err != nil {
		return fmt.Errorf("make a client of %s: %w", p.cluster.Name, err)
	}
	every := time.NewTicker(50 * time.Millisecond)
	defer every.Stop()
	for {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return fmt.Errorf("the API server of %s is not ready: %w", p.cluster.Name, errors.Join(err, p.failures()))
		}
	}
}

func (p *ControlPlane) failures() error {
	var all []error
	for _, process := range p.processes {
		all = append(all, process.failure())
	}
	return errors.Join(all...)
}

// Stop kills a component and keeps it down until Start.
func (p *ControlPlane) Stop(ctx context.Context, component string) error {
	process, err := p.find(component)
	if err != nil {
		return err
	}
	return process.stop(ctx)
}

// Start starts a stopped component.
func (p *ControlPlane) Start(ctx context.Context, component string) error {
	process, err := p.find(component)
	if err != nil {
		return err
	}
	return process.start(ctx)
}

func (p *ControlPlane) find(component string) (*process, error) {
	for _, process := range p.processes {
		if process.name == component {
			return process, nil
		}
	}
	return nil, fmt.Errorf("cluster %s has no component %q: choose %s, %s, %s or %s", p.cluster.Name, component, Etcd, APIServer, ControllerManager, Scheduler)
}
