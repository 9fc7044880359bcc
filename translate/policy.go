package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// A BackendTLSPolicy (GEP-1897) and the Service that it speaks of share a namespace. So whoever compiles the backend reads the policy, and what the policy means is
// in the backend's record; the policy's own record holds what its status says.

// tlsPolicies gives the BackendTLSPolicies of a namespace that name a Service, with the part of it that each means ("" = all), the winner of each part first.
func tlsPolicies(v *view, namespace, service string) (out []policyTarget) {
	for _, p := range set[policyFact](v, input{inputTLS, namespace, ""}) {
		for _, t := range p.spec.TargetRefs {
			if isService(t) && string(t.Name) == service {
				out = append(out, policyTarget{p, string(value(t.SectionName))})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b policyTarget) int {
		return older(a.policy.identity, b.policy.identity)
	})
	return out
}

// older orders policies of a namespace that speak of one thing, the one that counts first (GEP-713): the oldest, then by name.
func older(a, b identity) int {
	return cmp.Or(a.created.Compare(b.created), strings.Compare(a.object.Name, b.object.Name))
}

// ofTargets gives what keeps a policy from some of its targets its condition: where other targets are left, the rest of it is followed.
func ofTargets(lost []record.Problem, targets int) []record.Problem {
	if len(lost) < targets {
		for i := range lost {
			lost[i].Condition = "PartiallyInvalid"
		}
	}
	return lost
}

type policyTarget struct {
	policy  *policyFact
	section string
}

func isService(t gatewayv1.LocalPolicyTargetReferenceWithSectionName) bool {
	return t.Group == "" && t.Kind == "Service"
}

// backendTLS says how to speak TLS with a port of a Service; refused where the policy that counts cannot be followed: nothing goes there in the clear instead.
func backendTLS(v *view, namespace, service string, port servicePort) (_ *record.BackendTLS, refused bool) {
	targets := tlsPolicies(v, namespace, service)
	i := slices.IndexFunc(targets, func(t policyTarget) bool { return t.section != "" && t.section == port.name })
	if i < 0 {
		i = slices.IndexFunc(targets, func(t policyTarget) bool { return t.section == "" })
	}
	if i < 0 {
		return nil, false
	}
	tls, problems := policyTLS(v, targets[i].policy)
	return tls, slices.ContainsFunc(problems, func(p record.Problem) bool { return p.Condition == "Accepted" })
}

// policyTLS reads a policy, with what is wrong with it: a problem of Accepted says that it cannot be followed at all.
func policyTLS(v *view, f *policyFact) (*record.BackendTLS, []record.Problem) {
	out, problems := readValidation(v, f.object.Namespace, &f.spec.Validation)
	if len(f.spec.Options) > 0 {
		problems = append(problems, accepted("Invalid", "options are not supported, and nothing is sent without them: remove them"))
	}
	return out, problems
}

// readValidation reads how the certificate of a backend is validated, by what is in a namespace.
func readValidation(v *view, namespace string, in *gatewayv1.BackendTLSPolicyValidation) (*record.BackendTLS, []record.Problem) {
	out := &record.BackendTLS{ServerName: string(in.Hostname)}
	problems := readTrust(v, namespace, in, out)
	if !preciseHostname(out.ServerName) {
		problems = append(problems, accepted("Invalid", fmt.Sprintf("validation.hostname %q is no DNS name: correct it", in.Hostname)))
	}
	for _, san := range in.SubjectAltNames {
		switch san.Type {
		case gatewayv1.HostnameSubjectAltNameType:
			out.Names = append(out.Names, record.SubjectName{Value: string(san.Hostname)})
		case gatewayv1.URISubjectAltNameType:
			out.Names = append(out.Names, record.SubjectName{URI: true, Value: string(san.URI)})
		default:
			problems = append(problems, accepted("Invalid", fmt.Sprintf("subjectAltNames of type %s are not supported: use Hostname or URI", san.Type)))
		}
	}
	return out, problems
}

func preciseHostname(h string) bool {
	return len(h) <= 253 && hostname.MatchString(h) && !strings.HasPrefix(h, "*")
}

// readTrust reads whom a validation trusts. A reference that cannot be used is left out; where none is left, nothing can be validated.
func readTrust(v *view, namespace string, in *gatewayv1.BackendTLSPolicyValidation, out *record.BackendTLS) (problems []record.Problem) {
	if len(in.CACertificateRefs) == 0 {
		switch known := value(in.WellKnownCACertificates); known {
		case gatewayv1.WellKnownCACertificatesSystem:
			return nil
		case "":
			return []record.Problem{accepted("Invalid", "nobody is trusted: name caCertificateRefs or wellKnownCACertificates")}
		default:
			return []record.Problem{accepted("Invalid", fmt.Sprintf("wellKnownCACertificates %s is not supported: use System or caCertificateRefs", known))}
		}
	}
	for _, ref := range in.CACertificateRefs {
		if bad := v.notOfAuthorities(ref.Group, ref.Kind); bad != "" {
			problems = append(problems, unresolved(string(gatewayv1.BackendTLSPolicyReasonInvalidKind), fmt.Sprintf("caCertificateRef %s %s", ref.Name, bad)))
			continue
		}
		in := namespace
		if ref.Kind == kindTrustBundle {
			in = ""
		}
		bundle, reason := authorities(v, string(ref.Kind), in, string(ref.Name))
		if reason != "" {
			problems = append(problems, unresolved(string(gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef), fmt.Sprintf("%s %s %s", ref.Kind, ref.Name, reason)))
			continue
		}
		out.Trust = append(out.Trust, bundle...)
	}
	if len(out.Trust) == 0 {
		problems = append(problems, accepted(string(gatewayv1.BackendTLSPolicyReasonNoValidCACertificate), "none of the authorities can be used, and nothing is sent without them; see ResolvedRefs"))
	}
	return problems
}

// policyCompilers is the table of what makes the record of which policy.
var policyCompilers = map[string]func(v *view, namespace, name string) record.Policy{
	"BackendTLSPolicy": compileTLSPolicy,
	kindTraffic:        compileTrafficPolicy,
	kindTelemetry:      compileTelemetryPolicy,
	kindXBackend:       compileXBackendPolicy,
}

// compilePolicy makes the record of a policy.
func compilePolicy(v *view, k record.Key) compiled {
	kind, name := splitRoute(k.Name)
	return compiled{value: policyCompilers[kind](v, k.Namespace, name)}
}

// compileTLSPolicy makes the record of a BackendTLSPolicy.
func compileTLSPolicy(v *view, namespace, name string) record.Policy {
	f := fact[policyFact](v, "BackendTLSPolicy", namespace, name)
	out := record.Policy{Object: f.object}
	var lost []record.Problem
	for _, t := range f.spec.TargetRefs {
		if p := f.target(v, namespace, t); p != nil {
			lost = append(lost, *p)
		}
		if isService(t) && !slices.Contains(out.Services, string(t.Name)) {
			out.Services = append(out.Services, string(t.Name))
		}
	}
	_, problems := policyTLS(v, f)
	out.Problems = append(ofTargets(lost, len(f.spec.TargetRefs)), problems...)
	return out
}

// target is why a policy does nothing for one of its targets, nil = it does.
func (f *policyFact) target(v *view, namespace string, t gatewayv1.LocalPolicyTargetReferenceWithSectionName) *record.Problem {
	var p record.Problem
	if !isService(t) {
		p = accepted(string(gatewayv1.PolicyReasonTargetNotFound), fmt.Sprintf("target %s is no core Service: name a Service", t.Name))
		return &p
	}
	service, section := fact[serviceFact](v, "Service", namespace, string(t.Name)), string(value(t.SectionName))
	switch ports := service.named(section); {
	case service != nil && section != "" && len(ports) == 0:
		p = accepted(string(gatewayv1.PolicyReasonTargetNotFound), fmt.Sprintf("Service %s has no port of the name %s: correct sectionName", t.Name, section))
	case len(ports) > 0 && !slices.ContainsFunc(ports, func(p servicePort) bool { return p.protocol != "UDP" }):
		p = accepted(string(gatewayv1.PolicyReasonInvalid), fmt.Sprintf("Service %s has UDP alone there, and TLS is of TCP: name a TCP port", t.Name))
	default:
		winner := tlsWinner(v, namespace, t)
		if winner == f {
			return nil
		}
		p = conflicted(winner.object, t.LocalPolicyTargetReference)
	}
	return &p
}

// named are the ports of a name, all where it is "".
func (f *serviceFact) named(name string) []servicePort {
	if f == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(f.ports), func(p servicePort) bool { return name != "" && p.name != name })
}

func tlsWinner(v *view, namespace string, t gatewayv1.LocalPolicyTargetReferenceWithSectionName) *policyFact {
	for _, other := range tlsPolicies(v, namespace, string(t.Name)) {
		if other.section == string(value(t.SectionName)) {
			return other.policy
		}
	}
	return nil
}

func conflicted(winner record.Object, t gatewayv1.LocalPolicyTargetReference) record.Problem {
	return accepted(string(gatewayv1.PolicyReasonConflicted), fmt.Sprintf("%s %s comes first for %s %s: remove one of the two", winner.Kind, winner.Name, t.Kind, t.Name))
}
