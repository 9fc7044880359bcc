package fleet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
)

// cluster tells whether a ClusterIP is asked for.
func (a Address) cluster() bool { return a.Refused == "" && a.Routability == "Cluster" }

// open tells whether the address may be one of those that the fleet is reached at anyway. A type that is not supported takes nothing away from a fleet in use.
func (a Address) open() bool {
	return a.Routability == "" || a.Refused == "" && a.Routability != "Cluster"
}

// open tells whether the fleet may be reached as its parameters have it: where every address that is asked for has a routability that those do not have, it must not (GEP-5093).
func (g Gateway) open() bool {
	return len(g.Addresses) == 0 || slices.ContainsFunc(g.Addresses, Address.open)
}

// services are what a Gateway is reached at: one Service with the fleet's name, and one of type ClusterIP for each ClusterIP that is asked for and that the first does not have. An
// address of a Service cannot be changed, and the cluster may refuse it; so one with a value has a Service of its own, which is made, refused and removed without the others.
func services(g Gateway, name string) []*corev1.Service {
	first := service(g, name)
	out := []*corev1.Service{first}
	number := 0 // of those without a value
	if first.Spec.Type == corev1.ServiceTypeClusterIP && g.open() {
		number++ // its ClusterIP is given to one who asks for no routability
	}
	for _, a := range g.Addresses {
		switch {
		case !a.cluster():
		case a.Value != "":
			out = append(out, clusterService(g, name, a.Value, a.Value))
		default:
			if number > 0 {
				out = append(out, clusterService(g, name, fmt.Sprintf("any %d", number), ""))
			}
			number++
		}
	}
	return out
}

// clusterService is there for one ClusterIP, ip "" = any.
func clusterService(g Gateway, name, address, ip string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: g.meta(name)}
	s.Name = shortened(name, name+"/"+address)
	s.Annotations[AnnotationAddress] = address
	s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, Selector: map[string]string{LabelFleet: name}, Ports: servicePorts(g.Ports)}
	return s
}

// service is what the Gateway is reached at. One asked-for IP address is asked of the load balancer, which alone knows whether it can be had; without
// a load balancer, nodes answer at asked-for addresses that the network brings to them.
func service(g Gateway, name string) *corev1.Service {
	p := value(g.Parameters.Service, v1alpha1.Service{})
	s := &corev1.Service{ObjectMeta: g.meta(name)}
	for k, v := range p.Annotations {
		s.Annotations[k] = v
	}
	s.Annotations[AnnotationGateway] = g.Name
	delete(s.Annotations, AnnotationHash)
	delete(s.Annotations, AnnotationAddress)
	s.Spec.Type = value(p.Type, corev1.ServiceTypeLoadBalancer)
	if !g.open() {
		s.Spec.Type = corev1.ServiceTypeClusterIP
	}
	s.Spec.Selector = map[string]string{LabelFleet: name}
	s.Spec.Ports = servicePorts(g.Ports)
	if s.Spec.Type != corev1.ServiceTypeClusterIP {
		s.Spec.ExternalTrafficPolicy = value(p.ExternalTrafficPolicy, "")
	}
	addresses := g.static()
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		s.Spec.LoadBalancerClass = p.LoadBalancerClass
		if len(addresses) > 0 {
			s.Spec.LoadBalancerIP, addresses = addresses[0], addresses[1:] //nolint:staticcheck // deprecated, and the only way that every load balancer knows
		}
	}
	s.Spec.ExternalIPs = addresses
	return s
}

// static are the addresses asked for of load balancer and network: IP addresses, for names are the load balancer's to give.
func (g Gateway) static() []string {
	var out []string
	for _, a := range g.Addresses {
		if _, err := netip.ParseAddr(a.Value); err == nil && a.open() && a.Refused == "" {
			out = append(out, a.Value)
		}
	}
	return out
}

func servicePorts(ports []Port) []corev1.ServicePort {
	sorted := slices.SortedFunc(slices.Values(ports), func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Protocol, b.Protocol))
	})
	var out []corev1.ServicePort
	for _, p := range slices.Compact(sorted) {
		prefix := "tcp"
		if p.Protocol == string(corev1.ProtocolUDP) {
			prefix = "udp"
		}
		out = append(out, corev1.ServicePort{
			Name: fmt.Sprintf("%s-%d", prefix, p.Number), Port: p.Number, Protocol: corev1.Protocol(p.Protocol), TargetPort: intstr.FromInt32(p.Number),
		})
	}
	return out
}
