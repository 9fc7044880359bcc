package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/record"
)

// Proposer puts a command through the log and gives its typed result.
type Proposer interface {
	Propose(ctx context.Context, cmd store.Command) (store.Result, error)
}

// maxEntry bounds the bytes of one proposal (D9).
const maxEntry = 256 << 10

// errFenced says that this row belongs to somebody else by now.
var errFenced = errors.New("the row has another owner or epoch")

// Controller compiles one row: a queue of events, a compiler, and what is still to be proposed. One goroutine, run, owns everything below mu's part.
type Controller struct {
	row      store.Row
	session  string
	db       *store.Store
	propose  Proposer
	compiler *translate.Compiler
	guard    Guard
	log      *slog.Logger
	count    func(routes int)

	mu       sync.Mutex
	queue    []translate.Event
	dirty    map[store.Key]bool // backends and secrets of ours whose referrers may have changed
	resync   bool               // look at all references again
	synced   bool
	draining bool   // asked to move
	drained  bool   // and nothing of ours is on its way any more
	held     string // why deletions wait
	wake     chan struct{}

	seq     uint64
	swept   bool
	pending map[store.Key]store.Op
	wanted  map[store.Key]bool // keys of this row that committed references name
	asking  asking
	seen    func(record.Key) bool // whether the cluster has the object of a record, as far as this session was told, or may have
	outrun  outrun
}

func newController(row store.Row, m *Manager) *Controller {
	c := &Controller{
		row: row, session: m.cfg.Session, db: m.cfg.Store, propose: m.cfg.Proposer, guard: m.cfg.Guard,
		log:   m.cfg.Logger.With("row", row.ID, "cluster", row.Cluster, "epoch", row.Epoch),
		count: func(n int) { m.compiled.Add(uint64(n)) },
		dirty: map[store.Key]bool{}, wake: make(chan struct{}, 1), resync: true,
		pending: map[store.Key]store.Op{}, wanted: map[store.Key]bool{},
		outrun: outrun{told: map[store.Key]*store.Content{}, logged: map[store.Key]time.Time{}},
	}
	if m.cfg.Ahead != nil {
		c.outrun.send = func(all []Ahead) {
			for i := range all {
				all[i].Epoch, all[i].After = row.Epoch, c.seq
			}
			m.cfg.Ahead(all)
		}
	}
	c.asking = asking{asked: map[translate.Ref]bool{}, answered: map[translate.Ref]bool{}, held: map[store.Key]bool{},
		ask: func(before, now map[translate.Ref]bool) bool { return m.ask(c, before, now) }}
	cfg := m.cfg.Translate
	cfg.Cluster = row.Cluster
	cfg.Asked = m.want(row.Cluster) != nil
	cfg.SlicesFollow = m.cfg.SlicesFollow != nil && m.cfg.SlicesFollow(row.Cluster)
	cfg.Owns = func(ns string) bool { return Contains(row, ns) }
	c.compiler = translate.New(cfg)
	return c
}

func (c *Controller) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// deliver queues events; it never blocks.
func (c *Controller) deliver(events []translate.Event, synced bool) {
	c.mu.Lock()
	c.queue = append(c.queue, events...)
	c.synced = c.synced || synced
	c.mu.Unlock()
	c.signal()
}

// referred says that the references to these keys may have changed.
func (c *Controller) referred(keys []store.Key) {
	c.mu.Lock()
	for _, k := range keys {
		c.dirty[k] = true
	}
	c.mu.Unlock()
	c.signal()
}

func (c *Controller) drain() {
	c.mu.Lock()
	c.draining = true
	c.mu.Unlock()
	c.signal()
}

func (c *Controller) setDrained() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drained = true
}

func (c *Controller) isDrained() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.drained
}

// take empties the inbox.
func (c *Controller) take() (events []translate.Event, dirty map[store.Key]bool, resync, synced, draining bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	events, dirty, resync = c.queue, c.dirty, c.resync
	c.queue, c.dirty, c.resync = nil, map[store.Key]bool{}, false
	return events, dirty, resync, c.synced, c.draining
}

