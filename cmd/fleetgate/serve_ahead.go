package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/shard"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

// This file is how endpoints run ahead of the log (D18). An owner hands every change of endpoints to all replicas at once, and again each second until it is committed; a replica
// serves the newest that it was told until the log has had the same or, where it missed that, something newer, or the row has another owner, who will tell. So without a quorum proxies still learn of pods that died.

// takeAhead serves endpoints that are newer than what is served, and remembers them: what is committed later may be older.
func (p *pipeline) takeAhead(all []shard.Ahead) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range all {
		old, was := p.ahead[a.Key]
		rec, err := p.db.Get(a.Key)
		_, pinned := p.pins[a.Key]
		if was && !a.Newer(old) || p.logged[a.Key].overtakes(a) || err != nil || rec == nil || pinned || a.Epoch < p.epoch(a.Key) {
			continue
		}
		p.ahead[a.Key] = a
		p.serveAhead(a.Key, a.Payload)
	}
}

// serveAhead serves a payload of an endpoints record; the caller holds mu.
func (p *pipeline) serveAhead(k store.Key, payload []byte) {
	byFleet, err := p.state.Ahead(shard.RecordKey(k), func(of record.Key) ([]byte, bool) {
		if shard.StoreKey(of) == k {
			return payload, true
		}
		return p.aheadOf(of)
	})
	if err != nil {
		p.log.Warn("endpoints are not served before they are committed", "err", err)
		return
	}
	for f, resources := range byFleet {
		out := make([]xds.Resource, len(resources))
		for i, r := range resources {
			out[i] = toResource(r)
		}
		p.server.Endpoints(f, out)
	}
}

// aheadOf gives what runs ahead of an endpoints record; the caller holds mu.
func (p *pipeline) aheadOf(k record.Key) ([]byte, bool) {
	a, ok := p.ahead[shard.StoreKey(k)]
	return a.Payload, ok
}

// epoch is that of the row of a key.
func (p *pipeline) epoch(k store.Key) uint64 {
	_, rows := p.db.Table()
	for _, row := range rows {
		if row.Cluster == k.Cluster && shard.Contains(row, k.Namespace) {
			return row.Epoch
		}
	}
	return 0
}

// logged is the proposal by which the log got the endpoints of a key last.
type logged struct{ epoch, seq uint64 }

// overtakes tells whether the log has had by then what ran ahead, or what its owner sent after that.
func (l logged) overtakes(a shard.Ahead) bool {
	return l.epoch > a.Epoch || l.epoch == a.Epoch && l.seq > a.After
}

// settle forgets what ran ahead of what the log has had: messages are lost and come late, so that it may be older. The caller holds mu.
func (p *pipeline) settle(put *store.PutCommand) {
	if put == nil {
		return
	}
	for _, op := range put.Ops {
		if op.Key.Kind != string(record.KindEndpoints) || op.Content == nil {
			continue
		}
		p.logged[op.Key] = logged{put.Epoch, put.Seq}
		a, ok := p.ahead[op.Key]
		if !ok || !p.logged[op.Key].overtakes(a) {
			continue
		}
		delete(p.ahead, op.Key)
		if !bytes.Equal(a.Payload, op.Content.Payload) {
			p.serveAhead(op.Key, op.Content.Payload)
		}
	}
}

// overtaken forgets what ran ahead of a record, once the record is gone or pinned; the caller holds mu.
func (p *pipeline) overtaken(k store.Key, r *store.Record) {
	if _, pinned := p.pins[k]; r == nil || pinned {
		delete(p.ahead, k)
	}
	if r == nil {
		delete(p.logged, k)
	}
}

// fence goes back to what is committed where a row has another owner by now; the caller holds mu.
func (p *pipeline) fence() {
	for k, a := range p.ahead {
		if a.Epoch >= p.epoch(k) {
			continue
		}
		delete(p.ahead, k)
		if rec, err := p.db.Get(k); err == nil && rec != nil {
			p.serveAhead(k, rec.Cur.Payload)
		}
	}
}

