package shard

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fleetgate/fleetgate/cluster/store"
)

// apply does what the state machine does with a table command.
func apply(t *testing.T, v View, cmd *store.TableCommand) View {
	t.Helper()
	rows := map[uint64]store.Row{}
	for _, r := range v.Rows {
		rows[r.ID] = r
	}
	for _, id := range cmd.Delete {
		delete(rows, id)
	}
	for _, r := range cmd.Rows {
		if old, ok := rows[r.ID]; ok && r.Epoch < old.Epoch {
			t.Fatalf("row %d: epoch %d after %d", r.ID, r.Epoch, old.Epoch)
		} else if ok && r.Owner != old.Owner && r.Epoch == old.Epoch {
			t.Fatalf("row %d: owner %s -> %s under the same epoch %d", r.ID, old.Owner, r.Owner, r.Epoch)
		}
		rows[r.ID] = r
	}
	v.Rows = nil
	for _, r := range rows {
		v.Rows = append(v.Rows, r)
	}
	v.Version++
	return v
}

// settle plans and drains until nothing is left to do.
func settleTable(t *testing.T, v View) View {
	t.Helper()
	for range 100 {
		cmd := Plan(v)
		if cmd == nil {
			return v
		}
		v = apply(t, v, cmd)
		v.Drained = map[uint64]uint64{}
		for _, r := range v.Rows {
			if r.Next != "" {
				v.Drained[r.ID] = r.Epoch
			}
		}
	}
	t.Fatal("the plan never comes to rest")
	return v
}

func checkCover(t *testing.T, v View) {
	t.Helper()
	for cluster := range v.Weights {
		for range 200 {
			h := rand.Uint64()
			n := 0
			for _, r := range v.Rows {
				if r.Cluster == cluster && h >= r.From && (r.To == 0 || h < r.To) {
					n++
				}
			}
			if n != 1 {
				t.Fatalf("hash %x of cluster %s is covered by %d rows", h, cluster, n)
			}
		}
	}
}

func namespaceLoad(v View) map[string]int {
	load := map[string]int{}
	for c, names := range v.Weights {
		for ns := range names {
			if r, ok := rowOf(v.Rows, c, ns); ok {
				load[r.Owner]++
			}
		}
	}
	return load
}

func TestSkewedNamesAreSpread(t *testing.T) {
	for _, pattern := range []string{"team-%03d", "ns-%d", "tenant-%08x", "a%d"} {
		for _, n := range []int{100, 1000} {
			names := map[string]uint64{}
			for i := range n {
				names[fmt.Sprintf(pattern, i)] = 1
			}
			v := settleTable(t, View{Sessions: []string{"a@1", "b@1", "c@1"}, Weights: map[string]map[string]uint64{"east": names}})
			checkCover(t, v)
			for s, got := range namespaceLoad(v) {
				if got*3 > n*3/2 {
					t.Errorf("%s of %d: session %s owns %d", pattern, n, s, got)
				}
			}
			if len(namespaceLoad(v)) != 3 {
				t.Errorf("%s of %d: only %v own something", pattern, n, namespaceLoad(v))
			}
		}
	}
}

func TestThreeNamespacesGoToThreeOwners(t *testing.T) {
	v := settleTable(t, View{Sessions: []string{"a@1", "b@1", "c@1"}, Weights: map[string]map[string]uint64{"c": {"default": 3, "shop": 3, "team-001": 3}}})
	if load := namespaceLoad(v); len(load) != 3 {
		t.Errorf("owners: %v", load)
	}
}

func TestDeadSessionsRowsMoveAtOnceAndOthersStay(t *testing.T) {
	names := map[string]uint64{}
	for i := range 300 {
		names[fmt.Sprintf("team-%03d", i)] = 1
	}
	v := settleTable(t, View{Sessions: []string{"a@1", "b@1", "c@1"}, Weights: map[string]map[string]uint64{"c": names}})
	before := map[uint64]store.Row{}
	for _, r := range v.Rows {
		before[r.ID] = r
	}
	v.Sessions = []string{"a@1", "b@1"}
	v = apply(t, v, Plan(v))
	for _, r := range v.Rows {
		old := before[r.ID]
		if r.Owner == "c@1" {
			t.Errorf("row %d stays with the dead", r.ID)
		}
		if old.Owner != "c@1" && r.Owner != old.Owner {
			t.Errorf("row %d of a living session moved without draining", r.ID)
		}
		if old.Owner == "c@1" && r.Epoch <= old.Epoch {
			t.Errorf("row %d moved without a new epoch", r.ID)
		}
	}
}

