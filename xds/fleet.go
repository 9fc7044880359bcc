package xds

import (
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/mem"
)

// fleet is what one fleet's streams are served from. Writers (Apply, Endpoints) hold mu for the moment of an update;
// streams read under it, and never send under it.
type fleet struct {
	name string

	mu      sync.RWMutex
	index   uint64 // the store index that Apply has brought it to
	seq     uint64 // counts updates of this process; orders changes for streams
	known   bool   // Apply has been called: before that an empty fleet is an unknown one
	gone    bool
	tables  [NumTypes]table
	good    [NumTypes]map[uint32]*item // the newest version of a listener or route that some proxy ACKed
	streams map[*stream]struct{}
	trials  trials
	rebuilt chan struct{} // closed when another fleet object took over: streams end, clients reconnect and are resent nothing
}

// trials are what was offered to proxies instead of rejected versions: all proxies of a fleet ask about the same, so it is made once.
type trials struct {
	mu    sync.Mutex
	of    *item // the rejected version
	items map[string]*item
}

// trial gives a rejected version without some of its parts, nil where that cannot be had: there is no such resource, or the parts that were not refused have moved on.
func (f *fleet) trial(make TrialFunc, t Type, bad *item, refuse map[string]string) *item {
	f.trials.mu.Lock()
	defer f.trials.mu.Unlock()
	if f.trials.of != bad {
		f.trials.of, f.trials.items = bad, map[string]*item{}
	}
	key := fmt.Sprint(refuse) // maps are printed in the order of their keys
	if it, ok := f.trials.items[key]; ok {
		return it
	}
	r, ok := make(f.name, t, bad.name, refuse)
	tried := r.Parts.All()
	for part, hash := range bad.parts.All() {
		_, refused := refuse[part]
		ok = ok && (refused || tried[part] == hash)
	}
	if !ok {
		return nil
	}
	it := prepare([]Resource{r})[0]
	it.id, it.seq = bad.id, bad.seq
	f.mu.Lock()
	for _, name := range r.Uses {
		it.uses.add(f.tables[Cluster].intern(name))
	}
	f.mu.Unlock()
	f.trials.items[key] = it
	return it
}

// table holds the resources of one type. An id stands for one name for as long as the fleet's streams live.
type table struct {
	ids     map[string]uint32
	items   []*item // by id; never nil
	log     []change
	logFrom uint64 // changes up to this seq are not in log any more
	live    int    // items that exist
}

// change is one entry of a table's log.
type change struct {
	seq   uint64
	id    uint32
	floor uint64 // whoever has not this change, has everything at most up to this index
}

// item is one version of one resource; it never changes, so streams keep pointers to what their client holds.
type item struct {
	id      uint32
	name    string
	version string
	entry   mem.BufferSlice // nil: does not exist
	seq     uint64
	index   uint64
	uses    bitset // cluster ids
	parts   Parts
	// accepted is the one thing that changes: some proxy has ACKed it.
	accepted atomic.Bool
	opaque   bool // the client reported a version that this replica does not know: it may use anything
}

func (i *item) exists() bool { return i.entry != nil }

func newFleet(name string) *fleet {
	f := &fleet{name: name, streams: map[*stream]struct{}{}, rebuilt: make(chan struct{})}
	for t := range f.tables {
		f.tables[t] = table{ids: map[string]uint32{}}
		f.good[t] = map[uint32]*item{}
	}
	return f
}

func (t *table) intern(name string) uint32 {
	id, ok := t.ids[name]
	if !ok {
		id = uint32(len(t.items))
		t.ids[name] = id
		t.items = append(t.items, &item{id: id, name: name})
	}
	return id
}

func (t *table) lookup(name string) *item {
	if id, ok := t.ids[name]; ok {
		return t.items[id]
	}
	return nil
}

// put makes it the newest version of its id.
func (t *table) put(it *item, floor uint64) {
	old := t.items[it.id]
	if it.exists() != old.exists() {
		if it.exists() {
			t.live++
		} else {
			t.live--
		}
	}
	t.items[it.id] = it
	t.log = append(t.log, change{it.seq, it.id, floor})
	if limit := max(1024, 2*len(t.items)); len(t.log) > limit {
		cut := len(t.log) - limit/2
		t.logFrom = t.log[cut-1].seq
		t.log = append([]change(nil), t.log[cut:]...)
	}
}

// since calls f for each change after seq. When the log does not reach back so far, ok is false.
func (t *table) since(seq uint64, f func(change)) (ok bool) {
	if seq < t.logFrom {
		return false
	}
	at := len(t.log)
	for at > 0 && t.log[at-1].seq > seq {
		at--
	}
	for _, c := range t.log[at:] {
		f(c)
	}
	return true
}

const noFloor = ^uint64(0)

// apply takes one update; prepared are its resources with their frames, made outside the lock.
func (f *fleet) apply(u Update, prepared []*item) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seq++
	floor := max(u.Index, 1) - 1
	if u.Gone {
		f.removeAll(floor)
	}
	f.gone, f.known = u.Gone && len(prepared) == 0, true
	for n, it := range prepared {
		f.put(u.Resources[n].Type, it, u.Resources[n].Uses, floor)
	}
	f.index = max(f.index, u.Index)
	f.wake()
}

// ahead takes endpoints that run ahead of the log (D18): no index, and no convergence, depends on them.
func (f *fleet) ahead(prepared []*item) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seq++
	for _, it := range prepared {
		f.put(Endpoints, it, nil, noFloor)
	}
	f.wake()
}

func (f *fleet) put(t Type, it *item, uses []string, floor uint64) {
	table := &f.tables[t]
	it.id, it.seq = table.intern(it.name), f.seq
	old := table.items[it.id]
	for _, name := range uses {
		it.uses.add(f.tables[Cluster].intern(name))
	}
	if old.exists() == it.exists() && old.version == it.version {
		if it.exists() { // same bytes: nothing to send, but a later index is proven by what was ACKed
			it.seq, it.entry = old.seq, old.entry
			table.items[it.id] = it
		}
		return
	}
	table.put(it, floor)
}

func (f *fleet) removeAll(floor uint64) {
	for t := range f.tables {
		for _, it := range f.tables[t].items {
			if it.exists() {
				f.tables[t].put(&item{id: it.id, name: it.name, seq: f.seq}, floor)
			}
		}
	}
}

func (f *fleet) wake() {
	for s := range f.streams {
		s.poke()
	}
}

// sparse tells whether most ids stand for names that are no more.
func (f *fleet) sparse() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for t := range f.tables {
		if dead := len(f.tables[t].items) - f.tables[t].live; dead > maxDead && dead > 4*f.tables[t].live {
			return true
		}
	}
	return false
}

const maxDead = 16384

// renumbered is a copy of the fleet with ids given anew. The streams of the old one end; that costs a reconnect, which resends nothing.
func (f *fleet) renumbered() *fleet {
	f.mu.RLock()
	defer f.mu.RUnlock()
	out := newFleet(f.name)
	out.index, out.seq, out.known, out.gone = f.index, f.seq, f.known, f.gone
	for t := range f.tables {
		table := &out.tables[t]
		for _, it := range f.tables[t].items {
			if !it.exists() {
				continue
			}
			fresh := &item{id: table.intern(it.name), name: it.name, version: it.version, entry: it.entry, seq: it.seq, index: it.index, parts: it.parts}
			it.uses.each(func(c uint32) { fresh.uses.add(out.tables[Cluster].intern(f.tables[Cluster].items[c].name)) })
			table.items[fresh.id] = fresh
			table.live++
		}
		table.logFrom = f.seq
	}
	close(f.rebuilt)
	return out
}
