// Package status composes what is written back to member clusters, and writes it (D8).
//
// Status is a pure function of committed state (translate/assemble) and of what proxies ACKed; the leader alone writes it. A Gateway's Programmed
// follows its own records, never routes; a route has the condition fleetgate.io/Programmed in our parents entries. Entries of other
// controllers are kept as they are.
package status

import (
	"encoding/json"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/assemble"
)

// ConditionRouteProgrammed tells in a route's parents entry whether the proxies of that parent run it.
const ConditionRouteProgrammed = "fleetgate.io/Programmed"

// Convergence is how far a fleet has come with an index.
type Convergence struct {
	Counted  int    // proxies that count
	Acked    int    // of those, that ACKed everything up to the index
	Rejected string // what a proxy said when it refused, "" = nobody refused
}

// Live tells whether every proxy that counts runs it.
func (c Convergence) Live() bool { return c.Counted > 0 && c.Acked >= c.Counted && c.Rejected == "" }

func (c Convergence) condition(kind string, generation int64) metav1.Condition {
	out := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, ObservedGeneration: generation, Reason: "Pending",
		Message: fmt.Sprintf("%d of %d proxies", c.Acked, c.Counted)}
	switch {
	case c.Rejected != "":
		out.Reason, out.Message = "Rejected", c.Rejected
	case c.Counted == 0:
		out.Message = "no proxy of this Gateway has connected yet"
	case c.Live():
		out.Status, out.Reason = metav1.ConditionTrue, "Programmed"
	}
	return out
}

// Gateway composes a Gateway's status from what is committed, at what its fleet is reached, and how far it is.
func Gateway(s assemble.GatewayStatus, r Reach, c Convergence, now metav1.Time, present gatewayv1.GatewayStatus) gatewayv1.GatewayStatus {
	has := r.assign(s)
	out := gatewayv1.GatewayStatus{Addresses: has.addresses}
	programmed := c.condition(string(gatewayv1.GatewayConditionProgrammed), s.Object.Generation)
	reason, message := r.obstacle(has, s.Routability)
	if !s.Valid {
		reason, message = string(gatewayv1.GatewayReasonInvalid), "the Gateway is not accepted, or has no listener that can be served; see its condition Accepted and the listeners' conditions"
	}
	if reason != "" { // decides it before any proxy does
		programmed.Status, programmed.Reason, programmed.Message = metav1.ConditionFalse, reason, message
	}
	conditions := append(slices.Clone(s.Conditions), programmed)
	if s.Routability {
		conditions = append(conditions, r.assigned(has, s.Object.Generation, present.Conditions)...)
	}
	out.Conditions = merge(present.Conditions, conditions, now)
	if s.AttachedListenerSets > 0 {
		out.AttachedListenerSets = &s.AttachedListenerSets
	}
	for _, l := range s.Listeners {
		l.Conditions = merge(listenerConditions(present.Listeners, l.Name), programmedToo(l.Conditions, c, s.Object.Generation), now)
		out.Listeners = append(out.Listeners, l)
	}
	return out
}

// ListenerSet composes a ListenerSet's status; c is how far its Gateway's fleet is.
func ListenerSet(s assemble.ListenerSetStatus, c Convergence, now metav1.Time, present gatewayv1.ListenerSetStatus) gatewayv1.ListenerSetStatus {
	out := gatewayv1.ListenerSetStatus{Conditions: merge(present.Conditions, programmedToo(s.Conditions, c, s.Object.Generation), now)}
	before := make([]gatewayv1.ListenerStatus, len(present.Listeners))
	for i, l := range present.Listeners {
		before[i] = gatewayv1.ListenerStatus(l)
	}
	for _, l := range s.Listeners {
		l.Conditions = merge(listenerConditions(before, l.Name), programmedToo(l.Conditions, c, s.Object.Generation), now)
		out.Listeners = append(out.Listeners, l)
	}
	return out
}

// programmedToo adds whether proxies run it, unless committed state alone says that they do not.
func programmedToo(conditions []metav1.Condition, c Convergence, generation int64) []metav1.Condition {
	kind := string(gatewayv1.ListenerConditionProgrammed)
	if slices.ContainsFunc(conditions, func(c metav1.Condition) bool { return c.Type == kind }) {
		return conditions
	}
	return append(slices.Clone(conditions), c.condition(kind, generation))
}

func listenerConditions(present []gatewayv1.ListenerStatus, name gatewayv1.SectionName) []metav1.Condition {
	for _, l := range present {
		if l.Name == name {
			return l.Conditions
		}
	}
	return nil
}

// maxParents is the API's own limit. Parents that a route names are no more; default Gateways may be (GEP-3793), and come last.
const maxParents = 32

