package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

func TestFailedApplyIsFinal(t *testing.T) {
	s := open(t)
	do(t, s, wholeTable())
	good, err := EncodeCommand(put(1, Op{key("route", "r"), content("x")}))
	if err != nil {
		t.Fatal(err)
	}
	// The first entry is rolled back with the second: were the store to go on, its index would pass over it.
	if _, err := s.Apply([]Entry{{Index: 2, Data: good}, {Index: 3, Data: []byte("?")}}); !errors.Is(err, ErrUnknownCommand) {
		t.Fatalf("err = %v", err)
	}
	if _, err := s.Apply([]Entry{{Index: 4, Data: good}}); !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("applied after a failure: %v", err)
	}
	if got := s.Applied(); got != 1 {
		t.Errorf("applied = %d, want 1: nothing else is in the file", got)
	}
}

func TestEntriesOutOfOrderAreRefused(t *testing.T) {
	s := open(t)
	if _, err := s.Apply([]Entry{{Index: 2}, {Index: 1}}); err == nil {
		t.Error("the log went backwards and nobody minded")
	}
}

func TestReplayedEntryIsSkipped(t *testing.T) {
	s := open(t)
	do(t, s, wholeTable())
	b, _ := EncodeCommand(Command{Table: &TableCommand{Expect: 1, Delete: []uint64{1}}})
	if _, err := s.Apply([]Entry{{Index: 1, Data: b}}); err != nil {
		t.Fatal(err)
	}
	if _, rows := s.Table(); len(rows) != 1 {
		t.Errorf("rows = %v: an entry that was applied before was applied again", rows)
	}
}

// TestHungDiskDoesNotStopReaders keeps the file's write lock, as a commit on a hung disk would.
func TestHungDiskDoesNotStopReaders(t *testing.T) {
	s := open(t)
	do(t, s, wholeTable(), put(1, Op{key("route", "r"), content("x")}))
	tx, err := s.db().Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := s.Apply([]Entry{{Index: 3}}); done <- err }()
	for s.writing.TryLock() { // until Apply has it
		s.writing.Unlock()
		runtime.Gosched()
	}
	if r, err := s.Get(key("route", "r")); err != nil || r == nil {
		t.Errorf("%v %v", r, err)
	}
	if got := s.Applied(); got != 2 {
		t.Errorf("applied = %d, want 2: 3 is not in the file", got)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || s.Applied() != 3 {
		t.Errorf("%v, applied %d", err, s.Applied())
	}
}

