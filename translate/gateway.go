package translate

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// supportedKinds is what a protocol can carry; a protocol that is missing here is not supported.
var supportedKinds = map[gatewayv1.ProtocolType][]string{
	gatewayv1.HTTPProtocolType:  {"HTTPRoute", "GRPCRoute"},
	gatewayv1.HTTPSProtocolType: {"HTTPRoute", "GRPCRoute"},
	gatewayv1.TLSProtocolType:   {"TLSRoute"},
	gatewayv1.TCPProtocolType:   {"TCPRoute"},
	gatewayv1.UDPProtocolType:   {"UDPRoute"},
}

// compileGateway makes the record of a Gateway, unless its class is another controller's. A Gateway of a class that does not exist has a record
// that says so, and references nothing: nobody seals secrets for it.
func compileGateway(v *view, k record.Key) compiled {
	f := fact[gatewayFact](v, "Gateway", k.Namespace, k.Name)
	class := string(f.spec.GatewayClassName)
	controller := v.controller(class)
	if controller != "" && !v.ours(controller) {
		return compiled{}
	}
	out := record.Gateway{Object: f.object, Class: class}
	out.Infrastructure, out.Problems = compileInfrastructure(v, f)
	out.Listeners = compileListeners(v, f.object, f)
	compileGatewayTLS(v, f, &out)
	scope, err := scopeOf("defaultScope", f.spec.DefaultScope)
	if err != nil {
		out.Problems = append(out.Problems, accepted("Invalid", err.Error()))
	}
	out.Scope = scope
	if allowed := f.spec.AllowedListeners; allowed != nil && allowed.Namespaces != nil {
		var problems []record.Problem
		var from record.Allowed
		from, problems = allowedNamespaces("allowedListeners", value(allowed.Namespaces.From), allowed.Namespaces.Selector)
		out.AllowedListeners = &from
		out.Problems = append(out.Problems, problems...)
	}
	if controller == "" {
		out.Problems = append(out.Problems, accepted("Pending", fmt.Sprintf("there is no GatewayClass %q: create it, or name another in spec.gatewayClassName", class)))
		return compiled{value: out}
	}
	out.Tracing = compileTracing(v, f.object)
	return compiled{value: out, refs: refsOfGateway(out)}
}

// refsOfGateway are the records that a Gateway's record needs.
func refsOfGateway(g record.Gateway) []record.Key {
	out := refsOfListeners(g.Listeners)
	if g.ClientKey != nil {
		out = append(out, *g.ClientKey)
	}
	if g.Tracing != nil {
		out = append(out, withEndpoints(g.Tracing.Collector)...)
	}
	if g.Frontend == nil {
		return out
	}
	for _, p := range append([]record.PortValidation{{Clients: g.Frontend.Default}}, g.Frontend.PerPort...) {
		if p.Clients != nil {
			out = append(out, p.Clients.Trust...)
		}
	}
	return out
}

func refsOfListeners(listeners []record.Listener) []record.Key {
	var out []record.Key
	for _, l := range listeners {
		out = append(out, l.SecretKeys...)
		if l.Filters != nil {
			for _, f := range l.Filters.Run {
				out = append(out, withEndpoints(f.Backend)...)
			}
		}
	}
	return out
}

// compileListenerSet makes the record of a ListenerSet, unless its Gateway is another controller's. One whose Gateway or class does not exist
// references nothing.
func compileListenerSet(v *view, k record.Key) compiled {
	f := fact[listenerSetFact](v, "ListenerSet", k.Namespace, k.Name)
	parent := parentGateway(f)
	out := record.ListenerSet{Object: f.object, Created: f.created, Parent: parent}
	class := v.class(parent.Namespace, parent.Name)
	if parent.Group != gatewayv1.GroupName || parent.Kind != "Gateway" {
		return compiled{}
	}
	controller := v.controller(class)
	if controller != "" && !v.ours(controller) {
		return compiled{}
	}
	out.Listeners = compileListeners(v, f.object, f)
	if controller == "" {
		return compiled{value: out}
	}
	return compiled{value: out, refs: refsOfListeners(out.Listeners)}
}

func parentGateway(f *listenerSetFact) record.Parent {
	ref := f.spec.ParentRef
	out := record.Parent{Group: gatewayv1.GroupName, Kind: "Gateway", Namespace: f.object.Namespace, Name: string(ref.Name)}
	if ref.Group != nil {
		out.Group = string(*ref.Group)
	}
	if ref.Kind != nil {
		out.Kind = string(*ref.Kind)
	}
	if ref.Namespace != nil {
		out.Namespace = string(*ref.Namespace)
	}
	return out
}

// compileListeners compiles the listeners of a Gateway or a ListenerSet.
func compileListeners(v *view, owner record.Object, f any) []record.Listener {
	var out []record.Listener
	names := map[gatewayv1.SectionName]bool{}
	for _, l := range listenersIn(f) {
		made := compileListener(v, owner, &l)
		if names[l.Name] {
			made.Problems = append(made.Problems, accepted("UnsupportedValue", "another listener has this name already: rename one"))
		}
		names[l.Name] = true
		out = append(out, made)
	}
	return out
}

func accepted(reason, message string) record.Problem {
	return record.Problem{Condition: "Accepted", Reason: reason, Message: message, Rule: -1}
}

func unresolved(reason, message string) record.Problem {
	return record.Problem{Condition: "ResolvedRefs", Reason: reason, Message: message, Rule: -1}
}

