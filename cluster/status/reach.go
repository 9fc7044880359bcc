package status

import (
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
)

// Reach is at what a Gateway is reached.
type Reach struct {
	Addresses   []string // as the fleet is reached where nothing else is asked for
	ClusterIPs  []string // those that are asked for, and those among Addresses
	Refused     []string // asked-for addresses that the cluster refused, with its reason
	Provisioned bool     // we run its fleet: it has to have an address
	Problem     string   // why the fleet is not as it should be, "" = it is
}

const cluster = string(gatewayv1.GatewayAddressRoutabilityCluster)

// assignment is what a Gateway has of the addresses that it asks for.
type assignment struct {
	addresses []gatewayv1.GatewayStatusAddress
	missing   []record.Address
	asked     bool
}

// maxAddresses is the API's own limit, beyond which a status is not taken at all: a fleet may be on more nodes than that.
const maxAddresses = 16

// assign gives each address that a Gateway asks for one of those that there are, and where it asks for none all that there are (GEP-5093). Without the field routability, so in the
// standard channel, one without a value asks for nothing.
func (r Reach) assign(s assemble.GatewayStatus) assignment {
	requested := s.Requested
	if !s.Routability {
		requested = slices.DeleteFunc(slices.Clone(requested), func(a record.Address) bool { return a.Value == "" && a.Routability == "" })
	}
	out := assignment{asked: len(requested) > 0}
	if !out.asked {
		for _, a := range r.Addresses[:min(len(r.Addresses), maxAddresses)] {
			out.addresses = append(out.addresses, r.told(record.Address{}, a, s.Routability))
		}
		return out
	}
	given := r.match(requested)
	for i, a := range requested {
		if given[i] == "" {
			out.missing = append(out.missing, a)
		} else {
			out.addresses = append(out.addresses, r.told(a, given[i], s.Routability))
		}
	}
	return out
}

// match gives each address that is asked for another one that there is, "" = none. Those with a value come first, since nothing else satisfies them; then those that want a ClusterIP, the
// last choice for which is one that others would take.
func (r Reach) match(requested []record.Address) []string {
	given := make([]string, len(requested))
	inside := slices.Clone(r.ClusterIPs)
	slices.SortStableFunc(inside, func(a, b string) int { return order(slices.Contains(r.Addresses, a), slices.Contains(r.Addresses, b)) })
	for _, turn := range []func(record.Address) bool{
		func(a record.Address) bool { return a.Value != "" },
		func(a record.Address) bool { return a.Value == "" && a.Routability == cluster },
		func(a record.Address) bool { return a.Value == "" && a.Routability != cluster },
	} {
		for i, a := range requested {
			pool := r.Addresses
			if a.Routability == cluster {
				pool = inside
			}
			fits := func(have string) bool { return !slices.Contains(given, have) && satisfies(have, a) }
			if j := slices.IndexFunc(pool, fits); turn(a) && j >= 0 {
				given[i] = pool[j]
			}
		}
	}
	return given
}

func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// satisfies tells whether an address is of the type and the value that are asked for.
func satisfies(have string, asked record.Address) bool {
	if asked.Refused != "" || asked.Type != string(typeOf(have)) {
		return false
	}
	return asked.Value == "" || asked.Value == have || sameIP(asked.Value, have)
}

func sameIP(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	return errX == nil && errY == nil && x == y
}

func typeOf(address string) gatewayv1.AddressType {
	if _, err := netip.ParseAddr(address); err != nil {
		return gatewayv1.HostnameAddressType
	}
	return gatewayv1.IPAddressType
}

