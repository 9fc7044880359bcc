package shard

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
)

// Silence is how long a session may be silent before its rows move (D3). The epoch is the fence, so no lease is needed.
const Silence = 2 * time.Second

// checkEvery is after how many log entries the leader has the replicas compare their state hashes: one that differs (a defect, a flipped bit, a disk that
// lies) stops with an error before it serves the difference for long.
const checkEvery = 1000

// Heartbeat is what every session tells the leader, twice a second, in the leader's memory only.
type Heartbeat struct {
	Session string
	Applied uint64
	Rows    int
	Proxies int
	Drained map[uint64]uint64
	Bye     bool // a planned stop: its rows move at once
}

// Leader keeps the table while this replica leads.
type Leader struct {
	Store    *store.Store
	Proposer Proposer
	Weights  func() map[string]map[string]uint64
	Expect   func() int // how many replicas the group has: the first cut waits a moment for them
	Logger   *slog.Logger
	Now      func() time.Time

	checked uint64 // index of the last comparison of state hashes; Run's own

	mu   sync.Mutex
	seen map[string]seen
	gone map[string]bool // sessions that have said goodbye: none comes back
	wake chan struct{}
}

type seen struct {
	at   time.Time
	beat Heartbeat
}

// Beat takes a heartbeat.
func (l *Leader) Beat(b Heartbeat) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = map[string]seen{}
	}
	if l.gone[b.Session] { // said before the goodbye, heard after it
		return
	}
	_, known := l.seen[b.Session]
	for s := range l.seen { // a new session of a replica ends its old one
		if s != b.Session && ReplicaOf(s) == ReplicaOf(b.Session) {
			delete(l.seen, s)
		}
	}
	if b.Bye {
		if l.gone == nil {
			l.gone = map[string]bool{}
		}
		l.gone[b.Session] = true
		delete(l.seen, b.Session)
	} else {
		l.seen[b.Session] = seen{at: l.Now(), beat: b}
	}
	if (!known || b.Bye || len(b.Drained) > 0) && l.wake != nil {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// Live gives the sessions heard within the silence limit, with what they said last.
func (l *Leader) Live() map[string]Heartbeat {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]Heartbeat{}
	for s, h := range l.seen {
		if l.Now().Sub(h.at) < Silence {
			out[s] = h.beat
		}
	}
	return out
}

// Run keeps the table until ctx ends (leadership lost); Begin comes before.
func (l *Leader) Run(ctx context.Context) {
	started := l.Now()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		live := l.Live()
		if len(live)+l.left() >= l.Expect() || l.Now().Sub(started) > time.Second {
			l.step(ctx, live)
		}
		l.check(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-l.wake:
		}
	}
}

// Begin gives every owner in the table the benefit of the doubt: a new leader has heard nobody yet, except for the goodbye of the one that it follows.
func (l *Leader) Begin() {
	_, rows := l.Store.Table()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = map[string]seen{}
	l.wake = make(chan struct{}, 1)
	for _, r := range rows {
		if r.Owner != "" && !l.gone[r.Owner] {
			l.seen[r.Owner] = seen{at: l.Now(), beat: Heartbeat{Session: r.Owner}}
		}
	}
}

// left counts the owners of rows that have said goodbye: nobody waits for them.
func (l *Leader) left() int {
	_, rows := l.Store.Table()
	l.mu.Lock()
	defer l.mu.Unlock()
	left := map[string]bool{}
	for _, r := range rows {
		if l.gone[r.Owner] {
			left[r.Owner] = true
		}
	}
	return len(left)
}

func (l *Leader) step(ctx context.Context, live map[string]Heartbeat) {
	version, rows := l.Store.Table()
	v := View{Version: version, Rows: rows, Weights: l.Weights(), Drained: map[uint64]uint64{}}
	for s, b := range live {
		v.Sessions = append(v.Sessions, s)
		for row, epoch := range b.Drained {
			v.Drained[row] = epoch
		}
	}
	cmd := Plan(v)
	if cmd == nil {
		return
	}
	res, err := l.Proposer.Propose(ctx, store.Command{Table: cmd})
	if err != nil || res.Code != "" {
		l.Logger.Debug("the shard table was not changed; it is planned again", "err", err, "code", res.Code, "message", res.Message)
		return
	}
	l.Logger.Info("shard table changed", "version", res.Table, "rows", len(cmd.Rows), "deleted", len(cmd.Delete))
}

// check has the replicas compare their state hashes, once in checkEvery entries.
func (l *Leader) check(ctx context.Context) {
	index, hash := l.Store.StateHash()
	if index < l.checked+checkEvery {
		return
	}
	if _, err := l.Proposer.Propose(ctx, store.Command{Check: &store.CheckCommand{Index: index, Hash: hash}}); err != nil {
		l.Logger.Debug("state hashes were not compared; it is tried again", "err", err)
		return
	}
	l.checked = index
}
