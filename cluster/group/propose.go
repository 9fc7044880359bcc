package group

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/hashicorp/raft"
)

const (
	callPropose = "group/propose"
	callCommit  = "group/commit"
)

// errAgain: the proposal may be made again.
var errAgain = errors.New("proposal was not settled")

// Propose puts a command through the log, by whichever replica leads, and gives the state machine's answer. It waits for a leader for at most
// Config.Hold, then returns ErrNoLeader. Where it cannot know whether the command was applied it proposes it again: every command is
// safe to repeat (a Put is answered as duplicate, a Table fails its compare-and-set). The answer's Index can be given to WaitApplied.
// Concurrent proposals ride together: what arrives while one is in flight goes into the next write of the log.
func (g *Group) Propose(ctx context.Context, cmd store.Command) (store.Result, error) {
	raw, err := store.EncodeCommand(cmd)
	if err != nil {
		return store.Result{}, err
	}
	if len(raw) > MaxEntry {
		return store.Result{}, fmt.Errorf("%w: it has %d bytes, the limit is %d", ErrTooLarge, len(raw), MaxEntry)
	}
	deadline := time.Now().Add(g.cfg.Hold)
	for {
		res, err := g.proposeOnce(ctx, raw)
		if err == nil || !again(err) {
			return res, err
		}
		if ctx.Err() != nil {
			return res, fmt.Errorf("proposing: %w (%w)", ctx.Err(), err)
		}
		if g.ctx.Err() != nil {
			return res, ErrClosed
		}
		if time.Now().After(deadline) {
			return res, fmt.Errorf("proposing: %w", surrender(err))
		}
		g.awaitChange(ctx)
	}
}

// surrender is what a proposal that nobody took ends with.
func surrender(err error) error {
	if errors.Is(err, ErrNotReached) || errors.Is(err, ErrNoLeader) {
		return err
	}
	return fmt.Errorf("%w (%w)", ErrNoLeader, err)
}

func again(err error) bool {
	return errors.Is(err, errAgain) || errors.Is(err, ErrNoLeader) || errors.Is(err, ErrNotReached) || errors.Is(err, ErrClosed)
}

// awaitChange waits for another leader, or a moment.
func (g *Group) awaitChange(ctx context.Context) {
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	pause(short, 50*time.Millisecond) // jitter: followers do not all come back at once
}

// forwardTimeout bounds one hop: a leader that hangs is asked again, or another one is.
const forwardTimeout = 10 * time.Second