// run works until ctx ends or a proposal is fenced. It compiles while a proposal is on its way: without a quorum none comes back, and endpoints are sent ahead all the
// same (D18). A row that is to move is drained when the last proposal is back: from then on it proposes nothing, but sends endpoints ahead until the table gives the row
// to somebody, which without a quorum it does not.
func (c *Controller) run(ctx context.Context) error {
	var sent proposal
	again := false // sweep once more
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		events, dirty, resync, synced, draining := c.take()
		if draining && sent.result == nil {
			c.setDrained()
		}
		c.compile(events, dirty, resync)
		again = again || len(events) > 0 && c.Held() != ""
		if synced && (!c.swept || again) && sent.result == nil { // what is on its way is not in the store yet that a sweep compares with
			if err := c.sweep(); err != nil {
				return err
			}
			c.swept, again = true, false
		}
		if now := time.Now(); c.swept {
			c.outrun.tell(now, c.pending, c.known)
			if sent.result == nil && !draining {
				sent = c.send(ctx, c.batch(now))
			}
			timer.Reset(cmp.Or(c.outrun.next(now, c.pending), time.Hour))
		}
		select {
		case <-ctx.Done():
			if sent.result != nil {
				if err := <-sent.result; err != nil {
					c.log.Debug("the last proposal before a row was given up", "err", err)
				}
			}
			return ctx.Err()
		case err := <-sent.result:
			if err != nil {
				return err
			}
			c.done(sent.ops)
			sent = proposal{}
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// known tells whether the store has a record, and what is pending for it waits for no answer.
func (c *Controller) known(k store.Key) bool {
	if c.asking.held[k] {
		return false
	}
	r, err := c.db.Get(k)
	return err == nil && r != nil
}

// proposal is a batch on its way through the log; what arrives meanwhile rides in the next one.
type proposal struct {
	ops    []store.Op
	result chan error // nil = nothing is on its way
}

// compile feeds the compiler; before the sweep its output is only remembered by the compiler itself (unknown is not absent).
func (c *Controller) compile(events []translate.Event, dirty map[store.Key]bool, resync bool) {
	c.asking.hear(events)
	if len(events) > 0 {
		c.note(c.compiler.Apply(events))
	}
	defer c.asking.update(c.compiler)
	if c.updateWanted(dirty, resync) {
		keys := make([]record.Key, 0, len(c.wanted))
		for k := range c.wanted {
			keys = append(keys, RecordKey(k))
		}
		slices.SortFunc(keys, record.Key.Compare)
		c.note(c.compiler.Referenced(keys))
	}
}

// updateWanted brings the set of referenced keys up to date; it tells whether the set changed. A key whose deletion was refused is tried again.
func (c *Controller) updateWanted(dirty map[store.Key]bool, resync bool) bool {
	changed := false
	if resync {
		for _, k := range c.db.Referenced(c.row.Cluster) {
			dirty[k] = true
		}
	}
	for k := range dirty {
		if k.Cluster != c.row.Cluster || !Contains(c.row, k.Namespace) {
			continue
		}
		is := len(c.db.Referrers(k)) > 0
		if is != c.wanted[k] {
			changed = true
			if is {
				c.wanted[k] = true
			} else {
				delete(c.wanted, k)
			}
		}
		if !is && c.swept {
			c.retryDelete(k)
		}
	}
	return changed
}

// retryDelete deletes what the compiler no longer wants and the store still has.
func (c *Controller) retryDelete(k store.Key) {
	if _, ok := c.compiler.Record(RecordKey(k)); ok {
		return
	}
	if r, err := c.db.Get(k); err == nil && r != nil {
		c.pending[k] = store.Op{Key: k}
	}
}

// Held says why deletions wait, "" where none do.
func (c *Controller) Held() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held
}

func (c *Controller) hold(why string, deletions int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if why != "" && why != c.held {
		c.log.Warn("deletions held: "+why, "records", deletions)
	}
	c.held = why
}

func (c *Controller) note(out translate.Output) {
	if out.Doubted {
		c.swept = false
	}
	c.count(out.Compiled)
	for _, p := range out.Puts {
		k := StoreKey(p.Key)
		c.pending[k] = putOp(p)
	}
	for _, d := range out.Deletes {
		c.pending[StoreKey(d)] = store.Op{Key: StoreKey(d)}
	}
}

func putOp(p translate.Put) store.Op {
	refs := make([]store.Key, len(p.Refs))
	for i, r := range p.Refs {
		refs[i] = StoreKey(r)
	}
	return store.Op{Key: StoreKey(p.Key), Content: &store.Content{Hash: record.Hash(p.Payload), Payload: p.Payload, Refs: refs}}
}

// sweep is the owner's first act after sync (D10): it proposes only what differs from the store, and deletes what is gone, through the guard.
func (c *Controller) sweep() error {
	want := c.compiler.Records()
	keep := map[record.Key]bool{}
	for _, k := range c.compiler.Quarantined() {
		keep[k] = true
	}
	var gone []store.Key
	clear(c.pending)
	err := c.db.Scan(func(r *store.Record) error {
		if r.Key.Cluster != c.row.Cluster || !Contains(c.row, r.Key.Namespace) {
			return nil
		}
		p, ok := want[RecordKey(r.Key)]
		switch {
		case !ok && (keep[RecordKey(r.Key)] || c.compiler.Unknown(RecordKey(r.Key))):
		case !ok:
			gone = append(gone, r.Key)
		case c.outrun.told[r.Key] != nil: // something else runs ahead: only the log tells everybody that it is overtaken
		case record.Hash(p.Payload) == r.Cur.Hash && sameRefs(p.Refs, r.Cur.Refs):
			delete(want, RecordKey(r.Key))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("comparing the row with the store: %w", err)
	}
	for _, p := range want {
		c.pending[StoreKey(p.Key)] = putOp(p)
	}
	if len(gone) == 0 {
		c.hold("", 0)
		return nil
	}
	n, err := c.takeCensus()
	if err != nil {
		return fmt.Errorf("counting what would be deleted: %w", err)
	}
	why := c.guard.holds(n)
	if c.hold(why, len(gone)); why != "" {
		return nil
	}
	for _, k := range gone {
		c.pending[k] = store.Op{Key: k}
	}
	return nil
}

func sameRefs(a []record.Key, b []store.Key) bool {
	return slices.EqualFunc(a, b, func(x record.Key, y store.Key) bool { return StoreKey(x) == y })
}

// batch gives the next operations that need not wait for an answer, in an order that never refers to what is not there: puts of referees, of referrers, then deletions of referrers, of
// referees; at most maxEntry bytes. Endpoints that the log has had just now wait too.
func (c *Controller) batch(now time.Time) []store.Op {
	ops := make([]store.Op, 0, len(c.pending))
	for _, op := range c.pending {
		if !c.asking.held[op.Key] && !c.outrun.holds(now, op) {
			ops = append(ops, op)
		}
	}
	slices.SortFunc(ops, func(a, b store.Op) int {
		return cmp.Or(cmp.Compare(stage(a), stage(b)), RecordKey(a.Key).Compare(RecordKey(b.Key)))
	})
	size := 0
	for i, op := range ops {
		size += sizeOf(op)
		if i > 0 && size > maxEntry {
			return ops[:i]
		}
	}
	return ops
}

// sizeOf is about what an operation takes in the log.
func sizeOf(op store.Op) int {
	n := 64 + RecordKey(op.Key).LogSize()
	if op.Content != nil {
		n += len(op.Content.Payload)
		for _, k := range op.Content.Refs {
			n += RecordKey(k).LogSize()
		}
	}
	return n
}

// stage orders operations within a change.
func stage(op store.Op) int {
	referrer := slices.Contains([]record.Kind{record.KindRoute, record.KindGateway, record.KindListenerSet}, record.Kind(op.Key.Kind))
	switch {
	case op.Content != nil && !referrer:
		return 0
	case op.Content != nil:
		return 1
	case referrer:
		return 2
	}
	return 3
}

// send proposes a batch, if there is one; its result comes later.
func (c *Controller) send(ctx context.Context, ops []store.Op) proposal {
	if len(ops) == 0 {
		return proposal{}
	}
	c.seq++
	cmd := store.Command{Put: &store.PutCommand{Proposer: c.session, Row: c.row.ID, Epoch: c.row.Epoch, Seq: c.seq, Ops: ops}}
	p := proposal{ops, make(chan error, 1)}
	go func() { p.result <- c.put(ctx, cmd) }()
	return p
}

// put proposes until there is a result. A retry is harmless by (row, epoch, seq).
func (c *Controller) put(ctx context.Context, cmd store.Command) error {
	for {
		res, err := c.propose.Propose(ctx, cmd)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			c.log.Debug("proposal not accepted yet", "err", err)
			if !sleep(ctx, 50*time.Millisecond) {
				return ctx.Err()
			}
			continue
		case res.Code == store.CodeFenced:
			return errFenced
		case res.Code == store.CodeTooLarge:
			c.log.Error("a record is too large for the log: it keeps its last good content", "detail", res.Message)
		}
		return nil
	}
}

// done forgets what was proposed, unless it changed meanwhile. Deletions that a reference forbids come back when the reference goes.
func (c *Controller) done(ops []store.Op) {
	now := time.Now()
	for _, op := range ops {
		c.outrun.committed(now, op)
		if p, ok := c.pending[op.Key]; ok && p.Content == op.Content {
			delete(c.pending, op.Key)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// StoreKey is how the store names a record.
func StoreKey(k record.Key) store.Key {
	return store.Key{Cluster: k.Cluster, Namespace: k.Namespace, Kind: string(k.Kind), Name: k.Name}
}

// RecordKey is how translate and assemble name what the store holds.
func RecordKey(k store.Key) record.Key {
	return record.Key{Cluster: k.Cluster, Namespace: k.Namespace, Kind: record.Kind(k.Kind), Name: k.Name}
}
