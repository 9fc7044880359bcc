package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/fleetgate/fleetgate/cluster/status"
	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/shard"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

// seenFor is how long a proxy that we did not provision counts after it was last seen.
const seenFor = time.Minute

// reportBatch is what a replica sends the leader: Full once in each term, then changes.
type reportBatch struct {
	Session string       `json:"session"`
	Term    uint64       `json:"term"`
	Full    bool         `json:"full"`
	Reports []xds.Report `json:"reports"`
}

// acks is what the leader knows of all proxies, and what every replica knows of its own.
type acks struct {
	replica string
	log     *slog.Logger
	now     func() time.Time
	changed func() // the leader's status writer looks again

	mu      sync.Mutex
	looked  time.Time                         // when it was last looked who is there
	proxies map[string]map[string]proxyReport // fleet -> proxy -> newest report
	term    uint64                            // in which we lead
	full    map[string]uint64                 // the newest term in which a session has sent all that it knows
	own     map[string]xds.Report             // our own streams, by fleet and proxy
	unsent  map[string]bool
	wake    chan struct{}
}

type proxyReport struct {
	xds.Report
	session string
	at      time.Time             // when it was last told of, or connected to a replica that lives
	others  map[string]xds.Report // what its other streams said last, by session: one that broke silently is told of as connected, while the proxy has come to another replica
}

// with takes in what a session says. A report of a stream that ended does not hide one of a stream that lives on another replica.
func (p proxyReport) with(r xds.Report, session string, now time.Time) proxyReport {
	delete(p.others, session)
	switch {
	case r.Connected && p.Connected && p.session != session:
		if p.others == nil {
			p.others = map[string]xds.Report{}
		}
		p.others[p.session] = p.Report
	case !r.Connected && p.Connected && p.session != session:
		return p
	case !r.Connected:
		r.Acked = max(r.Acked, p.Acked)
		return proxyReport{r, session, now, p.others}.left()
	}
	return proxyReport{r, session, now, p.others}
}

// left is what is known when the stream has ended: what another one says, if there is one.
func (p proxyReport) left() proxyReport {
	p.Connected = false
	for session, r := range p.others {
		if !p.Connected || r.Acked > p.Acked {
			p.Report, p.session = r, session
		}
	}
	delete(p.others, p.session)
	return p
}

// on prefers a stream of a session that lives.
func (p proxyReport) on(live func(session string) bool) proxyReport {
	if !p.Connected || live(p.session) {
		return p
	}
	for session, r := range p.others {
		if live(session) {
			delete(p.others, session)
			p.others[p.session] = p.Report
			p.Report, p.session = r, session
			break
		}
	}
	return p
}

func newAcks(replica string, log *slog.Logger) *acks {
	return &acks{replica: replica, log: log, now: time.Now, changed: func() {}, proxies: map[string]map[string]proxyReport{}, full: map[string]uint64{},
		own: map[string]xds.Report{}, unsent: map[string]bool{}, wake: make(chan struct{}, 1)}
}

// local takes a report of one of our own streams; it does not block.
func (a *acks) local(r xds.Report) {
	id := r.Fleet + "\x00" + r.Proxy
	a.mu.Lock()
	a.own[id] = r
	a.unsent[id] = true
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// send passes own reports to the leader until ctx ends: all of them in each term, since a leader that was started anew may be elected again before anybody here sees that it was gone.
func (a *acks) send(ctx context.Context, session string, leader func() (id string, term uint64), call func(ctx context.Context, body []byte) error) {
	told, toldIn := "", uint64(0)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-tick.C:
		}
		to, term := leader()
		if to == "" {
			told = ""
			continue
		}
		batch := a.take(session, to != told || term != toldIn)
		batch.Term = term
		if len(batch.Reports) == 0 && !batch.Full {
			continue
		}
		body, err := json.Marshal(batch)
		if err == nil {
			cctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			err = call(cctx, body)
			cancel()
		}
		if err != nil {
			a.log.Debug("proxy reports not delivered, all are sent again", "leader", to, "err", err)
			told = ""
			continue
		}
		told, toldIn = to, term
	}
}

func (a *acks) take(session string, full bool) reportBatch {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := reportBatch{Session: session, Full: full}
	for id, r := range a.own {
		if full || a.unsent[id] {
			b.Reports = append(b.Reports, r)
		}
		if !r.Connected && !full {
			delete(a.own, id)
		}
	}
	clear(a.unsent)
	return b
}

// receive takes a batch on the leader.
func (a *acks) receive(b reportBatch) {
	a.mu.Lock()
	for _, r := range b.Reports {
		fleet := a.proxies[r.Fleet]
		if fleet == nil {
			fleet = map[string]proxyReport{}
			a.proxies[r.Fleet] = fleet
		}
		fleet[r.Proxy] = fleet[r.Proxy].with(r, b.Session, a.now())
	}
	if b.Full {
		a.full[b.Session] = max(a.full[b.Session], b.Term)
		a.silent(b)
	}
	a.mu.Unlock()
	a.changed()
}

// silent takes it that proxies of a replica have left of which it does not speak where it tells all that it knows: their end was told to another leader, or to nobody, if the replica was
// started anew or its call did not arrive. The caller holds mu.
func (a *acks) silent(b reportBatch) {
	told := map[string]bool{}
	for _, r := range b.Reports {
		told[r.Fleet+"\x00"+r.Proxy] = true
	}
	for name, fleet := range a.proxies {
		for proxy, r := range fleet {
			over := func(session string) bool {
				return shard.ReplicaOf(session) == shard.ReplicaOf(b.Session) && (session != b.Session || !told[name+"\x00"+proxy])
			}
			maps.DeleteFunc(r.others, func(session string, _ xds.Report) bool { return over(session) })
			if r.Connected && over(r.session) {
				fleet[proxy] = r.left()
			}
		}
	}
}