func (g *Group) proposeOnce(ctx context.Context, raw []byte) (store.Result, error) {
	if g.raft.State() == raft.Leader {
		return g.applyHere(ctx, raw)
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	out, err := g.CallLeader(ctx, callPropose, raw)
	if err != nil {
		return store.Result{}, err
	}
	var res store.Result
	if err := json.Unmarshal(out, &res); err != nil {
		return res, fmt.Errorf("the leader's answer: %w", err)
	}
	return res, nil
}

// takeProposal answers a follower. It never forwards: one hop is enough, and two replicas that each believe in the other must not play ball.
func (g *Group) takeProposal(ctx context.Context, _ string, raw []byte) ([]byte, error) {
	if g.raft.State() != raft.Leader {
		return nil, ErrNoLeader
	}
	if len(raw) > MaxEntry {
		return nil, ErrTooLarge
	}
	res, err := g.applyHere(ctx, raw)
	if errors.Is(err, errAgain) {
		return nil, ErrNoLeader
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(res)
}

// enqueueTimeout bounds the way into Raft's queue.
const enqueueTimeout = 5 * time.Second

// applyHere puts a command into the log of this leader.
func (g *Group) applyHere(ctx context.Context, raw []byte) (store.Result, error) {
	if _, err := store.DecodeCommand(raw); err != nil { // once in the log, it would stop every replica, at every start
		return store.Result{}, fmt.Errorf("proposal: %w", err)
	}
	weight := int64(len(raw))
	if err := g.inFlight.Acquire(ctx, weight); err != nil {
		return store.Result{}, err
	}
	f := g.raft.Apply(raw, enqueueTimeout)
	done := make(chan error, 1)
	go func() {
		defer g.inFlight.Release(weight)
		done <- f.Error()
	}()
	select {
	case err := <-done:
		if err != nil {
			return store.Result{}, asSentinel(err)
		}
	case <-ctx.Done():
		return store.Result{}, ctx.Err()
	}
	switch answer := f.Response().(type) {
	case store.Result:
		answer.Index = f.Index()
		return answer, nil
	case error:
		return store.Result{}, answer
	default:
		return store.Result{}, fmt.Errorf("the state machine answered with %T", answer)
	}
}

// asSentinel gives Raft's errors our names.
func asSentinel(err error) error {
	switch {
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w (%w)", ErrClosed, err)
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrAbortedByRestore):
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	return err
}

// Call asks the replica with the given id; a call to this replica is answered here.
func (g *Group) Call(ctx context.Context, replica, name string, body []byte) ([]byte, error) {
	if replica == g.id {
		g.calls.mu.RLock()
		h := g.calls.handlers[name]
		g.calls.mu.RUnlock()
		if h == nil {
			return nil, fmt.Errorf("%s knows no call %q", g.id, name)
		}
		return h(ctx, g.id, body)
	}
	for _, s := range g.servers() {
		if string(s.ID) == replica {
			return g.calls.call(ctx, place(string(s.Address)), replica, name, body)
		}
	}
	return nil, fmt.Errorf("call %s: %w: %s is not a member of the group", name, ErrNotReached, replica)
}

// CallLeader asks the leader.
func (g *Group) CallLeader(ctx context.Context, name string, body []byte) ([]byte, error) {
	leader, _ := g.Leader()
	if leader == "" {
		return nil, ErrNoLeader
	}
	return g.Call(ctx, leader, name, body)
}

// Handle has h answer the calls of that name.
func (g *Group) Handle(name string, h Handler) { g.calls.handle(name, h) }

// CommitIndex is the newest index that this replica knows to be committed. Elections and barriers have indices too, which no store ever
// applies: to wait for a store, use AskCommitIndex.
func (g *Group) CommitIndex() uint64 { return g.raft.CommitIndex() }

// WaitApplied waits until this replica's store has applied index.
func (g *Group) WaitApplied(ctx context.Context, index uint64) error {
	return g.cfg.Store.WaitApplied(ctx, index)
}

// AskCommitIndex asks the leader for an index at which a store holds everything that was committed when it was asked (D4). The leader makes
// sure that it still leads before it answers.
func (g *Group) AskCommitIndex(ctx context.Context) (uint64, error) {
	out, err := g.CallLeader(ctx, callCommit, nil)
	if err != nil {
		return 0, err
	}
	var index uint64
	if err := json.Unmarshal(out, &index); err != nil {
		return 0, fmt.Errorf("the leader's answer: %w", err)
	}
	return index, nil
}

func (g *Group) tellCommitIndex(ctx context.Context, _ string, _ []byte) ([]byte, error) {
	if !g.IsLeader() {
		return nil, ErrNoLeader
	}
	committed, term := g.raft.CommitIndex(), g.raft.CurrentTerm()
	if err := settle(ctx, g.raft.VerifyLeader()); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoLeader, err)
	}
	if g.raft.CurrentTerm() != term {
		return nil, ErrNoLeader
	}
	if g.raft.AppliedIndex() < committed || g.cfg.Store.Applied() < committed {
		// The store may lag behind Raft's notion of applied, or committed is an entry that no store sees: a barrier tells which.
		if err := settle(ctx, g.raft.Barrier(enqueueTimeout)); err != nil {
			return nil, fmt.Errorf("%w (%w)", ErrNoLeader, err)
		}
	}
	return json.Marshal(g.cfg.Store.Applied())
}
