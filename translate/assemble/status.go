package assemble

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// This file is the only place that makes conditions (STYLE 16). LastTransitionTime stays zero: the status writer knows the time.

func condition(kind string, ok bool, reason, message string, generation int64) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: generation}
	if ok {
		c.Status = metav1.ConditionTrue
	}
	return c
}

// classStatus says whether a GatewayClass is accepted.
func classStatus(c *record.Class) ClassStatus {
	kind := string(gatewayv1.GatewayClassConditionStatusAccepted)
	out := ClassStatus{Object: c.Object, Controller: c.ControllerName, Experimental: c.Experimental, TrustBundles: c.TrustBundles}
	reason, message, bad := summary(c.Problems, kind)
	if !bad {
		reason, message = string(gatewayv1.GatewayClassReasonAccepted), "Fleetgate serves Gateways of this class"
	}
	out.Conditions = []metav1.Condition{condition(kind, !bad, reason, message, c.Object.Generation)}
	kind = string(gatewayv1.GatewayClassConditionStatusSupportedVersion)
	reason, message, bad = summary(c.Problems, kind)
	if !bad {
		reason, message = string(gatewayv1.GatewayClassReasonSupportedVersion), "the CRDs of the Gateway API are "+c.Bundle
	}
	if bad || c.Bundle != "" {
		out.Conditions = append(out.Conditions, condition(kind, !bad, reason, message, c.Object.Generation))
	}
	return out
}

// gatewayStatus says how a Gateway and its listeners are.
func gatewayStatus(g *gateway) GatewayStatus {
	out := GatewayStatus{
		Object:    g.record.Object,
		Class:     g.record.Class,
		Index:     g.index,
		Pending:   g.live.pending,
		Requested: g.requested(),
		Listeners: []gatewayv1.ListenerStatus{},

		Routability: g.class.Experimental,
	}
	any := false
	for i, l := range g.listeners {
		if !slices.Contains(out.Ports, l.Port) && l.served() {
			out.Ports = append(out.Ports, l.Port)
		}
		any = any || l.answers()
		if l.set != nil {
			continue
		}
		out.Listeners = append(out.Listeners, listenerStatus(l, g.counts[i], g.record.Object.Generation))
		out.Facts = append(out.Facts, l.facts())
	}
	slices.Sort(out.Ports)
	accepted := gatewayAccepted(g)
	out.Conditions = append([]metav1.Condition{accepted}, others(g.problems, g.record.Object.Generation, accepted.Type)...)
	out.Conditions = append(out.Conditions, clientCertificateResolved(g)...)
	out.Conditions = append(out.Conditions, defaultGateway(g.record)...)
	if insecure(g.record.Frontend) {
		out.Conditions = append(out.Conditions, condition(string(gatewayv1.GatewayConditionInsecureFrontendValidationMode), true, string(gatewayv1.GatewayReasonConfigurationChanged),
			"clients without a valid certificate are let in on some ports", g.record.Object.Generation))
	}
	for _, set := range g.sets {
		if setAccepted(g, set).Status == metav1.ConditionTrue {
			out.AttachedListenerSets++
		}
	}
	out.Valid = any && accepted.Status == metav1.ConditionTrue
	return out
}

// clientCertificateResolved is the condition ResolvedRefs of a Gateway whose certificate towards backends is in order. One that is not is a problem of the Gateway,
// and told by others. The condition speaks of the listeners' references too.
func clientCertificateResolved(g *gateway) []metav1.Condition {
	kind := string(gatewayv1.GatewayConditionResolvedRefs)
	if _, _, bad := summary(g.problems, kind); bad || g.record.ClientKey == nil {
		return nil
	}
	for _, l := range g.of(nil) {
		if _, _, bad := summary(append(slices.Clone(l.problems), l.notes...), kind); bad {
			return []metav1.Condition{condition(kind, false, string(gatewayv1.GatewayReasonListenersNotResolved), fmt.Sprintf("references of listener %q are not resolved; see its conditions", l.Name), g.record.Object.Generation)}
		}
	}
	return []metav1.Condition{condition(kind, true, string(gatewayv1.GatewayReasonResolvedRefs), "all references are resolved", g.record.Object.Generation)}
}

