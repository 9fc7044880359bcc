package group

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/fleetgate/fleetgate/cluster/store"
)

func TestBeginsOnceAndReplicates(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	l := leader(t, ns...)
	eventually(t, "three members that know one group", func() bool {
		return !slices.ContainsFunc(ns, func(n *node) bool { return n.ClusterID() != l.ClusterID() || len(voters(n)) != 3 })
	})
	f := followers(ns, l)[0]
	f.prepare()
	res := f.mustWrite("by-a-follower", 1)
	if res.Index == 0 {
		t.Error("the answer has no index")
	}
	for _, n := range ns {
		if !n.has("by-a-follower") {
			t.Errorf("%s lacks what was committed", n.id)
		}
		if n.store.ClusterID() != l.ClusterID() {
			t.Errorf("%s: the store holds group %q, want %q", n.id, n.store.ClusterID(), l.ClusterID())
		}
	}
}

func TestGroupCommit(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	var w sync.WaitGroup
	for _, n := range ns {
		for i := range 50 {
			w.Go(func() {
				_, err := n.Propose(within(t, 2*time.Minute), store.Command{Fleet: &store.Fleet{Name: fmt.Sprintf("%s/%d", n.id, i), Proxies: []string{"p"}}})
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	w.Wait()
	for _, n := range ns {
		n.has("")
		if got := len(n.store.Fleets()); got != 150 {
			t.Errorf("%s has %d fleets, want 150", n.id, got)
		}
	}
}

// TestCommandThatNobodyCanRead: in the log it would stop every replica, whoever proposes it.
func TestCommandThatNobodyCanRead(t *testing.T) {
	ns := nodes(t, 2)
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	for name, cmd := range map[string]store.Command{
		"empty":      {},
		"two in one": {Pin: &store.Pin{Key: key("r")}, Unpin: &store.Pin{Key: key("r")}},
		"not UTF-8":  {Pin: &store.Pin{Key: key("r"), Reason: "\xff"}},
	} {
		for _, n := range ns {
			if _, err := n.Propose(within(t, 30*time.Second), cmd); err == nil || !strings.Contains(err.Error(), store.ErrUnknownCommand.Error()) {
				t.Errorf("%s, proposed by %s: %v", name, n.id, err)
			}
		}
	}
	for i, n := range ns {
		n.mustWrite(fmt.Sprint("after", i), uint64(i+1))
		select {
		case err := <-n.died:
			t.Errorf("%s died: %v", n.id, err)
		default:
		}
	}
}

func TestLeaderIsKilled(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	l.mustWrite("before", 1)
	rest := followers(ns, l)
	l.kill()
	rest[0].mustWrite("meanwhile", 2) // held until the next leader is there
	l.start()
	leader(t, ns...)
	eventually(t, "a leader that the returned replica knows", func() bool { id, _ := l.Leader(); return id != "" })
	for _, n := range ns {
		for _, name := range []string{"before", "meanwhile"} {
			if !n.has(name) {
				t.Errorf("%s lacks %q", n.id, name)
			}
		}
	}
}

func TestAllRestart(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	l.mustWrite("before", 1)
	id := l.id
	for _, n := range ns {
		n.kill()
	}
	startAll(t, ns)
	next := leader(t, ns...)
	if l.id != id {
		t.Errorf("the id changed from %s to %s by a restart", id, l.id)
	}
	if !next.has("before") {
		t.Error("a restart of all lost a write")
	}
}

func TestNoLeader(t *testing.T) {
	ns := nodes(t, 3)
	for _, n := range ns {
		n.cfg.Hold = 500 * time.Millisecond
	}
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	rest := followers(ns, l)
	l.kill()
	rest[1].kill()
	eventually(t, "a follower that misses its leader", func() bool { id, _ := rest[0].Leader(); return id == "" })
	if _, err := rest[0].write("lost", 1); !errors.Is(err, ErrNoLeader) {
		t.Errorf("got %v, want ErrNoLeader", err)
	}
	if _, err := rest[0].AskCommitIndex(within(t, time.Minute)); !errors.Is(err, ErrNoLeader) {
		t.Errorf("got %v, want ErrNoLeader", err)
	}
}

// A replica that lost its disk comes back as somebody new: the leader lets it in, and its old incarnation out.
func TestWipedDiskReturns(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	l.mustWrite("before", 1)
	eventually(t, "three voters", func() bool { return len(voters(l)) == 3 })
	w := followers(ns, l)[0]
	old := w.id
	w.kill()
	w.wipe()
	w.start()
	eventually(t, "the new incarnation in the place of the old one", func() bool {
		v := voters(l)
		return len(l.Members()) == 3 && len(v) == 3 && slices.Contains(v, w.id) && !slices.Contains(v, old)
	})
	if !w.has("before") {
		t.Error("the new incarnation lacks what was committed")
	}
	if !w.guard.member.Load() {
		eventually(t, "a vote for the new incarnation", w.guard.member.Load)
	}
}

// TestOldDiskReturns: a volume that was away while its replica ran on an empty one comes back, and the group has given its place to the other disk meanwhile.
func TestOldDiskReturns(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	leader(t, ns...).prepare()
	victim := ns[1]
	victim.has("")
	old := victim.id
	victim.kill()
	aside := victim.dir + ".aside"
	if err := os.Rename(victim.dir, aside); err != nil {
		t.Fatal(err)
	}
	victim.start()
	eventually(t, "the empty disk among the voters, and the old one gone", func() bool {
		l := leader(t, ns...)
		return slices.Contains(voters(l), victim.id) && !slices.Contains(voters(l), old)
	})
	victim.kill()
	victim.wipe()
	if err := os.Rename(aside, victim.dir); err != nil {
		t.Fatal(err)
	}
	victim.start()
	leader(t, ns...).mustWrite("a", 1)
	if victim.id != old || !victim.has("a") {
		t.Fatal("the old disk does not follow")
	}
	eventually(t, "three voters, the old disk among them", func() bool {
		l := leader(t, ns...)
		return len(voters(l)) == 3 && slices.Contains(voters(l), old)
	})
}

// TestTwoDisksOfOneReplica: the one that its address does not lead to is not let in. It would be removed as replaced at once, and ask again.
func TestTwoDisksOfOneReplica(t *testing.T) {
	ns := nodes(t, 2)
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	f := followers(ns, l)[0]
	other := server{f.cfg.Pod + "-00000000", f.cfg.Advertise + "#00000000"}
	body, err := json.Marshal(other)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a leader that answers", func() bool { // it may have changed
		_, err = leader(t, ns...).letIn(within(t, time.Minute), other.ID, body)
		return !errors.Is(err, ErrNoLeader)
	})
	if err == nil || !strings.Contains(err.Error(), "the leader finds "+f.id) {
		t.Errorf("got %v", err)
	}
}

// hesitant is a store that keeps a newcomer from hearing that it has caught up.
type hesitant struct {
	*store.Store
	enough chan struct{}
}

func (h *hesitant) WaitApplied(ctx context.Context, index uint64) error {
	select {
	case <-h.enough:
		return h.Store.WaitApplied(ctx, index)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestNewcomerVotesBeforeItCounts: a voter that does not vote makes every majority harder to reach. Were it killed at that moment, and an entry written meanwhile that it lacks, two votes
// of four would be left, it could not be elected itself, and it needs a leader to be told that it may vote.
func TestNewcomerVotesBeforeItCounts(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	w := followers(ns, l)[0]
	w.kill()
	w.wipe()
	var err error
	if w.store, err = store.Open(filepath.Join(w.dir, "store"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	held := &hesitant{w.store, make(chan struct{})}
	w.cfg.Store = held
	if w.Group, err = Open(context.Background(), w.cfg); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a newcomer that has everything", func() bool { return w.store.Applied() >= l.store.Applied() })
	for _, s := range l.standings(within(t, time.Minute), 1) {
		if s.server.ID == w.id && (s.voter || s.caughtUp) {
			t.Errorf("%+v, and it does not vote", s)
		}
	}
	close(held.enough)
	eventually(t, "the newcomer among the voters", func() bool { return slices.Contains(voters(leader(t, ns...)), w.id) })
	if !w.guard.member.Load() {
		t.Error("it is a voter, and does not vote")
	}
}

// The amnesia scenario: a write is acknowledged by A and B while C is away; B loses its disk, A dies, C returns. B must not help C
// into office, or the write is lost.
func TestAmnesiaLosesNothing(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	a := leader(t, ns...)
	a.prepare()
	rest := followers(ns, a)
	b, c := rest[0], rest[1]
	c.has("") // it is a member for good
	c.kill()
	a.mustWrite("acknowledged", 1)
	b.kill()
	a.kill()
	b.wipe()
	b.start()
	c.cfg.Hold = time.Second
	c.start()
	for range 3 { // long enough for several elections
		if _, err := c.write("must not be possible", 2); !errors.Is(err, ErrNoLeader) {
			t.Fatalf("got %v: a wiped replica voted", err)
		}
	}
	a.start()
	l := leader(t, ns...)
	if !l.has("acknowledged") {
		t.Fatal("an acknowledged write was lost")
	}
}

func TestFreshReplicaBesideAGroupNeverBegins(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	l := leader(t, ns...)
	eventually(t, "three members", func() bool {
		return !slices.ContainsFunc(ns, func(n *node) bool { return !n.known().Joined })
	})
	group := l.ClusterID()
	rest := followers(ns, l)
	for _, n := range rest {
		n.kill()
		n.wipe()
	}
	startAll(t, rest) // two of three disks are lost: nothing automatic may happen
	eventually(t, "the old leader without a majority", func() bool { return !l.IsLeader() })
	for _, n := range rest {
		eventually(t, "a fresh replica that knows of the group", func() bool {
			h, err := n.greet(within(t, time.Second), l.cfg.Advertise)
			return err == nil && h.ClusterID == group
		})
		if n.known().Joined || n.ClusterID() != "" && n.ClusterID() != group {
			t.Errorf("%s began a group of its own: %+v", n.id, n.known())
		}
	}
}

func TestMarkerHasOneWinner(t *testing.T) {
	ns := nodes(t, 3)
	marker := FileMarker(filepath.Join(t.TempDir(), "marker"))
	for _, n := range ns {
		n.cfg.Marker = marker
	}
	startAll(t, ns)
	l := leader(t, ns...)
	eventually(t, "three voters of one group", func() bool {
		return !slices.ContainsFunc(ns, func(n *node) bool { return n.ClusterID() != l.ClusterID() || len(voters(n)) != 3 || !n.known().Joined })
	})
}

func TestTransferOnClose(t *testing.T) {
	ns := nodes(t, 3)
	for _, n := range ns {
		n.cfg.Heartbeat = 10 * time.Second // an election would take longer than the test allows
	}
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	rest := followers(ns, l)
	for _, n := range rest {
		n.has("")
	}
	begun := time.Now()
	l.close()
	rest[0].mustWrite("after", 1)
	took := time.Since(begun)
	t.Logf("leader closed -> next committed write: %s", took)
	if took > 9*time.Second {
		t.Errorf("the next write took %s: leadership was not handed over", took)
	}
}

func TestLeadershipIsAnnouncedAfterTheBarrier(t *testing.T) {
	ns := nodes(t, 3)
	type term struct {
		n       *node
		applied uint64
		ctx     context.Context
	}
	terms := make(chan term, 16)
	startAll(t, ns)
	for _, n := range ns {
		n.OnLeadership(func(ctx context.Context) {
			terms <- term{n, n.store.Applied(), ctx}
			<-ctx.Done()
		})
	}
	first := <-terms
	first.n.prepare()
	wrote := first.n.mustWrite("x", 1)
	eventually(t, "another leader", func() bool { // Raft gives a transfer no longer than an election
		return first.n.TransferLeadership(within(t, time.Minute)) == nil
	})
	second := <-terms
	if second.applied < wrote.Index {
		t.Errorf("%s began to lead at index %d, before %d was applied", second.n.id, second.applied, wrote.Index)
	}
	<-first.ctx.Done()
}

func TestHungDiskStopsTheReplica(t *testing.T) {
	ns := nodes(t, 3)
	hangs := map[*node]*hang{}
	for _, n := range ns {
		n.cfg.Watchdog = 3 * time.Second // sound disks may take their time
		n.cfg.wrapLogs = func(l raft.LogStore) raft.LogStore { hangs[n] = &hang{LogStore: l}; return hangs[n] }
	}
	for _, n := range ns {
		n.start()
	}
	l := leader(t, ns...)
	l.prepare()
	hangs[l].mu.Lock()
	done := make(chan error, 1)
	go func() { _, err := l.write("stuck", 1); done <- err }()
	err := <-l.died
	if !strings.Contains(err.Error(), "the disk hangs") {
		t.Errorf("died of %v", err)
	}
	hangs[l].mu.Unlock()
	<-done
}

func TestFarBehindGetsASnapshot(t *testing.T) {
	ns := nodes(t, 3)
	startAll(t, ns)
	l := leader(t, ns...)
	l.prepare()
	late := followers(ns, l)[0]
	late.has("")
	late.kill()
	for i := range 40 {
		l.mustWrite(fmt.Sprint("r", i), uint64(i+1))
	}
	shortenLog(t, l)
	late.start()
	if !late.has("r39") {
		t.Fatal("the snapshot lacks what was committed")
	}
	late.kill() // the term of the snapshot's index must survive a restart
	late.start()
	l.mustWrite("after", 1000)
	if !late.has("after") {
		t.Fatal("no entry after the snapshot")
	}
}

// shortenLog has the leader cut its log up to what it applied.
func shortenLog(t *testing.T, l *node) {
	t.Helper()
	c := l.raft.ReloadableConfig()
	c.TrailingLogs = 1
	if err := l.raft.ReloadConfig(c); err != nil {
		t.Fatal(err)
	}
	if err := l.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	first, err := l.wal.FirstIndex()
	if err != nil || first < 30 {
		t.Fatalf("the log still begins at %d (%v)", first, err)
	}
}

// during is a store in the middle of whose Apply something else happens: what was applied is in the file, and the group has not heard of it yet.
type during struct {
	*store.Store
	applied func()
}

func (d *during) Apply(e []store.Entry) ([]store.Result, error) {
	res, err := d.Store.Apply(e)
	d.applied()
	return res, err
}

// opened is what a replica has on its disk at first, for as long as the test runs.
func opened(t *testing.T) (*store.Store, *directory) {
	t.Helper()
	db, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	dir, err := openDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.close() })
	return db, dir
}

// machineOf is the state machine of a store, without Raft.
func machineOf(t *testing.T, db StateMachine) *machine {
	t.Helper()
	m, err := newMachine(db, watchdog{time.Minute, func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestSnapshotWhileAConfigurationIsApplied: a replica that got it without the configuration that it holds would count the wrong voters.
func TestSnapshotWhileAConfigurationIsApplied(t *testing.T) {
	db, dir := opened(t)
	d := &during{Store: db}
	m := machineOf(t, d)
	logs := raft.NewInmemStore()
	s := &snapshots{dir: dir, machine: m, logs: logs}
	d.applied = func() {
		meta, r, err := s.Open(current)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		if got := len(meta.Configuration.Servers); meta.ConfigurationIndex != meta.Index || got != int(meta.Index) {
			t.Errorf("snapshot of index %d: the configuration of index %d, with %d servers", meta.Index, meta.ConfigurationIndex, got)
		}
	}
	var c raft.Configuration
	for i := range 3 {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(fmt.Sprint("r", i)), Address: raft.ServerAddress(fmt.Sprint("a", i))})
		l := &raft.Log{Index: uint64(i + 1), Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)}
		if err := logs.StoreLog(l); err != nil {
			t.Fatal(err)
		}
		m.Apply(l)
	}
}

// TestSnapshotsThatCannotBeTakenIn: a disk with too little space takes none of them in, however often the leader tries. What the store holds must still have its term, or the replica
// does not start again.
func TestSnapshotsThatCannotBeTakenIn(t *testing.T) {
	db, dir := opened(t)
	m := machineOf(t, db)
	s := &snapshots{dir: dir, machine: m, logs: raft.NewInmemStore()} // emptied, as when a snapshot came in
	arrive := func(index uint64) {
		t.Helper()
		sink, err := s.Create(raft.SnapshotVersionMax, index, 7, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = sink.Write([]byte("a store"))
		if err = errors.Join(err, sink.Close()); err != nil {
			t.Fatal(err)
		}
	}
	arrive(3)
	m.Apply(&raft.Log{Index: 3, Term: 7, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{})}) // taken in
	for index := range uint64(10) {
		arrive(100 + index)
	}
	all, err := s.List()
	if err != nil || len(all) != 1 || all[0].Index != 3 || all[0].Term != 7 {
		t.Errorf("%+v %v", all, err)
	}
}

// TestKilledWithSnapshotsOnTheirWay: each would leave a copy of the whole store behind, until the disk is full.
func TestKilledWithSnapshotsOnTheirWay(t *testing.T) {
	n := nodes(t, 1)[0]
	n.start()
	leader(t, n).prepare()
	m := machineOf(t, n.store)
	s := &snapshots{dir: n.Group.dir, machine: m, logs: n.wal}
	_, out, err := s.Open(current)
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Create(raft.SnapshotVersionMax, 1, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(in, out); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(out.(*spool).File.Close(), in.(*arrival).file.Close()); err != nil { // all that the kernel does for who is killed
		t.Fatal(err)
	}
	n.kill()
	n.start()
	left, err := filepath.Glob(filepath.Join(n.cfg.Dir, "snapshot.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left on the disk: %q (%v)", left, err)
	}
}

func TestCalls(t *testing.T) {
	ns := nodes(t, 2)
	startAll(t, ns)
	l := leader(t, ns...)
	f := followers(ns, l)[0]
	eventually(t, "two members", func() bool { return len(f.Members()) == 2 && f.known().Joined })
	for _, n := range ns { // the other one may come to lead
		n.Handle("echo", func(_ context.Context, from string, body []byte) ([]byte, error) {
			return []byte(from + ":" + string(body)), nil
		})
	}
	l.Handle("refuse", func(context.Context, string, []byte) ([]byte, error) { return nil, errors.New("not today") })
	l.Handle("much", func(context.Context, string, []byte) ([]byte, error) { return make([]byte, 2*maxBody), nil })
	ctx := within(t, time.Minute)
	var out []byte
	var err error
	eventually(t, "a leader that answers", func() bool {
		out, err = f.CallLeader(ctx, "echo", []byte("hi"))
		return !errors.Is(err, ErrNoLeader)
	})
	if err != nil || string(out) != f.id+":hi" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := f.Call(ctx, l.id, "refuse", nil); err == nil || !strings.Contains(err.Error(), "not today") || errors.Is(err, ErrNotReached) {
		t.Errorf("got %v", err)
	}
	if out, err := f.Call(ctx, l.id, "much", nil); err != nil || len(out) != 2*maxBody {
		t.Errorf("of a large answer got %d bytes, %v", len(out), err)
	}
	if _, err := f.Call(ctx, l.id, "nonsense", nil); err == nil || !strings.Contains(err.Error(), "same version") {
		t.Errorf("got %v", err)
	}
	if _, err := f.Call(ctx, "fleetgate-9-00000000", "echo", nil); !errors.Is(err, ErrNotReached) {
		t.Errorf("got %v, want ErrNotReached", err)
	}
	if _, err := f.Propose(ctx, store.Command{Fleet: &store.Fleet{Name: strings.Repeat("x", MaxEntry)}}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	n := nodes(t, 1)[0]
	n.start()
	leader(t, n)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	second := n.cfg
	second.Store = n.store
	if g, err := Open(context.Background(), second); !errors.Is(err, ErrInUse) {
		t.Errorf("a directory in use: got %v, %v", g, err)
	}
	n.kill()
	for _, c := range []struct {
		name string
		edit func(*Config)
		want error
	}{
		{"directory of another group", func(c *Config) { c.ClusterID = "another" }, ErrOtherGroup},
		{"address does not resolve", func(c *Config) {
			c.Advertise, c.Peers, c.Resolve = "nowhere.invalid:1", []string{"nowhere.invalid:1"}, time.Millisecond
			c.Certs = certFor(t, c.Pod, "nowhere.invalid")
		}, ErrUnresolved},
		{"certificate for another host", func(c *Config) { c.Advertise = "elsewhere:1" }, ErrCertificate},
		{"certificate of another replica", func(c *Config) { c.Pod = "fleetgate-7" }, ErrCertificate},
		{"port in use", func(c *Config) { c.Listen = busy.Addr().String() }, ErrPortInUse},
		{"address without a port", func(c *Config) { c.Advertise = "localhost" }, ErrSettings},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := n.cfg
			defer func() { n.cfg = before }()
			c.edit(&n.cfg)
			if err := n.tryStart(); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	t.Run("newer format", func(t *testing.T) {
		file := filepath.Join(n.cfg.Dir, "group.json")
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(`{"version": 99}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.tryStart(); !errors.Is(err, ErrNewer) {
			t.Errorf("got %v, want %v", err, ErrNewer)
		}
		if err := os.WriteFile(file, before, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	for name, c := range map[string]struct {
		spoil  func(file string) error
		remedy string
	}{
		"log that is damaged":                        {func(file string) error { return os.WriteFile(file, make([]byte, 64<<10), 0o600) }, "empty the data directory"},
		"log that the system does not let be opened": {func(file string) error { return os.Mkdir(file, 0o700) }, "leave the data directory"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(n.cfg.Dir, "raft", "wal-meta.db")
			if err := errors.Join(os.Rename(file, file+".away"), c.spoil(file)); err != nil {
				t.Fatal(err)
			}
			if err := n.tryStart(); err == nil || !strings.Contains(err.Error(), c.remedy) {
				t.Errorf("got %v, want: %s", err, c.remedy)
			}
			if err := errors.Join(os.RemoveAll(file), os.Rename(file+".away", file)); err != nil {
				t.Fatal(err)
			}
		})
	}
	n.start() // none of the refusals harmed the directory
	leader(t, n)
	n.kill()
	if err := os.RemoveAll(filepath.Join(n.cfg.Dir, "raft")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(n.dir, "store")); err != nil {
		t.Fatal(err)
	}
	if err := n.tryStart(); !errors.Is(err, ErrDamaged) {
		t.Errorf("a member whose log is gone: got %v, want %v", err, ErrDamaged)
	}
}

func certFor(t *testing.T, pod string, hosts ...string) *pki.Source {
	t.Helper()
	dir := t.TempDir()
	a, err := pki.NewAuthority(dir, "peers")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := a.Issue(dir, pod, hosts, []string{pki.ReplicaURI(pod)}, true, true)
	if err != nil {
		t.Fatal(err)
	}
	s, err := pki.Load(cert, key, a.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestGreetingRefuses(t *testing.T) {
	n := nodes(t, 1)[0]
	n.start()
	leader(t, n)
	good := greeting{Cluster: n.ClusterID(), From: n.id, To: n.addr}
	for _, c := range []struct {
		name string
		edit func(*greeting)
		says string
	}{
		{"nothing wrong", func(*greeting) {}, ""},
		{"another group", func(g *greeting) { g.Cluster = "another" }, "belongs to group"},
		{"another incarnation", func(g *greeting) { g.To = n.cfg.Advertise + "#00000000" }, "the disk was replaced"},
		{"certificate of another replica", func(g *greeting) { g.From = "fleetgate-7-00000000" }, "the certificate is for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := n.endpoint.dial(within(t, time.Minute), n.cfg.Advertise, protocolRaft)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			g, reason := good, ""
			c.edit(&g)
			if err := errors.Join(writeFrame(conn, g), readFrame(conn, &reason)); err != nil {
				t.Fatal(err)
			}
			if (reason == "") != (c.says == "") || !strings.Contains(reason, c.says) {
				t.Errorf("answered %q, want %q", reason, c.says)
			}
		})
	}
	t.Run("proxies' authority", func(t *testing.T) {
		config := certFor(t, "proxy", "localhost").ClientConfig("127.0.0.1", protocolRaft)
		config.InsecureSkipVerify = true
		conn, err := tls.Dial("tcp", n.cfg.Advertise, config)
		if err == nil {
			defer conn.Close()
			var reason string
			err = errors.Join(writeFrame(conn, good), readFrame(conn, &reason))
		}
		if err == nil || !strings.Contains(err.Error(), "certificate") && !strings.Contains(err.Error(), "reset") {
			t.Errorf("got %v, want the TLS handshake to fail", err)
		}
	})
}
