package assemble

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// outcome is what came of one parentRef.
type outcome struct {
	parent  record.Parent
	reason  gatewayv1.RouteConditionReason
	message string
	taken   []*listener // that it attaches to, served or not
}

// binding says that a listener serves a route for a domain.
type binding struct {
	config   *config // nil: it forwards streams
	listener *listener
	domain   string
	original string // most specific hostname of the route that gave the domain
}

// attachment is what one version of a route means to one Gateway.
type attachment struct {
	gateway  *gateway
	outcomes []outcome
	attached []int // listeners that count the route, by index: some parentRef of it is accepted there
	bindings []binding
}

// attach decides to which listeners of a Gateway a route attaches, for each of its parentRefs. It is pure; space gives the labels of the route's namespace.
// A route that fits but is refused for what is in it is bound all the same: what is compiled of it answers 500 (D16), where leaving it out would
// hand its requests to whatever else matches.
func attach(k record.Key, r *record.Route, g *gateway, space map[string]string) *attachment {
	a := &attachment{gateway: g}
	refused := refusal(r)
	bound, counted := map[int]bool{}, map[int]bool{}
	for _, p := range append(slices.Clip(r.Parents), g.byDefault(r)...) {
		set, named := g.owner(k.Cluster, p)
		if !named {
			continue
		}
		taken, reason, message := matchParent(k, r, p, set, g, space)
		if reason == gatewayv1.RouteReasonAccepted && refused != nil {
			reason, message = gatewayv1.RouteConditionReason(refused.Reason), refused.Message
		}
		a.outcomes = append(a.outcomes, outcome{p, reason, message, taken})
		for _, l := range taken {
			bound[l.index] = true
			counted[l.index] = counted[l.index] || refused == nil
		}
	}
	for i, l := range g.listeners {
		if counted[i] {
			a.attached = append(a.attached, i)
		}
		if bound[i] {
			a.bind(r, l)
		}
	}
	return a
}

// bindingsOf are those that a parentRef brought.
func (a *attachment) bindingsOf(o outcome) []binding {
	return filter(a.bindings, func(b binding) bool { return slices.Contains(o.taken, b.listener) })
}

// matchParent narrows the listeners of a Gateway (set nil) or of its ListenerSet down to those that a parentRef attaches to, or gives the reason of the
// step that left none.
func matchParent(k record.Key, r *record.Route, p record.Parent, set *listenerSet, g *gateway, space map[string]string) ([]*listener, gatewayv1.RouteConditionReason, string) {
	if set != nil && set.refused != nil {
		return nil, gatewayv1.RouteReasonNoMatchingParent, fmt.Sprintf("ListenerSet %s/%s: %s", p.Namespace, p.Name, set.refused.Message)
	}
	named := filter(g.listeners, func(l *listener) bool {
		return l.set == set && (p.SectionName == "" || p.SectionName == l.Name) && (p.Port == 0 || p.Port == l.Port)
	})
	if len(named) == 0 {
		return nil, gatewayv1.RouteReasonNoMatchingParent, fmt.Sprintf("%s %s/%s has no listener with this sectionName and port; correct the parentRef", p.Kind, p.Namespace, p.Name)
	}
	allowed := filter(named, func(l *listener) bool { return allows(l, p.Namespace, r.Object.Kind, k.Namespace, space) })
	if len(allowed) == 0 {
		return nil, gatewayv1.RouteReasonNotAllowedByListeners, fmt.Sprintf("no listener allows a %s from namespace %s; ask the owner of %s %s/%s to widen allowedRoutes", r.Object.Kind, k.Namespace, p.Kind, p.Namespace, p.Name)
	}
	matching := filter(allowed, func(l *listener) bool { return len(domains(l, r)) > 0 })
	if len(matching) == 0 {
		return nil, gatewayv1.RouteReasonNoMatchingListenerHostname, fmt.Sprintf("no hostname of the route matches one of a listener of %s %s/%s; change hostnames here or the hostname there", p.Kind, p.Namespace, p.Name)
	}
	return matching, gatewayv1.RouteReasonAccepted, acceptedMessage(matching)
}

// acceptedMessage tells where an accepted route is not served because its listeners are not. Why they are not may change without an attachment
// being redone, so it is left to their own conditions.
func acceptedMessage(listeners []*listener) string {
	for _, l := range listeners {
		if l.served() {
			return "the route is attached"
		}
	}
	return fmt.Sprintf("the route is attached, but listener %q is not served; see the conditions of that listener", listeners[0].Name)
}

// allows tells whether a listener's allowedRoutes take a route; own is the namespace of the listener's Gateway or ListenerSet.
func allows(l *listener, own, kind, namespace string, space map[string]string) bool {
	if !slices.Contains(l.Kinds, kind) {
		return false
	}
	switch gatewayv1.FromNamespaces(l.Allowed.From) {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame, "":
		return namespace == own
	case gatewayv1.NamespacesFromSelector:
		return l.selector != nil && space != nil && l.selector.Matches(labels.Set(space))
	}
	return false
}

// pair is a hostname that listener and route share, with the route's own that gave it.
type pair struct{ host, original string }

// domains intersects the hostnames of a route with a listener's, each result once with the most specific original, sorted.
func domains(l *listener, r *record.Route) []pair {
	if len(r.Hostnames) == 0 {
		return []pair{{l.hostname, ""}}
	}
	var out []pair
	for _, h := range r.Hostnames {
		h = anyHost(h)
		if host, ok := intersect(l.hostname, h); ok {
			out = append(out, pair{host, h})
		}
	}
	slices.SortFunc(out, func(a, b pair) int {
		return cmp.Or(cmp.Compare(a.host, b.host), compareSpecificity(a.original, b.original), cmp.Compare(a.original, b.original))
	})
	return slices.CompactFunc(out, func(a, b pair) bool { return a.host == b.host })
}

// bind notes for which domains a listener serves the route: those that no more specific listener takes.
func (a *attachment) bind(r *record.Route, l *listener) {
	if !l.served() {
		return
	}
	for _, p := range domains(l, r) {
		if !ownedByOther(a.gateway.listeners, l, p.host) {
			a.bindings = append(a.bindings, binding{l.config, l, domain(p.host), p.original})
		}
	}
}

func filter[T any](in []T, keep func(T) bool) []T {
	var out []T
	for _, v := range in {
		if keep(v) {
			out = append(out, v)
		}
	}
	return out
}
