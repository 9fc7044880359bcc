package group

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRefusalIsNoGrantedPreVote(t *testing.T) {
	if strings.Contains(errNoMember.Error(), "unexpected command") {
		t.Fatal("Raft takes an answer with these words for a granted pre-vote")
	}
}

func TestPlan(t *testing.T) {
	voter := func(id string) standing {
		return standing{server: server{id, id[:1] + ":1#" + id}, voter: true, alive: true, caughtUp: true}
	}
	dead := func(id string) standing { s := voter(id); s.alive, s.caughtUp = false, false; return s }
	replaced := func(id string) standing { s := dead(id); s.replaced = true; return s }
	newcomer := func(id string) standing { s := voter(id); s.voter = false; return s }
	slow := func(id string) standing { s := newcomer(id); s.caughtUp = false; return s }
	for _, c := range []struct {
		name string
		all  []standing
		want change
	}{
		{"nothing to do", []standing{voter("a1"), voter("b1"), voter("c1")}, change{}},
		{"dead is not gone", []standing{voter("a1"), voter("b1"), dead("c1")}, change{}},
		{"newcomer is behind", []standing{voter("a1"), voter("b1"), replaced("c1"), slow("c2")}, change{}},
		{"newcomer has caught up", []standing{voter("a1"), voter("b1"), replaced("c1"), newcomer("c2")}, change{promote: "c2"}},
		{"old incarnation goes once the new one votes", []standing{voter("a1"), voter("b1"), replaced("c1"), voter("c2")}, change{remove: "c1"}},
		{"no removal before the new one votes", []standing{voter("a1"), voter("b1"), replaced("c1"), slow("c2")}, change{}},
		{"promotion would cost the majority", []standing{voter("a1"), dead("b1"), replaced("c1"), newcomer("c2")}, change{}},
		{"group is not full yet", []standing{voter("a1"), newcomer("b1"), slow("c1")}, change{promote: "b1"}},
		{"group is full", []standing{voter("a1"), voter("b1"), voter("c1"), newcomer("d1")}, change{}},
		{"wiped twice", []standing{voter("a1"), voter("b1"), voter("c2"), {server: server{"c1", "c:1#c1"}, replaced: true}}, change{remove: "c1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := plan(c.all, 3); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	fresh := func(id string) hello { return hello{ID: id + "-1", Address: id + ":1#1"} }
	peers := []string{"a:1", "b:1", "c:1"}
	self := func(id string) server { return server{id + "-1", id + ":1#1"} }
	all := []server{self("a"), self("b"), self("c")}
	member := func(id, cluster, leader string, initial ...server) hello {
		h := fresh(id)
		h.ClusterID, h.Leader, h.Initial = cluster, leader, initial
		return h
	}
	for _, c := range []struct {
		name    string
		self    string
		answers []hello
		alone   bool
		taken   string
		want    step
	}{
		{"first of all fresh", "a", []hello{fresh("b"), fresh("c")}, false, "", step{begin: all}},
		{"not the first", "b", []hello{fresh("a"), fresh("c")}, false, "", step{wait: "a-1 begins the group"}},
		{"one does not answer", "a", []hello{fresh("b")}, false, "", step{wait: "a new group begins when all of its replicas answer; missing: c:1"}},
		{"one knows a group", "a", []hello{fresh("b"), member("c", "x", "")}, false, "", step{cluster: "x", wait: "the group has no leader that could let this replica in"}},
		{"group with a leader", "a", []hello{member("b", "x", "b:1#1")}, false, "", step{cluster: "x", leader: "b:1#1"}},
		{"one of the first voters", "c", []hello{member("a", "x", "", all...)}, false, "", step{begin: all, cluster: "x"}},
		{"new incarnation of a first voter", "c", []hello{member("a", "x", "", self("a"), server{"c-0", "c:1#0"})}, false, "",
			step{cluster: "x", wait: "the group has no leader that could let this replica in"}},
		{"marker won", "b", nil, true, "", step{begin: []server{self("b")}}},
		{"marker won beside a group", "b", []hello{member("a", "x", "a:1#1")}, true, "", step{cluster: "x", leader: "a:1#1"}},
		{"marker taken", "a", []hello{fresh("b"), fresh("c")}, false, "x", step{wait: "group x exists, but none of its replicas answers"}},
		{"two groups", "a", []hello{member("b", "x", "b:1#1"), member("c", "y", "c:1#1")}, false, "",
			step{wait: "b-1 belongs to group x and c-1 to group y: take the wrong one out of the list of peers"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := decide(fresh(c.self), peers, c.answers, c.alone, c.taken)
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(step{}, server{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAMemberIsAmongStrangersOnlyWhereMostAreOfOneOtherGroup(t *testing.T) {
	of := func(groups ...string) (answers []hello) {
		for _, g := range groups {
			answers = append(answers, hello{ClusterID: g})
		}
		return answers
	}
	for name, c := range map[string]struct {
		answers []hello
		want    string
	}{
		"two of another":               {of("b", "b"), "b"},
		"one misplaced peer":           {of("a", "b"), ""},
		"one misplaced peer, one down": {of("b"), ""},
		"fresh peers":                  {of("", ""), ""},
		"two different others":         {of("b", "c"), ""},
		"nobody answers":               {nil, ""},
	} {
		if got := stranger("a", 3, c.answers); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
