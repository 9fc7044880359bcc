package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
)

const (
	settle   = 300 * time.Millisecond // the first write of a change waits this long for ACKs, so that a healthy change is one write
	interval = time.Second            // then at most one write for each object and second
)

// Facts is what the writer reads; all methods may be called from any goroutine.
type Facts interface {
	Gateway(record.Key) (assemble.GatewayStatus, bool)
	Route(record.Key) (assemble.RouteStatus, bool)
	Class(record.Key) (assemble.ClassStatus, bool)
	// Converged tells how far a fleet is with an index; part names the record whose rejection counts, "" = any listener's.
	Converged(fleet string, index uint64, part record.Key) Convergence
	Addresses(cluster string) []string
	Source(cluster string) member.Source
}

// Writer writes status while its Run runs: on the leader.
type Writer struct {
	Facts       Facts
	Controllers []string
	Logger      *slog.Logger
	Now         func() time.Time
	Written     func() // counts writes, may be nil

	mu    sync.Mutex
	dirty map[record.Key]*mark
	wake  chan struct{}
}

// mark is an object whose status may have to change.
type mark struct {
	since time.Time // first said so
	last  time.Time // last write
	watch bool      // not converged: look again when ACKs come
	due   bool
}

// NewWriter makes a writer; Run starts it.
func NewWriter(f Facts, controllers []string, log *slog.Logger) *Writer {
	return &Writer{Facts: f, Controllers: controllers, Logger: log, Now: time.Now, dirty: map[record.Key]*mark{}, wake: make(chan struct{}, 1)}
}

// Touch says that the statuses of these records may differ now.
func (w *Writer) Touch(keys []record.Key) {
	if len(keys) == 0 {
		return
	}
	w.mu.Lock()
	for _, k := range keys {
		m := w.dirty[k]
		if m == nil {
			m = &mark{}
			w.dirty[k] = m
		}
		if !m.due {
			m.due, m.since = true, w.Now()
		}
	}
	w.mu.Unlock()
	w.signal()
}

// Acked says that ACKs came in: objects that wait for some are looked at again.
func (w *Writer) Acked() { w.signal() }

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends.
func (w *Writer) Run(ctx context.Context) {
	for {
		next := w.pass(ctx)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-w.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// pass looks at every object that is due or watched; it gives the time until something is due again.
func (w *Writer) pass(ctx context.Context) time.Duration {
	next := time.Minute
	for _, k := range w.candidates() {
		if ctx.Err() != nil {
			return next
		}
		if wait := w.consider(ctx, k); wait > 0 {
			next = min(next, wait)
		}
	}
	return next
}

func (w *Writer) candidates() []record.Key {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []record.Key
	for k, m := range w.dirty {
		if m.due || m.watch {
			out = append(out, k)
		}
	}
	return out
}

// consider writes one object if its time has come; it gives how long to wait where it has not.
func (w *Writer) consider(ctx context.Context, k record.Key) time.Duration {
	now := w.Now()
	want, live, known := w.compose(k)
	w.mu.Lock()
	m := w.dirty[k]
	if !known {
		delete(w.dirty, k)
		w.mu.Unlock()
		return 0
	}
	wait := time.Duration(0)
	if !live && m.due {
		wait = settle - now.Sub(m.since)
	}
	if m.last.After(time.Time{}) {
		wait = max(wait, interval-now.Sub(m.last))
	}
	if !live && m.watch && !m.due { // a changed count alone causes no write
		w.mu.Unlock()
		return 0
	}
	if wait > 0 {
		w.mu.Unlock()
		return wait
	}
	m.due, m.watch = false, !live
	w.mu.Unlock()
	wrote, err := w.write(ctx, k, want)
	if err != nil {
		w.again(k, err)
		return interval
	}
	if wrote {
		w.mu.Lock()
		m.last = now
		w.mu.Unlock()
	}
	return 0
}

func (w *Writer) again(k record.Key, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m := w.dirty[k]; m != nil {
		m.due = true
	}
	if !errors.Is(err, member.ErrConflict) {
		w.Logger.Warn("status not written, it is tried again", "object", fmt.Sprintf("%s %s/%s", k.Kind, k.Namespace, k.Name), "err", err)
	}
}

// composed makes the status once the present one has been read.
type composed struct {
	object record.Object
	with   func(present []byte, now metav1.Time) (any, error)
}

// compose gives how to make the status of a record's object, and whether it is live everywhere.
func (w *Writer) compose(k record.Key) (composed, bool, bool) {
	switch k.Kind {
	case record.KindGateway:
		s, ok := w.Facts.Gateway(k)
		if !ok {
			return composed{}, false, false
		}
		c := w.Facts.Converged(record.FleetName(k.Cluster, k.Namespace, k.Name), s.Index, k)
		return composed{s.Object, func(present []byte, now metav1.Time) (any, error) {
			var p gatewayv1.GatewayStatus
			err := json.Unmarshal(present, &p)
			return Gateway(s, w.Facts.Addresses(k.Cluster), c, now, p), err
		}}, c.Live() || !s.Valid, true
	case record.KindRoute:
		s, ok := w.Facts.Route(k)
		if !ok {
			return composed{}, false, false
		}
		converge := func(fleet string) Convergence { return w.Facts.Converged(fleet, s.Index, k) }
		live := s.Pending == "" || s.Rejected // a rejection is final: nothing to wait for
		for _, p := range s.Parents {
			live = live && (!p.Attached || s.Rejected || converge(p.Fleet).Live())
		}
		return composed{s.Object, func(present []byte, now metav1.Time) (any, error) {
			var p gatewayv1.RouteStatus
			err := json.Unmarshal(present, &p)
			return Route(s, converge, now, p, w.ours), err
		}}, live, true
	case record.KindClass:
		return w.class(k)
	}
	return composed{}, false, false
}

// class claims a GatewayClass.
func (w *Writer) class(k record.Key) (composed, bool, bool) {
	s, ok := w.Facts.Class(k)
	return composed{s.Object, func(present []byte, now metav1.Time) (any, error) {
		var p gatewayv1.GatewayClassStatus
		err := json.Unmarshal(present, &p)
		p.Conditions = merge(p.Conditions, s.Conditions, now)
		return p, err
	}}, true, ok
}

func (w *Writer) ours(c gatewayv1.GatewayController) bool {
	for _, own := range w.Controllers {
		if string(c) == own {
			return true
		}
	}
	return false
}

// write reads the present status, and replaces it if it differs.
func (w *Writer) write(ctx context.Context, k record.Key, c composed) (bool, error) {
	src := w.Facts.Source(k.Cluster)
	if src == nil {
		return false, nil
	}
	present, version, err := src.ReadStatus(ctx, c.object.Kind, c.object.Namespace, c.object.Name)
	if errors.Is(err, member.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now := metav1.NewTime(w.Now().UTC().Truncate(time.Second))
	want, err := c.with(present, now)
	if err != nil {
		return false, fmt.Errorf("reading the present status: %w", err)
	}
	b, err := json.Marshal(want)
	if err != nil {
		return false, fmt.Errorf("encoding the status: %w", err)
	}
	if sameJSON(present, b) {
		return false, nil
	}
	_, err = src.WriteStatus(ctx, member.Status{Kind: c.object.Kind, Namespace: c.object.Namespace, Name: c.object.Name, UID: c.object.UID, ResourceVersion: version, Status: b})
	if errors.Is(err, member.ErrNotFound) {
		return false, nil
	}
	if err == nil && w.Written != nil {
		w.Written()
	}
	return err == nil, err
}

func sameJSON(a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return asJSON(x) == asJSON(y)
}
