package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// stream is one ADS stream. All of its state belongs to the goroutine of run, but for wake and last.
type stream struct {
	srv   *Server
	fleet *fleet
	id    Identity
	grpc  grpc.ServerStream
	log   *slog.Logger

	wake     chan struct{} // size 1: something of the fleet changed
	requests chan *request
	ended    chan error    // the client closed, or broke
	trusted  chan struct{} // Hold has ended

	types    [NumTypes]subscription
	nonces   uint64
	index    uint64      // the fleet's index at the last plan
	deadline time.Time   // when to plan again though nothing happens
	settled  time.Time   // until then the client may hold listeners or routes that it has not spoken of yet
	answered time.Time   // when the newest of the responses was sent that the client has answered
	progress time.Time   // the last ACK of a type that makes the client ask for more
	additive bool        // the client may be ahead of this replica (D4): only what it lacks is sent, nothing is removed
	holding  bool        // Hold was asked
	probes   []*response // registered already: parts of a rejected response, to be sent again

	acked    uint64 // the watermark (D8)
	overdue  map[overdueKey]overdue
	reporter reporter
	last     atomic.Pointer[Report]
}

type overdueKey struct {
	typ Type
	id  uint32
}

// overdue is a resource that went out without the ACK of clusters that it uses.
type overdue struct {
	clusters  []uint32
	exception Exception
}

func newStream(srv *Server, f *fleet, id Identity, g grpc.ServerStream) *stream {
	now := time.Now()
	return &stream{
		srv: srv, fleet: f, id: id, grpc: g, log: srv.cfg.Logger.With("fleet", f.name, "proxy", id.Proxy),
		wake: make(chan struct{}, 1), requests: make(chan *request, 16), ended: make(chan error, 1), trusted: make(chan struct{}, 1),
		settled: now.Add(srv.cfg.GateTimeout), progress: now, overdue: map[overdueKey]overdue{}, reporter: reporter{start: now},
	}
}

// poke says that the fleet changed; it never blocks.
func (s *stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run serves the stream until the client, the server or the fleet ends it.
func (s *stream) run() error {
	go s.receive()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if err := s.flush(time.Now()); err != nil {
			return err
		}
		timer.Reset(s.nap(time.Now()))
		select {
		case <-s.grpc.Context().Done():
			return nil
		case err := <-s.ended:
			return err
		case <-s.srv.draining:
			return status.Error(codes.Unavailable, "this replica is shutting down: connect to another")
		case <-s.fleet.rebuilt:
			return status.Error(codes.Unavailable, "the fleet's names were renumbered: reconnect, nothing will be resent")
		case <-s.trusted:
			s.additive = false
		case <-s.wake:
			s.coalesce()
		case r := <-s.requests:
			if err := s.take(r); err != nil {
				return err
			}
		case <-timer.C:
		}
	}
}

// take handles a request and those that wait behind it, so that one plan answers them all.
func (s *stream) take(r *request) error {
	for {
		if err := s.handle(r, time.Now()); err != nil {
			return err
		}
		select {
		case r = <-s.requests:
		default:
			return nil
		}
	}
}

// coalesce waits for more changes, where that was configured.
func (s *stream) coalesce() {
	if s.srv.cfg.CoalesceWindow <= 0 {
		return
	}
	select {
	case <-time.After(s.srv.cfg.CoalesceWindow):
	case <-s.grpc.Context().Done():
	}
}

func (s *stream) nap(now time.Time) time.Duration {
	if s.deadline.IsZero() {
		return time.Hour
	}
	return max(s.deadline.Sub(now), time.Millisecond)
}

func (s *stream) receive() {
	for {
		r := &request{}
		if err := s.grpc.RecvMsg(r); err != nil {
			if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
				err = nil
			}
			s.ended <- err
			return
		}
		select {
		case s.requests <- r:
		case <-s.grpc.Context().Done():
			return
		}
	}
}

// flush sends what is due and reports what is known.
func (s *stream) flush(now time.Time) error {
	out := append(s.probes, s.plan(now)...)
	s.probes = nil
	for _, r := range out {
		if err := s.send(r); err != nil {
			return err
		}
	}
	s.report(now)
	return nil
}

