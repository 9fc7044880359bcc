// SPDX-License-Identifier: Apache-2.0

package netplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// balancer is the cloud's load balancer: it gives Services of type LoadBalancer an address, which the proxy then serves.
type balancer struct {
	within netip.Prefix
	client kubernetes.Interface

	// written are the Services as they are after their address was written, for as long as what is read is older: an address that one has just got would be given once more.
	written map[types.UID]write
}

type write struct {
	from  string // resourceVersion of what was read
	after *v1.Service
}

func (b *balancer) apply(ctx context.Context, services []*v1.Service) error {
	var errs []error
	for _, change := range assign(b.newest(services), b.within) {
		service := change.service.DeepCopy()
		service.Status.LoadBalancer.Ingress = nil
		if change.addr.IsValid() {
			mode := v1.LoadBalancerIPModeVIP
			service.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: change.addr.String(), IPMode: &mode}}
		}
		after, err := b.client.CoreV1().Services(service.Namespace).UpdateStatus(ctx, service, metav1.UpdateOptions{})
		switch {
		case err == nil:
			b.written[service.UID] = write{service.ResourceVersion, after}
		case !apierrors.IsNotFound(err):
			errs = append(errs, fmt.Errorf("writing the address of Service %s/%s: %w", service.Namespace, service.Name, err))
		}
	}
	return errors.Join(errs...)
}

// newest puts in the place of Services that are read as they were before a write what was written, and forgets the writes that have been read.
func (b *balancer) newest(services []*v1.Service) []*v1.Service {
	pending := map[types.UID]write{}
	out := slices.Clone(services)
	for i, s := range out {
		if w, ok := b.written[s.UID]; ok && w.from == s.ResourceVersion {
			pending[s.UID], out[i] = w, w.after
		}
	}
	b.written = pending
	return out
}

// assignment is a Service whose address in status shall be another, or none.
type assignment struct {
	service *v1.Service
	addr    netip.Addr
}

// assign says which addresses have to be given or taken back. What a Service has it keeps, unless it asks for another; an address that is asked for and taken, or outside of
// the range, is not given, and the Service waits without one.
func assign(services []*v1.Service, within netip.Prefix) []assignment {
	used := map[netip.Addr]bool{}
	var wanting []*v1.Service
	var out []assignment
	for _, s := range services {
		held := holds(s)
		switch {
		case !balanced(s):
			if held.IsValid() {
				out = append(out, assignment{service: s})
			}
		case held.IsValid() && within.Contains(held) && !used[held] && (asks(s) == netip.Addr{} || asks(s) == held):
			used[held] = true
		default:
			wanting = append(wanting, s)
		}
		for _, text := range s.Spec.ExternalIPs {
			if a, err := netip.ParseAddr(text); err == nil {
				used[a] = true
			}
		}
	}
	for _, s := range wanting {
		addr := choose(s, within, used)
		used[addr] = addr.IsValid()
		if addr != holds(s) {
			out = append(out, assignment{s, addr})
		}
	}
	return out
}

// balanced says whether the Service is this balancer's business.
func balanced(s *v1.Service) bool {
	return s.Spec.Type == v1.ServiceTypeLoadBalancer && s.Spec.LoadBalancerClass == nil && s.DeletionTimestamp == nil
}

func holds(s *v1.Service) netip.Addr {
	if s.Spec.LoadBalancerClass != nil || len(s.Status.LoadBalancer.Ingress) == 0 {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(s.Status.LoadBalancer.Ingress[0].IP) // a host name is none of ours
	return a
}

func asks(s *v1.Service) netip.Addr {
	a, _ := netip.ParseAddr(s.Spec.LoadBalancerIP) // empty asks for any
	return a
}

func choose(s *v1.Service, within netip.Prefix, used map[netip.Addr]bool) netip.Addr {
	if s.Spec.LoadBalancerIP != "" {
		if a := asks(s); within.Contains(a) && !used[a] {
			return a
		}
		return netip.Addr{}
	}
	for a := within.Masked().Addr().Next(); within.Contains(a); a = a.Next() {
		if !used[a] {
			return a
		}
	}
	return netip.Addr{}
}
