package assemble

import (
	"maps"
	"slices"
	"strings"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// served is a version of a route as a RouteConfiguration holds it.
type served struct {
	key   record.Key
	id    string // "{namespace}/{name}", for precedence
	route *record.Route
	live  live
	index uint64 // of the content, or of the backend that it waited for
	part  string // PartID
}

// hash is the id of this form of the record in Resource.Parts.
func (s *served) hash() string { return s.live.form }

// backends are the records of the clusters that it sends to.
func (s *served) backends() []record.Key {
	if s.live.degraded {
		return nil
	}
	return filter(s.live.Refs, func(k record.Key) bool { return k.Kind == record.KindBackend })
}

// config is one RouteConfiguration. Its virtual hosts keep their bytes until a route of theirs changes.
type config struct {
	name     string
	variant  string // the listener variant that its routes use
	hosts    map[string]*host
	order    []*host // sorted by domain
	members  map[record.Key]*member
	parts    map[string]string
	backends map[record.Key]int // how many members use it
	owner    live               // the Gateway's content
	resource Resource           // as of the last flush

	dirtyHosts []*host
	bytesDirty bool // a host changed
	partsDirty bool
	usesDirty  bool
	orderDirty bool
}

// member is a route in a configuration with the domains that it is in.
type member struct {
	*served
	hosts  []string
	latest uint64 // the route's index as of now; the route itself is shared with other configurations and never changed
}

// host is one virtual host.
type host struct {
	domain  string
	status  uint32 // answered where no route is there; 0 = the host is only there for its routes
	items   []*item
	bytes   []byte
	added   []*item
	removed map[*served]bool
	dirty   bool
}

// newConfig makes a configuration with the hosts that answer a status.
func newConfig(name, variant string, statuses map[string]uint32, owner live, part string) *config {
	c := &config{
		name:     name,
		variant:  variant,
		hosts:    map[string]*host{},
		members:  map[record.Key]*member{},
		parts:    map[string]string{part: owner.form},
		backends: map[record.Key]int{},
		owner:    owner,
	}
	for d, status := range statuses {
		c.host(d).status = status
	}
	c.bytesDirty, c.partsDirty, c.usesDirty = true, true, true
	return c
}

func (c *config) host(domain string) *host {
	h := c.hosts[domain]
	if h == nil {
		h = &host{domain: domain, removed: map[*served]bool{}}
		c.hosts[domain] = h
		c.orderDirty = true
		c.soil(h)
	}
	return h
}

// soil marks a host as changed.
func (c *config) soil(h *host) {
	c.bytesDirty = true
	if !h.dirty {
		h.dirty = true
		c.dirtyHosts = append(c.dirtyHosts, h)
	}
}

// set puts a route into the configuration, instead of what was there under its key; nil takes it out. It gives the backends that came into use and went out of it.
func (c *config) set(k record.Key, s *served, bindings []binding) (touched []record.Key) {
	old := c.members[k]
	if s != nil {
		touched = c.add(s, bindings)
	}
	if old == nil {
		return touched
	}
	for _, d := range old.hosts {
		h := c.hosts[d]
		h.removed[old.served] = true
		c.soil(h)
	}
	if s == nil {
		delete(c.members, k)
		delete(c.parts, old.part)
	}
	c.bytesDirty, c.partsDirty = true, true
	return append(touched, c.release(old.served)...)
}

func (c *config) add(s *served, bindings []binding) (touched []record.Key) {
	m := &member{served: s, latest: s.index}
	for _, b := range bindings {
		m.hosts = append(m.hosts, b.domain)
		h := c.host(b.domain)
		h.added = append(h.added, c.items(s, b.original)...)
		c.soil(h)
	}
	c.members[s.key], c.parts[s.part] = m, s.hash()
	c.bytesDirty, c.partsDirty = true, true
	for _, b := range s.backends() {
		if c.backends[b]++; c.backends[b] == 1 {
			touched, c.usesDirty = append(touched, b), true
		}
	}
	return touched
}

func (c *config) release(s *served) (touched []record.Key) {
	for _, b := range s.backends() {
		if c.backends[b]--; c.backends[b] == 0 {
			delete(c.backends, b)
			touched, c.usesDirty = append(touched, b), true
		}
	}
	return touched
}

// refresh notes the index as of now of a route whose bytes stay.
func (c *config) refresh(k record.Key, index uint64) {
	if m := c.members[k]; m != nil && m.latest != index {
		m.latest, c.partsDirty = index, true
	}
}

// items are the matches of a route as this configuration serves them.
func (c *config) items(s *served, original string) []*item {
	var out []*item
	for r := range s.route.Rules {
		matches := s.route.Rules[r].Matches
		for m := range matches {
			b, ok := c.bytes(s, &matches[m])
			if ok {
				out = append(out, &item{route: s, original: original, rule: r, match: m, sort: &matches[m].Sort, bytes: b})
			}
		}
	}
	return out
}

func (c *config) bytes(s *served, m *record.Match) ([]byte, bool) {
	b := m.Bytes
	if v, ok := m.Variants[c.variant]; ok {
		b = v
	}
	if s.live.degraded {
		return answer500(b)
	}
	return b, true
}

// flush makes the resource anew from the hosts that changed.
func (c *config) flush(cluster func(record.Key) (string, bool)) {
	if c.bytesDirty {
		c.flushHosts()
		vhosts := make([][]byte, len(c.order))
		for i, h := range c.order {
			vhosts[i] = h.bytes
		}
		c.resource.Bytes = envoy.RouteConfigurationBytes(c.name, vhosts)
		c.resource.Version = record.Hash(c.resource.Bytes)
	}
	if c.partsDirty {
		c.resource.Parts = maps.Clone(c.parts)
		c.resource.Index = c.highest()
	}
	if c.usesDirty {
		c.resource.Uses = usesOf(c.backends, cluster)
	}
	c.resource.Type, c.resource.Name = TypeRoute, c.name
	c.bytesDirty, c.partsDirty, c.usesDirty = false, false, false
}

// highest is the highest index of what is in here.
func (c *config) highest() uint64 {
	out := c.owner.Index
	for _, m := range c.members {
		out = max(out, m.latest)
	}
	return out
}

func (c *config) dirty() bool { return c.bytesDirty || c.partsDirty || c.usesDirty }

// usesOf names the clusters that are served, sorted.
func usesOf(backends map[record.Key]int, cluster func(record.Key) (string, bool)) []string {
	var out []string
	for k := range backends {
		if name, ok := cluster(k); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (c *config) flushHosts() {
	for _, h := range c.dirtyHosts {
		if h.flush() {
			delete(c.hosts, h.domain)
			c.orderDirty = true
		}
	}
	c.dirtyHosts = nil
	if c.orderDirty {
		c.order, c.orderDirty = slices.SortedFunc(maps.Values(c.hosts), func(a, b *host) int { return strings.Compare(a.domain, b.domain) }), false
	}
}

// flush merges what was added and removed into the ordered routes and makes the bytes anew. It says whether the host is to go.
func (h *host) flush() bool {
	if len(h.removed) > 0 {
		h.items = slices.DeleteFunc(h.items, func(i *item) bool { return h.removed[i.route] })
		h.added = slices.DeleteFunc(h.added, func(i *item) bool { return h.removed[i.route] })
	}
	h.items = merge(h.items, h.added)
	h.added, h.removed, h.dirty = nil, map[*served]bool{}, false
	if len(h.items) == 0 {
		if h.status == 0 {
			return true
		}
		h.bytes = envoy.VirtualHostBytes(h.domain, []string{h.domain}, [][]byte{statusRoutes[h.status]})
		return false
	}
	routes := make([][]byte, len(h.items))
	for i, it := range h.items {
		routes[i] = it.bytes
	}
	h.bytes = envoy.VirtualHostBytes(h.domain, []string{h.domain}, routes)
	return false
}

// merge puts new items into ordered ones.
func merge(ordered, added []*item) []*item {
	slices.SortFunc(added, compare)
	if len(ordered) == 0 {
		return added
	}
	if len(added)*16 < len(ordered) { // a changed route among many: search rather than pass over all
		for _, it := range added {
			at, _ := slices.BinarySearchFunc(ordered, it, compare)
			ordered = slices.Insert(ordered, at, it)
		}
		return ordered
	}
	out := make([]*item, 0, len(ordered)+len(added))
	for len(ordered) > 0 && len(added) > 0 {
		if compare(ordered[0], added[0]) <= 0 {
			out, ordered = append(out, ordered[0]), ordered[1:]
		} else {
			out, added = append(out, added[0]), added[1:]
		}
	}
	return append(append(out, ordered...), added...)
}

// statusRoutes are the routes of hosts that have none.
var statusRoutes = map[uint32][]byte{404: statusRoute("fleetgate/no-route", 404), 421: statusRoute("fleetgate/other-listener", 421)}

func statusRoute(name string, status uint32) []byte {
	b, err := envoy.StatusRoute(name, status)
	if err != nil {
		panic(err) // a constant of this package is wrong
	}
	return b
}