// gatewayAccepted sums up: a problem of the whole Gateway, or listeners that are not accepted. What keeps a Gateway as a whole from being accepted does
// not take its listeners away (D16, open per fleet): a fleet in use is not cut off by a wrong parameter.
func gatewayAccepted(g *gateway) metav1.Condition {
	kind, generation := string(gatewayv1.GatewayConditionAccepted), g.record.Object.Generation
	if reason, message, bad := summary(g.problems, kind); bad {
		return condition(kind, false, reason, message, generation)
	}
	var good, wrong []string
	for _, l := range g.of(nil) {
		if l.accepted() {
			good = append(good, l.Name)
		} else {
			wrong = append(wrong, l.Name)
		}
	}
	switch {
	case len(wrong) == 0 && len(good) > 0:
		return condition(kind, true, string(gatewayv1.GatewayReasonAccepted), "all listeners are valid", generation)
	case len(good) == 0:
		return condition(kind, false, string(gatewayv1.GatewayReasonListenersNotValid), "no listener is valid; see the listeners' conditions", generation)
	}
	return condition(kind, true, string(gatewayv1.GatewayReasonListenersNotValid),
		fmt.Sprintf("accepted without the listeners %s; served are %s; see the listeners' conditions", strings.Join(wrong, ", "), strings.Join(good, ", ")), generation)
}

func insecure(f *record.Frontend) bool {
	if f == nil {
		return false
	}
	return f.Default != nil && f.Default.AllowInsecure ||
		slices.ContainsFunc(f.PerPort, func(p record.PortValidation) bool { return p.Clients != nil && p.Clients.AllowInsecure })
}

// setAccepted sums a ListenerSet up: what its Gateway says of it, and what its listeners say.
func setAccepted(g *gateway, set *listenerSet) metav1.Condition {
	kind, generation := string(gatewayv1.ListenerSetConditionAccepted), set.record.Object.Generation
	if set.refused != nil {
		return condition(kind, false, set.refused.Reason, set.refused.Message, generation)
	}
	if reason, message, bad := summary(set.record.Problems, kind); bad {
		return condition(kind, false, reason, message, generation)
	}
	if parent := gatewayAccepted(g); parent.Status != metav1.ConditionTrue && parent.Reason != string(gatewayv1.GatewayReasonListenersNotValid) {
		return condition(kind, false, string(gatewayv1.ListenerSetReasonParentNotAccepted), "its Gateway is not accepted; see the Gateway's conditions", generation)
	}
	var good, wrong []string
	for _, l := range g.of(set) {
		if l.answers() {
			good = append(good, l.Name)
		} else {
			wrong = append(wrong, l.Name)
		}
	}
	switch {
	case len(good) == 0:
		return condition(kind, false, string(gatewayv1.ListenerSetReasonListenersNotValid), "no listener is valid; see the listeners' conditions", generation)
	case len(wrong) > 0:
		return condition(kind, true, string(gatewayv1.ListenerSetReasonListenersNotValid),
			fmt.Sprintf("accepted without the listeners %s; served are %s; see the listeners' conditions", strings.Join(wrong, ", "), strings.Join(good, ", ")), generation)
	}
	return condition(kind, true, string(gatewayv1.ListenerSetReasonAccepted), "all listeners are valid", generation)
}

// listenerSetStatus says how a ListenerSet and its listeners are.
func listenerSetStatus(g *gateway, set *listenerSet) ListenerSetStatus {
	accepted := setAccepted(g, set)
	out := ListenerSetStatus{
		Object: set.record.Object, Fleet: g.fleet, Gateway: g.key, Index: g.index, Pending: set.live.pending,
		Valid:      accepted.Status == metav1.ConditionTrue,
		Conditions: append([]metav1.Condition{accepted}, others(set.record.Problems, set.record.Object.Generation, accepted.Type)...),
	}
	if !out.Valid {
		out.Conditions = append(out.Conditions, condition(string(gatewayv1.ListenerSetConditionProgrammed), false, accepted.Reason, accepted.Message, set.record.Object.Generation))
	}
	for _, l := range g.of(set) {
		out.Listeners = append(out.Listeners, gatewayv1.ListenerEntryStatus(listenerStatus(l, g.counts[l.index], set.record.Object.Generation)))
		out.Facts = append(out.Facts, l.facts())
	}
	return out
}

