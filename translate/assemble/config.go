package assemble

import (
	"crypto/sha256"
	"hash/fnv"
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

// pieces is into how many pieces a configuration is cut. A change remakes one piece and lists all, so the root of the number of virtual hosts that a
// large Gateway has is the cheapest.
const pieces = 256

// config is one RouteConfiguration. It is cut by a hash of domains into pieces of virtual hosts, and by a hash of part ids into shares of routes. A change
// remakes the pieces and shares that it is in and nothing else: resources that were given out keep the old ones, and share with their successors
// all that did not change. Its version is a hash over the pieces' hashes.
type config struct {
	name     string
	variant  string // the listener variant that its routes use
	hosts    map[string]*host
	members  map[record.Key]*member
	pieces   [pieces]piece
	shares   [pieces]share
	backends map[record.Key]int // how many members, and filters of listeners, use it
	owners   map[string]live    // by part id: the Gateway's content, and those of ListenerSets whose listeners have filters
	resource Resource           // as of the last flush

	guard   *guard                     // what all hosts run that say nothing else
	guardOf func(domain string) *guard // nil = no listener has filters

	dirtyHosts  []*host
	dirtyShares []*share
	dirtyUses   map[record.Key]bool // backends that came into use or went, or whose cluster did
}

// piece is some virtual hosts of a configuration. Its bytes are never changed, only replaced.
type piece struct {
	hosts []*host // sorted by domain
	bytes []byte
	hash  [sha256.Size]byte
	dirty bool
}

// share is some routes of a configuration. Its parts are never changed, only replaced.
type share struct {
	owners  []string // part ids of the configuration's owners that are in this share
	members map[*member]struct{}
	parts   map[string]string
	index   uint64 // the highest of its members
	dirty   bool
}

// member is a route in a configuration with the domains that it is in.
type member struct {
	*served
	hosts  []string
	latest uint64 // the route's index as of now; the route itself is shared with other configurations and never changed
}

func newConfig(name, variant string) *config {
	return &config{
		name:      name,
		variant:   variant,
		hosts:     map[string]*host{},
		members:   map[record.Key]*member{},
		backends:  map[record.Key]int{},
		owners:    map[string]live{},
		dirtyUses: map[record.Key]bool{},
	}
}

// own notes that the configuration itself is made of a record.
func (c *config) own(part string, content live) {
	if _, there := c.owners[part]; !there {
		s := c.share(part)
		s.owners = append(s.owners, part)
	}
	c.owners[part] = content
}

// answer makes the hosts that answer a status where no route is there.
func (c *config) answer(statuses map[string]uint32) {
	for d, status := range statuses {
		c.host(d).status = status
	}
}

// pieceOf tells in which piece a name is. It depends on nothing but the name, so that all replicas cut alike.
func pieceOf(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	return int(h.Sum32() % pieces)
}

func (c *config) host(domain string) *host {
	h := c.hosts[domain]
	if h == nil {
		h = &host{domain: domain, piece: pieceOf(domain)}
		c.guards(h)
		c.hosts[domain] = h
		c.soil(h)
	}
	return h
}

// soil marks a host as changed.
func (c *config) soil(h *host) {
	if !h.dirty {
		h.dirty = true
		c.dirtyHosts = append(c.dirtyHosts, h)
	}
}

// share gives the share that a part is in, marked as changed.
func (c *config) share(part string) *share {
	s := &c.shares[pieceOf(part)]
	if !s.dirty {
		s.dirty = true
		c.dirtyShares = append(c.dirtyShares, s)
	}
	return s
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
		if h := c.hosts[d]; h != nil { // hosts of nothing but routes without rules are not kept
			h.drop(old.served)
			c.soil(h)
		}
	}
	if s == nil {
		delete(c.members, k)
	}
	delete(c.share(old.part).members, old)
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
	c.members[s.key] = m
	in := c.share(s.part)
	if in.members == nil {
		in.members = map[*member]struct{}{}
	}
	in.members[m] = struct{}{}
	for _, b := range s.backends() {
		if c.backends[b]++; c.backends[b] == 1 {
			touched, c.dirtyUses[b] = append(touched, b), true
		}
	}
	return touched
}

func (c *config) release(s *served) (touched []record.Key) {
	for _, b := range s.backends() {
		if c.backends[b]--; c.backends[b] == 0 {
			delete(c.backends, b)
			touched, c.dirtyUses[b] = append(touched, b), true
		}
	}
	return touched
}

