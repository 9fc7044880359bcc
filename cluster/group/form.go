package group

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"errors"

	"github.com/hashicorp/raft"
)

// Marker is a place outside the replicas where a group's id can be created by exactly one winner, such as a ConfigMap.
type Marker interface {
	// Create stores id if nothing is there (won), else it gives what is there.
	Create(ctx context.Context, id string) (won bool, existing string, err error)
}

// FileMarker is a Marker for replicas that share a disk.
type FileMarker string

// Create implements Marker.
func (f FileMarker) Create(_ context.Context, id string) (bool, string, error) {
	tmp := string(f) + "." + id
	if err := writeDurably(tmp, []byte(id)); err != nil {
		return false, "", fmt.Errorf("group marker: %w", err)
	}
	defer func() { _ = os.Remove(tmp) }()
	err := os.Link(tmp, string(f)) // unlike O_EXCL, nobody ever reads half a marker
	if err == nil {
		return true, id, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return false, "", fmt.Errorf("group marker: %w", err)
	}
	raw, err := os.ReadFile(string(f))
	if err != nil {
		return false, "", fmt.Errorf("group marker: %w", err)
	}
	return false, strings.TrimSpace(string(raw)), nil
}

// hello is what a replica says of itself.
type hello struct {
	ID        string   `json:"id"`
	Address   string   `json:"address"` // with incarnation
	ClusterID string   `json:"clusterID,omitempty"`
	Initial   []server `json:"initial,omitempty"`
	Leader    string   `json:"leader,omitempty"` // address with incarnation
	Applied   uint64   `json:"applied"`
}

// fresh: it knows no group and never did.
func (h hello) fresh() bool { return h.ClusterID == "" }

// step is what a replica without a group does next.
type step struct {
	begin   []server // begin the group with these voters, under cluster ("" = a new id)
	cluster string   // the group to belong to
	leader  string   // ask this leader to be let in
	wait    string   // why nothing can be done now
	silent  string   // why peers gave no answer
}

// decide is the whole of bootstrapping: what self, which belongs to no group, does after asking every peer. answers has one hello for each
// peer that answered. alone: self won the Marker. taken: the Marker holds somebody else's group.
//
// That no two replicas begin different groups without a Marker follows from asking all: a replica begins only when every one of the list is
// fresh, and of those only the first may.
func decide(self hello, peers []string, answers []hello, alone bool, taken string) step {
	for _, a := range answers {
		if a.fresh() {
			continue
		}
		if slices.Contains(a.Initial, server{self.ID, self.Address}) {
			return step{begin: a.Initial, cluster: a.ClusterID}
		}
	}
	known := slices.DeleteFunc(slices.Clone(answers), hello.fresh)
	if len(known) > 0 {
		return join(known)
	}
	if alone {
		return step{begin: []server{{self.ID, self.Address}}}
	}
	if taken != "" {
		return step{wait: fmt.Sprintf("group %s exists, but none of its replicas answers", taken)}
	}
	return first(self, peers, answers)
}

// join picks the leader to ask.
func join(known []hello) step {
	for _, k := range known[1:] {
		if k.ClusterID != known[0].ClusterID {
			return step{wait: fmt.Sprintf("%s belongs to group %s and %s to group %s: take the wrong one out of the list of peers", known[0].ID, known[0].ClusterID, k.ID, k.ClusterID)}
		}
	}
	for _, k := range known {
		if k.Leader != "" {
			return step{cluster: k.ClusterID, leader: k.Leader}
		}
	}
	return step{cluster: known[0].ClusterID, wait: "the group has no leader that could let this replica in"}
}

// first begins the group if all of the list are fresh and self is the first of them.
func first(self hello, peers []string, answers []hello) step {
	all := append([]hello{self}, answers...)
	slices.SortFunc(all, func(a, b hello) int { return cmp.Compare(place(a.Address), place(b.Address)) })
	var there []string
	var voters []server
	for _, h := range all {
		there = append(there, place(h.Address))
		voters = append(voters, server{h.ID, h.Address})
	}
	if !slices.Equal(there, peers) {
		missing := slices.DeleteFunc(slices.Clone(peers), func(p string) bool { return slices.Contains(there, p) })
		return step{wait: "a new group begins when all of its replicas answer; missing: " + strings.Join(missing, ", ")}
	}
	if all[0].ID != self.ID {
		return step{wait: fmt.Sprintf("%s begins the group", all[0].ID)}
	}
	return step{begin: voters}
}

