package xds

import (
	"maps"
	"slices"
	"time"
)

// plan decides what is sent now, in the order Secret, Cluster, Endpoints, Listener, Route. It reads the fleet, and changes
// only the stream's own state.
func (s *stream) plan(now time.Time) []*response {
	f := s.fleet
	f.mu.RLock()
	defer f.mu.RUnlock()
	s.index, s.deadline = f.index, time.Time{}
	for t := range s.types {
		s.types[t].collect(&f.tables[t], f.seq, s.acked)
	}
	var out []*response
	for t := Type(0); t < NumTypes; t++ {
		if s.types[t].started {
			out = append(out, s.planType(t, now)...)
		}
	}
	return out
}

// batch is what planType found to send for one type.
type batch struct {
	items   []*item
	removed []uint32
}

func (s *stream) planType(t Type, now time.Time) []*response {
	sub, table := &s.types[t], &s.fleet.tables[t]
	floor := sub.floor
	var b batch
	sub.forced.each(func(id uint32) {
		sub.forced.remove(id)
		s.answer(t, table.items[id], &b, now)
	})
	until, busy := sub.busy(now, s.srv.cfg.GateTimeout)
	if !busy {
		sub.due.each(func(id uint32) { s.consider(t, table.items[id], &b, now) })
		sub.late.each(func(id uint32) { s.considerLate(t, table.items[id], &b, now) })
	} else if !sub.due.empty() {
		s.wakeAt(until)
	}
	if sub.due.empty() {
		sub.floor = noFloor
	}
	if t == Cluster {
		s.followWithEndpoints(b.items)
	}
	out := split(t, b, floor)
	if names := sub.absent(table); len(names) > 0 {
		out = append(out, &response{typ: t, names: names, floor: noFloor})
	}
	if !busy {
		out = append(out, s.removeStrays(t, now)...)
	}
	if sub.greet && s.fleet.known && len(out) == 0 && sub.due.empty() {
		out = append(out, &response{typ: t, floor: noFloor})
	}
	sub.greet = sub.greet && len(out) == 0
	for _, r := range out {
		s.register(r, now)
	}
	return out
}

// answer serves an id that was asked for. Only the gate may hold it back. Endpoints that are gone are told at once, though the client has their cluster still: it may be waiting for them to
// take a change of that, which it did not acknowledge before; and then the removal of the cluster would wait too.
func (s *stream) answer(t Type, it *item, b *batch, now time.Time) {
	sub := &s.types[t]
	if !it.exists() {
		if sub.present.has(it.id) && (t != Endpoints || s.additive) && !s.mayRemove(t, it, now) {
			sub.late.add(it.id)
			return
		}
		sub.drop(it.id) // it stays in named: the client may go on wanting it
		b.removed = append(b.removed, it.id)
		return
	}
	delete(sub.rejected, it.id)
	s.consider(t, it, b, now)
}

// consider serves an id that is due: now, or later.
func (s *stream) consider(t Type, it *item, b *batch, now time.Time) {
	sub := &s.types[t]
	switch rejected := sub.rejected[it.id]; {
	case !sub.wants(it.id):
		sub.due.remove(it.id)
	case !it.exists():
		sub.due.remove(it.id)
		delete(sub.gated, it.id) // a gate is of the wait that it was made for: one that comes again waits anew
		if sub.present.has(it.id) {
			sub.late.add(it.id)
		}
	case s.keeps(t, it):
		sub.due.add(it.id)
	case rejected != nil && rejected.version == it.version:
		sub.due.remove(it.id)
		delete(sub.gated, it.id)
	case s.gates(t, it, now):
		sub.due.add(it.id)
	default:
		sub.due.remove(it.id)
		sub.late.remove(it.id)
		sub.present.add(it.id)
		b.items = append(b.items, it)
	}
}

// keeps tells whether the client keeps a version that this replica does not know, since nobody can say yet which is newer (D4).
func (s *stream) keeps(t Type, it *item) bool {
	held := s.types[t].held[it.id]
	return s.additive && t != Endpoints && held != nil && held.opaque
}

