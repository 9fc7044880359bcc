package assemble

import (
	"bytes"
	"fmt"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// guard is the filters of a listener (GEP-5224) as they stand before the routes of its hosts. A listener that comes to be guarded, or is guarded otherwise, stays the
// same to Envoy: what runs is a part of its RouteConfiguration (envoy.ListenerSlots says how), so that no connection is drained.
type guard struct {
	filters [][]byte
	closed  bool // some filter cannot run: requests answer 500, whatever routes say
}

// runs is what Envoy is told to run, nil = nothing.
func (g *guard) runs() [][]byte {
	if g == nil || g.closed {
		return nil
	}
	return g.filters
}

// guarded takes up the filters of a listener, if there are any. What keeps one from running is noted, and takes the listener away neither from its connections nor from
// its hosts, which another listener without filters might get.
func (l *listener) guarded(s *State) {
	if l.Filters == nil {
		return
	}
	l.guard = &guard{closed: len(l.Filters.Run) == 0}
	l.notes = append(l.notes, l.Filters.Problems...)
	for i, f := range l.Filters.Run {
		l.guard.filters = append(l.guard.filters, f.Config)
		if _, there := s.cluster(f.Backend); there {
			continue
		}
		l.guard.closed = true
		if b := as[record.Backend](s.entries[f.Backend]); b != nil {
			l.notes = append(l.notes, unusable(i, f.Backend, b))
		}
	}
}

// unusable says that a filter names a backend that only its owner could find to be of no use.
func unusable(filter int, k record.Key, b *record.Backend) record.Problem {
	return record.Problem{
		Condition: string(gatewayv1.ListenerConditionResolvedRefs), Reason: "InvalidListenerFilterRef", Rule: -1,
		Message: fmt.Sprintf("filters.requests[%d]: %s", filter, whyUnserved(k, b)),
	}
}

// whyUnserved tells why there is no cluster of a backend.
func whyUnserved(k record.Key, b *record.Backend) string {
	if b.Problem != nil {
		return b.Problem.Message
	}
	return fmt.Sprintf("backend %s of %s is not served; see its policies", k.Name, k.Namespace)
}

// guardOf tells what guards a domain in the configuration of a listener, nil = nothing does. On a plaintext port that is what guards the most specific listener that
// covers it. TLS has chosen the listener already, so there it is the listener's own, but for the hosts of others, which answer 421.
func guardOf(all []*listener, l *listener) func(domain string) *guard {
	return func(domain string) *guard {
		owner := l
		if h := anyHost(domain); l.Protocol == protocolHTTP || ownerOf(all, l, h) != nil {
			owner = ownerOf(all, l, h)
		}
		if owner == nil || l.Protocol == protocolHTTPS && owner != l {
			return nil
		}
		return owner.guard
	}
}

// ownerOf is the most specific of a listener and its neighbours that covers a host, nil = none does.
func ownerOf(all []*listener, l *listener, host string) (owner *listener) {
	for _, m := range all {
		if (m == l || neighbours(l, m)) && covers(m.hostname, host) && (owner == nil || moreSpecific(m.hostname, owner.hostname)) {
			owner = m
		}
	}
	return owner
}

// protect has the configuration of a listener run its filters, and those of its neighbours that share it. What the listener runs is said for all hosts at once, because
// Envoy makes the filters anew for each place in which they stand; hosts of neighbours say something else.
func (c *config) protect(l *listener, all []*listener) {
	for _, m := range all {
		if m.guard == nil || m != l && (l.Protocol == protocolHTTPS || !neighbours(l, m)) {
			continue
		}
		c.guard, c.guardOf = l.guard, guardOf(all, l)
		if m.set != nil {
			c.own(PartID(m.set.key), m.set.live)
		}
		if m.guard.closed {
			continue
		}
		for _, f := range m.Filters.Run {
			c.backends[f.Backend]++
			c.dirtyUses[f.Backend] = true
		}
	}
}

// guards says what a host does about filters where that is not what its configuration does.
func (c *config) guards(h *host) {
	if c.guardOf == nil {
		return
	}
	h.guard = c.guardOf(h.domain)
	if own, shared := h.guard.runs(), c.guard.runs(); !slices.EqualFunc(own, shared, bytes.Equal) {
		h.filters = envoy.HostFilters(own, shared)
	}
}