// form makes this replica a member, however long that takes.
func (g *Group) form(ctx context.Context) {
	said := ""
	for !g.known().Joined {
		s, err := g.formOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		why := s.wait
		if err != nil {
			why = err.Error()
		}
		if why != "" && why != said {
			g.log.Info("not a member of a group yet", "why", why, "silent", s.silent)
			said = why
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (g *Group) formOnce(ctx context.Context) (step, error) {
	answers, silent := g.ask(ctx)
	alone, taken := false, ""
	if g.cfg.Marker != nil && !slices.ContainsFunc(answers, func(h hello) bool { return !h.fresh() }) && g.known().ClusterID == "" {
		var err error
		if alone, taken, err = g.contest(ctx); err != nil {
			return step{}, err
		}
	}
	m := g.known()
	if m.ClusterID != "" && len(m.Initial) > 0 && g.raft.LastIndex() == 0 { // it was beginning the group when it was stopped
		return step{}, g.begin(m.ClusterID, m.Initial)
	}
	s := decide(g.hello(), g.cfg.Peers, answers, alone, taken)
	s.silent = reasons(silent)
	if want := cmp.Or(g.cfg.ClusterID, m.ClusterID); want != "" && s.cluster != "" && s.cluster != want {
		return step{wait: fmt.Sprintf("the peers belong to group %s, and this replica to group %s: mend the setting or the list of peers", s.cluster, want)}, nil
	}
	switch {
	case s.begin != nil:
		candidate, _, _ := strings.Cut(m.Candidate, "/")
		id := cmp.Or(s.cluster, candidate, g.cfg.ClusterID, newClusterID())
		return s, g.begin(id, s.begin)
	case s.leader != "":
		return s, g.askToJoin(ctx, s)
	}
	return s, nil
}

// contest takes part in the Marker's contest, under an id that is written down first: after a crash the winner knows itself again.
func (g *Group) contest(ctx context.Context) (alone bool, taken string, err error) {
	m := g.known()
	if m.Candidate == "" {
		m.Candidate = cmp.Or(g.cfg.ClusterID, newClusterID())
		if g.cfg.ClusterID != "" {
			m.Candidate += "/" + g.id // all have the same id: it alone would not tell the winner
		}
		if err := g.remember(m); err != nil {
			return false, "", err
		}
	}
	won, existing, err := g.cfg.Marker.Create(ctx, m.Candidate)
	if err != nil {
		return false, "", err
	}
	if won || existing == m.Candidate {
		return true, "", nil
	}
	return false, existing, nil
}

// begin makes this replica one of a new group's first voters. All of them begin with the same first entry, which is safe.
func (g *Group) begin(clusterID string, voters []server) error {
	m := g.known()
	m.ClusterID, m.Initial = clusterID, voters
	if err := g.remember(m); err != nil {
		return err
	}
	var c raft.Configuration
	for _, v := range voters {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(v.ID), Address: raft.ServerAddress(v.Address)})
	}
	if err := g.raft.BootstrapCluster(c).Error(); err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("beginning group %s: %w", clusterID, err)
	}
	g.log.Info("beginning a new group", "cluster", clusterID, "voters", len(voters))
	return g.joined()
}

// joined lets this replica vote from now on.
func (g *Group) joined() error {
	m := g.known()
	m.Joined = true
	if err := g.remember(m); err != nil {
		return err
	}
	g.guard.member.Store(true)
	return nil
}

// invitation is a leader's answer to a replica that wants in.
type invitation struct {
	ClusterID string `json:"clusterID"`
	Index     uint64 `json:"index"` // at this applied index the newcomer remembers enough to vote
}

// askToJoin asks the leader and waits until this replica has caught up with what was committed when it asked.
func (g *Group) askToJoin(ctx context.Context, s step) error {
	m := g.known()
	m.ClusterID = s.cluster // from here on the leader can reach us
	if err := g.remember(m); err != nil {
		return err
	}
	body, err := json.Marshal(server{g.id, g.addr})
	if err != nil {
		return err
	}
	try, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := g.calls.call(try, place(s.leader), "", callJoin, body)
	if err != nil {
		return err
	}
	var in invitation
	if err := json.Unmarshal(out, &in); err != nil {
		return err
	}
	if err := g.cfg.Store.WaitApplied(try, in.Index); err != nil {
		return err
	}
	if !slices.ContainsFunc(g.raft.GetConfiguration().Configuration().Servers, func(s raft.Server) bool { return string(s.ID) == g.id }) {
		return errors.New("the leader has not let this replica in yet")
	}
	g.log.Info("joined the group", "cluster", s.cluster, "index", in.Index)
	return g.joined()
}