// Route composes a route's status; converge gives how far the fleet of a parent is with this route.
func Route(s assemble.RouteStatus, converge func(fleet string) Convergence, now metav1.Time, present gatewayv1.RouteStatus, ours func(controller gatewayv1.GatewayController) bool) gatewayv1.RouteStatus {
	out := gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{}} // a route without parents has an empty list: API servers refuse null
	foreign := slices.DeleteFunc(slices.Clone(present.Parents), func(p gatewayv1.RouteParentStatus) bool { return ours(p.ControllerName) })
	for _, p := range s.Parents {
		if len(out.Parents)+len(foreign) >= maxParents {
			break
		}
		conditions := append(slices.Clone(p.Conditions), routeProgrammed(s, p, converge)...)
		entry := gatewayv1.RouteParentStatus{ParentRef: p.Ref, ControllerName: gatewayv1.GatewayController(p.Controller)}
		entry.Conditions = merge(parentConditions(present, entry), conditions, now)
		out.Parents = append(out.Parents, entry)
	}
	out.Parents = append(out.Parents, foreign...)
	return out
}

// routeProgrammed is the condition that tells whether the proxies of a parent run the route; none where it is not attached. The API has no word for a route
// that is accepted and yet served nowhere because another was there before it: so its own conditions stay True, as the conformance suite wants them, and this one is False.
func routeProgrammed(s assemble.RouteStatus, p assemble.ParentStatus, converge func(fleet string) Convergence) []metav1.Condition {
	if !p.Attached && p.Overruled == "" {
		return nil
	}
	c := metav1.Condition{Type: ConditionRouteProgrammed, Status: metav1.ConditionFalse, Reason: "Overruled", Message: p.Overruled, ObservedGeneration: s.Object.Generation}
	switch {
	case s.Rejected:
		c.Reason, c.Message = "Rejected", s.Pending
	case s.Pending != "":
		c.Reason, c.Message = "Pending", s.Pending
	case p.Attached:
		c = converge(p.Fleet).condition(c.Type, c.ObservedGeneration)
		if p.Overruled != "" {
			c.Message += "; " + p.Overruled
		}
	}
	return []metav1.Condition{c}
}

// maxAncestors is the API's own limit for a kind.
func maxAncestors(kind string) int {
	if kind == "XBackend" {
		return 32
	}
	return 16
}

// Policy composes the status of a policy, or of an XBackend, which has the same shape: an entry for each Gateway of ours, then those of other controllers, of which none is dropped.
func Policy(s assemble.PolicyStatus, now metav1.Time, present gatewayv1.PolicyStatus, ours func(gatewayv1.GatewayController) bool) gatewayv1.PolicyStatus {
	foreign := slices.DeleteFunc(slices.Clone(present.Ancestors), func(a gatewayv1.PolicyAncestorStatus) bool { return ours(a.ControllerName) })
	out := gatewayv1.PolicyStatus{Ancestors: []gatewayv1.PolicyAncestorStatus{}}
	for _, a := range s.Ancestors {
		if len(out.Ancestors)+len(foreign) >= maxAncestors(s.Object.Kind) {
			break
		}
		group, kind, namespace := gatewayv1.Group(gatewayv1.GroupName), gatewayv1.Kind("Gateway"), gatewayv1.Namespace(a.Gateway.Namespace)
		entry := gatewayv1.PolicyAncestorStatus{
			AncestorRef:    gatewayv1.ParentReference{Group: &group, Kind: &kind, Namespace: &namespace, Name: gatewayv1.ObjectName(a.Gateway.Name)},
			ControllerName: gatewayv1.GatewayController(a.Controller),
		}
		var before []metav1.Condition
		for _, p := range present.Ancestors {
			if p.ControllerName == entry.ControllerName && asJSON(p.AncestorRef) == asJSON(entry.AncestorRef) {
				before = p.Conditions
			}
		}
		want := s.Conditions
		if a.Conditions != nil {
			want = a.Conditions
		}
		entry.Conditions = merge(before, want, now)
		out.Ancestors = append(out.Ancestors, entry)
	}
	out.Ancestors = append(out.Ancestors, foreign...)
	return out
}

func parentConditions(present gatewayv1.RouteStatus, entry gatewayv1.RouteParentStatus) []metav1.Condition {
	want := asJSON(entry.ParentRef)
	for _, p := range present.Parents {
		if p.ControllerName == entry.ControllerName && asJSON(p.ParentRef) == want {
			return p.Conditions
		}
	}
	return nil
}

// merge takes over the time of the last transition where a condition's status is what it was, and keeps conditions of other types that somebody else put there.
func merge(present, want []metav1.Condition, now metav1.Time) []metav1.Condition {
	out := make([]metav1.Condition, 0, len(want))
	for _, c := range want {
		c.LastTransitionTime = now
		for _, p := range present {
			if p.Type == c.Type && p.Status == c.Status {
				c.LastTransitionTime = p.LastTransitionTime
			}
		}
		out = append(out, c)
	}
	for _, p := range present {
		if !slices.ContainsFunc(out, func(c metav1.Condition) bool { return c.Type == p.Type }) && foreign(p.Type) {
			out = append(out, p)
		}
	}
	return out
}

// foreign tells whether a condition type is none that the Gateway API or Fleetgate defines: those belong to others and are kept.
func foreign(kind string) bool {
	switch kind {
	case "Accepted", "SupportedVersion", "Programmed", "ResolvedRefs", "Conflicted", "PartiallyInvalid", "OverlappingTLSConfig", "AddressesAssigned", ConditionRouteProgrammed,
		"InsecureFrontendValidationMode", "DefaultGateway": // these two are taken back, not made False
		return false
	}
	return true
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
