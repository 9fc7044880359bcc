package store

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	bolt "go.etcd.io/bbolt"
)

// Entry is one committed log entry. Config, where set, is an opaque blob of whoever replicates, kept in the same transaction as the index.
type Entry struct {
	Index  uint64
	Term   uint64
	Data   []byte
	Config []byte
}

// step applies entries inside one transaction.
type step struct {
	tx     *bolt.Tx
	m      *memory
	index  uint64
	digest []byte // of what this entry changed
	event  *Event
	seen   map[Key]*Record // records as this transaction sees them
}

// Apply applies entries in one transaction with the applied index, written last. Entries at or below the applied index are skipped: they were
// applied before. An error means that this replica must stop: it cannot go on without differing from the others, and every later call gives it again.
func (s *Store) Apply(entries []Entry) ([]Result, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return nil, s.failed
	}
	if err := checkOrder(entries); err != nil {
		return nil, err
	}
	var results []Result
	var events []Event
	err := s.db().Update(func(tx *bolt.Tx) (err error) {
		s.mu.Lock() // not beyond the commit: see Store
		defer s.mu.Unlock()
		results, events, err = s.mem.apply(tx, entries)
		return err
	})
	if err != nil {
		s.failed = err
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = s.mem.applied
	s.publish(events)
	return results, nil
}

// checkOrder refuses entries that do not come in the order of the log.
func checkOrder(entries []Entry) error {
	for i := 1; i < len(entries); i++ {
		if entries[i].Index <= entries[i-1].Index {
			return fmt.Errorf("applying entry %d after %d: the log goes backwards", entries[i].Index, entries[i-1].Index)
		}
	}
	return nil
}

// apply applies entries inside one transaction, the applied index last.
func (m *memory) apply(tx *bolt.Tx, entries []Entry) ([]Result, []Event, error) {
	results := make([]Result, len(entries))
	var events []Event
	for i, e := range entries {
		if e.Index <= m.applied {
			continue
		}
		event := Event{Index: e.Index}
		st := &step{tx: tx, m: m, index: e.Index, event: &event, seen: map[Key]*Record{}}
		res, err := st.entry(e)
		if err != nil {
			return nil, nil, fmt.Errorf("applying entry %d: %w", e.Index, err)
		}
		res.Index = e.Index
		results[i] = res
		events = append(events, event)
	}
	return results, events, putMeta(tx, m)
}

// entry applies one entry and rolls the state hash.
func (st *step) entry(e Entry) (Result, error) {
	var res Result
	if e.Config != nil {
		if err := st.tx.Bucket(bucketMeta).Put(metaConfig, e.Config); err != nil {
			return res, fmt.Errorf("keeping the configuration: %w", err)
		}
	}
	if e.Data != nil {
		cmd, err := DecodeCommand(e.Data)
		if err != nil {
			return res, err
		}
		if res, err = st.command(cmd); err != nil {
			return res, err
		}
	}
	h := sha256.New()
	h.Write(st.m.hash[:])
	h.Write(binary.BigEndian.AppendUint64(nil, e.Index))
	h.Write(st.digest)
	h.Sum(st.m.hash[:0])
	st.m.applied = e.Index
	st.m.remember()
	return res, nil
}

func (st *step) command(c Command) (Result, error) {
	switch {
	case c.Put != nil:
		return st.put(c.Put)
	case c.Table != nil:
		return st.table(c.Table)
	case c.Replica != nil:
		return Result{}, st.replica(*c.Replica)
	case c.Identity != nil:
		return st.identity(c.Identity)
	case c.Fleet != nil:
		return Result{}, st.fleet(*c.Fleet)
	case c.Pin != nil:
		return Result{}, st.pin(*c.Pin, true)
	case c.Unpin != nil:
		return Result{}, st.pin(*c.Unpin, false)
	case c.Bootstrap != nil:
		return st.bootstrap(c.Bootstrap)
	case c.Check != nil:
		return Result{}, st.check(c.Check)
	}
	return Result{}, ErrUnknownCommand
}

