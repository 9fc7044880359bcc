package group

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/loadtest/freeport"
)

// TestMain gives what was told to end time to do so, on a machine that is busy with other things: more than goleak's half second.
func TestMain(m *testing.M) {
	code := m.Run()
	var left error
	for deadline := time.Now().Add(time.Minute); code == 0 && time.Now().Before(deadline); {
		if left = goleak.Find(); left == nil {
			os.Exit(0)
		}
	}
	if left != nil {
		fmt.Fprintln(os.Stderr, left)
		code = 1
	}
	os.Exit(code)
}

// quick is the heartbeat of tests.
const quick = 250 * time.Millisecond

// node is one replica of a test: its directories outlive its process.
type node struct {
	t     *testing.T
	dir   string
	cfg   Config
	store *store.Store
	*Group
	died chan error
}

// nodes lays out n replicas; none is started.
func nodes(t *testing.T, n int) []*node {
	t.Helper()
	root := t.TempDir()
	var peers []string
	for range n {
		peers = append(peers, freeport.Address(t))
	}
	authority, err := pki.NewAuthority(filepath.Join(root, "pki"), "peers")
	if err != nil {
		t.Fatal(err)
	}
	var out []*node
	for i := range n {
		pod := fmt.Sprintf("fleetgate-%d", i)
		cert, key, err := authority.Issue(filepath.Join(root, "pki"), pod, []string{"127.0.0.1", "localhost"}, []string{pki.ReplicaURI(pod)}, true, true)
		if err != nil {
			t.Fatal(err)
		}
		certs, err := pki.Load(cert, key, authority.CertFile())
		if err != nil {
			t.Fatal(err)
		}
		nd := &node{t: t, dir: filepath.Join(root, pod), died: make(chan error, 1)}
		level := slog.LevelError + 1
		if os.Getenv("GROUP_LOG") != "" {
			level = slog.LevelDebug
		}
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("on", pod)
		nd.cfg = Config{Dir: filepath.Join(nd.dir, "group"), Pod: pod, Advertise: peers[i], Peers: peers, Certs: certs, Logger: log,
			Heartbeat: quick, Hold: time.Minute, Fatal: func(err error) { nd.died <- err }}
		t.Cleanup(nd.kill)
		out = append(out, nd)
	}
	return out
}

func (n *node) start() {
	n.t.Helper()
	if err := n.tryStart(); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) tryStart() (err error) {
	if n.store, err = store.Open(filepath.Join(n.dir, "store"), store.Options{}); err != nil {
		return err
	}
	n.cfg.Store = n.store
	if n.Group, err = Open(context.Background(), n.cfg); err != nil {
		return errors.Join(err, n.store.Close())
	}
	return nil
}

// kill stops a replica as a crash would: connections break, nothing is handed over.
func (n *node) kill() { n.end(false) }

func (n *node) close() { n.end(true) }

func (n *node) end(gently bool) {
	n.t.Helper()
	if n.Group == nil {
		return
	}
	if err := n.Group.shutdown(gently); err != nil {
		n.t.Errorf("stopping %s: %v", n.id, err)
	}
	if err := n.store.Close(); err != nil {
		n.t.Errorf("closing the store of %s: %v", n.id, err)
	}
	n.Group = nil
}

// wipe loses a stopped replica's disk.
func (n *node) wipe() {
	n.t.Helper()
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Fatal(err)
	}
}

func startAll(t *testing.T, ns []*node) {
	t.Helper()
	var w sync.WaitGroup
	for _, n := range ns {
		w.Go(func() {
			if err := n.tryStart(); err != nil {
				t.Error(err)
			}
		})
	}
	w.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// within is a context that ends a hung test with a message instead of a dump.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// leader waits until one of the nodes leads.
func leader(t *testing.T, ns ...*node) *node {
	t.Helper()
	var found *node
	eventually(t, "a leader", func() bool {
		for _, n := range ns {
			if n.Group != nil && n.IsLeader() {
				found = n
			}
		}
		return found != nil
	})
	return found
}

func followers(ns []*node, leader *node) (out []*node) {
	for _, n := range ns {
		if n != leader {
			out = append(out, n)
		}
	}
	return out
}

// eventually polls a condition that has no event to wait for.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("there was never %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// write proposes a record by n, under a row that the group must have; see prepare.
func (n *node) write(name string, seq uint64) (store.Result, error) {
	payload := []byte("bytes of " + name)
	return n.Propose(within(n.t, 2*time.Minute), store.Command{Put: &store.PutCommand{Proposer: "w", Row: 1, Epoch: 1, Seq: seq,
		Ops: []store.Op{{Key: key(name), Content: &store.Content{Payload: payload, Hash: "0123456789abcdef"}}}}})
}

func (n *node) mustWrite(name string, seq uint64) store.Result {
	n.t.Helper()
	res, err := n.write(name, seq)
	if err != nil || res.Code != "" && res.Code != store.CodeDuplicate { // a proposal made twice is answered so
		n.t.Fatalf("writing %s: %+v, %v", name, res, err)
	}
	return res
}

func key(name string) store.Key {
	return store.Key{Cluster: "c", Namespace: "ns", Kind: "route", Name: name}
}

// prepare makes the one row of the tests.
func (n *node) prepare() {
	n.t.Helper()
	var res store.Result
	var err error
	eventually(n.t, "a leader that makes a row", func() bool { // it may have changed since a test saw it, and a test may hold proposals for a moment only
		res, err = n.Propose(within(n.t, 2*time.Minute), store.Command{Table: &store.TableCommand{Rows: []store.Row{{ID: 1, Cluster: "c", Owner: "w", Epoch: 1}}}})
		return !errors.Is(err, ErrNoLeader)
	})
	if err != nil || res.Code != "" && !(res.Code == store.CodeConflict && res.Table == 1) { // proposed twice: the first one made it
		n.t.Fatalf("making a row: %+v, %v", res, err)
	}
}

// has waits until n's store has everything committed, and says whether the record is there.
func (n *node) has(name string) bool {
	n.t.Helper()
	ctx := within(n.t, 2*time.Minute)
	var index uint64
	eventually(n.t, "a leader that tells its commit index", func() (ok bool) {
		var err error
		index, err = n.AskCommitIndex(ctx)
		return err == nil
	})
	err := ctx.Err()
	if err == nil {
		err = n.WaitApplied(ctx, index)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	r, err := n.store.Get(key(name))
	if err != nil {
		n.t.Fatal(err)
	}
	return r != nil
}

func voters(n *node) (out []string) {
	for _, m := range n.Members() {
		if m.Voter {
			out = append(out, m.ID)
		}
	}
	return out
}

// hang is a log store whose writes block while it is held.
type hang struct {
	raft.LogStore
	mu sync.RWMutex
}

func (h *hang) IsMonotonic() bool { return h.LogStore.(raft.MonotonicLogStore).IsMonotonic() }

func (h *hang) StoreLogs(l []*raft.Log) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.LogStore.StoreLogs(l)
}
