// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"fmt"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/fleetgate/fleetgate/loadtest/kube/controlplane"
	"github.com/fleetgate/fleetgate/loadtest/kube/kubelet"
	"github.com/fleetgate/fleetgate/loadtest/kube/netplane"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// startNode runs what makes a machine of a cluster: kubelet and network plane. They are added to g and live as long as ctx.
//
// Both act as system:masters: the kubelet also provisions volumes, and the network plane is kube-proxy, name server and the cloud's load balancers in one.
func (s *supervisor) startNode(ctx context.Context, g *errgroup.Group, c rig.Cluster, plane *controlplane.ControlPlane) {
	log := s.log.With("cluster", c.Name)
	ended := func(what string, err error) error {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("the %s of %s ended: %w", what, c.Name, err)
	}
	g.Go(func() error {
		return ended("kubelet", kubelet.Run(ctx, kubelet.Options{
			Cluster: c.Name, Config: plane.Admin, NodeName: c.NodeName, NodeIP: c.NodeIP.String(), PodCIDR: c.PodCIDR,
			Dir: filepath.Join(c.Dir, "kubelet"), Images: s.state.Images, ClusterDNS: c.DNS, Log: log.With("part", "kubelet"),
		}))
	})
	g.Go(func() error {
		return ended("network plane", netplane.Run(ctx, netplane.Options{
			Cluster: c.Name, Config: plane.Admin, NodeIP: c.NodeIP, ServiceCIDR: c.ServiceCIDR, PodCIDR: c.PodCIDR,
			LoadBalancerCIDR: c.LoadBalancerCIDR, DNS: c.DNS, Log: log.With("part", "netplane"),
		}))
	})
}

// awaitNode returns when pods can be created and run: the node is Ready, and the namespace default has its service account.
func awaitNode(ctx context.Context, c rig.Cluster, plane *controlplane.ControlPlane) error {
	client, err := kubernetes.NewForConfig(plane.Admin)
	if err != nil {
		return fmt.Errorf("make a client of %s: %w", c.Name, err)
	}
	core := client.CoreV1().RESTClient()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return awaitObject(ctx, cache.NewListWatchFromClient(core, "nodes", "", fields.OneTermEqualSelector("metadata.name", c.NodeName)), &corev1.Node{}, nodeReady)
	})
	g.Go(func() error {
		one := fields.OneTermEqualSelector("metadata.name", "default")
		return awaitObject(ctx, cache.NewListWatchFromClient(core, "serviceaccounts", metav1.NamespaceDefault, one), &corev1.ServiceAccount{}, func(runtime.Object) bool { return true })
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("wait for the node of %s: %w", c.Name, err)
	}
	return nil
}

func nodeReady(o runtime.Object) bool {
	for _, condition := range o.(*corev1.Node).Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// awaitObject watches until the one object that the list-watch selects is there and as wanted.
func awaitObject(ctx context.Context, lw cache.ListerWatcher, kind runtime.Object, wanted func(runtime.Object) bool) error {
	ctx, cancel := context.WithTimeout(ctx, controlplane.ReadyTimeout)
	defer cancel()
	_, err := watchtools.UntilWithSync(ctx, lw, kind, nil, func(e watch.Event) (bool, error) {
		return e.Type != watch.Deleted && wanted(e.Object), nil
	})
	return err
}
