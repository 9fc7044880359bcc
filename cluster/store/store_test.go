package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

const owner = "a@1"

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// log applies commands one entry each, after what was applied.
func do(t testing.TB, s *Store, cmds ...Command) []Result {
	t.Helper()
	index := s.Applied()
	entries := make([]Entry, len(cmds))
	for i, c := range cmds {
		b, err := EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		entries[i] = Entry{Index: index + uint64(i) + 1, Data: b}
	}
	res, err := s.Apply(entries)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func wholeTable() Command {
	return Command{Table: &TableCommand{Rows: []Row{{ID: 1, Cluster: "c", Owner: owner, Epoch: 1}}}}
}

func key(kind, name string) Key { return Key{Cluster: "c", Namespace: "ns", Kind: kind, Name: name} }

func put(seq uint64, ops ...Op) Command {
	return Command{Put: &PutCommand{Proposer: owner, Row: 1, Epoch: 1, Seq: seq, Ops: ops}}
}

func content(s string, refs ...Key) *Content { return &Content{Payload: []byte(s), Refs: refs} }

func TestHashIsFrozen(t *testing.T) {
	for ns, want := range map[string]uint64{"": 0xcbf29ce484222325, "a": 0xaf63dc4c8601ec8c, "foobar": 0x85944171f73967e8} {
		if got := Hash(ns); got != want {
			t.Errorf("Hash(%q) = %#x, want %#x", ns, got, want)
		}
	}
}

func TestPutsThatTheFenceRefuses(t *testing.T) {
	s := open(t)
	do(t, s, Command{Table: &TableCommand{Rows: []Row{{ID: 1, Cluster: "c", To: 1 << 63, Owner: owner, Epoch: 1}, {ID: 2, Cluster: "c", From: 1 << 63, Owner: "b@1", Epoch: 2}}}})
	low, high := "", ""
	for i := 0; low == "" || high == ""; i++ {
		ns := fmt.Sprintf("n%d", i)
		if Hash(ns) < 1<<63 {
			low = ns
		} else {
			high = ns
		}
	}
	in := Key{Cluster: "c", Namespace: low, Kind: "route", Name: "r"}
	do(t, s, Command{Put: &PutCommand{Proposer: owner, Row: 1, Epoch: 1, Seq: 5, Ops: []Op{{in, content("x")}}}})
	for name, c := range map[string]struct {
		put  PutCommand
		code string
	}{
		"unknown row":        {PutCommand{Proposer: owner, Row: 9, Epoch: 1, Seq: 6}, CodeFenced},
		"stale epoch":        {PutCommand{Proposer: owner, Row: 1, Epoch: 0, Seq: 6}, CodeFenced},
		"not the owner":      {PutCommand{Proposer: "b@1", Row: 1, Epoch: 1, Seq: 6}, CodeFenced},
		"outside the range":  {PutCommand{Proposer: owner, Row: 1, Epoch: 1, Seq: 6, Ops: []Op{{Key{Cluster: "c", Namespace: high, Kind: "route", Name: "r"}, content("x")}}}, CodeFenced},
		"another cluster":    {PutCommand{Proposer: owner, Row: 1, Epoch: 1, Seq: 6, Ops: []Op{{Key{Cluster: "d", Namespace: low, Kind: "route", Name: "r"}, content("x")}}}, CodeFenced},
		"sequence seen":      {PutCommand{Proposer: owner, Row: 1, Epoch: 1, Seq: 5, Ops: []Op{{in, content("y")}}}, CodeDuplicate},
		"above the size cap": {PutCommand{Proposer: owner, Row: 1, Epoch: 1, Seq: 6, Ops: []Op{{in, &Content{Payload: make([]byte, MaxRecord+1)}}}}, CodeTooLarge},
	} {
		if res := do(t, s, Command{Put: &c.put})[0]; res.Code != c.code || res.Message == "" {
			t.Errorf("%s: %+v, want %s", name, res, c.code)
		}
	}
	if r, _ := s.Get(in); string(r.Cur.Payload) != "x" {
		t.Errorf("a refused put changed the record to %q", r.Cur.Payload)
	}
}

func TestTablesThatAreRefused(t *testing.T) {
	s := open(t)
	do(t, s, Command{Table: &TableCommand{Rows: []Row{{ID: 1, Cluster: "c", Owner: "a", Epoch: 3}}}})
	for name, c := range map[string]TableCommand{
		"old version":               {Expect: 0, Rows: []Row{{ID: 1, Cluster: "c", Owner: "b", Epoch: 9}}},
		"owner under the old epoch": {Expect: 1, Rows: []Row{{ID: 1, Cluster: "c", Owner: "b", Epoch: 3}}},
		"overlap":                   {Expect: 1, Rows: []Row{{ID: 2, Cluster: "c", From: 5, Owner: "b", Epoch: 4}}},
	} {
		if res := do(t, s, Command{Table: &c})[0]; res.Code != CodeConflict {
			t.Errorf("%s: %+v", name, res)
		}
	}
	if res := do(t, s, Command{Table: &TableCommand{Expect: 1, Rows: []Row{{ID: 1, Cluster: "c", Owner: "a", Epoch: 3, Next: "b"}}}})[0]; res.Code != "" {
		t.Errorf("a planned move needs no new epoch: %+v", res)
	}
}

func TestPreviousContentIsTheLastThatWasLive(t *testing.T) {
	s := open(t)
	do(t, s, wholeTable(), put(1, Op{key("route", "r"), content("one")}))
	missing := key("backend", "b")
	do(t, s, put(2, Op{key("route", "r"), content("two", missing)}), put(3, Op{key("route", "r"), content("three", missing)}))
	r, err := s.Get(key("route", "r"))
	if err != nil || string(r.Prev.Payload) != "one" || string(r.Cur.Payload) != "three" {
		t.Fatalf("%+v, %v: two was never live, so one is kept", r, err)
	}
	do(t, s, put(4, Op{missing, content("cluster")}), put(5, Op{key("route", "r"), content("four")}))
	if r, _ = s.Get(key("route", "r")); string(r.Prev.Payload) != "three" {
		t.Errorf("prev = %q, want three, which went live with its backend", r.Prev.Payload)
	}
	do(t, s, Command{Pin: &Pin{Key: key("route", "r"), Hash: r.Cur.Hash}}, put(6, Op{key("route", "r"), content("five")}))
	if r, _ = s.Get(key("route", "r")); string(r.Prev.Payload) != "three" {
		t.Errorf("prev = %q: four is pinned away and must not be kept as good", r.Prev.Payload)
	}
}

func TestWhatAReferenceNamesIsNotDeleted(t *testing.T) {
	s := open(t)
	b := key("backend", "b")
	do(t, s, wholeTable(), put(1, Op{b, content("cluster")}, Op{key("route", "r"), content("one", b)}))
	if res := do(t, s, put(2, Op{Key: b}))[0]; len(res.Refused) != 1 {
		t.Fatalf("deleting a named backend: %+v", res)
	}
	if by := s.Referrers(b); len(by) != 1 || by[0] != key("route", "r") {
		t.Fatalf("referrers: %v", by)
	}
	do(t, s, put(3, Op{key("route", "r"), content("two")}))
	if res := do(t, s, put(4, Op{Key: b}))[0]; len(res.Refused) != 0 {
		t.Fatalf("only a previous content names it, whose successor is live: %+v", res)
	}
	if r, _ := s.Get(key("route", "r")); r.Prev != nil {
		t.Error("the previous content names a backend that is gone")
	}
	if len(s.Referrers(b)) != 0 {
		t.Error("the index still names the deleted backend's referrer")
	}
}

func TestIdentitySurvivesTouchAndBumpsGeneration(t *testing.T) {
	s := open(t)
	see := func(hash string) Identity {
		return do(t, s, Command{Identity: &IdentityCommand{Cluster: "c", Now: 7, Objects: []IdentityObservation{{"HTTPRoute", "ns", "r", hash}}}})[0].Identities[0]
	}
	first, same, next := see("a"), see("a"), see("b")
	if first != same || next.UID != first.UID || next.Generation != 2 || first.Generation != 1 || first.Created != 7 {
		t.Errorf("%+v %+v %+v", first, same, next)
	}
	see("")
	if again := see("a"); again.UID == first.UID || again.Generation != 1 {
		t.Errorf("made again: %+v", again)
	}
}

func TestUnknownCommandIsRefusedLoudly(t *testing.T) {
	s := open(t)
	for name, v := range map[string]any{"version": map[string]any{"v": 99}, "field": map[string]any{"v": 1, "Brew": map[string]any{}}, "empty": map[string]any{"v": 1}} {
		b, _ := encMode.Marshal(v)
		if _, err := s.Apply([]Entry{{Index: 1, Data: b}}); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStoreThatCannotBeOpenedSaysWhy(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("open twice: %v", err)
	}
	do(t, s, wholeTable(), put(1, Op{key("route", "r"), content("a payload to find")}))
	if err := s.db().Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(metaFormat, []byte{99}) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrNewer) {
		t.Errorf("newer: %v", err)
	}
}

func TestFlippedBitIsFoundAtOpen(t *testing.T) {
	for where, what := range map[string][]byte{"a payload": []byte("payload to find"), "the key of a record": key("route", "r").encode()} {
		dir := t.TempDir()
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		do(t, s, wholeTable(), put(1, Op{key("route", "r"), content("a payload to find")}))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "store.db")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; ; {
			i := bytes.Index(b[at:], what)
			if i < 0 {
				break
			}
			at += i + len(what)
			b[at-1] ^= 1
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a flipped bit in %s: err = %v, want ErrCorrupt", where, err)
		}
	}
}

