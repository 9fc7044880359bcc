// SPDX-License-Identifier: Apache-2.0

package netplane

import (
	"cmp"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// protocols are the numbers of the protocols that Services have here.
var protocols = map[v1.Protocol]uint8{v1.ProtocolTCP: 6, v1.ProtocolUDP: 17}

// front is what a client connects to.
type front struct {
	addr     netip.Addr
	protocol uint8
	port     uint16
}

// portName names one port of a Service.
type portName struct{ namespace, service, port string }

// table is what the kernel shall do.
type table struct {
	// fronts lead to ports, which have at least one endpoint each, in order.
	fronts map[front]portName
	ports  map[portName]backends
	// virtual are the addresses where what no front takes is refused, beside the ranges.
	virtual map[netip.Addr]bool
}

type backends struct {
	protocol  uint8
	endpoints []netip.AddrPort
}

// compile is the whole table. Of two Services with the same front the older has it.
func compile(s snapshot) table {
	t := table{fronts: map[front]portName{}, ports: map[portName]backends{}, virtual: map[netip.Addr]bool{}}
	bySlice := endpointSlices(s.slices)
	services := slices.Clone(s.services)
	slices.SortFunc(services, func(a, b *v1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, service := range services {
		addresses := addressesOf(service)
		for _, a := range addresses {
			t.virtual[a] = true
		}
		for _, p := range service.Spec.Ports {
			t.add(service, p, addresses, bySlice[[2]string{service.Namespace, service.Name}])
		}
	}
	return t
}

func (t *table) add(service *v1.Service, p v1.ServicePort, addresses []netip.Addr, of []*discoveryv1.EndpointSlice) {
	protocol, ok := protocols[p.Protocol]
	endpoints := endpointsOf(p, of)
	if !ok || len(endpoints) == 0 {
		return
	}
	name := portName{service.Namespace, service.Name, p.Name}
	for _, a := range addresses {
		f := front{a, protocol, uint16(p.Port)}
		if _, taken := t.fronts[f]; !taken {
			t.fronts[f] = name
			t.ports[name] = backends{protocol, endpoints}
		}
	}
}

// addressesOf are all virtual addresses of a Service.
func addressesOf(s *v1.Service) []netip.Addr {
	if s.Spec.Type == v1.ServiceTypeExternalName {
		return nil
	}
	texts := append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ExternalIPs...)
	if s.Spec.Type == v1.ServiceTypeLoadBalancer {
		for _, ingress := range s.Status.LoadBalancer.Ingress {
			if ingress.IPMode == nil || *ingress.IPMode == v1.LoadBalancerIPModeVIP {
				texts = append(texts, ingress.IP)
			}
		}
	}
	var out []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() { // "None", "" and IPv6 are not
			out = append(out, a)
		}
	}
	return out
}

// endpointSlices by namespace and name of their Service.
func endpointSlices(all []*discoveryv1.EndpointSlice) map[[2]string][]*discoveryv1.EndpointSlice {
	out := map[[2]string][]*discoveryv1.EndpointSlice{}
	for _, s := range all {
		if name := s.Labels[discoveryv1.LabelServiceName]; name != "" && s.AddressType == discoveryv1.AddressTypeIPv4 {
			key := [2]string{s.Namespace, name}
			out[key] = append(out[key], s)
		}
	}
	return out
}

// endpointsOf are the ready endpoints of a port, or, where there are none, those that end but still serve. They are in order and without repetition.
func endpointsOf(p v1.ServicePort, of []*discoveryv1.EndpointSlice) []netip.AddrPort {
	var ready, serving []netip.AddrPort
	for _, slice := range of {
		port, ok := slicePort(slice, p)
		if !ok {
			continue
		}
		for _, e := range slice.Endpoints {
			for _, text := range e.Addresses {
				a, err := netip.ParseAddr(text)
				switch {
				case err != nil || !a.Is4():
				case is(e.Conditions.Ready, true):
					ready = append(ready, netip.AddrPortFrom(a, port))
				case is(e.Conditions.Serving, false):
					serving = append(serving, netip.AddrPortFrom(a, port))
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = serving
	}
	slices.SortFunc(ready, netip.AddrPort.Compare)
	return slices.Compact(ready)
}

func slicePort(slice *discoveryv1.EndpointSlice, p v1.ServicePort) (uint16, bool) {
	for _, sp := range slice.Ports {
		name, protocol := "", v1.ProtocolTCP
		if sp.Name != nil {
			name = *sp.Name
		}
		if sp.Protocol != nil {
			protocol = *sp.Protocol
		}
		if name == p.Name && protocol == p.Protocol && sp.Port != nil {
			return uint16(*sp.Port), true
		}
	}
	return 0, false
}

func is(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}
