package status

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Reach is at what a Gateway is reached.
type Reach struct {
	Addresses   []string
	Provisioned bool   // we run its fleet: it has to have an address
	Problem     string // why the fleet is not as it should be, "" = it is
}

// addresses are those of the status: of the asked-for ones those that it has, or where none is asked for all.
func (r Reach) addresses(requested []string) []gatewayv1.GatewayStatusAddress {
	var out []gatewayv1.GatewayStatusAddress
	for _, a := range r.Addresses {
		if len(requested) > 0 && !slices.Contains(requested, a) {
			continue
		}
		kind := gatewayv1.IPAddressType
		if _, err := netip.ParseAddr(a); err != nil {
			kind = gatewayv1.HostnameAddressType
		}
		out = append(out, gatewayv1.GatewayStatusAddress{Type: &kind, Value: a})
	}
	return out
}

// obstacle says what keeps a Gateway from being reached, "" = nothing.
func (r Reach) obstacle(requested []string) (reason, message string) {
	var missing []string
	for _, a := range requested {
		if !slices.Contains(r.Addresses, a) {
			missing = append(missing, a)
		}
	}
	switch {
	case r.Problem != "":
		return string(gatewayv1.GatewayReasonNoResources), r.Problem
	case len(missing) > 0 && len(r.Addresses) > 0:
		return string(gatewayv1.GatewayReasonAddressNotUsable), fmt.Sprintf("the address %s cannot be had, but %s can: change spec.addresses, or remove it",
			strings.Join(missing, ", "), strings.Join(r.Addresses, ", "))
	case len(missing) > 0:
		return string(gatewayv1.GatewayReasonAddressNotUsable), fmt.Sprintf("the address %s was not assigned: change spec.addresses to one that can be had here, or remove it", strings.Join(missing, ", "))
	case r.Provisioned && len(r.Addresses) == 0:
		return string(gatewayv1.GatewayReasonAddressNotAssigned), "the Service of this Gateway has no address yet: look at its events, or choose another service type with an EnvoyFleet"
	}
	return "", ""
}