// told is an address as the status has it. A ClusterIP is told as such, whoever has it; where the field is told at all, it is told of every address, if only as empty.
func (r Reach) told(asked record.Address, have string, routability bool) gatewayv1.GatewayStatusAddress {
	out := gatewayv1.GatewayStatusAddress{Type: new(typeOf(have)), Value: have}
	if asked.Value != "" {
		out.Value = asked.Value // the same, as its author writes it
	}
	if routability {
		out.Routability = new(gatewayv1.GatewayAddressRoutabilityType(asked.Routability))
		if asked.Routability == "" && slices.Contains(r.ClusterIPs, have) {
			*out.Routability = gatewayv1.GatewayAddressRoutabilityCluster
		}
	}
	return out
}

// obstacle says what keeps a Gateway from being reached, "" = nothing. A Gateway that has some of its addresses is reached at those, and AddressesAssigned tells of the others; but of a
// value that could not be had the conformance suite wants to hear here too.
func (r Reach) obstacle(a assignment, routability bool) (reason, message string) {
	lacksValue := slices.ContainsFunc(a.missing, func(m record.Address) bool { return m.Value != "" && m.Routability == "" })
	switch {
	case r.Problem != "":
		return string(gatewayv1.GatewayReasonNoResources), r.Problem
	case len(a.missing) > 0 && len(a.addresses) == 0 && routability:
		return string(gatewayv1.GatewayReasonAddressNotAssigned), r.lacks(a)
	case len(a.missing) > 0 && (lacksValue || !routability):
		return string(gatewayv1.GatewayReasonAddressNotUsable), r.lacks(a)
	case r.Provisioned && !a.asked && len(a.addresses) == 0:
		return string(gatewayv1.GatewayReasonAddressNotAssigned), "the Service of this Gateway has no address yet: look at its events, or choose another service type with an EnvoyFleet"
	}
	return "", ""
}

// lacks names what is asked for and not there, with the reasons that are known.
func (r Reach) lacks(a assignment) string {
	var names []string
	for _, m := range a.missing {
		name := m.Type + " " + m.Value
		if m.Value == "" {
			name = "any " + m.Type
		}
		if m.Routability != "" {
			name += " with routability " + m.Routability
		}
		if m.Refused != "" {
			name += " (" + m.Refused + ")"
		}
		names = append(names, name)
	}
	text := "not assigned: " + strings.Join(names, ", ")
	if len(r.Refused) > 0 {
		text += "; refused by the cluster: " + strings.Join(r.Refused, "; ")
	}
	if len(r.Addresses) > 0 {
		text += "; there is " + strings.Join(r.Addresses, ", ")
	}
	return text + ": change spec.addresses to what can be had here, or remove it"
}

// assigned is the condition AddressesAssigned (GEP-5093), none before there is something to tell: a load balancer, or the Service itself, may still be on its way. Its reasons are the
// constants of the module: the GEP's text calls the first one Assigned.
func (r Reach) assigned(a assignment, generation int64, present []metav1.Condition) []metav1.Condition {
	hopeless := len(r.Addresses) > 0 || len(r.Refused) > 0 || slices.ContainsFunc(a.missing, func(m record.Address) bool { return m.Value != "" || m.Refused != "" })
	told := slices.ContainsFunc(present, func(c metav1.Condition) bool {
		return c.Type == string(gatewayv1.GatewayConditionAddressesAssigned)
	})
	if len(a.addresses) == 0 && !told && !hopeless || !r.Provisioned && len(r.Addresses) == 0 {
		return nil
	}
	c := metav1.Condition{Type: string(gatewayv1.GatewayConditionAddressesAssigned), Status: metav1.ConditionFalse, ObservedGeneration: generation}
	switch {
	case len(a.addresses) == 0:
		c.Reason, c.Message = string(gatewayv1.GatewayReasonAddressesNotAssigned), "there is no address yet"
	case len(a.missing) > 0:
		c.Reason = string(gatewayv1.GatewayReasonAddressesPartiallyAssigned)
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, string(gatewayv1.GatewayReasonAddressesAssigned), "all addresses are assigned"
	}
	if len(a.missing) > 0 {
		c.Message = r.lacks(a)
	}
	return []metav1.Condition{c}
}
