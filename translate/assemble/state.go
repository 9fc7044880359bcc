package assemble

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/fleetgate/fleetgate/translate/record"
)

// Config is what assembly must know besides records; it must be the same on every replica.
type Config struct {
	ControllerNames []string // GatewayClasses with these are ours
	ListenAddress   string   // of Envoy listeners, "" = all
	AccessLog       string   // of Envoy: a file, "/dev/stdout", "" = none
}

// State is the assembly of a set of records. Its methods may be called from several goroutines; what they give is shared and read only.
type State struct {
	config Config

	mu        sync.RWMutex
	entries   map[record.Key]*entry
	referrers map[record.Key]set // by the record that is named: routes and Gateways that name it
	children  map[record.Key]set // by Gateway or ListenerSet: routes with a parentRef to it
	sets      map[record.Key]set // by Gateway: ListenerSets that name it
	policies  map[space]set      // by namespace: its policies on backends
	spaces    map[space]set      // by namespace: its routes and ListenerSets
	scopes    map[string]*scoped // by cluster: what has to do with default Gateways
	gateways  set                // records of Gateways
	fleets    map[record.Key]*fleet
	routes    map[record.Key]*routeState
}

type set map[record.Key]struct{}

type space struct{ cluster, namespace string }

// routeState is what is known of a route.
type routeState struct {
	cur    *decoded
	live   live
	index  uint64
	labels map[string]string
	shown  map[record.Key]*attachment // of the newest content, by Gateway: what status says
	bound  map[record.Key]*attachment // of the live content: what is served
}

// work is what one Apply has to look at.
type work struct {
	routes, gateways, backends, status set
	fleets                             map[record.Key]*dirt
	gone                               map[record.Key]string // fleets by name that ended
}

// New gives the State of no records.
func New(c Config) *State {
	return &State{
		config:    c,
		entries:   map[record.Key]*entry{},
		referrers: map[record.Key]set{},
		children:  map[record.Key]set{},
		sets:      map[record.Key]set{},
		policies:  map[space]set{},
		spaces:    map[space]set{},
		scopes:    map[string]*scoped{},
		gateways:  set{},
		fleets:    map[record.Key]*fleet{},
		routes:    map[record.Key]*routeState{},
	}
}

// Apply takes in committed changes and gives what they change. The State depends on the last change of each record only: neither on
// their order nor on how they are split into calls.
func (s *State) Apply(changes []Change) Delta {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.apply(changes)
}

func (s *State) apply(changes []Change) Delta {
	w := &work{routes: set{}, gateways: set{}, backends: set{}, status: set{}, fleets: map[record.Key]*dirt{}, gone: map[record.Key]string{}}
	for _, c := range changes {
		s.store(c, w)
	}
	for k := range w.gateways {
		s.rebuild(k, w)
	}
	for k := range w.routes {
		s.evaluate(k, w)
	}
	for k := range w.backends {
		for _, f := range s.fleets {
			if f.gateway.uses(k) {
				w.backend(f.key, k)
			}
		}
	}
	return s.delta(w)
}

// store takes a change in and marks what depends on it.
func (s *State) store(c Change, w *work) {
	old := s.entries[c.Key]
	next := entryOf(c, old)
	if old == nil && next == nil {
		return
	}
	if old != nil {
		s.unindex(old)
		s.markSet(old, w)
	}
	if next != nil {
		s.entries[c.Key] = next
		s.index(next)
		if c.Key.Kind == record.KindBackend {
			next.live = choose(next, s.exists)
		}
		s.markSet(next, w)
	} else {
		delete(s.entries, c.Key)
	}
	switch c.Key.Kind {
	case record.KindBackend, record.KindSecret, record.KindTrust:
		s.markReferrers(s.referrers[c.Key], w)
	default:
		if (old == nil) != (next == nil) {
			s.markReferrers(s.referrers[c.Key], w)
		}
	}
	s.mark(c.Key, next, w)
}

// entryOf reads a change, reusing what was read before of the same contents.
func entryOf(c Change, old *entry) *entry {
	if c.Cur == nil {
		return nil
	}
	e := &entry{key: c.Key, cur: reuse(c.Key.Kind, c.Cur, old), prev: reuse(c.Key.Kind, c.Prev, old), pinned: c.PinnedHash, reason: c.PinReason}
	switch c.Key.Kind {
	case record.KindRoute, record.KindGateway, record.KindListenerSet, record.KindBackend: // their references decide, later
	default:
		e.live = choose(e, func(record.Key) bool { return true })
	}
	return e
}

func reuse(kind record.Kind, c *Content, old *entry) *decoded {
	if c != nil && old != nil {
		for _, d := range []*decoded{old.cur, old.prev} {
			if d != nil && d.Hash == c.Hash && d.Index == c.Index {
				return d
			}
		}
	}
	return decode(kind, c)
}

