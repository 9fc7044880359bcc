package translate

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// fleetFact is an EnvoyFleet.
type fleetFact struct{ spec v1alpha1.EnvoyFleetSpec }

// parametersRef names an EnvoyFleet, or something that is none.
type parametersRef struct{ group, kind, namespace, name string }

func classParameters(c *gatewayv1.GatewayClass) *parametersRef {
	p := c.Spec.ParametersRef
	if p == nil {
		return nil
	}
	return &parametersRef{string(p.Group), string(p.Kind), string(value(p.Namespace)), p.Name}
}

func gatewayParameters(g *gatewayFact) *parametersRef {
	if g.spec.Infrastructure == nil || g.spec.Infrastructure.ParametersRef == nil {
		return nil
	}
	p := g.spec.Infrastructure.ParametersRef
	return &parametersRef{string(p.Group), string(p.Kind), g.object.Namespace, p.Name}
}

// parameters reads the EnvoyFleet that a reference names; nothing is asked for where there is no reference. The error ends with what to do.
func (v *view) parameters(ref *parametersRef) (v1alpha1.EnvoyFleetSpec, error) {
	if ref == nil {
		return v1alpha1.EnvoyFleetSpec{}, nil
	}
	if ref.group != v1alpha1.Group || ref.kind != v1alpha1.Kind {
		return v1alpha1.EnvoyFleetSpec{}, fmt.Errorf("parametersRef names a %s of group %q: name an %s of group %s", ref.kind, ref.group, v1alpha1.Kind, v1alpha1.Group)
	}
	if ref.namespace == "" {
		return v1alpha1.EnvoyFleetSpec{}, fmt.Errorf("parametersRef names no namespace: name that of the %s %q", v1alpha1.Kind, ref.name)
	}
	f := fact[fleetFact](v, v1alpha1.Kind, ref.namespace, ref.name)
	if f == nil {
		return v1alpha1.EnvoyFleetSpec{}, fmt.Errorf("there is no %s %s/%s: create it, or name another in parametersRef", v1alpha1.Kind, ref.namespace, ref.name)
	}
	if err := f.spec.Validate(); err != nil {
		return v1alpha1.EnvoyFleetSpec{}, fmt.Errorf("%s %s/%s: %w", v1alpha1.Kind, ref.namespace, ref.name, err)
	}
	return f.spec, nil
}

// compileInfrastructure gives what a Gateway asks of its fleet, nil = nothing. Parameters that are wrong are left out, and said: the fleet then stays as it is.
func compileInfrastructure(v *view, g *gatewayFact) (*record.Infrastructure, []record.Problem) {
	out := &record.Infrastructure{}
	problems := askedAddresses(g.spec, out)
	if i := g.spec.Infrastructure; i != nil {
		out.Labels, out.Annotations = plainMap(i.Labels), plainMap(i.Annotations)
	}
	var class *parametersRef
	if c := fact[classFact](v, "GatewayClass", "", string(g.spec.GatewayClassName)); c != nil {
		class = c.parameters
	}
	base, classErr := v.parameters(class)
	over, err := v.parameters(gatewayParameters(g))
	merged := v1alpha1.Merge(base, over)
	if classErr != nil {
		classErr = fmt.Errorf("GatewayClass %s: %w", g.spec.GatewayClassName, classErr)
	}
	if err = errors.Join(classErr, err); err == nil {
		err = errors.Join(merged.Validate(), checkAccessLog(merged.AccessLog))
	}
	text, failed := json.Marshal(merged)
	if err = errors.Join(err, failed); err != nil {
		out.Invalid, problems = true, append(problems, accepted("InvalidParameters", err.Error()))
	} else if string(text) != "{}" {
		out.Parameters, out.AccessLog = string(text), accessLog(merged.AccessLog)
	}
	if reflect.ValueOf(*out).IsZero() {
		return nil, problems
	}
	return out, problems
}

// askedAddresses takes over the addresses that a Gateway asks for. Whether they can be had shows where the fleet runs; what cannot be had anywhere is said here. A routability that
// nobody knows does not keep a Gateway from being accepted, it cannot be satisfied (GEP-5093); a type does.
func askedAddresses(spec *gatewayv1.GatewaySpec, out *record.Infrastructure) []record.Problem {
	var problems []record.Problem
	for _, a := range spec.Addresses {
		kind := gatewayv1.IPAddressType
		if a.Type != nil {
			kind = *a.Type
		}
		refused := refusedRoutability(kind, a)
		if kind != gatewayv1.IPAddressType && kind != gatewayv1.HostnameAddressType {
			refused = fmt.Sprintf("address type %s is not supported: use IPAddress or Hostname, or remove it from spec.addresses", kind)
			problems = append(problems, accepted(string(gatewayv1.GatewayReasonUnsupportedAddress), refused))
		}
		out.Addresses = append(out.Addresses, record.Address{Type: string(kind), Value: a.Value, Routability: string(a.Routability), Refused: refused})
	}
	return problems
}

// sentinel is the routability that is reserved for conformance tests (GEP-5093): to be supported and reported, with no promise of anything.
const sentinel = "testing.x-k8s.io/sentinel"

// refusedRoutability says why no fleet has an address of the routability that is asked for, "" = it may have. What a name leads to inside a cluster is its DNS's to say, so that a
// Hostname cannot promise ClusterIPs.
func refusedRoutability(kind gatewayv1.AddressType, a gatewayv1.GatewaySpecAddress) string {
	switch a.Routability {
	case gatewayv1.GatewayAddressRoutabilityDefault, sentinel:
		return ""
	case gatewayv1.GatewayAddressRoutabilityCluster:
		if kind == gatewayv1.HostnameAddressType {
			return "routability Cluster is of IP addresses: use type IPAddress"
		}
		if _, err := netip.ParseAddr(a.Value); a.Value != "" && err != nil {
			return "this is no IP address: correct it, or leave value out"
		}
		return ""
	}
	return fmt.Sprintf("routability %s is not supported: use Cluster, or leave it out", a.Routability)
}

func plainMap[K, V ~string](in map[K]V) map[string]string {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]string, len(in))
	for k, v := range maps.All(in) {
		out[string(k)] = string(v)
	}
	return out
}

// checkAccessLog refuses what Envoy would refuse, with every listener of the fleet.
func checkAccessLog(l *v1alpha1.AccessLog) error {
	if l == nil {
		return nil
	}
	if err := (envoy.AccessLog{Format: value(l.Format), Fields: l.Fields}).Check(); err != nil {
		return fmt.Errorf("spec.accessLog: %w", err)
	}
	return nil
}

func accessLog(l *v1alpha1.AccessLog) *record.AccessLog {
	if l == nil {
		return nil
	}
	return &record.AccessLog{Type: l.Type, Format: value(l.Format), Fields: l.Fields}
}
