package assemble

import (
	"maps"
	"slices"

	"github.com/fleetgate/fleetgate/translate/record"
)

// evaluate chooses a route's live content, attaches it where that or a Gateway changed, and places it.
func (s *State) evaluate(k record.Key, w *work) {
	w.status[k] = struct{}{}
	old := s.routes[k]
	if old == nil {
		old = &routeState{}
	}
	next := s.routeState(k)
	if next == nil {
		delete(s.routes, k)
		next = &routeState{}
	} else {
		s.routes[k] = next
	}
	same := old.cur == next.cur && old.live.same(next.live) && maps.Equal(old.labels, next.labels) && (old.labels == nil) == (next.labels == nil)
	var use *served
	for _, g := range s.concerned(k, old, next) {
		if same && old.shown[g.key] != nil && old.shown[g.key].gateway == g {
			s.keep(k, g, old, next, w)
			continue
		}
		if use == nil {
			use = servedOf(k, next)
		}
		s.reattach(k, g, old, next, use, w)
	}
}

// routeState reads what a route is now, without attachments.
func (s *State) routeState(k record.Key) *routeState {
	e := s.entries[k]
	if e == nil {
		return nil
	}
	e.live = choose(e, s.exists)
	r := &routeState{cur: e.cur, live: e.live, index: e.cur.Index, shown: map[record.Key]*attachment{}, bound: map[record.Key]*attachment{}}
	r.labels = s.labels(k)
	if e.live.decoded != nil {
		r.index = s.liveIndex(e.live)
	}
	return r
}

// liveIndex is the index from which a content may be served: its own, or that of a backend that came later.
func (s *State) liveIndex(l live) uint64 {
	out := l.Index
	for _, r := range l.Refs {
		if e := s.entries[r]; r.Kind == record.KindBackend && e != nil {
			out = max(out, e.cur.Index)
		}
	}
	return out
}

// concerned are the Gateways of ours that a route names or named.
func (s *State) concerned(k record.Key, old, next *routeState) []*gateway {
	keys := map[record.Key]bool{}
	for k := range old.shown {
		keys[k] = true
	}
	for k := range old.bound {
		keys[k] = true
	}
	if next.cur != nil {
		for _, d := range []*decoded{next.cur, next.live.decoded} {
			for _, g := range s.gatewaysOf(k, d) {
				keys[g] = true
			}
		}
	}
	var out []*gateway
	for g := range keys {
		if f := s.fleets[g]; f != nil {
			out = append(out, f.gateway)
		}
	}
	return out
}

// keep takes an attachment over; only the index may have moved.
func (s *State) keep(k record.Key, g *gateway, old, next *routeState, w *work) {
	next.shown[g.key] = old.shown[g.key]
	if b := old.bound[g.key]; b != nil {
		next.bound[g.key] = b
	}
	if old.index == next.index {
		return
	}
	w.fleet(g.key)
	for _, c := range g.configs {
		c.refresh(k, next.index)
	}
	g.refreshStreams(k, next.index)
}

// reattach decides anew what a route means to a Gateway, for status by its newest content and for traffic by its live one.
func (s *State) reattach(k record.Key, g *gateway, old, next *routeState, use *served, w *work) {
	shown := attachContent(k, next.newest(), g, next.labels)
	bound := shown
	if next.live.decoded != next.newest() {
		bound = attachContent(k, next.live.decoded, g, next.labels)
	}
	if g.count(old.shown[g.key], shown) {
		w.status[g.key] = struct{}{}
		for _, set := range g.sets {
			w.status[set.key] = struct{}{}
		}
	}
	var bindings []binding
	if bound != nil {
		next.bound[g.key], bindings = bound, bound.bindings
	}
	if shown != nil {
		next.shown[g.key] = shown
	}
	w.fleet(g.key)
	touched, passed := g.place(k, use, bindings)
	for _, r := range passed {
		w.status[r] = struct{}{}
	}
	s.markPolicies(touched, w)
	for _, b := range touched {
		w.backend(g.key, b)
	}
}

// attachContent is attach, nil where the content does not name the Gateway.
func attachContent(k record.Key, d *decoded, g *gateway, labels map[string]string) *attachment {
	if d == nil {
		return nil
	}
	a := attach(k, d.value.(*record.Route), g, labels)
	if len(a.outcomes) == 0 {
		return nil
	}
	return a
}

// newest is the content that status speaks of: the newest that can be read.
func (r *routeState) newest() *decoded {
	if r.cur != nil && r.cur.err != nil {
		return r.live.decoded
	}
	return r.cur
}

// count moves the counts of attached routes from one attachment to another; it tells whether any changed.
func (g *gateway) count(old, next *attachment) bool {
	before := append([]int32(nil), g.counts...)
	if old != nil && old.gateway == g {
		for _, l := range old.attached {
			g.counts[l]--
		}
	}
	if next != nil {
		for _, l := range next.attached {
			g.counts[l]++
		}
	}
	return !slices.Equal(before, g.counts)
}

func servedOf(k record.Key, r *routeState) *served {
	if r.live.decoded == nil {
		return nil
	}
	route := r.live.value.(*record.Route)
	return &served{key: k, id: k.Namespace + "/" + route.Object.Name, route: route, live: r.live, index: r.index, part: PartID(k)}
}
