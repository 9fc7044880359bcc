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
	status  uint32 // answered where no route is there; 0 = the host is only there for its routes
	items   []*item
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
	if len(h.removed) > 0 {
		h.items = slices.DeleteFunc(h.items, func(i *item) bool { return h.removed[i.route] })
		h.added = slices.DeleteFunc(h.added, func(i *item) bool { return h.removed[i.route] })
	}
	h.items = merge(h.items, h.added)
	h.added, h.removed, h.dirty = nil, nil, false
	if len(h.items) == 0 {
		if h.status == 0 {
			return true
		}
		h.bytes = envoy.VirtualHostBytes(h.domain, []string{h.domain}, [][]byte{statusRoutes[h.status]})
	} else {
		h.bytes = hostBytes(h.domain, h.items)
	}
	h.hash = sha256.Sum256(h.bytes)
	return false
}

// hostBytes is the virtual host of ordered routes.
func hostBytes(domain string, items []*item) []byte {
	if leaves, otherwise, ok := treeOf(items); ok {
		return envoy.VirtualHostTreeBytes(domain, []string{domain}, leaves, otherwise)
	}
	routes := make([][]byte, len(items))
	for i, it := range items {
		routes[i] = it.bytes
	}
	return envoy.VirtualHostBytes(domain, []string{domain}, routes)
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