// see notes that the proxies of live sessions are there; nobody else tells of one whose replica died with it. What waits for a proxy is looked at again when that does not count any more;
// one that is in no fleet's row either is forgotten then, since pods come under ever new names.
func (a *acks) see(live func(session string) bool, row func(fleet string) []string) {
	a.mu.Lock()
	now, left := a.now(), false
	for name, fleet := range a.proxies {
		for proxy, r := range fleet {
			switch r = r.on(live); {
			case r.Connected && live(r.session):
				r.at = now
				fleet[proxy] = r
			case a.there(r):
			case a.looked.Sub(r.at) < seenFor:
				left = true
			case !slices.Contains(row(name), proxy):
				delete(fleet, proxy)
			}
		}
		if len(fleet) == 0 {
			delete(a.proxies, name)
		}
	}
	a.looked = now
	a.mu.Unlock()
	if left {
		a.changed()
	}
}

// there tells whether a proxy was seen lately; the caller holds mu.
func (a *acks) there(r proxyReport) bool { return a.now().Sub(r.at) < seenFor }

// lead begins a term: a new leader writes no convergence before every live replica has reported in it, which some have before the leader knows that it leads.
func (a *acks) lead(term uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.term = term
	maps.DeleteFunc(a.full, func(_ string, in uint64) bool { return in < term })
}

// complete tells whether all these sessions have reported everything.
func (a *acks) complete(sessions []string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !slices.ContainsFunc(sessions, func(s string) bool { return a.full[s] < a.term })
}

// all lists every proxy known, ordered.
func (a *acks) all() []xds.Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []xds.Report
	for _, fleet := range a.proxies {
		for _, r := range fleet {
			if a.there(r) {
				out = append(out, r.Report)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].Fleet < out[j].Fleet || out[i].Fleet == out[j].Fleet && out[i].Proxy < out[j].Proxy
	})
	return out
}

// converged counts a fleet's proxies at an index. part is the record whose rejection matters.
func (a *acks) converged(fleet string, index uint64, part record.Key, counting []string) status.Convergence {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.proxies[fleet]
	counting = a.counting(known, counting)
	out := status.Convergence{Counted: len(counting)}
	id := assemble.PartID(part)
	for _, name := range counting {
		r := known[name]
		if r.Acked >= index {
			out.Acked++
		}
		for _, rej := range r.Rejected {
			if _, suspect := rej.Parts[id]; suspect {
				out.Rejected = fmt.Sprintf("proxy %s rejected it: %s", name, strings.TrimSpace(rej.Message))
			}
		}
	}
	return out
}

// counting gives the proxies that count: those of the fleet's row, or where there is none those seen lately. The caller holds mu.
func (a *acks) counting(known map[string]proxyReport, row []string) []string {
	if row != nil {
		return row
	}
	for name, r := range known {
		if a.there(r) {
			row = append(row, name)
		}
	}
	return row
}

// reached is the index that every proxy of a fleet that counts has ACKed, and whether one of them rejects something.
func (a *acks) reached(fleet string, row []string) (index uint64, rejects bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.proxies[fleet]
	counting := a.counting(known, row)
	if len(counting) == 0 {
		return 0, false
	}
	index = math.MaxUint64
	for _, name := range counting {
		index = min(index, known[name].Acked)
		rejects = rejects || len(known[name].Rejected) > 0
	}
	return index, rejects
}

// rejections gives the pins that proxies ask for: records that two proxies of a fleet, or its only one, found to be to blame for a rejection.
func (a *acks) rejections() []store.Pin {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []store.Pin
	for fleet, proxies := range a.proxies {
		connected := 0
		votes := map[store.Pin]int{} // by key and hash
		reasons := map[store.Pin]string{}
		for _, r := range proxies {
			if !r.Connected || !a.there(r) {
				continue
			}
			connected++
			for _, pin := range a.blamed(fleet, r.Rejected) {
				vote := store.Pin{Key: pin.Key, Hash: pin.Hash, Fleet: fleet}
				votes[vote]++
				reasons[vote] = pin.Reason
			}
		}
		for pin, n := range votes {
			if n >= min(2, connected) {
				pin.Reason = reasons[pin]
				out = append(out, pin)
			}
		}
	}
	slices.SortFunc(out, func(x, y store.Pin) int {
		return cmp.Or(shard.RecordKey(x.Key).Compare(shard.RecordKey(y.Key)), cmp.Compare(x.Hash, y.Hash), cmp.Compare(x.Fleet, y.Fleet))
	})
	return out
}

// blamed reads the rejections of one proxy, each record and hash once.
func (a *acks) blamed(fleet string, rejections []xds.Rejection) map[string]store.Pin {
	out := map[string]store.Pin{}
	for _, rej := range rejections {
		for part, hash := range rej.Parts {
			key, err := assemble.ParsePart(part)
			if err != nil {
				a.log.Warn("a proxy rejected something that names no record", "part", part)
				continue
			}
			out[part+" "+hash] = store.Pin{Key: shard.StoreKey(key), Hash: hash, Fleet: fleet, Reason: strings.TrimSpace(rej.Message)}
		}
	}
	return out
}