// mark notes what a changed record concerns directly.
func (s *State) mark(k record.Key, next *entry, w *work) {
	switch k.Kind {
	case record.KindRoute:
		w.routes[k] = struct{}{}
	case record.KindGateway:
		w.gateways[k] = struct{}{}
	case record.KindPolicy:
		w.status[k] = struct{}{}
	case record.KindBackend:
		w.backends[k] = struct{}{}
	case record.KindEndpoints:
		w.backends[backendKey(k)] = struct{}{}
	case record.KindNamespace:
		s.markReferrers(s.spaces[space{k.Cluster, k.Namespace}], w)
	case record.KindClass:
		w.status[k] = struct{}{}
		for g := range s.gateways {
			if g.Cluster == k.Cluster {
				w.gateways[g] = struct{}{}
			}
		}
	}
}

func (s *State) markReferrers(all set, w *work) {
	for k := range all {
		switch k.Kind {
		case record.KindRoute:
			w.routes[k] = struct{}{}
		case record.KindGateway:
			w.gateways[k] = struct{}{}
		case record.KindListenerSet:
			s.markSet(s.entries[k], w)
		case record.KindBackend:
			s.markBackend(k, w)
		case record.KindPolicy:
			w.status[k] = struct{}{}
		}
	}
}

// markBackend notes that the certificate which a backend is shown came, went or is another: what is live of the backend, and whoever names it, may differ.
func (s *State) markBackend(k record.Key, w *work) {
	e := s.entries[k]
	e.live = choose(e, s.exists)
	w.backends[k] = struct{}{}
	s.markReferrers(s.referrers[k], w)
}

// markSet notes what a ListenerSet concerns: its Gateway, and the routes that name it, for they may have lost the only thing that led to a Gateway.
func (s *State) markSet(e *entry, w *work) {
	if e == nil || e.key.Kind != record.KindListenerSet {
		return
	}
	w.status[e.key] = struct{}{}
	for _, g := range setParents(e) {
		w.gateways[g] = struct{}{}
	}
	for r := range s.children[e.key] {
		w.routes[r] = struct{}{}
	}
}

func (w *work) fleet(k record.Key) *dirt {
	d := w.fleets[k]
	if d == nil {
		d = &dirt{backends: map[record.Key]bool{}}
		w.fleets[k] = d
	}
	return d
}

func (w *work) backend(fleet, k record.Key) { w.fleet(fleet).backends[k] = true }

// index adds a record to the indexes, unindex takes it out.
func (s *State) index(e *entry) {
	for _, r := range e.refs() {
		link(s.referrers, r, e.key)
	}
	switch e.key.Kind {
	case record.KindGateway:
		s.gateways[e.key] = struct{}{}
		s.indexScope(e)
	case record.KindPolicy:
		link(s.policies, space{e.key.Cluster, e.key.Namespace}, e.key)
		for _, k := range e.policyRefs() {
			link(s.referrers, k, e.key)
		}
	case record.KindListenerSet:
		link(s.spaces, space{e.key.Cluster, e.key.Namespace}, e.key)
		for _, g := range setParents(e) {
			link(s.sets, g, e.key)
		}
	case record.KindRoute:
		link(s.spaces, space{e.key.Cluster, e.key.Namespace}, e.key)
		s.indexScope(e)
		for _, g := range e.parents() {
			link(s.children, g, e.key)
		}
	}
}

func (s *State) unindex(e *entry) {
	for _, r := range e.refs() {
		unlink(s.referrers, r, e.key)
	}
	switch e.key.Kind {
	case record.KindGateway:
		delete(s.gateways, e.key)
		s.unindexScope(e)
	case record.KindPolicy:
		unlink(s.policies, space{e.key.Cluster, e.key.Namespace}, e.key)
		for _, k := range e.policyRefs() {
			unlink(s.referrers, k, e.key)
		}
	case record.KindListenerSet:
		unlink(s.spaces, space{e.key.Cluster, e.key.Namespace}, e.key)
		for _, g := range setParents(e) {
			unlink(s.sets, g, e.key)
		}
	case record.KindRoute:
		unlink(s.spaces, space{e.key.Cluster, e.key.Namespace}, e.key)
		s.unindexScope(e)
		for _, g := range e.parents() {
			unlink(s.children, g, e.key)
		}
	}
}

// policyRefs are the records whose problems a policy tells as its own.
func (e *entry) policyRefs() (out []record.Key) {
	p := as[record.Policy](e)
	if p == nil {
		return nil
	}
	for _, k := range []*record.Key{p.Secret, p.Collector} {
		if k != nil {
			out = append(out, *k)
		}
	}
	return out
}

func link[K comparable](m map[K]set, from K, to record.Key) {
	if m[from] == nil {
		m[from] = set{}
	}
	m[from][to] = struct{}{}
}

func unlink[K comparable](m map[K]set, from K, to record.Key) {
	delete(m[from], to)
	if len(m[from]) == 0 {
		delete(m, from)
	}
}

// parents are the Gateways and ListenerSets that some content of a route names.
func (e *entry) parents() []record.Key {
	return append(parentsOf(e.key, e.cur), parentsOf(e.key, e.prev)...)
}