// write puts or deletes one value and notes it in the digest.
func (st *step) write(bucket, key []byte, v any) error {
	b := st.tx.Bucket(bucket)
	st.digest = append(append(st.digest, bucket...), key...)
	if v == nil {
		return b.Delete(key)
	}
	data, err := frame(v)
	if err != nil {
		return err
	}
	st.digest = append(st.digest, data[:4]...)
	return b.Put(key, data)
}

// fence tells why a put must not be applied, "" if it may.
func (st *step) fence(p *PutCommand) (code, why string) {
	row, ok := st.m.rows[p.Row]
	switch {
	case !ok:
		return CodeFenced, fmt.Sprintf("row %d is not in the table", p.Row)
	case row.Epoch != p.Epoch || row.Owner != p.Proposer:
		return CodeFenced, fmt.Sprintf("row %d belongs to %q under epoch %d", p.Row, row.Owner, row.Epoch)
	case st.m.lastSeq[p.Row].Epoch == p.Epoch && p.Seq <= st.m.lastSeq[p.Row].Seq:
		return CodeDuplicate, fmt.Sprintf("sequence %d was applied before", p.Seq)
	}
	for _, op := range p.Ops {
		if !row.covers(op.Key) {
			return CodeFenced, fmt.Sprintf("%s is outside row %d", op.Key, p.Row)
		}
		if op.Content != nil && len(op.Content.Payload) > MaxRecord {
			return CodeTooLarge, fmt.Sprintf("%s has %d bytes, the limit is %d", op.Key, len(op.Content.Payload), MaxRecord)
		}
	}
	return "", ""
}

func (st *step) put(p *PutCommand) (Result, error) {
	if code, why := st.fence(p); code != "" {
		return Result{Code: code, Message: why}, nil
	}
	st.event.Put = p
	last := seqValue{p.Epoch, p.Seq}
	st.m.lastSeq[p.Row] = last
	if err := st.write(bucketSeqs, seqKey(p.Row), last); err != nil {
		return Result{}, err
	}
	var res Result
	for _, op := range p.Ops {
		var err error
		if op.Content == nil {
			var refused bool
			if refused, err = st.remove(op.Key); refused {
				res.Refused = append(res.Refused, op.Key)
			}
		} else {
			err = st.set(p, op)
		}
		if err != nil {
			return res, err
		}
	}
	return res, nil
}

// get reads a record as this transaction sees it, nil if there is none.
func (st *step) get(k Key) (*Record, error) {
	if r, ok := st.seen[k]; ok {
		return r, nil
	}
	r, err := readRecord(st.tx, k)
	if err == nil {
		st.seen[k] = r
	}
	return r, err
}

func (st *step) save(r *Record) error {
	st.m.exists[r.Key] = true
	st.m.index(r, 1)
	st.seen[r.Key] = r
	st.event.Changes = append(st.event.Changes, Change{Index: st.index, Key: r.Key, Record: r})
	return st.write(bucketOf(r.Key.Kind), r.Key.encode(), r)
}

// set writes one content. The last content that was live is kept as Prev until the new one has taken its place.
func (st *step) set(p *PutCommand, op Op) error {
	old, err := st.get(op.Key)
	if err != nil {
		return err
	}
	c := *op.Content
	c.Hash = contentHash(c.Payload)
	next := &Record{Key: op.Key, Row: p.Row, Epoch: p.Epoch, Created: st.index, Modified: st.index, Cur: c}
	if old != nil {
		if old.Cur.Hash == c.Hash && slices.Equal(old.Cur.Refs, c.Refs) {
			return nil
		}
		next.Created = old.Created
		next.Prev, next.PrevAt = old.Prev, old.PrevAt
		if st.m.live(old.Key, &old.Cur) {
			prev := old.Cur
			next.Prev, next.PrevAt = &prev, old.Modified
		}
		st.m.index(old, -1)
	}
	return st.save(next)
}