func TestNewSessionOfAReplicaGetsItsRowsBackUnderNewEpochs(t *testing.T) {
	v := settleTable(t, View{Sessions: []string{"a@1", "b@1"}, Weights: map[string]map[string]uint64{"c": {"x": 1}}})
	owned := map[uint64]uint64{}
	for _, r := range v.Rows {
		if r.Owner == "a@1" {
			owned[r.ID] = r.Epoch
		}
	}
	v.Sessions = []string{"a@2", "b@1"}
	v = apply(t, v, Plan(v))
	for _, r := range v.Rows {
		if e, ok := owned[r.ID]; ok && (r.Owner != "a@2" || r.Epoch <= e) {
			t.Errorf("row %d: %+v", r.ID, r)
		}
	}
}

// TestManyClustersFitIntoTheLog: a command that is too large for an entry of the log is refused, and planned again as it was, for ever: nobody would own anything.
func TestManyClustersFitIntoTheLog(t *testing.T) {
	long := strings.Repeat("n", 80)
	v := View{Sessions: []string{"a-" + long + "@1", "b-" + long + "@1"}, Weights: map[string]map[string]uint64{}}
	for i := range 260 {
		v.Weights[fmt.Sprintf("cluster-%0240d", i)] = map[string]uint64{"": 1, "default": 5}
	}
	steps := func() int {
		for n := 0; ; n++ {
			cmd := Plan(v)
			if cmd == nil {
				return n
			}
			b, err := store.EncodeCommand(store.Command{Table: cmd})
			if err != nil || len(b) > store.MaxRecord+64<<10 { // group.MaxEntry
				t.Fatalf("a command of %d bytes, with %d rows (%v)", len(b), len(cmd.Rows), err)
			}
			v = apply(t, v, cmd)
			v.Drained = map[uint64]uint64{}
			for _, r := range v.Rows {
				if r.Next != "" {
					v.Drained[r.ID] = r.Epoch
				}
			}
			if n > 100 {
				t.Fatal("the plan never comes to rest")
			}
		}
	}
	steps()
	v.Sessions = []string{"a-" + long + "@2", "b-" + long + "@2", "c-" + long + "@2"} // all of them start anew, and one joins
	steps()
	for s, n := range namespaceLoad(v) {
		if !slices.Contains(v.Sessions, s) || n < 50 {
			t.Errorf("%s owns %d namespaces", s, n)
		}
	}
	if got, want := len(v.Rows), len(v.Weights)*RowsPerCluster; got < want {
		t.Errorf("%d rows, want %d: some cluster is not cut whole", got, want)
	}
}

func TestRandomHistoriesComeToRestCoveredAndBalanced(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		v := View{Sessions: []string{"a@1"}, Weights: map[string]map[string]uint64{"c": {"": 1}}}
		for range 8 {
			v.Sessions = nil
			for i := range 1 + rng.IntN(5) {
				v.Sessions = append(v.Sessions, fmt.Sprintf("%c@%d", 'a'+i, 1+rng.IntN(2)))
			}
			for range rng.IntN(40) {
				v.Weights["c"][fmt.Sprintf("ns-%d", rng.IntN(500))] = uint64(1 + rng.IntN(5))
			}
			v = settleTable(t, v)
			checkCover(t, v)
			live := map[string]bool{}
			for _, s := range v.Sessions {
				live[s] = true
			}
			for _, r := range v.Rows {
				if !live[r.Owner] || r.Next != "" {
					t.Fatalf("at rest: %+v with sessions %v", r, v.Sessions)
				}
			}
		}
	}
}
