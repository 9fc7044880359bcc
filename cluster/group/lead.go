package group

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/hashicorp/raft"
)

// signal wakes everybody who waits for a change.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait gives a channel that is closed at the next change.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// Leader gives the id of the leader and the address of its peers' port, "" when there is none.
func (g *Group) Leader() (id, addr string) {
	a, i := g.raft.LeaderWithID()
	return string(i), place(string(a))
}

// Term is that in which this replica is: it differs from one reign to the next, also where the same replica is elected again.
func (g *Group) Term() uint64 { return g.raft.CurrentTerm() }

// IsLeader is true from when everything committed before this replica's election has been applied here.
func (g *Group) IsLeader() bool { return g.leading.Load() }

// LeaderChanges gives a channel that is closed at the next change of leader, or of IsLeader. Read Leader after taking it.
func (g *Group) LeaderChanges() <-chan struct{} { return g.changed.wait() }

// WaitLeader waits until the group has a leader.
func (g *Group) WaitLeader(ctx context.Context) error {
	for {
		changed := g.changed.wait()
		if id, _ := g.Leader(); id != "" {
			return nil
		}
		select {
		case <-changed:
		case <-g.ctx.Done():
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", ErrNoLeader, ctx.Err())
		}
	}
}

// OnLeadership has fn run, in a goroutine of its own, each time that this replica has become leader, once everything committed before has been
// applied. ctx ends when leadership is lost; the next run begins only after the last has returned.
func (g *Group) OnLeadership(fn func(ctx context.Context)) {
	g.mu.Lock()
	g.onLead = append(g.onLead, fn)
	reign := g.reign
	g.mu.Unlock()
	if reign != nil {
		reign.run(fn)
	}
}

// reign is one time in office.
type reign struct {
	ctx  context.Context
	work sync.WaitGroup
}

func (r *reign) run(fn func(context.Context)) { r.work.Go(func() { fn(r.ctx) }) }

// watchLeadership turns Raft's notices into reigns. It only passes them on, because Raft blocks on the channel.
func (g *Group) watchLeadership(notices <-chan bool) {
	var cancel context.CancelFunc
	last := make(chan struct{})
	close(last)
	stop := func() {
		if cancel != nil {
			cancel()
			cancel = nil
		}
		g.leading.Store(false)
		g.changed.fire()
	}
	for {
		select {
		case leads := <-notices:
			stop()
			if !leads {
				continue
			}
			ctx, end := context.WithCancel(g.ctx)
			cancel = end
			before, done := last, make(chan struct{})
			last = done
			go func() { defer close(done); g.govern(ctx, before) }()
		case <-g.ctx.Done():
			stop()
			<-last
			return
		}
	}
}

// govern is one time in office: a barrier, then the callbacks, until ctx ends.
func (g *Group) govern(ctx context.Context, before <-chan struct{}) {
	<-before
	if err := g.establish(ctx); err != nil {
		if ctx.Err() == nil {
			g.log.Warn("elected, but unable to lead: handing over", "err", err)
			_ = g.raft.LeadershipTransfer().Error() // it may fail; then the next election decides
		}
		return
	}
	r := &reign{ctx: ctx}
	g.mu.Lock()
	g.reign = r
	callbacks := append([]func(context.Context){g.tend}, g.onLead...)
	for _, fn := range callbacks {
		r.run(fn)
	}
	g.mu.Unlock()
	g.leading.Store(true)
	if ctx.Err() != nil { // lost meanwhile: the notice came first
		g.leading.Store(false)
	}
	g.log.Info("this replica leads the group")
	g.changed.fire()
	<-ctx.Done()
	g.mu.Lock()
	g.reign = nil
	g.mu.Unlock()
	r.work.Wait()
	g.log.Info("this replica does not lead any more")
}

// establish waits until what was committed before is applied, and writes the group's id into the log once.
func (g *Group) establish(ctx context.Context) error {
	if err := settle(ctx, g.raft.Barrier(barrierTimeout)); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	if g.cfg.Store.ClusterID() != "" {
		return nil
	}
	raw, err := store.EncodeCommand(store.Command{Bootstrap: &store.BootstrapCommand{ClusterID: g.known().ClusterID}})
	if err != nil {
		return err
	}
	_, err = g.applyHere(ctx, raw)
	return err
}

const barrierTimeout = 30 * time.Second

// settle waits for a future or for ctx. Raft's own timeouts cover only the way into its queue.
func settle(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TransferLeadership hands leadership to the most up-to-date follower; nothing happens where another replica leads.
func (g *Group) TransferLeadership(ctx context.Context) error {
	if g.raft.State() != raft.Leader {
		return nil
	}
	if len(g.servers()) < 2 {
		return nil
	}
	if err := settle(ctx, g.raft.LeadershipTransfer()); err != nil {
		return fmt.Errorf("handing leadership over: %w", err)
	}
	return nil
}

// watchLeader passes on who leads, shortens the timeouts after the first leader was seen, and from then on looks whether the leader is silent.
func (g *Group) watchLeader(observations <-chan raft.Observation) {
	silence := time.NewTimer(time.Hour)
	defer silence.Stop()
	seen := false
	for {
		select {
		case o := <-observations:
			l := o.Data.(raft.LeaderObservation)
			if l.LeaderID != "" && !seen {
				seen = true
				g.shorten()
				silence.Reset(0)
			}
			g.log.Debug("leader", "id", string(l.LeaderID))
			g.changed.fire()
		case <-silence.C:
			silence.Reset(g.lookAtLeader())
		case <-g.ctx.Done():
			return
		}
	}
}

// lookAtLeader has Raft look at its leader as soon as that has been silent for the heartbeat timeout, and tells when to look again. By itself Raft looks at times of its own, one to two
// timeouts apart, and as nobody votes who still believes in the old leader, the slower of two followers decides. Replicas look one after another, lest all stand for election at
// once and split the vote.
func (g *Group) lookAtLeader() time.Duration {
	limit, turn := g.cfg.Heartbeat, rand.N(g.cfg.Heartbeat/5)
	last := g.raft.LastContact()
	if g.raft.State() != raft.Follower || last.IsZero() {
		return limit + turn
	}
	if silent := time.Since(last); silent < limit {
		return limit - silent + turn
	}
	c := g.raft.ReloadableConfig()
	c.HeartbeatTimeout = limit - 1 // a timeout that shrinks is looked at now
	g.reload(c)
	c.HeartbeatTimeout = limit
	g.reload(c)
	return limit + turn
}

func (g *Group) shorten() {
	c := g.raft.ReloadableConfig()
	c.HeartbeatTimeout, c.ElectionTimeout = g.cfg.Heartbeat, g.cfg.Heartbeat
	g.reload(c)
}

func (g *Group) reload(c raft.ReloadableConfig) {
	if err := g.raft.ReloadConfig(c); err != nil {
		g.log.Warn("setting the timeouts for normal operation", "err", err)
	}
}