func (l *listener) facts() ListenerFacts {
	return ListenerFacts{Port: l.Port, Protocol: l.Protocol, Hostname: l.hostname}
}

func listenerStatus(l *listener, attached int32, generation int64) gatewayv1.ListenerStatus {
	out := gatewayv1.ListenerStatus{Name: gatewayv1.SectionName(l.Name), SupportedKinds: []gatewayv1.RouteGroupKind{}, AttachedRoutes: attached}
	group := gatewayv1.Group(gatewayv1.GroupName)
	for _, k := range l.Kinds {
		out.SupportedKinds = append(out.SupportedKinds, gatewayv1.RouteGroupKind{Group: &group, Kind: gatewayv1.Kind(k)})
	}
	out.Conditions = listenerConditions(l, generation)
	return out
}

func listenerConditions(l *listener, generation int64) []metav1.Condition {
	accepted := condition(string(gatewayv1.ListenerConditionAccepted), true, string(gatewayv1.ListenerReasonAccepted), "the listener is valid", generation)
	conflicted := condition(string(gatewayv1.ListenerConditionConflicted), false, string(gatewayv1.ListenerReasonNoConflicts), "no other listener conflicts", generation)
	resolved := condition(string(gatewayv1.ListenerConditionResolvedRefs), true, string(gatewayv1.ListenerReasonResolvedRefs), "all references are resolved", generation)
	all := append(slices.Clone(l.problems), l.notes...)
	if reason, message, bad := summary(all, accepted.Type); bad {
		accepted = condition(accepted.Type, false, reason, message, generation)
	}
	if c := l.conflict; c != nil {
		accepted = condition(accepted.Type, false, c.Reason, c.Message, generation)
		conflicted = condition(conflicted.Type, true, c.Reason, c.Message, generation)
	}
	if reason, message, bad := summary(all, resolved.Type); bad {
		resolved = condition(resolved.Type, false, reason, message, generation)
	}
	out := []metav1.Condition{accepted, conflicted, resolved}
	if l.overlaps {
		out = append(out, condition(string(gatewayv1.ListenerConditionOverlappingTLSConfig), true, string(gatewayv1.ListenerReasonOverlappingHostnames),
			"the hostname overlaps with another HTTPS listener's of this port; requests for the other's hosts answer 421", generation))
	}
	out = append(out, others(l.problems, generation, accepted.Type, resolved.Type, conflicted.Type)...)
	if l.answers() {
		return out // whether proxies run it is theirs to say
	}
	reason, message := string(gatewayv1.ListenerReasonInvalid), "this listener is not served; see its other conditions"
	if l.conflict != nil {
		reason = l.conflict.Reason
	}
	if l.served() {
		message = "this listener answers 500; see its other conditions"
	}
	return append(out, condition(string(gatewayv1.ListenerConditionProgrammed), false, reason, message, generation))
}

// summary gives the reason of the first problem of a condition and the messages of all.
func summary(problems []record.Problem, kind string) (reason, message string, bad bool) {
	var messages []string
	for _, p := range problems {
		if p.Condition != kind {
			continue
		}
		if reason == "" {
			reason = p.Reason
		}
		m := p.Message
		if prefix := fmt.Sprintf("rule %d: ", p.Rule); p.Rule >= 0 && !strings.HasPrefix(m, prefix) {
			m = prefix + m
		}
		if !slices.Contains(messages, m) {
			messages = append(messages, m)
		}
	}
	return reason, limit(strings.Join(messages, "; ")), len(messages) > 0
}

// maxMessage is the API server's limit for a condition's message in bytes.
const maxMessage = 32768

func limit(message string) string {
	if len(message) <= maxMessage {
		return message
	}
	return strings.ToValidUTF8(message[:maxMessage-3], "") + "..."
}

// others are the conditions that problems make False (or, of PartiallyInvalid, True) and that have no part of their own here.
func others(problems []record.Problem, generation int64, known ...string) []metav1.Condition {
	var out []metav1.Condition
	for _, p := range problems {
		if slices.Contains(known, p.Condition) {
			continue
		}
		known = append(known, p.Condition)
		reason, message, _ := summary(problems, p.Condition)
		bad := p.Condition == string(gatewayv1.RouteConditionPartiallyInvalid)
		out = append(out, condition(p.Condition, bad, reason, message, generation))
	}
	return out
}

