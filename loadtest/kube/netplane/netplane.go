// SPDX-License-Identifier: Apache-2.0

// Package netplane is the network of a local cluster beside its pods: kube-proxy, the cluster's name server, and the cloud's load balancer.
//
// Services are nftables rules over netlink (no nft program is needed), in a table of each cluster's own: one map from (address, protocol, port) to a chain for each port of a
// Service, which picks one of the endpoints at random. A Service's cluster IP, its externalIPs and its load balancer's addresses are all the same to it. Clients in pods and in the
// network namespace itself are served; a virtual address without endpoints, or a port that no Service has, is refused at once (TCP reset, ICMP port unreachable), as clients
// would otherwise wait for a time-out.
//
// What to program is computed as a whole by a pure function (compile) after each change, and what differs from what the kernel has goes in as one transaction.
// Traffic of existing TCP connections is not touched by changes; UDP flows to an endpoint that is gone are forgotten, so that the next datagram finds another.
//
// What there is not: NodePorts, session affinity, traffic policies, IPv6.
package netplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"golang.org/x/sync/errgroup"

	"github.com/fleetgate/fleetgate/loadtest/kube/link"
)

// Options say which cluster's network to be. All clusters of a network namespace need ranges of their own.
type Options struct {
	// Cluster names the cluster in logs and in its nftables table.
	Cluster string
	// Config reaches its API server as an administrator.
	Config *rest.Config
	// NodeIP is the source address of clients in the network namespace.
	NodeIP netip.Addr
	// ServiceCIDR is the range of cluster IPs, PodCIDR that of pods; Services of type LoadBalancer get addresses of LoadBalancerCIDR.
	ServiceCIDR, PodCIDR, LoadBalancerCIDR netip.Prefix
	// DNS is where the name server listens, on port 53.
	DNS netip.Addr
	Log *slog.Logger
}

// Run is the cluster's network until ctx ends. It leaves the namespace's rules and routes as they are then: the namespace is expected to end too, and a further Run
// takes them over.
func Run(ctx context.Context, o Options) error {
	if err := o.prepare(); err != nil {
		return err
	}
	config := rest.CopyConfig(o.Config)
	config.QPS, config.UserAgent = -1, "netplane"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client for cluster %s: %w", o.Cluster, err)
	}
	objects, changed, err := watch(ctx, client)
	if err != nil {
		return err
	}
	server, err := newNameServer(o, objects)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.serve(ctx) })
	g.Go(func() error {
		follow(ctx, o, client, objects, changed)
		return nil
	})
	return g.Wait()
}

// prepare makes the virtual addresses routable and lets packets through.
func (o Options) prepare() error {
	return errors.Join(
		link.Sysctl("net.ipv4.ip_forward", "1"),
		link.AddAddress(o.NodeIP),
		link.AddAddress(o.DNS),
		link.RouteVirtual(o.ServiceCIDR, o.NodeIP),
		link.RouteVirtual(o.LoadBalancerCIDR, o.NodeIP),
	)
}

// objects are what the API server has.
type objects struct {
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
}

// snapshot is all of it; the caller changes nothing in it.
type snapshot struct {
	services []*v1.Service
	slices   []*discoveryv1.EndpointSlice
}

func (o objects) snapshot() (snapshot, error) {
	services, errServices := o.services.List(labels.Everything())
	slices, errSlices := o.slices.List(labels.Everything())
	return snapshot{services, slices}, errors.Join(errServices, errSlices)
}

// watch follows Services and EndpointSlices; the channel holds a token while there are changes that nobody has looked at.
func watch(ctx context.Context, client kubernetes.Interface) (objects, <-chan struct{}, error) {
	factory := informers.NewSharedInformerFactory(client, 0)
	services, slices := factory.Core().V1().Services(), factory.Discovery().V1().EndpointSlices()
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), slices.Informer()} {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { poke() }, UpdateFunc: func(_, _ any) { poke() }, DeleteFunc: func(any) { poke() }})
		if err != nil {
			return objects{}, nil, fmt.Errorf("watching Services: %w", err)
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	return objects{services.Lister(), slices.Lister()}, changed, ctx.Err()
}

const retry = time.Second

// follow programs the kernel and gives addresses after each change, and again where that failed.
func follow(ctx context.Context, o Options, client kubernetes.Interface, objects objects, changed <-chan struct{}) {
	proxy := newProxy(o)
	balancer := &balancer{within: o.LoadBalancerCIDR, client: client}
	for {
		var again <-chan time.Time
		if err := step(ctx, objects, proxy, balancer); err != nil && ctx.Err() == nil {
			o.Log.Warn("cannot program the network, trying again", "error", err)
			again = time.After(retry)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}

func step(ctx context.Context, objects objects, proxy *proxy, balancer *balancer) error {
	now, err := objects.snapshot()
	if err != nil {
		return err
	}
	// An address that is given now comes back as a change, and is programmed then.
	return errors.Join(proxy.apply(compile(now)), balancer.apply(ctx, now.services))
}
