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
		if r.trial == nil {
			delete(sub.rejected, it.id)
		}
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
	if r.trial != nil {
		s.tried(r, true, now)
	}
}

// settleOverdue drops exceptions whose clusters were ACKed after all.
func (s *stream) settleOverdue() {
	clusters := &s.types[Cluster]
	maps.DeleteFunc(s.overdue, func(_ overdueKey, o overdue) bool {
		return !slices.ContainsFunc(o.clusters, func(id uint32) bool { return clusters.present.has(id) && !clusters.acked.has(id) })
	})
}

// nacked isolates a rejection: halves are sent again on their own until the culprit is alone. What was good in a partly applied
// response is thereby ACKed on its own, so that the client puts it on record and no ghost remains. A culprit made of many parts is then narrowed to those to blame (search.go).
func (s *stream) nacked(r *response, message string, now time.Time) {
	s.srv.stats.nacks.Add(1)
	if r.trial != nil {
		r.trial.message = message
		s.tried(r, false, now)
		return
	}
	if r.stray {
		s.types[r.typ].strayOut = false
	}
	items := s.current(r)
	s.log.Warn("a proxy rejected a response", "type", URLs[r.typ], "resources", len(items), "message", message)
	if len(r.items) == 1 {
		if len(items) == 1 {
			s.reject(r, message, now)
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

// reject notes that a resource was rejected alone. Where it is made of several parts, a search begins for those to blame.
func (s *stream) reject(r *response, message string, now time.Time) {
	sub, it := &s.types[r.typ], r.items[0]
	s.srv.stats.rejected.Add(1)
	good := s.fleet.lastGood(r.typ, sub.held[it.id], it)
	rej := &rejection{version: it.version, message: message, parts: suspects(good, it)}
	sub.rejected[it.id] = rej
	if s.srv.cfg.Trial != nil && len(it.parts.All()) > 1 {
		rej.bad, rej.floor = it, r.floor
		rej.search = newSearch(rej.parts, s.fleet.hint(r.typ, rej.parts, it))
		s.try(r.typ, rej, now)
	}
}

// try offers what a search asks for. A trial that would be the rejected bytes again needs no sending.
func (s *stream) try(t Type, rej *rejection, now time.Time) {
	last := rej.bad.parts.All()
	for {
		refuse, more := rej.search.next()
		if !more {
			break
		}
		it := s.fleet.trial(s.srv.cfg.Trial, t, rej.bad, refuse)
		if it == nil {
			break
		}
		if it.version != rej.version {
			s.probe(&response{typ: t, items: []*item{it}, floor: rej.floor, trial: rej}, now)
			return
		}
		if last = it.parts.All(); !rej.search.answer(false, last) {
			break
		}
	}
	s.found(rej, last)
}

// tried takes the outcome of a trial, unless a newer version has made it pointless.
func (s *stream) tried(r *response, accepted bool, now time.Time) {
	sub, rej, it := &s.types[r.typ], r.trial, r.items[0]
	if sub.rejected[it.id] != rej {
		return
	}
	s.fleet.mu.RLock()
	current := s.fleet.tables[r.typ].items[it.id].version == rej.version
	s.fleet.mu.RUnlock()
	switch {
	case !current:
		delete(sub.rejected, it.id)
	case rej.search.answer(accepted, it.parts.All()):
		s.try(r.typ, rej, now)
	default:
		s.found(rej, it.parts.All())
	}
}

// found ends a search: from now on the rejection is reported.
func (s *stream) found(rej *rejection, last map[string]string) {
	rej.parts, rej.search = rej.search.culprits(last), nil
	s.log.Warn("a rejection was narrowed down", "resource", rej.bad.name, "records", slices.Sorted(maps.Keys(rej.parts)), "message", rej.message)
}

// suspects are the parts of a rejected version that differ from the last version that was good, or all.
func suspects(good, bad *item) map[string]string {
	all := bad.parts.All()
	if good == nil {
		return all
	}
	out, had := map[string]string{}, good.parts.All()
	for id, hash := range all {
		if had[id] != hash {
			out[id] = hash
		}
	}
	if len(out) == 0 {
		return all
	}
	return out
}

// accepted notes that some proxy of the fleet accepted a version: the yardstick for a proxy that has none itself.
func (f *fleet) accepted(t Type, it *item) {
	if it.accepted.Swap(true) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.good[t][it.id]; old == nil || old.seq <= it.seq {
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

// hint lists the suspects that another proxy of the fleet has done without.
func (f *fleet) hint(t Type, suspects map[string]string, bad *item) (out []string) {
	if good := f.lastGood(t, nil, bad); good != nil {
		for part, hash := range suspects {
			if good.parts.Hash(part) != hash {
				out = append(out, part)
			}
		}
	}
	return out
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
	if !s.types[Listener].started { // it serves nothing yet: it asks once its clusters are there, which may take them long
		return
	}
	if until := s.progress.Add(s.srv.cfg.GateTimeout); now.Before(until) && s.expectsMore() {
		s.wakeAt(until)
		return
	}
	s.acked = max(s.acked, mark)
}

// expectsMore tells whether the client, which has listeners, will yet ask for routes.
func (s *stream) expectsMore() bool {
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
			if r.search != nil {
				continue // told when it is known who is to blame
			}
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