// refusal is the problem that keeps a route from being accepted by anybody, nil = none: one of the route as a whole, or one in each of its rules.
func refusal(r *record.Route) *record.Problem {
	kind := string(gatewayv1.RouteConditionAccepted)
	rules := map[int]bool{}
	whole := false
	for _, p := range r.Problems {
		if p.Condition == kind {
			rules[p.Rule] = true
			whole = whole || p.Rule < 0
		}
	}
	if !whole && (len(rules) == 0 || len(rules) < len(r.Rules)) {
		return nil
	}
	reason, message, _ := summary(r.Problems, kind)
	return &record.Problem{Condition: kind, Reason: reason, Message: message, Rule: -1}
}

// partial gives the condition of an accepted route some of whose rules are not valid, if it has such.
func partial(r *record.Route) []metav1.Condition {
	kind := string(gatewayv1.RouteConditionPartiallyInvalid)
	reason, message, bad := summary(r.Problems, kind)
	if !bad {
		reason, message, bad = summary(r.Problems, string(gatewayv1.RouteConditionAccepted))
	}
	if !bad {
		return nil
	}
	if !strings.HasPrefix(message, "Dropped Rule") && !strings.HasPrefix(message, "Fall Back") {
		message = "Dropped Rule: " + message // the API asks for this prefix
	}
	return []metav1.Condition{condition(kind, true, reason, limit(message), r.Object.Generation)}
}

// routeConditions are the conditions of one parentRef.
func routeConditions(r *record.Route, o outcome) []metav1.Condition {
	generation := r.Object.Generation
	accepted := o.reason == gatewayv1.RouteReasonAccepted
	out := []metav1.Condition{condition(string(gatewayv1.RouteConditionAccepted), accepted, string(o.reason), o.message, generation)}
	resolved := condition(string(gatewayv1.RouteConditionResolvedRefs), true, string(gatewayv1.RouteReasonResolvedRefs), "all references are resolved", generation)
	if reason, message, bad := summary(r.Problems, resolved.Type); bad {
		resolved = condition(resolved.Type, false, reason, message, generation)
	}
	out = append(out, resolved)
	if accepted {
		out = append(out, partial(r)...)
	}
	return append(out, others(r.Problems, generation, string(gatewayv1.RouteConditionAccepted), resolved.Type, string(gatewayv1.RouteConditionPartiallyInvalid))...)
}

// reference writes a parentRef as it stands in the spec, where group and kind have their defaults from the CRD: a parents entry belongs to the parentRef
// that it equals (RouteParentStatus.parentRef), and who looks for it compares the namespace too.
func reference(p record.Parent) gatewayv1.ParentReference {
	group, kind := gatewayv1.Group(p.Group), gatewayv1.Kind(p.Kind)
	out := gatewayv1.ParentReference{Group: &group, Kind: &kind, Name: gatewayv1.ObjectName(p.Name)}
	if !p.Local {
		namespace := gatewayv1.Namespace(p.Namespace)
		out.Namespace = &namespace
	}
	if p.SectionName != "" {
		section := gatewayv1.SectionName(p.SectionName)
		out.SectionName = &section
	}
	if p.Port != 0 {
		port := gatewayv1.PortNumber(p.Port)
		out.Port = &port
	}
	return out
}

// parentStatus is the entry of one parentRef. Content that is not live yet is no contender, so nothing is said of who comes before it.
func parentStatus(k record.Key, r *record.Route, o outcome, a *attachment, live bool) ParentStatus {
	out := ParentStatus{Ref: reference(o.parent), Controller: a.gateway.class.ControllerName, Conditions: routeConditions(r, o)}
	bindings := a.bindingsOf(o)
	if len(bindings) == 0 || o.reason != gatewayv1.RouteReasonAccepted {
		return out
	}
	everywhere := false
	if live {
		out.Overruled, everywhere = a.gateway.overruled(k, bindings)
	}
	if !everywhere {
		out.Fleet, out.Attached = a.gateway.fleet, true
	}
	return out
}
