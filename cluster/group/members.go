package group

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Member is a replica of the group.
type Member struct {
	ID      string
	Address string // host:port of the peers' port
	Voter   bool
	Leader  bool
}

// Members is the group's newest configuration as this replica knows it, sorted by id.
func (g *Group) Members() []Member {
	_, leader := g.raft.LeaderWithID()
	var out []Member
	for _, s := range g.servers() {
		out = append(out, Member{ID: string(s.ID), Address: place(string(s.Address)), Voter: s.Suffrage == raft.Voter, Leader: s.ID == leader})
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (g *Group) servers() []raft.Server { return g.raft.GetConfiguration().Configuration().Servers }

// standing is what the leader knows of a member.
type standing struct {
	server   server
	voter    bool
	alive    bool // it answered with this very id
	caughtUp bool // it has applied what was committed a tick ago, and it votes
	replaced bool // its address answered with another id: this disk is gone
}

// change is one step of membership: at most one field is set.
type change struct{ promote, remove string }

// plan is the whole of membership: what a leader does next, one step at a time. It promotes a newcomer that has caught up, if it takes
// the place of a lost disk or the group has fewer voters than wanted; it removes only what is proven to be gone, and never does
// anything that would leave fewer living voters than a majority needs.
func plan(all []standing, wanted int) change {
	voters, living := 0, 0
	for _, s := range all {
		if s.voter {
			voters++
			if s.alive {
				living++
			}
		}
	}
	succeeded := func(old standing) bool {
		return slices.ContainsFunc(all, func(s standing) bool {
			return s.alive && s.server.ID != old.server.ID && place(s.server.Address) == place(old.server.Address) && (s.voter || !old.voter)
		})
	}
	for _, s := range all {
		if !s.replaced || !succeeded(s) {
			continue
		}
		if !s.voter || living >= majority(voters-1) {
			return change{remove: s.server.ID}
		}
	}
	for _, s := range all {
		replaces := slices.ContainsFunc(all, func(old standing) bool {
			return old.voter && old.replaced && place(old.server.Address) == place(s.server.Address)
		})
		if !s.voter && s.alive && s.caughtUp && (replaces || voters < wanted) && living+1 >= majority(voters+1) {
			return change{promote: s.server.ID}
		}
	}
	return change{}
}

func majority(voters int) int { return voters/2 + 1 }

// tend keeps the membership in order while this replica leads.
func (g *Group) tend(ctx context.Context) {
	settled := uint64(0) // what was applied here one tick ago
	for ctx.Err() == nil {
		now := g.cfg.Store.Applied()
		if g.untidy() {
			c := plan(g.standings(ctx, settled), len(g.cfg.Peers))
			if err := g.carryOut(c); err != nil && ctx.Err() == nil {
				g.log.Warn("changing the membership", "change", c, "err", err)
			}
		}
		settled = now
		pause(ctx, g.cfg.Heartbeat/4)
	}
}

// untidy: there may be something to promote or to remove. A settled group is not asked for its health all day.
func (g *Group) untidy() bool {
	return slices.ContainsFunc(g.servers(), func(s raft.Server) bool { return s.Suffrage != raft.Voter }) || len(g.servers()) > len(g.cfg.Peers)
}

func (g *Group) standings(ctx context.Context, settled uint64) []standing {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	servers := g.servers()
	out := make([]standing, len(servers))
	var wait sync.WaitGroup
	for i, s := range servers {
		st := standing{server: server{string(s.ID), string(s.Address)}, voter: s.Suffrage == raft.Voter}
		out[i] = st
		if st.server.ID == g.id {
			out[i].alive, out[i].caughtUp = true, true
			continue
		}
		wait.Go(func() {
			h, err := g.greet(ctx, place(st.server.Address))
			if err != nil {
				return
			}
			st.alive = h.ID == st.server.ID
			st.replaced = !st.alive
			// Only who votes names a leader. A voter that does not vote yet counts in every majority: were it killed now, and an entry written meanwhile, two votes of four would be
			// left, and who has no leader is told by nobody that it may vote.
			st.caughtUp = st.alive && h.Leader != "" && settled > 0 && h.Applied >= settled
			out[i] = st
		})
	}
	wait.Wait()
	return out
}

func (g *Group) carryOut(c change) error {
	switch {
	case c.promote != "":
		i := slices.IndexFunc(g.servers(), func(s raft.Server) bool { return string(s.ID) == c.promote })
		if i < 0 {
			return nil
		}
		g.log.Info("a replica has caught up and becomes a voter", "replica", c.promote)
		return g.raft.AddVoter(raft.ServerID(c.promote), g.servers()[i].Address, 0, changeTimeout).Error()
	case c.remove != "":
		g.log.Info("a replica's disk was replaced: its old incarnation is removed", "replica", c.remove)
		return g.raft.RemoveServer(raft.ServerID(c.remove), 0, changeTimeout).Error()
	}
	return nil
}

// changeTimeout bounds how long a membership change waits to be taken up.
const changeTimeout = 5 * time.Second

// letIn answers a join: the newcomer becomes a member without a vote, and is told from which index on it remembers enough.
func (g *Group) letIn(ctx context.Context, from string, body []byte) ([]byte, error) {
	var s server
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	if s.ID != from || s.ID == "" || !strings.Contains(s.Address, "#") {
		return nil, fmt.Errorf("join: %q asks for %q at %q: a replica asks for itself, with its incarnation", from, s.ID, s.Address)
	}
	if !g.IsLeader() {
		return nil, ErrNoLeader
	}
	known := slices.ContainsFunc(g.servers(), func(r raft.Server) bool { return string(r.ID) == s.ID && string(r.Address) == s.Address })
	if !known {
		if err := g.checkThere(ctx, s); err != nil {
			return nil, err
		}
		g.log.Info("letting a replica in, without a vote until it has caught up", "replica", s.ID, "address", s.Address)
		if err := g.raft.AddNonvoter(raft.ServerID(s.ID), raft.ServerAddress(s.Address), 0, changeTimeout).Error(); err != nil {
			return nil, fmt.Errorf("join: %w", asSentinel(err))
		}
	}
	return json.Marshal(invitation{ClusterID: g.known().ClusterID, Index: g.cfg.Store.Applied()})
}

// checkThere refuses who cannot be found where it says that it is. Of two disks of one replica that run at once, the one that the address does not lead to would be let in and be
// removed as replaced, again and again.
func (g *Group) checkThere(ctx context.Context, s server) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	h, err := g.greet(ctx, place(s.Address))
	if err != nil {
		return fmt.Errorf("join: the leader does not reach %s: %w", place(s.Address), err)
	}
	if h.ID != s.ID {
		return fmt.Errorf("join: %s asks, but at %s the leader finds %s: stop one of the two", s.ID, place(s.Address), h.ID)
	}
	return nil
}
