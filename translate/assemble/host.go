package assemble

import (
	"crypto/sha256"
	"slices"

	"github.com/fleetgate/fleetgate/translate/envoy"
)

// host is one virtual host. It keeps its bytes, and their hash, until a route of its own changes.
type host struct {
	domain  string
	piece   int
	status  uint32  // answered where no route is there; 0 = the host is only there for its routes
	items   []*item // in the order of precedence
	byKey   []*item // the same by compareKeys, nil where a list is enough
	guard   *guard  // nil = nothing runs before its routes
	filters []byte  // of the VirtualHost: what it says of the filters of listeners
	bytes   []byte
	hash    [sha256.Size]byte
	added   []*item
	removed map[*served]bool
	dirty   bool
}

// drop takes a route out.
func (h *host) drop(s *served) {
	if h.removed == nil {
		h.removed = map[*served]bool{}
	}
	h.removed[s] = true
}

// flush merges what was added and removed into the ordered routes and makes the bytes anew. It says whether the host is to go.
func (h *host) flush() bool {
	h.added = h.without(h.added)
	h.items = merge(h.without(h.items), slices.Clone(h.added), compare)
	h.keep()
	h.added, h.removed, h.dirty = nil, nil, false
	if len(h.items) == 0 && h.status == 0 {
		return true
	}
	h.bytes = h.marshal()
	h.hash = sha256.Sum256(h.bytes)
	return false
}

// without takes the removed routes out of a list.
func (h *host) without(items []*item) []*item {
	if len(h.removed) == 0 {
		return items
	}
	return slices.DeleteFunc(items, func(i *item) bool { return h.removed[i.route] })
}

// keep brings the order by key up to date, where it is needed.
func (h *host) keep() {
	switch {
	case len(h.items) <= listBelow:
		h.byKey = nil
	case h.byKey == nil:
		h.byKey = slices.SortedFunc(slices.Values(h.items), compareKeys)
	default:
		h.byKey = merge(h.without(h.byKey), h.added, compareKeys)
	}
}

// marshal makes the bytes of the virtual host: a status, a tree or a list. Where filters of a listener run, each request must find some route: only then they run.
func (h *host) marshal() []byte {
	domains := []string{h.domain}
	switch {
	case h.guard != nil && h.guard.closed:
		return append(envoy.VirtualHostBytes(h.domain, domains, [][]byte{statusRoutes[500]}), h.filters...)
	case len(h.items) == 0:
		return append(envoy.VirtualHostBytes(h.domain, domains, [][]byte{statusRoutes[h.status]}), h.filters...)
	}
	var last [][]byte
	if h.guard != nil {
		last = [][]byte{statusRoutes[404]}
	}
	if h.byKey != nil {
		if leaves, otherwise, ok := treeOf(h.byKey, last...); ok {
			return append(envoy.VirtualHostTreeBytes(h.domain, domains, leaves, otherwise), h.filters...)
		}
	}
	return append(envoy.VirtualHostBytes(h.domain, domains, append(bytesOf(h.items), last...)), h.filters...)
}

func bytesOf(items []*item) [][]byte {
	out := make([][]byte, len(items))
	for i, it := range items {
		out[i] = it.bytes
	}
	return out
}

// merge puts new items into ones in the order of compare.
func merge(ordered, added []*item, compare func(a, b *item) int) []*item {
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

// statusRoutes are the routes of hosts that have none, or whose requests get to none.
var statusRoutes = map[uint32][]byte{404: statusRoute("fleetgate/no-route", 404), 421: statusRoute("fleetgate/other-listener", 421), 500: statusRoute("fleetgate/filter-cannot-run", 500)}

func statusRoute(name string, status uint32) []byte {
	b, err := envoy.StatusRoute(name, status)
	if err != nil {
		panic(err) // a constant of this package is wrong
	}
	return b
}