func compileListener(v *view, owner record.Object, l *gatewayv1.Listener) record.Listener {
	out := record.Listener{Name: string(l.Name), Port: int32(l.Port), Protocol: string(l.Protocol)}
	if l.Hostname != nil && *l.Hostname != "" {
		hosts, problems := hostnames([]gatewayv1.Hostname{*l.Hostname})
		out.Hostname = strings.Join(hosts, "")
		out.Problems = append(out.Problems, problems...)
	}
	supported, ok := supportedKinds[l.Protocol]
	if !ok {
		out.Problems = append(out.Problems, accepted("UnsupportedProtocol", fmt.Sprintf("protocol %s is not supported: use HTTP, HTTPS, TLS, TCP or UDP", l.Protocol)))
	}
	compileFilters(v, owner, l, &out)
	var problems []record.Problem
	out.Kinds, problems = routeKinds(l.AllowedRoutes, supported)
	out.Problems = append(out.Problems, problems...)
	out.Allowed, problems = allowedRoutes(l.AllowedRoutes)
	out.Problems = append(out.Problems, problems...)
	switch {
	case l.Protocol == gatewayv1.TLSProtocolType && l.TLS != nil && value(l.TLS.Mode) == gatewayv1.TLSModePassthrough:
		out.Passthrough = true
	case l.Protocol == gatewayv1.HTTPSProtocolType || l.Protocol == gatewayv1.TLSProtocolType:
		compileTLS(v, owner, l, &out)
	}
	return out
}

// routeKinds intersects the allowed kinds with those that the protocol supports.
func routeKinds(allowed *gatewayv1.AllowedRoutes, supported []string) (kinds []string, problems []record.Problem) {
	if allowed == nil || len(allowed.Kinds) == 0 {
		return supported, nil
	}
	for _, k := range allowed.Kinds {
		kind := string(k.Kind)
		switch {
		case (k.Group != nil && *k.Group != gatewayv1.GroupName) || !slices.Contains(supported, kind):
			problems = append(problems, unresolved("InvalidRouteKinds", fmt.Sprintf("route kind %s is not supported by this listener: allow one of [%s]", kind, strings.Join(supported, " "))))
		case !slices.Contains(kinds, kind):
			kinds = append(kinds, kind)
		}
	}
	return kinds, problems
}

func allowedRoutes(allowed *gatewayv1.AllowedRoutes) (record.Allowed, []record.Problem) {
	if allowed == nil || allowed.Namespaces == nil || allowed.Namespaces.From == nil {
		return record.Allowed{From: string(gatewayv1.NamespacesFromSame)}, nil
	}
	return allowedNamespaces("allowedRoutes", *allowed.Namespaces.From, allowed.Namespaces.Selector)
}

// allowedNamespaces puts an empty selector, which selects everything, as All.
func allowedNamespaces(field string, from gatewayv1.FromNamespaces, labels *metav1.LabelSelector) (record.Allowed, []record.Problem) {
	if from != gatewayv1.NamespacesFromSelector {
		return record.Allowed{From: string(from)}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(labels)
	switch {
	case err != nil:
		return record.Allowed{From: string(gatewayv1.NamespacesFromNone)},
			[]record.Problem{accepted("UnsupportedValue", fmt.Sprintf("%s.namespaces.selector is not valid (%v): correct it", field, err))}
	case labels != nil && selector.Empty():
		return record.Allowed{From: string(gatewayv1.NamespacesFromAll)}, nil
	case labels == nil:
		return record.Allowed{From: string(from)}, nil
	}
	return record.Allowed{From: string(from), Selector: selector.String()}, nil
}

// compileTLS resolves the certificates of a listener that terminates TLS. Whether a secret is there and well formed is its own record's matter.
func compileTLS(v *view, owner record.Object, l *gatewayv1.Listener, out *record.Listener) {
	if l.TLS == nil || len(l.TLS.CertificateRefs) == 0 {
		out.Problems = append(out.Problems, unresolved("InvalidCertificateRef", "a listener that terminates TLS needs a certificate: name a Secret in tls.certificateRefs"))
		return
	}
	if l.TLS.Mode != nil && *l.TLS.Mode != gatewayv1.TLSModeTerminate {
		out.Problems = append(out.Problems, accepted("UnsupportedValue", fmt.Sprintf("tls.mode %s is not supported for %s: use Terminate", *l.TLS.Mode, l.Protocol)))
		return
	}
	if len(l.TLS.Options) > 0 {
		out.Problems = append(out.Problems, accepted("UnsupportedValue", "tls.options are not supported, and nothing is served without them: remove them"))
	}
	for _, ref := range l.TLS.CertificateRefs {
		key, problem := resolveCertificate(v, owner, ref)
		if problem != nil {
			out.Problems = append(out.Problems, *problem)
			continue
		}
		out.Secrets = append(out.Secrets, secretName(key))
		out.SecretKeys = append(out.SecretKeys, key)
	}
}

func resolveCertificate(v *view, owner record.Object, ref gatewayv1.SecretObjectReference) (record.Key, *record.Problem) {
	if (ref.Group != nil && *ref.Group != "") || (ref.Kind != nil && *ref.Kind != "Secret") {
		p := unresolved("InvalidCertificateRef", fmt.Sprintf("%s is no core Secret: name a Secret of type kubernetes.io/tls", ref.Name))
		return record.Key{}, &p
	}
	target := owner.Namespace
	if ref.Namespace != nil {
		target = string(*ref.Namespace)
	}
	if !v.granted(owner.Kind, owner.Namespace, "Secret", target, string(ref.Name)) {
		p := unresolved("RefNotPermitted", fmt.Sprintf("no ReferenceGrant in namespace %s allows %ss of %s to use Secret %s: create one", target, owner.Kind, owner.Namespace, ref.Name))
		return record.Key{}, &p
	}
	return v.key(record.KindSecret, target, string(ref.Name)), nil
}