func parentsOf(k record.Key, d *decoded) []record.Key {
	if d == nil || d.err != nil {
		return nil
	}
	var out []record.Key
	for _, p := range d.value.(*record.Route).Parents {
		if parent, ok := parentKey(k.Cluster, p); ok {
			out = append(out, parent)
		}
	}
	return out
}

// gatewaysOf are the Gateways that a content of a route names, also by their ListenerSets, and those that may take it by default.
func (s *State) gatewaysOf(k record.Key, d *decoded) []record.Key {
	out := s.defaultsFor(k, d)
	for _, p := range parentsOf(k, d) {
		if p.Kind == record.KindGateway {
			out = append(out, p)
		} else if e := s.entries[p]; e != nil {
			out = append(out, setParents(e)...)
		}
	}
	return out
}

// exists tells whether a record is there, and, of a backend, the certificate that it is shown, or a version of it that needs none: so that nothing leads to one that cannot be served yet.
func (s *State) exists(k record.Key) bool {
	e := s.entries[k]
	if e == nil || k.Kind != record.KindBackend || e.prev != nil {
		return e != nil
	}
	return !slices.ContainsFunc(e.cur.Refs, func(r record.Key) bool { return s.entries[r] == nil })
}

// classOf gives a Gateway's class, nil where that is none of ours.
func (s *State) classOf(cluster, class string) *record.Class {
	c := as[record.Class](s.entries[record.Key{Cluster: cluster, Kind: record.KindClass, Name: class}])
	if c == nil || !slices.Contains(s.config.ControllerNames, c.ControllerName) {
		return nil
	}
	return c
}

// rebuild makes a Gateway anew from its record, class and secrets. Its routes are attached again only if that changed what they attach to.
func (s *State) rebuild(k record.Key, w *work) {
	w.status[k] = struct{}{}
	next := s.gatewayOf(k)
	f := s.fleets[k]
	var before *gateway
	if f != nil {
		before = f.gateway
		s.markPolicies(before.reached(), w)
	}
	for _, g := range []*gateway{before, next} {
		if g != nil { // its class may come to be used, or not to be used any more
			w.status[record.Key{Cluster: k.Cluster, Kind: record.KindClass, Name: g.record.Class}] = struct{}{}
		}
	}
	if next != nil {
		s.markPolicies(next.reached(), w)
	}
	if (next == nil) != (f == nil) { // those that name it have an ancestor more, or less
		for p := range s.policies[space{k.Cluster, k.Namespace}] {
			w.status[p] = struct{}{}
		}
	}
	switch {
	case next == nil && f == nil:
	case next == nil:
		delete(s.fleets, k)
		delete(w.fleets, k)
		w.gone[k] = f.name
	case f == nil:
		s.fleets[k] = &fleet{key: k, name: next.fleet, gateway: next, resources: map[resourceKey]Resource{}}
	case f.gateway.sameShape(next):
		f.gateway.renew(next)
		w.fleet(k).all = true
		for _, set := range next.sets {
			w.status[set.key] = struct{}{}
		}
		return
	default:
		f.gateway = next
	}
	if next != nil {
		w.fleet(k).all = true
	}
	for r := range s.children[k] {
		w.routes[r] = struct{}{}
	}
	for _, g := range []*gateway{before, next} {
		s.touchSets(g, w)
		s.touchDefaulted(g, w)
	}
}

// touchSets notes that the ListenerSets of a Gateway, and the routes that name them, must be looked at.
func (s *State) touchSets(g *gateway, w *work) {
	if g == nil {
		return
	}
	for _, set := range g.sets {
		w.status[set.key] = struct{}{}
		for r := range s.children[set.key] {
			w.routes[r] = struct{}{}
		}
	}
}

// gatewayOf gives the Gateway of a record, nil where it is not ours.
func (s *State) gatewayOf(k record.Key) *gateway {
	e := s.entries[k]
	if e == nil {
		return nil
	}
	withheld := s.settle(e)
	r := as[record.Gateway](e)
	if r == nil {
		return nil
	}
	class := s.classOf(k.Cluster, r.Class)
	if class == nil {
		return nil
	}
	return newGateway(k, e.live, class, withheld, s)
}

// delta collects what changed.
func (s *State) delta(w *work) Delta {
	var out Delta
	for k, d := range w.fleets {
		f := s.fleets[k]
		if changed := f.refresh(d, s); len(changed) > 0 || !f.told {
			f.told = true
			out.Fleets = append(out.Fleets, FleetDelta{Fleet: f.name, Gateway: k, Resources: changed})
		}
	}
	for k, name := range w.gone {
		out.Fleets = append(out.Fleets, FleetDelta{Fleet: name, Gateway: k, Gone: true})
	}
	slices.SortFunc(out.Fleets, func(a, b FleetDelta) int { return strings.Compare(a.Fleet, b.Fleet) })
	out.Status = slices.SortedFunc(maps.Keys(w.status), record.Key.Compare)
	out.Selections = s.selections(w)
	return out
}