// refresh notes the index as of now of a route whose bytes stay.
func (c *config) refresh(k record.Key, index uint64) {
	if m := c.members[k]; m != nil && m.latest != index {
		m.latest = index
		c.share(m.part)
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
				sort := &matches[m].Sort
				out = append(out, &item{route: s, original: original, rule: r, match: m, sort: sort, key: keyOf(sort.PathKind, sort.Path), bytes: b})
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

func (c *config) dirty() bool {
	return len(c.dirtyHosts) > 0 || len(c.dirtyShares) > 0 || len(c.dirtyUses) > 0
}

// flush makes the resource anew from what changed.
func (c *config) flush(cluster func(record.Key) (string, bool)) {
	c.resource.Type, c.resource.Name = TypeRoute, c.name
	if len(c.dirtyHosts) > 0 {
		c.flushHosts()
		c.resource.Bytes, c.resource.Version = c.joined()
	}
	if len(c.dirtyShares) > 0 {
		c.resource.Parts, c.resource.Index = c.flushShares()
	}
	if len(c.dirtyUses) > 0 {
		c.resource.Uses = c.flushUses(cluster)
	}
}

// flushHosts remakes the hosts that changed and the pieces that they are in.
func (c *config) flushHosts() {
	var dirty []*piece
	for _, h := range c.dirtyHosts {
		p := &c.pieces[h.piece]
		at, there := slices.BinarySearchFunc(p.hosts, h.domain, func(h *host, d string) int { return strings.Compare(h.domain, d) })
		if h.flush() {
			delete(c.hosts, h.domain)
			if there {
				p.hosts = slices.Delete(p.hosts, at, at+1)
			}
		} else if !there {
			p.hosts = slices.Insert(p.hosts, at, h)
		}
		if !p.dirty {
			p.dirty = true
			dirty = append(dirty, p)
		}
	}
	for _, p := range dirty {
		p.flush()
	}
	c.dirtyHosts = nil
}

func (p *piece) flush() {
	vhosts, hashes := make([][]byte, len(p.hosts)), sha256.New()
	for i, h := range p.hosts {
		vhosts[i] = h.bytes
		hashes.Write(h.hash[:])
	}
	p.bytes, p.dirty = envoy.VirtualHostsBytes(vhosts), false
	hashes.Sum(p.hash[:0])
}

// joined lists the pieces that make the message, with a hash over their hashes.
func (c *config) joined() (bytes [][]byte, version string) {
	head := envoy.RouteConfigurationHead(c.name)
	if filters := c.guard.runs(); filters != nil {
		head = append(head, envoy.ConfigurationFilters(filters)...)
	}
	bytes, hashes := append(make([][]byte, 0, pieces+1), head), slices.Clone(head)
	for i := range c.pieces {
		if p := &c.pieces[i]; len(p.hosts) > 0 {
			bytes = append(bytes, p.bytes)
			hashes = append(append(hashes, byte(i)), p.hash[:]...)
		}
	}
	return bytes, record.Hash(hashes)
}

// flushShares remakes the shares that changed; it gives the parts of all and the highest index.
func (c *config) flushShares() (parts []map[string]string, index uint64) {
	for _, s := range c.dirtyShares {
		s.flush(c.owners)
	}
	c.dirtyShares = nil
	for i := range c.shares {
		if s := &c.shares[i]; len(s.parts) > 0 {
			parts, index = append(parts, s.parts), max(index, s.index)
		}
	}
	return parts, index
}

func (s *share) flush(owners map[string]live) {
	s.parts, s.index, s.dirty = make(map[string]string, len(s.members)+len(s.owners)), 0, false
	for _, part := range s.owners {
		s.parts[part], s.index = owners[part].form, max(s.index, owners[part].Index)
	}
	for m := range s.members {
		s.parts[m.part], s.index = m.hash(), max(s.index, m.latest)
	}
}

// flushUses names the clusters that are served, sorted: few changes are placed among those of before, many are sorted anew.
func (c *config) flushUses(cluster func(record.Key) (string, bool)) []string {
	if len(c.dirtyUses)*16 > len(c.resource.Uses) {
		clear(c.dirtyUses)
		return usesOf(c.backends, cluster)
	}
	out := slices.Clone(c.resource.Uses)
	for k := range c.dirtyUses {
		name, served := cluster(k)
		at, named := slices.BinarySearch(out, name)
		switch use := served && c.backends[k] > 0; {
		case use && !named:
			out = slices.Insert(out, at, name)
		case !use && named:
			out = slices.Delete(out, at, at+1)
		}
	}
	clear(c.dirtyUses)
	return out
}

// usesOf names the clusters that are served, sorted.
func usesOf(backends map[record.Key]int, cluster func(record.Key) (string, bool)) []string {
	var out []string
	for k := range backends {
		if name, ok := cluster(k); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
