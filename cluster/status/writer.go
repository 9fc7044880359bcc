package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
)

const (
	settle   = 300 * time.Millisecond // the first write of a change waits this long for what will be there in a moment
	patience = time.Second            // and this long for ACKs of a route, so that a healthy change is one write also where proxies or replicas are busy
	interval = time.Second            // on the long run there is at most one write for each object and second
	burst    = 3                      // so many come without a pause: that it waits, that it is live, and a change by its author
	parallel = 8                      // writes under way in one member cluster
)

// Facts is what the writer reads; all methods may be called from any goroutine.
type Facts interface {
	Gateway(record.Key) (assemble.GatewayStatus, bool)
	Route(record.Key) (assemble.RouteStatus, bool)
	Class(record.Key) (assemble.ClassStatus, bool)
	ListenerSet(record.Key) (assemble.ListenerSetStatus, bool)
	Policy(record.Key) (assemble.PolicyStatus, bool)
	// Converged tells how far a fleet is with an index; part names the record whose rejection counts, "" = any listener's.
	Converged(fleet string, index uint64, part record.Key) Convergence
	// Reached is the index up to which every proxy of a fleet that counts has ACKed what it was sent (0 where none counts, the highest number where
	// all have ACKed all), and whether one of them rejects something. It is asked once for a fleet in each pass, however many objects wait for it.
	Reached(fleet string) (index uint64, rejects bool)
	// Reach tells at what a Gateway is reached.
	Reach(gateway record.Key) Reach
	Source(cluster string) member.Source
}

// Writer writes status while its Run runs: on the leader. Each member cluster has a lane of its own, so that a slow API server delays nobody else's status.
type Writer struct {
	Facts       Facts
	Controllers []string
	Logger      *slog.Logger
	Now         func() time.Time
	Written     func() // counts writes, may be nil
	// Features are those that a GatewayClass of ours is said to have, sorted.
	Features func(assemble.ClassStatus) []gatewayv1.SupportedFeature

	mu     sync.Mutex
	lanes  map[string]*lane
	opened chan struct{}
}

// lane is the work of one member cluster.
type lane struct {
	dirty map[record.Key]*mark
	acked bool // ACKs came in since the last pass
	wake  chan struct{}
}

// mark is an object whose status may have to change.
type mark struct {
	since time.Time // first said so
	waits []wait    // not live there yet: it is looked at again when they have ACKed it
	due   bool
	pace  *rate.Limiter // its tokens are the writes that may come now
}

// wait is a fleet, and the index that it has to reach.
type wait struct {
	fleet string
	index uint64
}

// NewWriter makes a writer; Run starts it.
func NewWriter(f Facts, controllers []string, log *slog.Logger) *Writer {
	return &Writer{Facts: f, Controllers: controllers, Logger: log, Now: time.Now, lanes: map[string]*lane{}, opened: make(chan struct{}, 1)}
}

// Touch says that the statuses of these records may differ now.
func (w *Writer) Touch(keys []record.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range keys {
		l := w.lanes[k.Cluster]
		if l == nil {
			l = &lane{dirty: map[record.Key]*mark{}, wake: make(chan struct{}, 1)}
			w.lanes[k.Cluster] = l
			signal(w.opened)
		}
		m := l.dirty[k]
		if m == nil {
			m = &mark{pace: rate.NewLimiter(rate.Every(interval), burst)}
			l.dirty[k] = m
		}
		if !m.due {
			m.due, m.since = true, w.Now()
		}
		signal(l.wake)
	}
}

// Acked says that ACKs came in: objects that wait for some are looked at again.
func (w *Writer) Acked() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.lanes {
		l.acked = true
		signal(l.wake)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends.
func (w *Writer) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[string]bool{}
	for {
		w.mu.Lock()
		for cluster, l := range w.lanes {
			if !running[cluster] {
				running[cluster], l.acked = true, true
				wg.Go(func() { w.run(ctx, l) })
			}
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-w.opened:
		}
	}
}

