package xds

import (
	"maps"
	"slices"
	"time"
)

// ackedBy takes the ACK of a response.
func (s *stream) ackedBy(r *response, now time.Time) {
	sub := &s.types[r.typ]
	s.srv.stats.acks.Add(1)
	for _, it := range r.items {
		if !sub.present.has(it.id) {
			continue // removed or unsubscribed meanwhile
		}
		sub.acked.add(it.id)
		sub.expired.remove(it.id)
		delete(sub.rejected, it.id)
		if r.typ.refers() {
			sub.held[it.id] = it
			s.fleet.accepted(r.typ, it)
		} else {
			delete(sub.held, it.id)
		}
	}
	for _, id := range r.removed {
		if !sub.present.has(id) {
			delete(sub.held, id)
			delete(sub.rejected, id)
		}
	}
	if r.stray {
		sub.strayOut = false
	}
	if r.typ == Cluster || r.typ == Listener {
		s.progress = now
	}
	s.settleOverdue()
}

// settleOverdue drops exceptions whose clusters were ACKed after all.
func (s *stream) settleOverdue() {
	clusters := &s.types[Cluster]
	maps.DeleteFunc(s.overdue, func(_ overdueKey, o overdue) bool {
		return !slices.ContainsFunc(o.clusters, func(id uint32) bool { return clusters.present.has(id) && !clusters.acked.has(id) })
	})
}

// nacked isolates a rejection: halves are sent again on their own until the culprit is alone. What was good in a partly applied
// response is thereby ACKed on its own, so that the client puts it on record and no ghost remains.
func (s *stream) nacked(r *response, message string, now time.Time) {
	s.srv.stats.nacks.Add(1)
	if r.stray {
		s.types[r.typ].strayOut = false
	}
	items := s.current(r)
	s.log.Warn("a proxy rejected a response", "type", URLs[r.typ], "resources", len(items), "message", message)
	if len(r.items) == 1 {
		if len(items) == 1 {
			s.reject(r.typ, items[0], message)
		}
		items = nil
	}
	half := (len(items) + 1) / 2
	for _, part := range [][]*item{items[:half], items[half:]} {
		if len(part) > 0 {
			s.probe(&response{typ: r.typ, items: part, floor: r.floor}, now)
		}
	}
	if len(r.items) > 0 && len(r.removed) > 0 {
		s.probe(&response{typ: r.typ, removed: r.removed, floor: r.floor}, now)
	}
}

// current lists the items of a response that are still the newest; what changed since is due anyway.
func (s *stream) current(r *response) (out []*item) {
	s.fleet.mu.RLock()
	defer s.fleet.mu.RUnlock()
	for _, it := range r.items {
		if s.fleet.tables[r.typ].items[it.id].version == it.version && s.types[r.typ].wants(it.id) {
			out = append(out, it)
		}
	}
	return out
}

func (s *stream) probe(r *response, now time.Time) {
	s.register(r, now)
	s.probes = append(s.probes, r)
	if r.typ == Cluster {
		s.fleet.mu.RLock()
		defer s.fleet.mu.RUnlock()
		s.followWithEndpoints(r.items)
	}
}

func (s *stream) reject(t Type, it *item, message string) {
	sub := &s.types[t]
	s.srv.stats.rejected.Add(1)
	sub.rejected[it.id] = &rejection{version: it.version, message: message,
		parts: suspects(sub.rejected[it.id], s.fleet.lastGood(t, sub.held[it.id], it), it)}
}

// suspects are the parts of a rejected version that explain the rejection: those of the previous rejection, if they are all still
// in it; else those that differ from the last version that was good; else all.
func suspects(before *rejection, good, bad *item) map[string]string {
	if before != nil && len(before.parts) > 0 && contains(bad.parts, before.parts) {
		return before.parts
	}
	out := map[string]string{}
	if good != nil {
		for id, hash := range bad.parts {
			if good.parts[id] != hash {
				out[id] = hash
			}
		}
	}
	if len(out) == 0 {
		return bad.parts
	}
	return out
}

func contains(all, some map[string]string) bool {
	for id, hash := range some {
		if all[id] != hash {
			return false
		}
	}
	return true
}

// accepted notes that some proxy of the fleet accepted a version: the yardstick for a proxy that has none itself.
func (f *fleet) accepted(t Type, it *item) {
	if it.accepted.Swap(true) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.good[t][it.id]; old == nil || old.seq < it.seq {
		f.good[t][it.id] = it
	}
}

