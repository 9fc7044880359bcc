package assemble

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// PolicyStatus is what committed records say of a policy: the same for each of its ancestors that says nothing else.
type PolicyStatus struct {
	Object     record.Object
	Ancestors  []PolicyAncestor // the Gateways of ours that it names, or with routes to what it names, sorted
	Conditions []metav1.Condition
}

// PolicyAncestor is one Gateway.
type PolicyAncestor struct {
	Gateway    record.Key
	Controller string
	Conditions []metav1.Condition // where the policy is overruled there; nil = the policy's
}

// PolicyStatus gives the status of a policy.
func (s *State) PolicyStatus(k record.Key) (PolicyStatus, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p := as[record.Policy](s.entries[k])
	if p == nil {
		return PolicyStatus{}, false
	}
	p = s.withCollector(s.withSecret(p))
	out := PolicyStatus{Object: p.Object, Conditions: policyConditions(p)}
	for _, f := range s.fleets {
		if f.key.Cluster == k.Cluster && (f.gateway.reaches(k.Namespace, p.Services) || f.key.Namespace == k.Namespace && slices.Contains(p.Gateways, f.key.Name)) {
			out.Ancestors = append(out.Ancestors, PolicyAncestor{f.key, f.gateway.class.ControllerName, overruledConditions(p, f.key)})
		}
	}
	slices.SortFunc(out.Ancestors, func(a, b PolicyAncestor) int { return a.Gateway.Compare(b.Gateway) })
	return out, true
}

// overruledConditions are those that a policy has with a Gateway that another comes first for, nil = none does. It is not accepted there at all, whatever becomes of it elsewhere.
func overruledConditions(p *record.Policy, gateway record.Key) []metav1.Condition {
	why, overruled := p.Overruled[gateway.Name]
	if !overruled {
		return nil
	}
	there := *p
	there.Problems = []record.Problem{why}
	for _, q := range p.Problems {
		if q.Reason != why.Reason { // those speak of this Gateway too, or of others
			there.Problems = append(there.Problems, q)
		}
	}
	return policyConditions(&there)
}

// withSecret adds to the problems of an XBackend that of the certificate which it shows, if that has one.
func (s *State) withSecret(p *record.Policy) *record.Policy {
	if p.Secret == nil {
		return p
	}
	secret := as[record.Secret](s.entries[*p.Secret])
	if secret == nil || secret.Problem == nil {
		return p
	}
	out := *p
	out.Problems = append(slices.Clip(out.Problems), record.Problem{Condition: string(gatewayv1.PolicyConditionAccepted), Reason: secret.Problem.Reason, Rule: -1,
		Message: "tls.clientCertificateRef: " + secret.Problem.Message})
	return &out
}

// withCollector adds to the problems of a policy that of the backend which it has spans reported to: what only that one's owner could find.
func (s *State) withCollector(p *record.Policy) *record.Policy {
	if p.Collector == nil {
		return p
	}
	b := as[record.Backend](s.entries[*p.Collector])
	if b == nil || !b.Missing {
		return p
	}
	out := *p
	out.Problems = append(slices.Clip(out.Problems), record.Problem{Condition: string(gatewayxv1alpha1.TelemetryPolicyConditionResolvedRefs), Reason: string(gatewayxv1alpha1.TelemetryPolicyReasonBackendNotFound), Rule: -1,
		Message: "tracing.provider, and nothing is traced: " + whyUnserved(*p.Collector, b)})
	return &out
}

// Policies are the records of all policies, sorted.
func (s *State) Policies() []record.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []record.Key
	for _, all := range s.policies {
		for k := range all {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, record.Key.Compare)
	return out
}

// reaches tells whether routes of a Gateway lead to one of some Services.
func (g *gateway) reaches(namespace string, services []string) bool {
	hit := func(b record.Key) bool {
		service, _, _ := strings.Cut(b.Name, "/")
		return b.Namespace == namespace && slices.Contains(services, service)
	}
	return slices.ContainsFunc(g.reached(), hit)
}

// reached are the backends that routes and filters of a Gateway lead to, and the one that its tracer does.
func (g *gateway) reached() []record.Key {
	var out []record.Key
	if t := g.record.Tracing; t != nil {
		out = append(out, t.Collector)
	}
	for _, l := range g.listeners { // also those whose backends no configuration has a use for: why not is what their policies say
		if l.Filters == nil {
			continue
		}
		for _, f := range l.Filters.Run {
			out = append(out, f.Backend)
		}
	}
	for _, c := range g.configs {
		for b := range c.backends {
			out = append(out, b)
		}
	}
	for _, st := range g.streams {
		for _, r := range st.routes {
			out = append(out, r.backends()...)
		}
	}
	return out
}

// markPolicies notes that who reaches backends may have changed, which the policies of their namespaces say.
func (s *State) markPolicies(backends []record.Key, w *work) {
	for _, b := range backends {
		for p := range s.policies[space{b.Cluster, b.Namespace}] {
			w.status[p] = struct{}{}
		}
	}
}

// secured gives a backend's cluster as a Gateway has it: speaking TLS where the backend's policy says so, with the Gateway's own certificate unless the backend has one.
func (s *State) secured(r Resource, b *record.Backend, g *gateway) (Resource, bool) {
	if b.TLS == nil {
		return r, true
	}
	more, err := envoy.ClusterTLS(upstream(b.TLS, g))
	if err != nil {
		return r, false
	}
	r.Bytes = append(r.Bytes, more)
	r.Version = record.Hash(slices.Concat(r.Bytes...))
	if client := g.shows(b.TLS); client != "" {
		r.Uses = []string{client}
	}
	return r, true
}

// shows is the SDS name of the certificate that a backend sees, "" = none.
func (g *gateway) shows(t *record.BackendTLS) string {
	if t.Own {
		return t.Client
	}
	return g.client
}

func upstream(t *record.BackendTLS, g *gateway) envoy.BackendTLS {
	out := envoy.BackendTLS{ServerName: t.ServerName, Trust: t.Trust, Protocols: t.Protocols, Client: g.shows(t)}
	for _, n := range t.Names {
		out.Names = append(out.Names, envoy.SubjectName(n))
	}
	return out
}

// policyConditions are the conditions of a policy.
func policyConditions(p *record.Policy) []metav1.Condition {
	generation := p.Object.Generation
	message := "the policy is followed"
	if p.Object.Kind == kindXBackend {
		message = "requests are sent to it as it says"
	}
	accepted := condition(string(gatewayv1.PolicyConditionAccepted), true, string(gatewayv1.PolicyReasonAccepted), message, generation)
	resolved := condition(string(gatewayv1.BackendTLSPolicyConditionResolvedRefs), true, string(gatewayv1.BackendTLSPolicyReasonResolvedRefs), "all references are resolved", generation)
	if reason, message, bad := summary(p.Problems, accepted.Type); bad {
		accepted = condition(accepted.Type, false, reason, message, generation)
	}
	if reason, message, bad := summary(p.Problems, resolved.Type); bad {
		resolved = condition(resolved.Type, false, reason, message, generation)
	}
	out := []metav1.Condition{accepted, resolved}
	known := []string{accepted.Type, resolved.Type}
	if p.Object.Kind == "XBackendTrafficPolicy" || p.Object.Kind == kindXBackend { // the API knows no other condition of these
		out, known = out[:1], known[:1]
	}
	return append(out, others(p.Problems, generation, known...)...)
}