// TestKilledAtAnyMomentLeavesOneIndex copies the file while transactions are committed, as a crash would leave it, and finds in each copy the state of one index.
func TestKilledAtAnyMomentLeavesOneIndex(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	do(t, s, wholeTable())
	for seq := uint64(1); seq <= 30; seq++ {
		do(t, s, put(seq, Op{key("route", fmt.Sprint(seq%7)), content(fmt.Sprint(seq))}, Op{key("endpoints", fmt.Sprint(seq%5)), content("e" + fmt.Sprint(seq))}))
		want, err := s.FullHash()
		if err != nil {
			t.Fatal(err)
		}
		tx, err := s.db().Begin(true) // killed inside the next transaction
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Bucket(bucketRecords).Put([]byte("half"), []byte("written")); err != nil {
			t.Fatal(err)
		}
		crashed := t.TempDir()
		b, err := os.ReadFile(filepath.Join(dir, "store.db"))
		if err := errors.Join(err, os.WriteFile(filepath.Join(crashed, "store.db"), b, 0o600), os.WriteFile(filepath.Join(crashed, "store.db.restore"), b[:10], 0o600), tx.Rollback()); err != nil {
			t.Fatal(err)
		}
		again, err := Open(crashed, Options{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := again.FullHash()
		index, rolling := again.StateHash()
		if wantIndex, wantRolling := s.StateHash(); err != nil || got != want || index != wantIndex || rolling != wantRolling {
			t.Errorf("after %d: index %d hash %s %v, want %d %s", seq, index, got, err, wantIndex, want)
		}
		if _, err := os.Stat(filepath.Join(crashed, "store.db.restore")); !errors.Is(err, os.ErrNotExist) {
			t.Error("an unfinished snapshot stays on the disk")
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFlippedBitIsFoundByTheReaderOfThatRecord(t *testing.T) {
	s := open(t)
	do(t, s, wholeTable(), put(1, Op{key("route", "r"), content("x")}, Op{key("route", "q"), content("y")}))
	tx, err := s.db().Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	b := append([]byte(nil), tx.Bucket(bucketRecords).Get(key("route", "r").encode())...)
	b[len(b)-1] ^= 4
	if err := errors.Join(tx.Bucket(bucketRecords).Put(key("route", "r").encode(), b), tx.Commit()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(key("route", "r")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("err = %v, want ErrCorrupt", err)
	}
	if r, err := s.Get(key("route", "q")); err != nil || string(r.Cur.Payload) != "y" {
		t.Errorf("the other record: %v %v", r, err)
	}
}

// TestDamagedPages: what bbolt itself says of a damaged page is a panic, most of the time in a goroutine of its own, with a trace that names neither the file nor what to do.
func TestDamagedPages(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	do(t, s, wholeTable())
	for seq := range uint64(20) {
		var ops []Op
		for i := range 50 {
			ops = append(ops, Op{key("route", fmt.Sprint("r", seq, "-", i)), content("x")})
		}
		do(t, s, put(seq+1, ops...))
	}
	var damaged int64 // a leaf of the records
	err = s.view(func(tx *bolt.Tx) error {
		for id := 2; ; id++ {
			p, err := tx.Page(id)
			if err != nil || p == nil {
				return err
			}
			if p.Type == "leaf" && p.Count > 5 {
				damaged = int64(id) * int64(tx.DB().Info().PageSize)
			}
		}
	})
	if err = errors.Join(err, s.Close()); err != nil || damaged == 0 {
		t.Fatal(damaged, err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		at   int64
		flip byte
	}{
		"another page":              {0, 1},
		"another kind of page":      {8, 8},
		"more entries":              {11, 64},
		"an entry that is a bucket": {16, 1},
		"a key far away":            {16 + 7, 64},
		"a key without an end":      {16 + 11, 64},
		"a value without an end":    {16 + 15, 64},
	} {
		t.Run(name, func(t *testing.T) {
			b := slices.Clone(whole)
			b[damaged+c.at] ^= c.flip
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "store.db"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(dir, Options{})
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "move its data directory away") {
				t.Errorf("got %v", err)
			}
			if err == nil {
				_ = s.Close()
			}
		})
	}
}

func TestLateCheckFindsDivergence(t *testing.T) {
	s := open(t)
	do(t, s, wholeTable())
	index, hash := s.StateHash()
	do(t, s, put(1, Op{key("route", "r"), content("x")}), Command{Check: &CheckCommand{Index: index, Hash: hash}}, Command{Check: &CheckCommand{Index: 9999, Hash: "unknown"}})
	b, _ := EncodeCommand(Command{Check: &CheckCommand{Index: index, Hash: "0000000000000000"}})
	if _, err := s.Apply([]Entry{{Index: s.Applied() + 1, Data: b}}); !errors.Is(err, ErrDiverged) {
		t.Errorf("err = %v, want ErrDiverged", err)
	}
}

func TestHashesAreForgottenOldestFirst(t *testing.T) {
	m := newMemory()
	for m.applied = 10; m.applied <= 40000; m.applied += 10 { // indexes have gaps: not every entry reaches the state machine
		m.remember()
	}
	if n := len(m.recent); n >= 2*recentHashes {
		t.Errorf("%d hashes kept", n)
	}
	if _, ok := m.hashAt(40000 - 10*(recentHashes-1)); !ok {
		t.Error("a recent hash is forgotten")
	}
	if _, ok := m.hashAt(39995); ok {
		t.Error("a hash for an index that never was")
	}
}

func TestPinOfADegradedFormIsAPinOfTheContent(t *testing.T) {
	s := open(t)
	do(t, s, wholeTable(), put(1, Op{key("route", "r"), content("good")}), put(2, Op{key("route", "r"), content("bad")}))
	r, _ := s.Get(key("route", "r"))
	do(t, s, Command{Pin: &Pin{Key: r.Key, Hash: r.Cur.Hash + "/500"}}, put(3, Op{key("route", "r"), content("next")}))
	if r, _ = s.Get(r.Key); string(r.Prev.Payload) != "good" {
		t.Errorf("prev = %q: rejected bytes are kept as good ones", r.Prev.Payload)
	}
}

func TestRecordThatNamesItselfCanGo(t *testing.T) {
	s := open(t)
	k := key("route", "r")
	do(t, s, wholeTable(), put(1, Op{k, content("x", k)}))
	if res := do(t, s, put(2, Op{Key: k}))[0]; len(res.Refused) != 0 || len(s.Referrers(k)) != 0 {
		t.Errorf("%+v %v", res, s.Referrers(k))
	}
}

func TestRowsThatCoverNothingOrChangeClusterAreRefused(t *testing.T) {
	s := open(t)
	do(t, s, wholeTable())
	for name, r := range map[string]Row{
		"inverted":                       {ID: 2, Cluster: "d", From: 9, To: 5, Owner: owner, Epoch: 2},
		"empty":                          {ID: 2, Cluster: "d", From: 9, To: 9, Owner: owner, Epoch: 2},
		"other cluster, the same epoch":  {ID: 1, Cluster: "d", Owner: owner, Epoch: 1},
		"new row under a parent's epoch": {ID: 2, Cluster: "d", Owner: owner, Epoch: 1},
	} {
		if res := do(t, s, Command{Table: &TableCommand{Expect: 1, Rows: []Row{r}}})[0]; res.Code != CodeConflict {
			t.Errorf("%s: %+v", name, res)
		}
	}
}

func TestDeletedRowTakesItsSequenceAlong(t *testing.T) {
	s := open(t)
	do(t, s, wholeTable(), put(7, Op{key("route", "r"), content("x")}),
		Command{Table: &TableCommand{Expect: 1, Delete: []uint64{1}}},
		Command{Table: &TableCommand{Expect: 2, Rows: []Row{{ID: 1, Cluster: "c", Owner: owner, Epoch: 2}}}})
	c := put(1, Op{key("route", "r"), content("y")})
	c.Put.Epoch = 2
	if res := do(t, s, c)[0]; res.Code != "" {
		t.Errorf("the first sequence of a new epoch: %+v", res)
	}
	c.Put.Epoch = 1
	if res := do(t, s, c)[0]; res.Code != CodeFenced {
		t.Errorf("the old epoch: %+v", res)
	}
}

func TestClosedStoreAnswersWithAnError(t *testing.T) {
	s := open(t)
	before, _ := s.Subscribe()
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	after, _ := s.Subscribe()
	if _, ok := <-before; ok {
		t.Error("an event from a closed store")
	}
	if _, ok := <-after; ok {
		t.Error("an event from a closed store")
	}
	if _, err := s.Get(key("route", "r")); !errors.Is(err, errClosed) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Apply([]Entry{{Index: 1}}); !errors.Is(err, errClosed) {
		t.Errorf("apply: %v", err)
	}
}