// gates tells whether a resource must wait for clusters that this client has not ACKed yet (D6).
func (s *stream) gates(t Type, it *item, now time.Time) bool {
	if !s.srv.cfg.Gate || !t.refers() {
		return false
	}
	sub, missing := &s.types[t], s.missing(it)
	if len(missing) == 0 {
		delete(sub.gated, it.id)
		return false
	}
	g := sub.gated[it.id]
	if g == nil {
		g = &gate{since: now}
		sub.gated[it.id] = g
		s.srv.stats.gated.Add(1)
	}
	if end := s.opens(g, missing, now); now.Before(end) {
		s.wakeAt(end)
		return true
	}
	s.expire(t, it, missing)
	return false
}

// opens tells when a gate opens at the latest.
func (s *stream) opens(g *gate, missing []uint32, now time.Time) time.Time {
	latest := g.since.Add(gatePatience * s.srv.cfg.GateTimeout)
	switch {
	case !s.got(missing):
		g.got = time.Time{}
		return latest
	case g.got.IsZero():
		g.got = now
	}
	if end := g.got.Add(s.srv.cfg.GateTimeout); end.Before(latest) {
		return end
	}
	return latest
}

// got tells whether the client has got clusters: it has answered something that was sent after them.
func (s *stream) got(clusters []uint32) bool {
	sub := &s.types[Cluster]
	if slices.ContainsFunc(clusters, sub.due.has) {
		return false
	}
	return !slices.ContainsFunc(sub.inflight, func(r *response) bool {
		return r.sent.After(s.answered) && slices.ContainsFunc(r.items, func(it *item) bool { return slices.Contains(clusters, it.id) })
	})
}

// missing lists the clusters that it uses, that exist, and that this client has not ACKed.
func (s *stream) missing(it *item) (out []uint32) {
	clusters := &s.types[Cluster]
	if !clusters.started {
		return nil
	}
	it.uses.each(func(id uint32) {
		if !clusters.acked.has(id) && !clusters.expired.has(id) && clusters.wants(id) && s.fleet.tables[Cluster].items[id].exists() {
			out = append(out, id)
		}
	})
	return out
}

func (s *stream) expire(t Type, it *item, missing []uint32) {
	delete(s.types[t].gated, it.id)
	for _, id := range missing {
		s.types[Cluster].expired.add(id)
	}
	name := s.fleet.tables[Cluster].items[missing[0]].name
	s.overdue[overdueKey{t, it.id}] = overdue{missing, Exception{Type: URLs[t], Name: it.name, Index: it.index,
		Why: "sent without waiting longer: the proxy has not acknowledged cluster " + name}}
	s.srv.stats.gateTimeouts.Add(1)
	s.log.Warn("a cluster was not acknowledged in time; what uses it goes out without", "cluster", name, "resource", it.name)
}

// considerLate removes what is gone, once nothing that the client may run refers to it.
func (s *stream) considerLate(t Type, it *item, b *batch, now time.Time) {
	sub := &s.types[t]
	if it.exists() || !sub.wants(it.id) {
		sub.late.remove(it.id)
		return
	}
	if s.mayRemove(t, it, now) {
		sub.late.remove(it.id)
		sub.present.remove(it.id)
		sub.acked.remove(it.id)
		sub.expired.remove(it.id)
		b.removed = append(b.removed, it.id)
	}
}

func (s *stream) mayRemove(t Type, it *item, now time.Time) bool {
	if s.additive {
		return false
	}
	if !s.srv.cfg.Gate {
		return true
	}
	switch t {
	case Secret:
		return s.secretsRest()
	case Cluster:
		return !s.mayUse(it.id, now)
	case Endpoints:
		c := s.fleet.tables[Cluster].lookup(it.name)
		return c == nil || c.exists() || !s.types[Cluster].present.has(c.id)
	case Route:
		return s.types[Listener].quiet()
	default:
		return true
	}
}

// secretsRest tells whether nothing that uses secrets is about to change.
func (s *stream) secretsRest() bool { return s.types[Cluster].quiet() && s.types[Listener].quiet() }

