package translate

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// streamSpec is what TLSRoutes, TCPRoutes and UDPRoutes have in common: they forward without looking inside. Where their connections go is
// decided for each listener at assembly, since only one route is served there.
type streamSpec struct {
	hostnames []gatewayv1.Hostname // of a TLSRoute
	parents   []gatewayv1.ParentReference
	backends  [][]gatewayv1.BackendRef // by rule
	names     []*gatewayv1.SectionName // of the rules
	consumer  string
}

func (s *streamSpec) rule(name *gatewayv1.SectionName, backends []gatewayv1.BackendRef) {
	s.names, s.backends = append(s.names, name), append(s.backends, backends)
}

// streamOf gives the common shape of a route of streams, nil where the route is none.
func streamOf(f *routeFact) *streamSpec {
	switch {
	case f.tls != nil:
		out := &streamSpec{hostnames: f.tls.Hostnames, parents: f.tls.ParentRefs, consumer: consumerTCP}
		for _, r := range f.tls.Rules {
			out.rule(r.Name, r.BackendRefs)
		}
		return out
	case f.tcp != nil:
		out := &streamSpec{parents: f.tcp.ParentRefs, consumer: consumerTCP}
		for _, r := range f.tcp.Rules {
			out.rule(r.Name, r.BackendRefs)
		}
		return out
	case f.udp != nil:
		out := &streamSpec{parents: f.udp.ParentRefs, consumer: consumerUDP}
		for _, r := range f.udp.Rules {
			out.rule(r.Name, r.BackendRefs)
		}
		return out
	}
	return nil
}

// compileStream makes the record of a route of streams.
func compileStream(v *view, f *routeFact, spec *streamSpec) compiled {
	out := record.Route{Object: f.object, Created: f.created, Parents: parents(f.object.Namespace, spec.parents)}
	out.Hostnames, out.Problems = hostnames(spec.hostnames)
	scope, problems := f.scope()
	out.Scope, out.Problems = scope, append(out.Problems, problems...)
	for i, refs := range spec.backends {
		if i > 0 {
			p := accepted("UnsupportedValue", "a second rule would never be reached: remove it")
			p.Rule = i
			out.Problems = append(out.Problems, p)
			continue
		}
		rule := record.Rule{Name: string(value(spec.names[i]))}
		for _, ref := range refs {
			share, problem := streamShare(v, f.object, ref, spec.consumer)
			if problem != nil {
				problem.Rule = i
				out.Problems = append(out.Problems, *problem)
			}
			if share.Weight > 0 {
				rule.Stream = append(rule.Stream, share)
			}
		}
		out.Rules = append(out.Rules, rule)
	}
	return compiled{value: out, refs: refsOfRoute(out)}
}

func streamShare(v *view, from record.Object, ref gatewayv1.BackendRef, consumer string) (record.Share, *record.Problem) {
	out := record.Share{Weight: weight(ref.Weight)}
	key, problem := resolveBackend(v, from, ref.BackendObjectReference, consumer)
	if problem == nil {
		out.Backend = &key
	}
	return out, problem
}