// ask says hello to all peers at once and gives the answers, and why the others gave none.
func (g *Group) ask(ctx context.Context) (answers []hello, silent map[string]string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var mu sync.Mutex
	var wait sync.WaitGroup
	silent = map[string]string{}
	for _, peer := range g.cfg.Peers {
		if peer == g.cfg.Advertise {
			continue
		}
		wait.Go(func() {
			h, err := g.greet(ctx, peer)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent[peer] = err.Error()
				return
			}
			answers = append(answers, h)
		})
	}
	wait.Wait()
	return answers, silent
}

// reasons says why peers gave no answer: a certificate that does not fit looks like a peer that is down, until one reads this.
func reasons(silent map[string]string) string {
	var b strings.Builder
	for _, peer := range slices.Sorted(maps.Keys(silent)) {
		fmt.Fprintf(&b, "; %s: %s", peer, silent[peer])
	}
	return strings.TrimPrefix(b.String(), "; ")
}

// checkMarker refuses a directory of another group than the Marker's. A Marker that cannot be reached refuses nobody: what is on the disk is served
// without it (D4).
func (g *Group) checkMarker(ctx context.Context) error {
	if g.cfg.Marker == nil || g.member.ClusterID == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, existing, err := g.cfg.Marker.Create(ctx, g.member.ClusterID)
	if err != nil {
		g.log.Warn("whether this directory belongs to the marker's group was not checked", "err", err)
		return nil
	}
	if of, _, _ := strings.Cut(existing, "/"); of != g.member.ClusterID {
		return otherGroup(g.cfg.Dir, g.member.ClusterID, "the marker's is "+of)
	}
	return nil
}

func otherGroup(dir, mine, theirs string) error {
	return fmt.Errorf("%s: %w: it is of group %s, and %s: give this replica the right directory, or an empty one to join anew", dir, ErrOtherGroup, mine, theirs)
}

// suspect looks, until a member has seen a leader, whether it came to the peers of another group with its directory: it would
// wait for a leader for ever, or lead itself, and every peer would refuse it. One misplaced peer must not stop the others, so most of the list
// must be of one other group, and nobody of ours. Whenever it sees no leader and others do, it asks to be let in: a disk that was away has lost its place to
// the one that its replica had meanwhile, and its group does not look for it.
func (g *Group) suspect(ctx context.Context) {
	for led := false; ctx.Err() == nil; {
		changed := g.changed.wait()
		id, _ := g.Leader()
		if id == "" || !led {
			answers, _ := g.ask(ctx)
			mine := g.known().ClusterID
			if theirs := stranger(mine, len(g.cfg.Peers), answers); theirs != "" && !led {
				g.die(otherGroup(g.cfg.Dir, mine, "its peers are of group "+theirs))
				return
			}
			i := slices.IndexFunc(answers, func(h hello) bool { return h.ClusterID == mine && h.Leader != "" })
			if id == "" && i >= 0 {
				g.returnTo(ctx, answers[i].Leader)
			}
		}
		led = led || id != ""
		select {
		case <-changed:
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// returnTo asks a leader to have this member in the group, where it is not.
func (g *Group) returnTo(ctx context.Context, leader string) {
	body, err := json.Marshal(server{g.id, g.addr})
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err = g.calls.call(ctx, place(leader), "", callJoin, body)
	}
	if err != nil {
		g.log.Debug("asking to be in the group again", "leader", leader, "err", err)
	}
}

// stranger gives the group that most of the peers are of, if none of them is of mine.
func stranger(mine string, peers int, answers []hello) string {
	count := map[string]int{}
	for _, a := range answers {
		if a.ClusterID == mine {
			return ""
		}
		if !a.fresh() {
			count[a.ClusterID]++
		}
	}
	for theirs, n := range count {
		if 2*n > peers {
			return theirs
		}
	}
	return ""
}

func (g *Group) greet(ctx context.Context, hostport string) (h hello, err error) {
	out, err := g.calls.call(ctx, hostport, "", callHello, nil)
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(out, &h)
}

func (g *Group) hello() hello {
	m := g.known()
	h := hello{ID: g.id, Address: g.addr, ClusterID: m.ClusterID, Initial: m.Initial, Applied: g.cfg.Store.Applied()}
	if leader, _ := g.raft.LeaderWithID(); m.Joined {
		h.Leader = string(leader)
	}
	return h
}

// pause waits about d.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
