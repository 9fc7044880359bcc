package group

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"golang.org/x/sync/semaphore"
)

// Group is this replica's membership of the group.
type Group struct {
	cfg      Config
	log      *slog.Logger
	id, addr string // addr is host:port#incarnation

	dir      *directory
	wal      *wal.WAL
	raft     *raft.Raft
	guard    *guard
	endpoint *endpoint
	calls    *caller
	inFlight *semaphore.Weighted // bytes in the log's queue

	leading atomic.Bool
	changed signal

	mu     sync.Mutex
	member membership
	onLead []func(context.Context)
	reign  *reign

	ctx   context.Context // ends when the group is closed
	stop  context.CancelFunc
	work  sync.WaitGroup
	fatal sync.Once
	shut  sync.Once
}

// maxInFlight bounds the bytes that wait for the log: about eight of the largest entries.
const maxInFlight = 8 * MaxEntry

// Open starts this replica's part in the group, and returns without waiting for the others: a restarted replica can serve what its store
// holds before it has heard from anybody. ctx bounds the start only. The caller closes the store, after the group.
func Open(ctx context.Context, c Config) (*Group, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	g := &Group{cfg: c, log: c.Logger, inFlight: semaphore.NewWeighted(maxInFlight)}
	g.ctx, g.stop = context.WithCancel(context.Background())
	if err := g.open(ctx); err != nil {
		return nil, errors.Join(err, g.shutdown(false))
	}
	return g, nil
}

func (g *Group) open(ctx context.Context) (err error) {
	if g.dir, err = openDirectory(g.cfg.Dir); err != nil {
		return err
	}
	if err := g.identify(); err != nil {
		return err
	}
	if err := g.checkMarker(ctx); err != nil {
		return err
	}
	if err := g.checkAddress(ctx); err != nil {
		return err
	}
	fatal := watchdog{g.cfg.Watchdog, g.die}
	machine, err := newMachine(g.cfg.Store, fatal)
	if err != nil {
		return err
	}
	logs, err := g.openLogs(fatal)
	if err != nil {
		return err
	}
	listener, err := listen(g.cfg.Listen)
	if err != nil {
		return err
	}
	g.endpoint = newEndpoint(listener, g.id, g.addr, g.cfg.Certs, func() string { return g.known().ClusterID }, g.log)
	return g.start(machine, logs, watchedStable{g.wal, fatal})
}

// identify finds out who this replica is and which group its disk belongs to.
func (g *Group) identify() error {
	incarnation, err := g.dir.incarnation()
	if err != nil {
		return err
	}
	g.id, g.addr = g.cfg.Pod+"-"+incarnation, g.cfg.Advertise+"#"+incarnation
	if g.member, err = g.dir.membership(); err != nil {
		return err
	}
	for _, other := range []string{g.cfg.ClusterID, g.cfg.Store.ClusterID()} {
		if mine := g.member.ClusterID; mine != "" && other != "" && other != mine {
			return otherGroup(g.cfg.Dir, mine, "wanted is "+other)
		}
	}
	if g.member.ClusterID == "" && g.cfg.Store.Applied() > 0 {
		return fmt.Errorf("%s: %w: the store holds a group's state, but what this replica knew of that group is gone: empty both to join anew", g.cfg.Dir, ErrDamaged)
	}
	return nil
}

// checkAddress makes sure that peers can find this replica, and that its certificate is for where they look.
func (g *Group) checkAddress(ctx context.Context) error {
	host, _, err := net.SplitHostPort(g.cfg.Advertise)
	if err != nil {
		return fmt.Errorf("advertised address: %w", err)
	}
	if err := g.cfg.Certs.Leaf().VerifyHostname(host); err != nil {
		return fmt.Errorf("%w: peers look for %s: %v: issue it with that name", ErrCertificate, host, err)
	}
	if reason := mismatch(g.cfg.Certs.Leaf(), g.id); reason != "" {
		return fmt.Errorf("%w: %s: give this replica its own certificate", ErrCertificate, reason)
	}
	ctx, cancel := context.WithTimeout(ctx, g.cfg.Resolve)
	defer cancel()
	for { // a pod's own name may take seconds to appear
		if _, err = net.DefaultResolver.LookupHost(ctx, host); err == nil {
			return nil
		}
		pause(ctx, 250*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %s: %w: peers could not find this replica; give it a name that they can look up", ErrUnresolved, host, err)
		}
	}
}

func (g *Group) openLogs(w watchdog) (raft.LogStore, error) {
	path := g.dir.file("raft")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the log's directory: %w", err)
	}
	var err error
	if g.wal, err = wal.Open(path, wal.WithLogger(bridge(g.log))); err != nil {
		var system syscall.Errno
		if errors.As(err, &system) && system != syscall.ENOENT { // a full disk, a missing right: what was written is as it was
			return nil, fmt.Errorf("opening the log in %s: %w: mend that, and start again; leave the data directory as it is", path, err)
		}
		return nil, fmt.Errorf("opening the log in %s: %w: if the disk is sound, empty the data directory; the replica then joins anew", path, err)
	}
	last, err := g.wal.LastIndex()
	if err != nil {
		return nil, fmt.Errorf("opening the log in %s: %w", path, err)
	}
	if err := g.checkLog(last); err != nil {
		return nil, err
	}
	var logs raft.LogStore = g.wal
	if g.cfg.wrapLogs != nil {
		logs = g.cfg.wrapLogs(logs)
	}
	return raft.NewLogCache(512, &watchedLogs{LogStore: logs, watchdog: w, applied: g.cfg.Store.Applied})
}