// newest puts what runs ahead in the place of what is committed; the caller holds mu.
func (p *pipeline) newest(fleet string, r assemble.Resource) assemble.Resource {
	if r.Type != assemble.TypeEndpoints || len(p.ahead) == 0 {
		return r
	}
	for part := range xds.Parts(r.Parts).All() {
		k, err := assemble.ParsePart(part)
		if _, ok := p.aheadOf(k); err != nil || !ok {
			continue
		}
		byFleet, err := p.state.Ahead(k, p.aheadOf)
		if i := slices.IndexFunc(byFleet[fleet], func(ahead assemble.Resource) bool { return ahead.Name == r.Name }); err == nil && i >= 0 {
			r.Bytes, r.Version = byFleet[fleet][i].Bytes, byFleet[fleet][i].Version
			return r // with all that runs ahead of its parts
		}
	}
	return r
}

// spreader sends endpoints ahead to the other replicas. For each there is at most one call on its way; what arrives meanwhile waits, the newest of each key.
type spreader struct {
	call func(ctx context.Context, replica string, body []byte) error
	log  *slog.Logger

	mu    sync.Mutex
	boxes map[string]*outbox // by replica
	wake  chan struct{}
}

type outbox struct {
	busy    bool
	waiting map[store.Key]shard.Ahead
}

func newSpreader(call func(context.Context, string, []byte) error, log *slog.Logger) *spreader {
	return &spreader{call: call, log: log, boxes: map[string]*outbox{}, wake: make(chan struct{}, 1)}
}

// post leaves endpoints for replicas; it does not block.
func (s *spreader) post(replicas []string, all []shard.Ahead) {
	s.mu.Lock()
	for _, id := range replicas {
		box := s.boxes[id]
		if box == nil {
			box = &outbox{waiting: map[store.Key]shard.Ahead{}}
			s.boxes[id] = box
		}
		for _, a := range all {
			if old, ok := box.waiting[a.Key]; !ok || a.Newer(old) {
				box.waiting[a.Key] = a
			}
		}
	}
	s.mu.Unlock()
	s.signal()
}

func (s *spreader) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run delivers until ctx ends. What cannot be delivered is dropped: its owner sends it again.
func (s *spreader) run(ctx context.Context) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		for id, all := range s.ready() {
			calls.Go(func() { s.deliver(ctx, id, all) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
	}
}

// ready takes what waits for replicas that no call is on its way to.
func (s *spreader) ready() map[string][]shard.Ahead {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string][]shard.Ahead{}
	for id, box := range s.boxes {
		if box.busy || len(box.waiting) == 0 {
			continue
		}
		for _, a := range box.waiting {
			out[id] = append(out[id], a)
		}
		clear(box.waiting)
		box.busy = true
	}
	return out
}

func (s *spreader) deliver(ctx context.Context, replica string, all []shard.Ahead) {
	body, err := json.Marshal(all)
	if err == nil {
		cctx, cancel := context.WithTimeout(ctx, time.Second)
		err = s.call(cctx, replica, body)
		cancel()
	}
	if err != nil {
		s.log.Debug("endpoints did not reach a replica, they are sent again until they are committed", "replica", replica, "err", err)
	}
	s.mu.Lock()
	s.boxes[replica].busy = false
	s.mu.Unlock()
	s.signal()
}

// sendAhead serves endpoints of our rows here and everywhere.
func (r *replica) sendAhead(all []shard.Ahead) {
	r.pipe.takeAhead(all)
	var others []string
	for _, m := range r.group.Members() {
		if m.ID != r.group.ID() {
			others = append(others, m.ID)
		}
	}
	r.spreader.post(others, all)
}

func (r *replica) answerAhead(_ context.Context, _ string, body []byte) ([]byte, error) {
	var all []shard.Ahead
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, fmt.Errorf("endpoints ahead of the log: %w", err)
	}
	r.pipe.takeAhead(all)
	return nil, nil
}