// run writes what is due in one lane until ctx ends.
func (w *Writer) run(ctx context.Context, l *lane) {
	for {
		timer := time.NewTimer(w.pass(ctx, l))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-l.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// pass considers every object whose time may have come; it gives the time until something is due again.
func (w *Writer) pass(ctx context.Context, l *lane) time.Duration {
	var mu sync.Mutex
	next := time.Minute
	var under errgroup.Group
	under.SetLimit(parallel)
	for _, k := range w.candidates(l) {
		if ctx.Err() != nil {
			break
		}
		under.Go(func() error {
			if wait := w.consider(ctx, l, k); wait > 0 {
				mu.Lock()
				next = min(next, wait)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = under.Wait() // its functions give no errors
	return next
}

// candidates are the objects that were touched, and of those that wait for ACKs the ones that wait no longer. Marks that nothing needs are forgotten.
func (w *Writer) candidates(l *lane) []record.Key {
	moved := w.moved(l)
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []record.Key
	for k, m := range l.dirty {
		switch {
		case m.due || slices.ContainsFunc(m.waits, moved):
			out = append(out, k)
		case len(m.waits) == 0 && m.pace.TokensAt(w.Now()) >= burst:
			delete(l.dirty, k)
		}
	}
	return out
}

// moved tells whether a wait may be over: its fleet has reached the index, or rejects something. Nothing has moved where nothing was ACKed. The facts are asked without the lock: who tells
// them may be touching objects.
func (w *Writer) moved(l *lane) func(wait) bool {
	type reach struct {
		index   uint64
		rejects bool
	}
	known := map[string]reach{}
	for _, fleet := range w.waitedFor(l) {
		var r reach
		r.index, r.rejects = w.Facts.Reached(fleet)
		known[fleet] = r
	}
	return func(x wait) bool {
		r, ok := known[x.fleet]
		return ok && (r.rejects || r.index >= x.index)
	}
}

// waitedFor names the fleets that objects wait for, if any proxy has ACKed something since it was asked last.
func (w *Writer) waitedFor(l *lane) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !l.acked {
		return nil
	}
	l.acked = false
	fleets := map[string]bool{}
	for _, m := range l.dirty {
		for _, x := range m.waits {
			fleets[x.fleet] = true
		}
	}
	return slices.Collect(maps.Keys(fleets))
}

// consider writes one object if its time has come; it gives how long to wait where it has not.
func (w *Writer) consider(ctx context.Context, l *lane, k record.Key) time.Duration {
	m, due, since := w.take(l, k)
	want, known := w.compose(k)
	now := w.Now()
	w.mu.Lock()
	if !known {
		if !m.due {
			delete(l.dirty, k)
		}
		w.mu.Unlock()
		return 0
	}
	pause := time.Duration(0)
	switch {
	case due && !want.rejected && len(want.waits) > 0 && k.Kind == record.KindRoute:
		pause = patience - now.Sub(since)
	case due && !want.rejected && (len(want.waits) > 0 || want.pending):
		pause = settle - now.Sub(since)
	case !due && len(want.waits) > 0 && !want.rejected: // a changed count alone causes no write
		w.mu.Unlock()
		return 0
	}
	if lack := 1 - m.pace.TokensAt(now); lack > 0 {
		pause = max(pause, time.Duration(lack*float64(interval)))
	}
	if pause > 0 {
		m.due, m.since = true, since
		w.mu.Unlock()
		return pause
	}
	m.waits = want.waits
	w.mu.Unlock()
	wrote, err := w.write(ctx, k, want)
	w.mu.Lock()
	defer w.mu.Unlock()
	if wrote {
		m.pace.AllowN(now, 1)
	}
	if err == nil {
		return 0
	}
	m.due = true
	if !errors.Is(err, member.ErrConflict) {
		w.Logger.Warn("status not written, it is tried again", "object", fmt.Sprintf("%s %s/%s", k.Kind, k.Namespace, k.Name), "err", err)
	}
	return interval
}

// take notes that an object is being considered: who touches it from now on means what is not composed yet.
func (w *Writer) take(l *lane, k record.Key) (m *mark, due bool, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m = l.dirty[k]
	due, since = m.due, m.since
	m.due = false
	return m, due, since
}

// composed makes the status once the present one has been read.
type composed struct {
	object    record.Object
	waits     []wait // fleets that do not run it yet
	pending   bool   // what it refers to is not there yet
	finalizer string // what keeps the object from vanishing while it is used, "" = nothing does
	used      bool
	rejected  bool // a proxy refuses it: that is told without waiting for the others
	with      func(present []byte, now metav1.Time) (any, error)
}

// compose gives how to make the status of a record's object; false where there is no such object.
func (w *Writer) compose(k record.Key) (composed, bool) {
	switch k.Kind {
	case record.KindGateway:
		return w.gateway(k)
	case record.KindRoute:
		return w.route(k)
	case record.KindClass:
		return w.class(k)
	case record.KindListenerSet:
		return w.listenerSet(k)
	case record.KindPolicy:
		s, ok := w.Facts.Policy(k)
		return composed{object: s.Object, with: func(present []byte, now metav1.Time) (any, error) {
			var p gatewayv1.PolicyStatus
			err := json.Unmarshal(present, &p)
			return Policy(s, now, p, w.ours), err
		}}, ok
	}
	return composed{}, false
}

func (w *Writer) gateway(k record.Key) (composed, bool) {
	s, ok := w.Facts.Gateway(k)
	fleet := record.FleetName(k.Cluster, k.Namespace, k.Name)
	c := w.Facts.Converged(fleet, s.Index, k)
	out := composed{object: s.Object, rejected: c.Rejected != "", with: func(present []byte, now metav1.Time) (any, error) {
		var p gatewayv1.GatewayStatus
		err := json.Unmarshal(present, &p)
		return Gateway(s, w.Facts.Reach(k), c, now, p), err
	}}
	if s.Valid && !c.Live() {
		out.waits = []wait{{fleet, s.Index}}
	}
	return out, ok
}

func (w *Writer) listenerSet(k record.Key) (composed, bool) {
	s, ok := w.Facts.ListenerSet(k)
	c := w.Facts.Converged(s.Fleet, s.Index, s.Gateway)
	out := composed{object: s.Object, rejected: c.Rejected != "", with: func(present []byte, now metav1.Time) (any, error) {
		var p gatewayv1.ListenerSetStatus
		err := json.Unmarshal(present, &p)
		return ListenerSet(s, c, now, p), err
	}}
	if s.Valid && !c.Live() {
		out.waits = []wait{{s.Fleet, s.Index}}
	}
	return out, ok
}

func (w *Writer) route(k record.Key) (composed, bool) {
	s, ok := w.Facts.Route(k)
	fleets := map[string]Convergence{}
	for _, p := range s.Parents {
		if _, seen := fleets[p.Fleet]; p.Attached && !seen {
			fleets[p.Fleet] = w.Facts.Converged(p.Fleet, s.Index, k)
		}
	}
	out := composed{object: s.Object, pending: s.Pending != "", rejected: s.Rejected, with: func(present []byte, now metav1.Time) (any, error) {
		var p gatewayv1.RouteStatus
		err := json.Unmarshal(present, &p)
		return Route(s, func(fleet string) Convergence { return fleets[fleet] }, now, p, w.ours), err
	}}
	for fleet, c := range fleets {
		out.rejected = out.rejected || c.Rejected != ""
		if !c.Live() && !s.Rejected { // a rejection is final: nothing to wait for
			out.waits = append(out.waits, wait{fleet, s.Index})
		}
	}
	return out, ok
}

// class claims a GatewayClass.
func (w *Writer) class(k record.Key) (composed, bool) {
	s, ok := w.Facts.Class(k)
	with := func(present []byte, now metav1.Time) (any, error) {
		var p gatewayv1.GatewayClassStatus
		err := json.Unmarshal(present, &p)
		p.Conditions, p.SupportedFeatures = merge(p.Conditions, s.Conditions, now), w.Features(s)
		return p, err
	}
	return composed{object: s.Object, with: with, finalizer: gatewayv1.GatewayClassFinalizerGatewaysExist, used: s.Used}, ok
}

func (w *Writer) ours(c gatewayv1.GatewayController) bool {
	for _, own := range w.Controllers {
		if string(c) == own {
			return true
		}
	}
	return false
}

// write brings the object's status and finalizer up to date, where they differ.
func (w *Writer) write(ctx context.Context, k record.Key, c composed) (bool, error) {
	src := w.Facts.Source(k.Cluster)
	if src == nil {
		return false, nil
	}
	wrote, err := w.writeStatus(ctx, src, c)
	if f, ok := src.(member.Finalizing); ok && err == nil && c.finalizer != "" {
		err = f.Finalizer(ctx, c.object.Kind, c.object.Namespace, c.object.Name, c.finalizer, c.used)
	}
	return wrote, err
}

// writeStatus reads the present status, and replaces it if it differs.
func (w *Writer) writeStatus(ctx context.Context, src member.Source, c composed) (bool, error) {
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
	if err != nil {
		return false, err
	}
	if w.Written != nil {
		w.Written()
	}
	w.tell(src, c.object, present, b)
	return true, nil
}

// tell leaves a notice of each condition that has turned for the worse, or back.
func (w *Writer) tell(src member.Source, o record.Object, before, after []byte) {
	to, ok := src.(member.Telling)
	if !ok {
		return
	}
	news, err := notices(o, before, after, w.ours)
	if err != nil {
		w.Logger.Warn("no events of a change of status", "object", fmt.Sprintf("%s %s/%s", o.Kind, o.Namespace, o.Name), "err", err)
	}
	for _, n := range news {
		to.Tell(n)
	}
}

// sameJSON tells whether two statuses say the same; null, an empty list and nothing do, so an object that is none of ours is left alone.
func sameJSON(a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return asJSON(bare(x)) == asJSON(bare(y))
}

// bare drops what is empty; nil where nothing is left.
func bare(v any) any {
	switch v := v.(type) {
	case []any:
		if len(v) == 0 {
			return nil
		}
		for i := range v {
			v[i] = bare(v[i])
		}
	case map[string]any:
		for name, value := range v {
			if v[name] = bare(value); v[name] == nil {
				delete(v, name)
			}
		}
		if len(v) == 0 {
			return nil
		}
	}
	return v
}
