package assemble

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// GatewayStatus gives the status of a Gateway of ours.
func (s *State) GatewayStatus(k record.Key) (GatewayStatus, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := s.fleets[k]
	if f == nil {
		return GatewayStatus{}, false
	}
	return gatewayStatus(f.gateway), true
}

// RouteStatus gives the status of a route, whether or not a Gateway of ours takes it.
func (s *State) RouteStatus(k record.Key) (RouteStatus, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.routes[k]
	if r == nil {
		return RouteStatus{}, false
	}
	out := RouteStatus{Index: r.index, Pending: r.live.pending, Rejected: r.live.rejected}
	newest := r.newest()
	if newest == nil {
		return out, true
	}
	route := newest.value.(*record.Route)
	out.Object, out.Hostnames = route.Object, route.Hostnames
	for _, p := range append(slices.Clip(route.Parents), r.unnamed(route)...) {
		parent, ok := parentKey(k.Cluster, p)
		if !ok {
			continue
		}
		if name := p.Namespace + "/" + p.Name; !s.exists(parent) && !slices.Contains(out.MissingParents, name) {
			out.MissingParents = append(out.MissingParents, name)
		}
		if a, o := r.outcome(p); a != nil && s.fleets[a.gateway.key] != nil {
			out.Parents = append(out.Parents, parentStatus(k, s.withBackends(route, newest, a), o, a, r.live.decoded == newest))
		}
	}
	return out, true
}

// withBackends adds to a route's problems those of its backends that only their owner could find, and those that come of where the route is attached.
func (s *State) withBackends(r *record.Route, d *decoded, a *attachment) *record.Route {
	out := *r
	add := func(p *record.Problem) { out.Problems = append(slices.Clip(out.Problems), *p) }
	for _, k := range d.Refs {
		b := as[record.Backend](s.entries[k])
		if b == nil {
			continue
		}
		if b.Problem != nil {
			add(b.Problem)
		}
		if b.TLS == nil || !b.TLS.Own {
			continue
		}
		if shown := b.ClientKey(); shown != nil {
			if secret := as[record.Secret](s.entries[*shown]); secret != nil && secret.Problem != nil {
				add(secret.Problem)
			}
		}
		if l := a.passes(); l != nil {
			add(&record.Problem{Condition: string(gatewayv1.RouteConditionResolvedRefs), Reason: string(gatewayv1.RouteReasonUnsupportedProtocol), Rule: -1,
				Message: fmt.Sprintf("listener %q passes TLS through, and %s says to speak TLS itself: set its tls.mode to None, or let TLS end at the listener", l.Name, describe(k))})
		}
	}
	return &out
}

// describe names the object that a backend is made of.
func describe(backend record.Key) string {
	kind, name := objectOf(backend)
	return fmt.Sprintf("%s %s/%s", kind, backend.Namespace, name)
}

// objectOf gives kind and name of the object that a backend is made of: a Service, unless the backend's name begins with another kind.
func objectOf(backend record.Key) (kind, name string) {
	object, _, _ := strings.Cut(backend.Name, "/")
	if kind, name, ok := strings.Cut(object, ":"); ok {
		return kind, name
	}
	return "Service", object
}

// passes is a listener where the route is bound that passes TLS through, nil = none.
func (a *attachment) passes() *listener {
	for _, b := range a.bindings {
		if b.config == nil && b.listener.passes() {
			return b.listener
		}
	}
	return nil
}

// unnamed are the parents that a route has by default, those that take it first: a status has room for so many only.
func (r *routeState) unnamed(route *record.Route) []record.Parent {
	var took, refused []record.Parent
	for _, a := range r.shown {
		for _, p := range a.gateway.byDefault(route) {
			if _, o := r.outcome(p); o.reason == gatewayv1.RouteReasonAccepted {
				took = append(took, p)
			} else {
				refused = append(refused, p)
			}
		}
	}
	for _, all := range [][]record.Parent{took, refused} {
		slices.SortFunc(all, func(a, b record.Parent) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
	}
	return append(took, refused...)
}

// outcome finds what came of a parentRef.
func (r *routeState) outcome(parent record.Parent) (*attachment, outcome) {
	for _, a := range r.shown {
		if i := slices.IndexFunc(a.outcomes, func(o outcome) bool { return o.parent == parent }); i >= 0 {
			return a, a.outcomes[i]
		}
	}
	return nil, outcome{}
}

// ListenerSetStatus gives the status of a ListenerSet whose Gateway is ours.
func (s *State) ListenerSetStatus(k record.Key) (ListenerSetStatus, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.entries[k]
	if e == nil || k.Kind != record.KindListenerSet {
		return ListenerSetStatus{}, false
	}
	for _, g := range setParents(e) {
		f := s.fleets[g]
		if f == nil {
			continue
		}
		if set := f.gateway.set(k); set != nil {
			return listenerSetStatus(f.gateway, set), true
		}
	}
	return ListenerSetStatus{}, false
}

// ListenerSets are the records of the ListenerSets whose Gateways are ours, sorted.
func (s *State) ListenerSets() []record.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []record.Key
	for _, f := range s.fleets {
		for _, set := range f.gateway.sets {
			out = append(out, set.key)
		}
	}
	slices.SortFunc(out, record.Key.Compare)
	return out
}

// ClassStatus gives the status of a GatewayClass of ours.
func (s *State) ClassStatus(k record.Key) (ClassStatus, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := as[record.Class](s.entries[k])
	if c == nil || !slices.Contains(s.config.ControllerNames, c.ControllerName) {
		return ClassStatus{}, false
	}
	out := classStatus(c)
	for _, f := range s.fleets {
		out.Used = out.Used || f.key.Cluster == k.Cluster && f.gateway.record.Class == k.Name
	}
	return out, true
}

// Gateways are the records of the Gateways of ours, sorted.
func (s *State) Gateways() []record.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(s.fleets), record.Key.Compare)
}

// Routes are the records of all routes, sorted.
func (s *State) Routes() []record.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(s.routes), record.Key.Compare)
}

// RoutesOf are the records of the routes whose status speaks of a Gateway, or whose traffic it serves; sorted.
func (s *State) RoutesOf(gateway record.Key) []record.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []record.Key
	for k, r := range s.routes {
		if r.shown[gateway] != nil || r.bound[gateway] != nil {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, record.Key.Compare)
	return out
}

// Fleets are the names of the fleets, sorted.
func (s *State) Fleets() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for _, f := range s.fleets {
		out = append(out, f.name)
	}
	slices.Sort(out)
	return out
}

// Resources is the whole route snapshot of a fleet, sorted by type and name; nil where there is no such fleet.
func (s *State) Resources(fleet string) []Resource {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, f := range s.fleets {
		if f.name == fleet {
			return slices.SortedFunc(maps.Values(f.resources), compareResources)
		}
	}
	return nil
}