func (s *stream) send(r *response) error {
	removed := r.names
	if len(r.removed) > 0 {
		removed = make([]string, 0, len(r.removed))
		s.fleet.mu.RLock()
		for _, id := range r.removed {
			removed = append(removed, s.fleet.tables[r.typ].items[id].name)
		}
		s.fleet.mu.RUnlock()
	}
	f := &frame{buffers: make(mem.BufferSlice, 0, len(r.items)+1)}
	for _, it := range r.items {
		f.buffers = append(f.buffers, it.entry...)
	}
	f.buffers = append(f.buffers, tail(URLs[r.typ], r.nonce, s.srv.systemVersion(s.index), s.srv.cfg.Replica, removed))
	s.srv.stats.responses.Add(1)
	s.srv.stats.resources.Add(uint64(len(r.items)))
	s.srv.stats.bytes.Add(uint64(f.buffers.Len()))
	return s.grpc.SendMsg(f)
}

func (s *stream) nextNonce() string {
	s.nonces++
	return strconv.FormatUint(s.nonces, 10)
}

// handle takes one request: a subscription, an ACK, a NACK, or several at once.
func (s *stream) handle(r *request, now time.Time) error {
	t, ok := typeOf(r.typeURL)
	if !ok {
		return s.refuse(r)
	}
	sub := &s.types[t]
	s.fleet.mu.RLock()
	s.subscribe(t, r)
	s.fleet.mu.RUnlock()
	if n := sub.names(); n > s.srv.cfg.MaxNames {
		return status.Errorf(codes.ResourceExhausted, "%d names of %s on one stream, at most %d are allowed", n, r.typeURL, s.srv.cfg.MaxNames)
	}
	if r.nonce == "" {
		return nil
	}
	if resp := sub.take(r.nonce); resp == nil {
		return nil // a nonce of an earlier stream, or nonsense: it pairs with nothing
	} else if s.heard(resp); r.nack {
		s.nacked(resp, r.message, now)
	} else {
		s.ackedBy(resp, now)
	}
	return nil
}

// heard notes how far a client has got: it takes what it is sent in order.
func (s *stream) heard(r *response) {
	if r.sent.After(s.answered) {
		s.answered = r.sent
	}
}

func (s *stream) subscribe(t Type, r *request) {
	sub, table := &s.types[t], &s.fleet.tables[t]
	if sub.started {
		sub.subscribe(table, r.subscribe, s.acked)
	} else if sub.start(t, table, r, s.fleet.seq, s.acked) && t != Endpoints {
		s.catchUp()
	}
	if t == Endpoints && len(r.initial) > 0 { // clusters that went out before the client spoke of its endpoints wait for them all the same
		for _, out := range s.types[Cluster].inflight {
			s.followWithEndpoints(out.items)
		}
	}
	sub.unsubscribe(table, r.unsubscribe)
}

// refuse answers a type that is not served: every name does not exist, so that no client waits for it.
func (s *stream) refuse(r *request) error {
	if len(r.subscribe) == 0 || r.nonce != "" {
		return nil
	}
	return s.grpc.SendMsg(&frame{buffers: mem.BufferSlice{
		tail(r.typeURL, s.nextNonce(), s.srv.systemVersion(s.index), s.srv.cfg.Replica, r.subscribe)}})
}

func typeOf(url string) (Type, bool) {
	for t, u := range URLs {
		if u == url {
			return Type(t), true
		}
	}
	return 0, false
}

// catchUp asks once whether this replica has all that the client may have seen elsewhere. Until it knows, the stream is additive.
func (s *stream) catchUp() {
	if s.holding || s.srv.cfg.Hold == nil {
		return
	}
	s.holding, s.additive = true, true
	s.srv.stats.holds.Add(1)
	s.srv.running.Add(1)
	go func() {
		defer s.srv.running.Done()
		holdUntil(s.grpc.Context(), s.srv.cfg.Hold, s.fleet.name, s.srv.cfg.HoldRetry, s.log)
		s.trusted <- struct{}{}
	}()
}

// holdUntil calls hold until it succeeds: without a leader it fails, and then one will be found some time.
func holdUntil(ctx context.Context, hold func(context.Context, string) error, fleet string, retry time.Duration, log *slog.Logger) {
	for ctx.Err() == nil {
		err := hold(ctx, fleet)
		if err == nil {
			return
		}
		log.Info("a proxy may be ahead of this replica, and no leader can tell: it is sent only what it lacks", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
}