// lastGood is the client's own last good version, or the fleet's.
func (f *fleet) lastGood(t Type, held, bad *item) *item {
	if held != nil && !held.opaque {
		return held
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if good := f.good[t][bad.id]; good != nil && good.version != bad.version {
		return good
	}
	return nil
}

// reporter paces the reports of one stream.
type reporter struct {
	start   time.Time
	sent    time.Time
	noticed time.Time // when only what a proxy waits for changed first since the last report
	given   bool
}

const (
	reportEvery   = 100 * time.Millisecond
	maxExceptions = 16
)

// due tells when a report may go out. That a proxy is on the way (index is where it will be) is news only when it stays on the way: told at once,
// it would hold back the ACK that follows a few milliseconds later.
func (r *reporter) due(now time.Time, index uint64, last, next Report) time.Time {
	due := r.sent.Add(reportEvery)
	if !r.given || next.Acked == index || len(next.Rejected) != len(last.Rejected) {
		return due
	}
	if r.noticed.IsZero() {
		r.noticed = now
	}
	return later(due, r.noticed.Add(reportEvery))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// report brings the watermark up to date and tells about it: the first change at once, then at most ten times a second.
func (s *stream) report(now time.Time) {
	s.advance(now)
	next := Report{Fleet: s.fleet.name, Proxy: s.id.Proxy, Replica: s.srv.cfg.Replica, Connected: true, Acked: s.acked,
		Waiting: s.waiting(now), Rejected: s.rejections(), SinceUnix: s.reporter.start.Unix()}
	last := s.last.Load()
	if s.reporter.given && sameReport(*last, next) {
		return
	}
	// A proxy that comes back elsewhere was at its index a moment ago: it must not look as if it had lost everything.
	if !s.reporter.given && next.Acked == 0 && len(next.Rejected) == 0 && now.Before(s.reporter.start.Add(s.srv.cfg.GateTimeout)) {
		s.last.Store(&next)
		s.wakeAt(s.reporter.start.Add(s.srv.cfg.GateTimeout))
		return
	}
	if due := s.reporter.due(now, s.index, *last, next); now.Before(due) {
		s.wakeAt(due)
		return
	}
	s.reporter.given, s.reporter.sent, s.reporter.noticed = true, now, time.Time{}
	s.last.Store(&next)
	s.srv.report(next)
}

// advance raises the watermark to the highest index up to which everything due is ACKed. What was rejected, and what is gone but
// not yet removed, holds nothing up: the exceptions tell of it.
func (s *stream) advance(now time.Time) {
	mark := s.index
	for t := range s.types {
		sub := &s.types[t]
		if !sub.started {
			continue
		}
		if !sub.due.empty() {
			mark = min(mark, sub.floor)
		}
		for _, r := range sub.inflight {
			mark = min(mark, r.floor)
		}
	}
	if until := s.progress.Add(s.srv.cfg.GateTimeout); now.Before(until) && s.expectsMore() {
		s.wakeAt(until)
		return
	}
	s.acked = max(s.acked, mark)
}

// expectsMore tells whether the client will yet ask for something: for listeners, once its clusters are there, for routes, once its listeners are.
func (s *stream) expectsMore() bool {
	if !s.types[Listener].started {
		return true
	}
	s.fleet.mu.RLock()
	defer s.fleet.mu.RUnlock()
	routes := &s.types[Route]
	return slices.ContainsFunc(s.fleet.tables[Route].items, func(it *item) bool {
		return it.exists() && (!routes.started || !routes.wants(it.id))
	})
}

func (s *stream) waiting(now time.Time) (out []Exception) {
	add := func(e Exception) {
		if len(out) < maxExceptions {
			out = append(out, e)
		}
	}
	for _, o := range s.overdue {
		add(o.exception)
	}
	s.fleet.mu.RLock()
	defer s.fleet.mu.RUnlock()
	for t := range s.types {
		for id := range s.types[t].gated {
			it := s.fleet.tables[t].items[id]
			add(Exception{Type: URLs[t], Name: it.name, Index: it.index, Why: "held back until the proxy has acknowledged the clusters that it uses"})
		}
		for _, r := range s.types[t].inflight {
			if late := r.sent.Add(s.srv.cfg.GateTimeout); now.Before(late) {
				s.wakeAt(late)
			} else if len(r.items) > 0 {
				add(Exception{Type: URLs[t], Name: r.items[0].name, Index: r.items[0].index, Why: "sent, but the proxy does not answer"})
			}
		}
	}
	slices.SortFunc(out, func(a, b Exception) int { return compareNames(a.Type, a.Name, b.Type, b.Name) })
	return out
}

func (s *stream) rejections() (out []Rejection) {
	s.fleet.mu.RLock()
	defer s.fleet.mu.RUnlock()
	for t := range s.types {
		for id, r := range s.types[t].rejected {
			out = append(out, Rejection{Type: URLs[t], Name: s.fleet.tables[t].items[id].name, Version: r.version, Message: r.message, Parts: r.parts})
		}
	}
	slices.SortFunc(out, func(a, b Rejection) int { return compareNames(a.Type, a.Name, b.Type, b.Name) })
	return out
}

func compareNames(aType, aName, bType, bName string) int {
	switch {
	case aType+"\x00"+aName < bType+"\x00"+bName:
		return -1
	case aType == bType && aName == bName:
		return 0
	}
	return 1
}

func sameReport(a, b Report) bool {
	return a.Acked == b.Acked && a.Connected == b.Connected && slices.Equal(a.Waiting, b.Waiting) &&
		slices.EqualFunc(a.Rejected, b.Rejected, func(x, y Rejection) bool {
			return x.Type == y.Type && x.Name == y.Name && x.Version == y.Version
		})
}