func TestRestoreBlocksNoReaderAndGivesTheSameState(t *testing.T) {
	from, to := open(t), open(t)
	do(t, from, wholeTable(), put(1, Op{key("route", "r"), content("new")}))
	do(t, to, wholeTable(), put(1, Op{key("route", "r"), content("old")}))
	events, cancel := to.Subscribe()
	defer cancel()
	for range 2 { // the second one is of a store that was restored itself
		var snap bytes.Buffer
		if _, err := from.WriteSnapshot(&snap); err != nil {
			t.Fatal(err)
		}
		inside, leave, left := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		go func() {
			left <- to.Scan(func(*Record) error { close(inside); <-leave; return nil })
		}()
		<-inside
		if err := to.Restore(&snap); err != nil {
			t.Fatal(err)
		}
		if r, err := to.Get(key("route", "r")); err != nil || string(r.Cur.Payload) != "new" {
			t.Fatalf("after restore: %v %v", r, err)
		}
		if e := <-events; !e.Reset {
			t.Fatalf("event %+v", e)
		}
		close(leave)
		if err := <-left; err != nil {
			t.Fatal(err)
		}
		a, _ := from.FullHash()
		if b, _ := to.FullHash(); a != b {
			t.Fatal("hashes differ after restore")
		}
		from, to = to, from
		do(t, from, put(2, Op{key("route", "q"), content("more")}))
		events2, cancel2 := to.Subscribe()
		defer cancel2()
		events = events2
		do(t, to, put(2, Op{key("route", "r"), content("older")}))
		<-events
	}
	var cut bytes.Buffer
	if _, err := from.WriteSnapshot(&cut); err != nil {
		t.Fatal(err)
	}
	if err := to.Restore(bytes.NewReader(cut.Bytes()[:cut.Len()-9])); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a snapshot that was cut short: %v", err)
	}
}

