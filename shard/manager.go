package shard

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate"
)

// Config is what a Manager works with.
type Config struct {
	Session   string // ours: replica id, "@", boot number
	Store     *store.Store
	Proposer  Proposer
	Translate translate.Config // Cluster, Owns, Asked and SlicesFollow are set for each row
	Guard     Guard
	// Want gives how to say which objects of a member cluster are wanted by name, all of them; nil = its source delivers every object unasked.
	Want func(cluster string) func(wanted []translate.Ref)
	// SlicesFollow tells which clusters have a controller that makes EndpointSlices (translate.Config.SlicesFollow); nil = none.
	SlicesFollow func(cluster string) bool
	Logger       *slog.Logger
	// Ahead takes endpoints that run ahead of the log (D18), without blocking; nil = none do.
	Ahead func([]Ahead)
}

// Manager runs one Controller for each row that this session owns, and stops it when ownership ends.
type Manager struct {
	cfg      Config
	compiled atomic.Uint64

	mu      sync.Mutex
	caches  map[string]*cache
	running map[uint64]*running
	refs    map[store.Key][]store.Key // what each record names; Run's own

	asking sync.Mutex // what is wanted is said in the order in which it came to be so
}

type running struct {
	row    store.Row
	ctl    *Controller
	cancel context.CancelFunc
	done   chan struct{}
}

// NewManager makes a manager; Run starts it.
func NewManager(cfg Config) *Manager {
	return &Manager{cfg: cfg, caches: map[string]*cache{}, running: map[uint64]*running{}, refs: map[store.Key][]store.Key{}}
}

// Compiled counts the routes compiled by this session.
func (m *Manager) Compiled() uint64 { return m.compiled.Load() }

// Observe takes events of a member cluster; synced says that every kind was seen.
func (m *Manager) Observe(cluster string, events []translate.Event, synced bool) {
	m.cacheOf(cluster).observe(events, synced)
}

// want gives how to ask the source of a cluster for what is read by name, nil where it delivers everything unasked.
func (m *Manager) want(cluster string) func([]translate.Ref) {
	if m.cfg.Want == nil {
		return nil
	}
	return m.cfg.Want(cluster)
}

// ask says what a controller wants by name. It tells whether that has to be waited for: where a source delivers everything, what is not there does not exist.
func (m *Manager) ask(c *Controller, before, now map[translate.Ref]bool) bool {
	want := m.want(c.row.Cluster)
	if want == nil {
		return false
	}
	m.asking.Lock()
	defer m.asking.Unlock()
	want(m.cacheOf(c.row.Cluster).ask(c, before, now))
	return true
}

// Object reads a cluster's last known object, nil if there is none.
func (m *Manager) Object(cluster, kind, namespace, name string) translate.Object {
	return m.cacheOf(cluster).get(kind, namespace, name)
}

// Weights counts objects for each namespace of each synced cluster.
func (m *Manager) Weights() map[string]map[string]uint64 {
	m.mu.Lock()
	caches := make(map[string]*cache, len(m.caches))
	for n, c := range m.caches {
		caches[n] = c
	}
	m.mu.Unlock()
	out := map[string]map[string]uint64{}
	for n, c := range caches {
		if w, synced := c.weights(); synced {
			out[n] = w
		}
	}
	return out
}

// Held says why deletions of a cluster wait on this session, "" where none do.
func (m *Manager) Held(cluster string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.running {
		if r.row.Cluster == cluster {
			if why := r.ctl.Held(); why != "" {
				return why
			}
		}
	}
	return ""
}

// Synced tells which clusters have been seen whole.
func (m *Manager) Synced(cluster string) bool {
	_, synced := m.cacheOf(cluster).weights()
	return synced
}

// Drained lists rows that were asked to move and propose nothing any more, with their epoch.
func (m *Manager) Drained() map[uint64]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[uint64]uint64{}
	for id, r := range m.running {
		if r.ctl.isDrained() {
			out[id] = r.row.Epoch
		}
	}
	return out
}