// checkLog holds the log against what else is on the disk.
func (g *Group) checkLog(last uint64) error {
	applied := g.cfg.Store.Applied()
	if g.member.Joined && last == 0 && applied == 0 {
		return fmt.Errorf("%s: %w: this replica was a member, and its log is gone: empty the whole data directory to join anew", g.cfg.Dir, ErrDamaged)
	}
	if last == 0 || last >= applied {
		return nil
	}
	// It was stopped between taking in a leader's snapshot and emptying the log, which knows no gaps.
	first, err := g.wal.FirstIndex()
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	if err := g.wal.DeleteRange(first, last); err != nil {
		return fmt.Errorf("emptying a log that a snapshot replaced: %w", err)
	}
	return nil
}

// start starts Raft and everything that watches it.
func (g *Group) start(m *machine, logs raft.LogStore, stable raft.StableStore) error {
	snaps := &snapshots{dir: g.dir, machine: m, logs: logs}
	past, err := raft.HasExistingState(logs, stable, snaps)
	if err != nil {
		return fmt.Errorf("looking for Raft state: %w", err)
	}
	g.guard = newGuard(raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: stream{g.endpoint.raft, g.endpoint}, MaxPool: 3, Timeout: 10 * time.Second, Logger: bridge(g.log), MsgpackUseNewTimeFormat: true}))
	g.guard.member.Store(g.member.Joined)
	g.calls = newCaller(g.endpoint, g.log)
	notices := make(chan bool, 16)                                     // Raft blocks when it is full
	begins := g.cfg.Marker != nil || g.cfg.Advertise == g.cfg.Peers[0] // if anybody does; see decide
	settings := g.cfg.raftConfig(g.id, !past && begins)
	settings.NotifyCh = notices
	if g.raft, err = raft.NewRaft(settings, m, logs, stable, snaps, g.guard); err != nil {
		return fmt.Errorf("starting Raft: %w", err)
	}
	if err := g.resume(); err != nil {
		return err
	}
	seen := make(chan raft.Observation, 64)
	g.raft.RegisterObserver(raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	g.calls.handle(callHello, g.answerHello)
	g.calls.handle(callJoin, g.letIn)
	g.calls.handle(callPropose, g.takeProposal)
	g.calls.handle(callCommit, g.tellCommitIndex)
	g.work.Go(func() { g.watchLeader(seen) })
	g.work.Go(func() { g.watchLeadership(notices) })
	g.work.Go(func() {
		g.form(g.ctx)
		g.suspect(g.ctx)
	})
	return nil
}

// resume: one of the first voters that was stopped just after the group began is a member.
func (g *Group) resume() error {
	m := g.known()
	self := server{g.id, g.addr}
	if m.Joined || g.raft.LastIndex() == 0 || !slices.Contains(m.Initial, self) {
		return nil
	}
	return g.joined()
}

func (g *Group) known() membership {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.member
}

// remember writes down first, then believes.
func (g *Group) remember(m membership) error {
	if err := g.dir.save(m); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.member = m
	return nil
}

// ID is this replica's id: pod name, dash, incarnation.
func (g *Group) ID() string { return g.id }

// ClusterID is the group's id, "" while this replica belongs to none.
func (g *Group) ClusterID() string { return g.known().ClusterID }

// die reports the end of this replica once.
func (g *Group) die(err error) { g.fatal.Do(func() { g.cfg.Fatal(err) }) }

// Close hands leadership over if this replica leads, and stops. It stays a member.
func (g *Group) Close() error { return g.shutdown(true) }

// transferTimeout bounds the handing over; then the others elect.
const transferTimeout = 2 * time.Second

func (g *Group) shutdown(gently bool) (err error) {
	g.shut.Do(func() { err = g.shutdownOnce(gently) })
	return err
}

func (g *Group) shutdownOnce(gently bool) error {
	if gently && g.raft != nil {
		ctx, cancel := context.WithTimeout(context.Background(), transferTimeout)
		if err := g.TransferLeadership(ctx); err != nil {
			g.log.Warn("stopping without a successor", "err", err)
		}
		cancel()
	}
	g.stop()
	g.changed.fire()
	var errs []error
	if g.raft != nil {
		errs = append(errs, g.raft.Shutdown().Error())
	}
	if g.endpoint != nil {
		errs = append(errs, g.endpoint.close())
	}
	if g.guard != nil {
		errs = append(errs, g.guard.Close())
	}
	if g.calls != nil {
		errs = append(errs, g.calls.close())
	}
	g.work.Wait()
	if g.wal != nil {
		errs = append(errs, g.wal.Close())
	}
	if g.dir != nil {
		errs = append(errs, g.dir.close())
	}
	return errors.Join(errs...)
}

func (g *Group) answerHello(context.Context, string, []byte) ([]byte, error) {
	return json.Marshal(g.hello())
}

func newClusterID() string { return uuid.NewString() }