// TestReplicasThatBatchDifferentlyAgree applies one random history to three stores in batches of different sizes, reopening one of them now and then, and
// to a plain map.
func TestReplicasThatBatchDifferentlyAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 20 {
		dirs := []string{t.TempDir(), t.TempDir()}
		stores := make([]*Store, len(dirs))
		for i, d := range dirs {
			stores[i], _ = Open(d, Options{})
		}
		model := map[Key]string{}
		history := []Command{wholeTable()}
		for seq := uint64(1); seq <= 60; seq++ {
			k := key([]string{"route", "endpoints"}[rng.IntN(2)], fmt.Sprint(rng.IntN(6)))
			if rng.IntN(4) == 0 {
				history = append(history, put(seq, Op{Key: k}))
				delete(model, k)
			} else {
				v := fmt.Sprint(rng.IntN(4))
				history = append(history, put(seq, Op{k, content(v)}))
				model[k] = v
			}
		}
		for i := range stores {
			for rest := history; len(rest) > 0; {
				n := min(len(rest), 1+rng.IntN(1+i*20))
				do(t, stores[i], rest[:n]...)
				rest = rest[n:]
				if rng.IntN(6) == 0 {
					_ = stores[i].Close()
					stores[i], _ = Open(dirs[i], Options{})
				}
			}
		}
		a, err := stores[0].FullHash()
		b, err2 := stores[1].FullHash()
		_, ha := stores[0].StateHash()
		_, hb := stores[1].StateHash()
		if err != nil || err2 != nil || a != b || ha != hb {
			t.Fatalf("round %d: %s %s, %s %s, %v %v", round, a, b, ha, hb, err, err2)
		}
		n := 0
		_ = stores[1].Scan(func(r *Record) error {
			n++
			if model[r.Key] != string(r.Cur.Payload) {
				t.Errorf("%s: %q, the map says %q", r.Key, r.Cur.Payload, model[r.Key])
			}
			return nil
		})
		if n != len(model) {
			t.Errorf("%d records, the map has %d", n, len(model))
		}
		for i := range stores {
			_ = stores[i].Close()
			if _, h, err := FileHash(filepath.Join(dirs[i], "store.db")); err != nil || h != a {
				t.Errorf("the closed file: %s %v, want %s", h, err, a)
			}
		}
	}
}

func TestWaitAppliedEndsWithTheIndexOrTheContext(t *testing.T) {
	s := open(t)
	done := make(chan error, 1)
	go func() { done <- s.WaitApplied(context.Background(), 1) }()
	do(t, s, wholeTable())
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := s.WaitApplied(ctx, 99); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
}

func BenchmarkPutBatch(b *testing.B) {
	s := open(b)
	do(b, s, wholeTable())
	payload := make([]byte, 1024)
	seq := uint64(0)
	for b.Loop() {
		seq++
		payload[0], payload[1] = byte(seq), byte(seq>>8)
		do(b, s, put(seq, Op{key("route", fmt.Sprint(seq%100)), &Content{Payload: payload}}))
	}
}
