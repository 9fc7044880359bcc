// Package group is the Raft group that the replicas form: identity, transport, membership, leadership and the way of a proposal to
// the log. It is the only importer of hashicorp/raft, which it uses with its scars known (D11):
//
//   - A voter that lost its disk must not vote as if it remembered. Every disk has an incarnation, which is part of the replica's id and
//     of its address, and which both ends of a connection compare before a byte of Raft is read; a replica that is not yet a member answers no vote.
//   - A group is born once. Fresh replicas ask each other first; only when all of the initial list are fresh does the first of them begin,
//     or whoever wins a Marker outside. A replica with an empty disk beside an existing group asks to be let in.
//   - Nobody is removed for stopping. Stopping hands leadership over; a member is removed only when its own address answers
//     under a new incarnation.
//   - Leadership is announced after a barrier, so that a new leader acts on everything that was committed before it.
//   - A disk that hangs stops the process: Raft's heartbeats would go on and keep a dead leader in office.
package group

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/fleetgate/fleetgate/cluster/store"
)

// Errors that callers branch on. Their messages end with what to do.
var (
	ErrNoLeader    = errors.New("the group has no leader: changes cannot be accepted until a majority of the replicas can reach each other")
	ErrNotReached  = errors.New("the replica was not reached")
	ErrTooLarge    = errors.New("the command is too large: split it")
	ErrClosed      = errors.New("this replica is stopping")
	ErrOtherGroup  = errors.New("the data directory belongs to another group")
	ErrInUse       = errors.New("the data directory is in use by another process")
	ErrNewer       = errors.New("the data directory was written by a newer version")
	ErrDamaged     = errors.New("the data directory is incomplete")
	ErrUnresolved  = errors.New("the address does not resolve")
	ErrPortInUse   = errors.New("the port is in use")
	ErrCertificate = errors.New("the certificate does not fit")
	ErrSettings    = errors.New("the settings do not fit together")
)

// MaxEntry is the largest encoded command: one record of the largest size and what is around it.
const MaxEntry = store.MaxRecord + 64<<10

// StateMachine is what the log is applied to; *store.Store is one.
type StateMachine interface {
	// Apply applies entries in one transaction together with the last index. An error stops this replica.
	Apply([]store.Entry) ([]store.Result, error)
	// Applied is the index of the last applied entry.
	Applied() uint64
	// WaitApplied waits until an index is applied.
	WaitApplied(ctx context.Context, index uint64) error
	// Config is the newest Entry.Config.
	Config() ([]byte, error)
	// ClusterID is what a BootstrapCommand fixed, "" before.
	ClusterID() string
	// WriteSnapshot streams the state and gives the index at which it was taken.
	WriteSnapshot(io.Writer) (uint64, error)
	// Restore replaces the state by such a stream.
	Restore(io.Reader) error
}

// Config is the settings of a Group. Zero durations mean their defaults.
type Config struct {
	Dir       string      // of this replica alone; the store may live beside it
	Pod       string      // stable name of the replica: the first part of its id
	Advertise string      // host:port under which the peers reach this replica: a DNS name that outlives the pod
	Listen    string      // host:port to listen on; "" = Advertise
	Peers     []string    // Advertise of every replica of the initial group, this one included
	ClusterID string      // "" = whatever group the directory belongs to or will belong to
	Certs     *pki.Source // of the peers' authority, never the proxies'
	Store     StateMachine
	Marker    Marker       // nil = fresh replicas agree among themselves
	Logger    *slog.Logger // nil = slog.Default()

	Heartbeat time.Duration // a follower waits one to two of these for its leader; default 1 s
	Hold      time.Duration // how long a proposal waits for a leader; default 5 s
	Watchdog  time.Duration // a disk operation that takes longer stops the process; default 5 s
	Resolve   time.Duration // how long Advertise may take to resolve after a start; default 10 s

	Fatal func(error) // called once when this replica cannot go on; default: log and exit

	wrapLogs func(raft.LogStore) raft.LogStore // tests put a bad disk here
}

// withDefaults fills in defaults and refuses settings that cannot work.
func (c Config) withDefaults() (Config, error) {
	for _, need := range []struct{ what, value string }{{"Dir", c.Dir}, {"Pod", c.Pod}, {"Advertise", c.Advertise}} {
		if need.value == "" {
			return c, fmt.Errorf("%w: %s is empty", ErrSettings, need.what)
		}
	}
	if c.Certs == nil || c.Store == nil {
		return c, fmt.Errorf("%w: certificates and a store are needed", ErrSettings)
	}
	for _, addr := range append([]string{c.Advertise}, c.Peers...) {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return c, fmt.Errorf("%w: peer address %q: %v: write it as host:port", ErrSettings, addr, err)
		}
	}
	if len(c.Peers) == 0 {
		c.Peers = []string{c.Advertise}
	}
	c.Peers = slices.Clone(c.Peers)
	slices.Sort(c.Peers)
	c.Peers = slices.Compact(c.Peers)
	if c.Listen == "" {
		c.Listen = c.Advertise
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	setDefault(&c.Heartbeat, time.Second)
	setDefault(&c.Hold, 5*time.Second)
	setDefault(&c.Watchdog, 5*time.Second)
	setDefault(&c.Resolve, 10*time.Second)
	if c.Fatal == nil {
		log := c.Logger
		c.Fatal = func(err error) {
			log.Error("this replica cannot go on and stops", "err", err)
			os.Exit(1)
		}
	}
	return c, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// raftConfig is research's recommendation. A replica waits three times as long for the first leader that it sees, because after a restart of
// everything the slowest disk decides. Only the one that begins a group is eager: nobody else can lead yet, and others that stood
// at the same time would split the vote.
func (c Config) raftConfig(id string, eager bool) *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = raft.ServerID(id)
	r.HeartbeatTimeout, r.ElectionTimeout, r.LeaderLeaseTimeout = 3*c.Heartbeat, 3*c.Heartbeat, c.Heartbeat/2
	if eager {
		r.HeartbeatTimeout, r.ElectionTimeout = r.LeaderLeaseTimeout, c.Heartbeat
	}
	r.CommitTimeout = 10 * time.Millisecond // followers learn of a commit by the next message, or after this
	r.MaxAppendEntries = 64
	r.BatchApplyCh = true
	r.SnapshotInterval, r.SnapshotThreshold, r.TrailingLogs = 2*time.Minute, 8192, 10240
	r.NoSnapshotRestoreOnStart = true // the store is its own snapshot
	r.ShutdownOnRemove = true
	r.NoLegacyTelemetry = true
	r.Logger = bridge(c.Logger)
	return r
}
