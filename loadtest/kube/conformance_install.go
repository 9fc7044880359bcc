// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// experimental is the channel of the Gateway API whose CRDs install.yaml does not have: those of the standard channel, which it has, would take that channel's fields away.
const experimental = "experimental"

// home is the namespace of deploy/install.yaml.
const home = "fleetgate-system"

// elsewhere is how the Envoys of other clusters reach the replicas: a load balancer, that sends to each of them, ready or not.
const elsewhere = `apiVersion: v1
kind: Service
metadata: {name: fleetgate-elsewhere, namespace: fleetgate-system}
spec:
  type: LoadBalancer
  publishNotReadyAddresses: true
  selector: {app.kubernetes.io/name: fleetgate}
  ports:
  - {name: xds, port: 18000}
  - {name: certificates, port: 18001}
`

// prepare installs Fleetgate in the first cluster, makes the others its member clusters, and makes the GatewayClass that the suite uses in each.
func (s suiteRun) prepare(ctx context.Context, r *rig.Rig, progress io.Writer) error {
	class := filepath.Join(s.out, "gatewayclass.yaml")
	manifest := fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata:\n  name: %s\nspec:\n  controllerName: fleetgate.io/gatewayclass-controller\n", s.class)
	if err := os.WriteFile(class, []byte(manifest), 0o644); err != nil {
		return fmt.Errorf("write the GatewayClass: %w", err)
	}
	k := client{r: r, c: r.Cluster(0), progress: progress}
	if s.install != "none" {
		if err := k.do(ctx, "apply", "--server-side", "-f", s.install); err != nil {
			return err
		}
		if len(r.State().Clusters) > 1 {
			if err := s.join(ctx, k); err != nil {
				return err
			}
		}
		if err := k.do(ctx, "-n", home, "rollout", "status", "statefulset/fleetgate", "--timeout=180s"); err != nil {
			return err
		}
	}
	for _, c := range r.State().Clusters {
		k.c = c
		for _, step := range [][]string{{"apply", "--server-side", "-f", class}, {"wait", "--for=condition=Accepted", "gatewayclass/" + s.class, "--timeout=60s"}} {
			if err := k.do(ctx, step...); err != nil {
				return err
			}
		}
	}
	return nil
}

// join makes all clusters but the first member clusters: their kubeconfigs in a Secret, and a --cluster for each.
func (s suiteRun) join(ctx context.Context, k client) error {
	root, err := build.Root(ctx)
	if err != nil {
		return err
	}
	service := filepath.Join(s.out, "elsewhere.yaml")
	if err := os.WriteFile(service, []byte(elsewhere), 0o644); err != nil {
		return fmt.Errorf("write the Service for other clusters: %w", err)
	}
	if err := k.do(ctx, "apply", "-f", service); err != nil {
		return err
	}
	const ingress = "{.status.loadBalancer.ingress[0].ip}"
	if err := k.do(ctx, "-n", home, "wait", "service/fleetgate-elsewhere", "--for=jsonpath="+ingress, "--timeout=60s"); err != nil {
		return err
	}
	address, err := k.ask(ctx, "-n", home, "get", "service/fleetgate-elsewhere", "-o", "jsonpath="+ingress)
	if err != nil {
		return err
	}
	crds := filepath.Join(root, "deploy", "crds")
	if k.r.State().Channel == experimental {
		crds = filepath.Join(crds, "fleetgate.io_envoyfleets.yaml")
	}
	secret := []string{"-n", home, "create", "secret", "generic", "member-clusters"}
	var members []string
	for _, c := range k.r.State().Clusters[1:] {
		secret = append(secret, "--from-file="+c.Name+"="+c.NodeKubeconfig)
		members = append(members, fmt.Sprintf("--cluster=name=%s,kubeconfig=/etc/fleetgate/members/%s,xds=%s:18000", c.Name, c.Name, address))
		of := k
		of.c = c
		if err := of.do(ctx, "apply", "--server-side", "-f", crds); err != nil {
			return err
		}
	}
	if err := k.do(ctx, secret...); err != nil {
		return err
	}
	patch, err := memberPatch(members)
	if err != nil {
		return err
	}
	return k.do(ctx, "-n", home, "patch", "statefulset/fleetgate", "--type=json", "-p", patch)
}

// memberPatch is the JSON patch (RFC 6902) that gives replicas their member clusters.
func memberPatch(members []string) (string, error) {
	type op struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	const pod = "/spec/template/spec"
	ops := []op{
		{"add", pod + "/volumes/-", map[string]any{"name": "members", "secret": map[string]any{"secretName": "member-clusters"}}},
		{"add", pod + "/containers/0/volumeMounts/-", map[string]any{"name": "members", "mountPath": "/etc/fleetgate/members", "readOnly": true}},
	}
	for _, m := range members {
		ops = append(ops, op{"add", pod + "/containers/0/args/-", m})
	}
	text, err := json.Marshal(ops)
	return string(text), err
}

// client is kubectl on one cluster, run inside the rig's network.
type client struct {
	r        *rig.Rig
	c        rig.Cluster
	progress io.Writer
}

// do tells what it does; the output is this command's standard error.
func (k client) do(ctx context.Context, args ...string) error {
	_, _ = fmt.Fprintln(k.progress, k.c.Name+": kubectl", strings.Join(args, " "))
	return k.run(ctx, os.Stderr, args)
}

// ask gives the output.
func (k client) ask(ctx context.Context, args ...string) (string, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("kubectl: %w", err)
	}
	var out bytes.Buffer
	copied := make(chan error, 1)
	go func() { _, err := io.Copy(&out, read); copied <- err }()
	err = k.run(ctx, write, args)
	_ = write.Close()
	if failed := <-copied; err == nil {
		err = failed
	}
	_ = read.Close()
	return strings.TrimSpace(out.String()), err
}

func (k client) run(ctx context.Context, stdout *os.File, args []string) error {
	code, err := k.r.Run(ctx, rig.Command{Args: append([]string{"kubectl"}, args...), Env: append(environment(k.r.State()), "KUBECONFIG="+k.c.NodeKubeconfig), Stdout: stdout, Stderr: os.Stderr})
	if err == nil && code != 0 {
		err = fmt.Errorf("kubectl %s: exit code %d", strings.Join(args, " "), code)
	}
	return err
}