func (m *Manager) cacheOf(cluster string) *cache {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.caches[cluster]
	if c == nil {
		c = newCache()
		m.caches[cluster] = c
	}
	return c
}

// Run follows the shard table until ctx ends, then stops all controllers.
func (m *Manager) Run(ctx context.Context) {
	events, cancel := m.cfg.Store.Subscribe()
	defer cancel()
	defer m.stopAll()
	m.recall()
	m.reconcile(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			if e.TableMoved || e.Reset {
				m.reconcile(ctx)
			}
			if e.Reset {
				m.refer(m.recall())
			}
			m.spread(e)
		}
	}
}

// recall reads what names what from the store, which is older than this session or has just been replaced. It gives every key that is named, or was until now.
func (m *Manager) recall() []store.Key {
	named := map[store.Key]bool{}
	for _, refs := range m.refs {
		for _, k := range refs {
			named[k] = true
		}
	}
	m.refs = map[store.Key][]store.Key{}
	clusters := map[string]bool{}
	_, rows := m.cfg.Store.Table()
	for _, row := range rows {
		clusters[row.Cluster] = true
	}
	for cluster := range clusters {
		for _, k := range m.cfg.Store.Referenced(cluster) {
			named[k] = true
			for _, referrer := range m.cfg.Store.Referrers(k) {
				m.refs[referrer] = append(m.refs[referrer], k)
			}
		}
	}
	return slices.Collect(maps.Keys(named))
}

// spread tells controllers which keys of theirs may have won or lost a referrer.
func (m *Manager) spread(e store.Event) {
	var keys []store.Key
	for _, ch := range e.Changes {
		keys = append(keys, m.refs[ch.Key]...)
		delete(m.refs, ch.Key)
		if ch.Record == nil {
			continue
		}
		refs := append([]store.Key(nil), ch.Record.Cur.Refs...)
		if ch.Record.Prev != nil {
			refs = append(refs, ch.Record.Prev.Refs...)
		}
		if len(refs) > 0 {
			m.refs[ch.Key] = refs
			keys = append(keys, refs...)
		}
	}
	m.refer(keys)
}

// refer has controllers look at these keys' referrers.
func (m *Manager) refer(keys []store.Key) {
	if len(keys) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.running {
		r.ctl.referred(keys)
	}
}

// reconcile starts and stops controllers so that they are the rows that this session owns.
func (m *Manager) reconcile(ctx context.Context) {
	_, rows := m.cfg.Store.Table()
	mine := map[uint64]store.Row{}
	for _, r := range rows {
		if r.Owner == m.cfg.Session {
			mine[r.ID] = r
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, r := range m.running {
		want, ok := mine[id]
		switch {
		case !ok || want.Epoch != r.row.Epoch:
			r.cancel()
			delete(m.running, id)
		case want.Next != "":
			r.ctl.drain()
		}
	}
	for id, r := range mine {
		if m.running[id] == nil {
			m.running[id] = m.start(ctx, r)
		}
	}
}

// start runs a controller; the caller holds mu.
func (m *Manager) start(ctx context.Context, row store.Row) *running {
	cctx, cancel := context.WithCancel(ctx)
	r := &running{row: row, cancel: cancel, done: make(chan struct{}), ctl: newController(row, m)}
	c := m.caches[row.Cluster]
	if c == nil {
		c = newCache()
		m.caches[row.Cluster] = c
	}
	r.ctl.seen = c.seen
	go func() {
		defer close(r.done)
		c.join(r.ctl)
		defer c.leave(r.ctl)
		defer func() { m.ask(r.ctl, r.ctl.asking.asked, nil) }()
		if err := r.ctl.run(cctx); !errors.Is(err, context.Canceled) {
			r.ctl.log.Info("stopped compiling a row", "why", err)
		}
	}()
	return r
}

func (m *Manager) stopAll() {
	m.mu.Lock()
	all := make([]*running, 0, len(m.running))
	for _, r := range m.running {
		all = append(all, r)
	}
	m.mu.Unlock()
	for _, r := range all {
		r.cancel()
		<-r.done
	}
}