// remove deletes a record, unless a committed reference names it. A reference that only a previous content holds, whose successor is live, goes
// with it: nobody will serve that content again.
func (st *step) remove(k Key) (refused bool, err error) {
	r, err := st.get(k)
	if err != nil || r == nil {
		return false, err
	}
	by := make([]Key, 0, len(st.m.referrers[k]))
	for referrer := range st.m.referrers[k] {
		if referrer != k { // what only itself names may go
			by = append(by, referrer)
		}
	}
	sort.Slice(by, func(i, j int) bool { return string(by[i].encode()) < string(by[j].encode()) })
	var stale []*Record
	for _, referrer := range by {
		rr, err := st.get(referrer)
		if err != nil {
			return false, err
		}
		if rr == nil || slices.Contains(rr.Cur.Refs, k) || !st.m.live(rr.Key, &rr.Cur) {
			return true, nil
		}
		stale = append(stale, rr)
	}
	for _, rr := range stale {
		next := *rr
		next.Prev, next.PrevAt = nil, 0
		st.m.index(rr, -1)
		if err := st.save(&next); err != nil {
			return false, err
		}
	}
	st.m.index(r, -1)
	delete(st.m.exists, k)
	st.seen[k] = nil
	st.event.Changes = append(st.event.Changes, Change{Index: st.index, Key: k})
	if _, pinned := st.m.pins[k]; pinned {
		if err := st.pin(Pin{Key: k}, false); err != nil {
			return false, err
		}
	}
	return false, st.write(bucketOf(k.Kind), k.encode(), nil)
}

// table replaces rows by compare-and-set, and refuses what would break it: overlaps, or an owner that changes without a higher epoch.
func (st *step) table(c *TableCommand) (Result, error) {
	if c.Expect != st.m.version {
		return Result{Code: CodeConflict, Message: fmt.Sprintf("the table is at version %d, the plan was made from %d", st.m.version, c.Expect), Table: st.m.version}, nil
	}
	next := map[uint64]Row{}
	for id, r := range st.m.rows {
		next[id] = r
	}
	for _, id := range c.Delete {
		delete(next, id)
	}
	highest := st.m.epoch
	for _, r := range c.Rows {
		if r.To != 0 && r.To <= r.From {
			return Result{Code: CodeConflict, Message: fmt.Sprintf("row %d covers nothing", r.ID), Table: st.m.version}, nil
		}
		old, known := st.m.rows[r.ID]
		if same := known && old.Epoch == r.Epoch && old.Owner == r.Owner && old.Cluster == r.Cluster && old.From == r.From && old.To == r.To; !same && r.Epoch <= st.m.epoch {
			return Result{Code: CodeConflict, Message: fmt.Sprintf("row %d needs an epoch above %d", r.ID, st.m.epoch), Table: st.m.version}, nil
		}
		highest = max(highest, r.Epoch)
		next[r.ID] = r
	}
	if why := overlap(next); why != "" {
		return Result{Code: CodeConflict, Message: why, Table: st.m.version}, nil
	}
	if err := st.writeRows(next); err != nil {
		return Result{}, err
	}
	st.m.rows, st.m.epoch = next, highest
	st.m.version++
	st.event.TableMoved = true
	return Result{Table: st.m.version}, nil
}

