package shard

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
)

// single is a group of one: what is proposed is applied at once, and kept.
type single struct {
	t    *testing.T
	db   *store.Store
	said []store.Command
}

func (s *single) Propose(_ context.Context, cmd store.Command) (store.Result, error) {
	s.t.Helper()
	s.said = append(s.said, cmd)
	data, err := store.EncodeCommand(cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	res, err := s.db.Apply([]store.Entry{{Index: s.db.Applied() + 1, Data: data}})
	if err != nil {
		return store.Result{}, err
	}
	return res[0], nil
}

func newSingle(t *testing.T) *single {
	t.Helper()
	db, err := store.Open(filepath.Join(t.TempDir(), "store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return &single{t: t, db: db}
}

func (s *single) checks() (out []store.CheckCommand) {
	for _, c := range s.said {
		if c.Check != nil {
			out = append(out, *c.Check)
		}
	}
	return out
}

func TestLeaderHasStateHashesComparedOnceInAThousandEntries(t *testing.T) {
	s := newSingle(t)
	l := &Leader{Store: s.db, Proposer: s, Logger: slog.New(slog.DiscardHandler), Now: time.Now}
	for range 2*checkEvery + 500 {
		if _, err := s.Propose(t.Context(), store.Command{Version: 1, Replica: &store.Replica{ID: "r", Raft: "a:1"}}); err != nil {
			t.Fatal(err)
		}
		l.check(t.Context())
	}
	got := s.checks()
	if len(got) != 2 || got[0].Index != checkEvery || got[0].Hash == "" {
		t.Fatalf("checks: %+v", got)
	}
	if _, err := s.Propose(t.Context(), store.Command{Version: 1, Check: &store.CheckCommand{Index: s.db.Applied(), Hash: "another"}}); err == nil {
		t.Error("a replica whose state differs goes on")
	}
}

// TestGoodbyeIsFinal: a leader that stops hands over and says goodbye to a successor that may have heard of its election later; and its last heartbeat may come after that. Its rows
// move at once all the same.
func TestGoodbyeIsFinal(t *testing.T) {
	s := newSingle(t)
	rows := []store.Row{{ID: 1, Cluster: "c", Owner: "a@1", Epoch: 1}}
	if _, err := s.Propose(t.Context(), store.Command{Version: 1, Table: &store.TableCommand{Rows: rows}}); err != nil {
		t.Fatal(err)
	}
	l := &Leader{Store: s.db, Logger: slog.New(slog.DiscardHandler), Now: time.Now}
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"heard before the election", func() { l.Beat(Heartbeat{Session: "a@1", Bye: true}); l.Begin() }},
		{"overtaken a heartbeat", func() { l.Beat(Heartbeat{Session: "a@1"}) }},
	} {
		step.do()
		if _, lives := l.Live()["a@1"]; lives {
			t.Errorf("a goodbye that was %s is forgotten", step.what)
		}
	}
	if l.left() != 1 {
		t.Error("the first step waits for who has said goodbye")
	}
	if l.Beat(Heartbeat{Session: "a@2"}); len(l.Live()) != 1 {
		t.Errorf("the next session of that replica does not count: %v", l.Live())
	}
}