func (sub *subscription) quiet() bool { return sub.due.empty() && len(sub.inflight) == 0 }

// mayUse tells whether the client may run something that refers to a cluster: what it ACKed last, what is on its way to
// it, and what it reported of an earlier stream and we do not know.
func (s *stream) mayUse(cluster uint32, now time.Time) bool {
	for _, t := range []Type{Listener, Route} {
		sub := &s.types[t]
		if !sub.started && now.Before(s.settled) && (t == Listener || len(s.types[Listener].held) > 0) {
			s.wakeAt(s.settled)
			return true
		}
		if len(sub.stray) > 0 || sub.strayOut {
			return true
		}
		for _, it := range sub.held {
			if it.opaque || s.uses(t, it, cluster) {
				return true
			}
		}
		for _, r := range sub.inflight {
			if slices.ContainsFunc(r.items, func(it *item) bool { return s.uses(t, it, cluster) }) {
				return true
			}
		}
	}
	return false
}

// uses tells whether what the client has of a resource refers to a cluster. Where those are the bytes of now, what counts is what is said of them now: a route goes on to name the
// cluster of a backend that may not be used any more, and has to be answered with 500.
func (s *stream) uses(t Type, it *item, cluster uint32) bool {
	if now := s.fleet.tables[t].items[it.id]; now.exists() && now.version == it.version {
		it = now
	}
	return it.uses.has(cluster)
}

// removeStrays removes what the client holds of an earlier stream and this replica has never heard of.
func (s *stream) removeStrays(t Type, now time.Time) []*response {
	sub := &s.types[t]
	if len(sub.stray) == 0 || s.additive {
		return nil
	}
	switch gate := s.srv.cfg.Gate; {
	case t == Secret && gate && !s.secretsRest(),
		t == Cluster && gate && s.opaque(now),
		t == Route && !s.types[Listener].quiet():
		return nil
	}
	names := slices.Sorted(maps.Keys(sub.stray))
	clear(sub.stray)
	sub.strayOut = true
	return []*response{{typ: t, names: names, stray: true, floor: noFloor}}
}

// opaque tells whether the client may run listeners or routes that we do not know.
func (s *stream) opaque(now time.Time) bool { return s.mayUse(^uint32(0), now) }

// followWithEndpoints answers, right after a cluster, its endpoints too, even unchanged: Envoy waits for them and does not ask again.
func (s *stream) followWithEndpoints(clusters []*item) {
	sub := &s.types[Endpoints]
	if !sub.started {
		return
	}
	for _, c := range clusters {
		if it := s.fleet.tables[Endpoints].lookup(c.name); it != nil && sub.named.has(it.id) {
			sub.forced.add(it.id)
		}
	}
}

const (
	maxResponse = 3 << 20 // bytes; a default gRPC client takes 4 MiB. A single larger resource goes alone
	singleMax   = 16      // up to so many route configurations go one by one, so that a bad one takes none along
)

// split makes responses of a batch. Removals ride in the first, so that an address is freed and taken at once.
func split(t Type, b batch, floor uint64) (out []*response) {
	if len(b.items) == 0 && len(b.removed) == 0 {
		return nil
	}
	single := t == Route && len(b.items) <= singleMax
	r, size := &response{typ: t, removed: b.removed, floor: floor}, 0
	for _, it := range b.items {
		if len(r.items) > 0 && (single || size+it.entry.Len() > maxResponse) {
			out = append(out, r)
			r, size = &response{typ: t, floor: floor}, 0
		}
		r.items = append(r.items, it)
		size += it.entry.Len()
	}
	return append(out, r)
}

// register notes a response as being in flight.
func (s *stream) register(r *response, now time.Time) {
	r.sent, r.nonce = now, s.nextNonce()
	s.types[r.typ].inflight = append(s.types[r.typ].inflight, r)
}

func (s *stream) wakeAt(t time.Time) {
	if !t.IsZero() && (s.deadline.IsZero() || t.Before(s.deadline)) {
		s.deadline = t
	}
}