func (st *step) writeRows(next map[uint64]Row) error {
	var ids []uint64
	for id := range st.m.rows {
		if _, stays := next[id]; !stays {
			ids = append(ids, id)
		}
	}
	for id := range next {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		r, stays := next[id]
		var err error
		switch old, known := st.m.rows[id]; {
		case !stays:
			err = st.dropRow(id)
		case !known || old != r:
			err = st.write(bucketRows, seqKey(id), r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropRow forgets a row with its sequence: epochs only grow, so a row that takes the number again cannot be confused with it.
func (st *step) dropRow(id uint64) error {
	delete(st.m.lastSeq, id)
	if err := st.write(bucketSeqs, seqKey(id), nil); err != nil {
		return err
	}
	return st.write(bucketRows, seqKey(id), nil)
}

// overlap names two rows that cover the same hash, "" if none do.
func overlap(rows map[uint64]Row) string {
	all := make([]Row, 0, len(rows))
	for _, r := range rows {
		all = append(all, r)
	}
	sort.Slice(all, func(i, j int) bool {
		a, b := all[i], all[j]
		return a.Cluster < b.Cluster || a.Cluster == b.Cluster && (a.From < b.From || a.From == b.From && a.ID < b.ID)
	})
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		if a.Cluster == b.Cluster && (a.To == 0 || a.To > b.From) {
			return fmt.Sprintf("rows %d and %d overlap", a.ID, b.ID)
		}
	}
	return ""
}

func (st *step) replica(r Replica) error {
	if r.Raft == "" {
		delete(st.m.replicas, r.ID)
		return st.write(bucketReplicas, []byte(r.ID), nil)
	}
	st.m.replicas[r.ID] = r
	return st.write(bucketReplicas, []byte(r.ID), r)
}

func (st *step) fleet(f Fleet) error {
	st.event.FleetMoved = true
	if len(f.Proxies) == 0 && !f.Provisioned {
		delete(st.m.fleets, f.Name)
		return st.write(bucketFleets, []byte(f.Name), nil)
	}
	st.m.fleets[f.Name] = f
	return st.write(bucketFleets, []byte(f.Name), f)
}

func (st *step) pin(p Pin, on bool) error {
	r, err := st.get(p.Key)
	if err != nil {
		return err
	}
	st.event.PinsMoved = append(st.event.PinsMoved, p.Key)
	st.event.Changes = append(st.event.Changes, Change{Index: st.index, Key: p.Key, Record: r}) // as it is now: later it may be another
	if !on {
		delete(st.m.pins, p.Key)
		return st.write(bucketPins, p.Key.encode(), nil)
	}
	st.m.pins[p.Key] = p
	return st.write(bucketPins, p.Key.encode(), p)
}

// identity gives uid, order and generation to directory objects (D12). A uid depends on the index of first sight: an object that was deleted and made again is another.
func (st *step) identity(c *IdentityCommand) (Result, error) {
	var res Result
	for i, o := range c.Objects {
		k := identityKey{c.Cluster, o.Kind, o.Namespace, o.Name}
		id, known := st.m.identities[k]
		key := k.stored()
		switch {
		case o.SpecHash == "":
			delete(st.m.identities, k)
			if err := st.write(bucketIdentities, key, nil); err != nil {
				return res, err
			}
			res.Identities = append(res.Identities, Identity{})
			continue
		case !known:
			id = Identity{UID: uidOf(k, st.index), Created: c.Now, Order: st.index*1000 + uint64(i), Generation: 1, SpecHash: o.SpecHash}
		case id.SpecHash != o.SpecHash:
			id.Generation++
			id.SpecHash = o.SpecHash
		}
		st.m.identities[k] = id
		res.Identities = append(res.Identities, id)
		if err := st.write(bucketIdentities, key, identityValue{k, id}); err != nil {
			return res, err
		}
	}
	return res, nil
}

// uidOf makes a UUID (RFC 9562 version 8) out of what is committed.
func uidOf(k identityKey, index uint64) string {
	s := sha256.Sum256(binary.BigEndian.AppendUint64(k.stored(), index))
	s[6], s[8] = s[6]&0x0f|0x80, s[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", s[0:4], s[4:6], s[6:8], s[8:10], s[10:16])
}

func (st *step) bootstrap(c *BootstrapCommand) (Result, error) {
	if st.m.clusterID != "" && st.m.clusterID != c.ClusterID {
		return Result{Code: CodeConflict, Message: "this group has the id " + st.m.clusterID}, nil
	}
	st.m.clusterID = c.ClusterID
	st.digest = append(st.digest, c.ClusterID...)
	return Result{}, nil
}

// check compares the leader's state hash with ours at the same index. What is too old to be known is not compared: a check never changes the state.
func (st *step) check(c *CheckCommand) error {
	if ours, known := st.m.hashAt(c.Index); known && c.Hash != ours {
		return fmt.Errorf("%w at index %d: leader %s, here %s; stop this replica and move its data directory away: it fetches the state from the others", ErrDiverged, c.Index, c.Hash, ours)
	}
	return nil
}
