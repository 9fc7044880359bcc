package loadtest

import (
	"bufio"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// metric reads one unlabelled metric of a replica, -1 where it is not to be had.
func metric(admin, name string) float64 {
	resp, err := patient.Get("http://" + admin + "/metrics")
	if err != nil {
		return -1
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return -1
	}
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return -1
			}
			return f
		}
	}
	return -1
}

// spread makes n namespaces with a backend and a route each.
func spread(n int) (manifests map[string]string, spaces []string) {
	manifests = map[string]string{"gateway.yaml": base}
	for i := range n {
		ns := fmt.Sprintf("team-%03d", i)
		spaces = append(spaces, ns)
		manifests[ns+".yaml"] = backend(ns, "web") + "---\n" + route(ns, "web", "/"+ns, "web=1")
	}
	return manifests, spaces
}

// TestEachChangeIsCompiledOnce: all three replicas own namespaces and compile, and a changed route is compiled once in the whole group.
func TestEachChangeIsCompiledOnce(t *testing.T) {
	manifests, spaces := spread(9)
	r := start(t, manifests)
	for _, ns := range spaces {
		r.waitLive(ns, "web", 1, soon)
	}
	compiled := func() (sum float64, each []float64) {
		for _, a := range r.adminAddresses() {
			n := metric(a, "fleetgate_routes_compiled_total")
			sum, each = sum+n, append(each, n)
		}
		return sum, each
	}
	for turn := 1; ; turn++ {
		rows := r.tableAtRest()
		before, each := compiled()
		for n, count := range each {
			if count <= 0 {
				t.Errorf("replica %d compiled %v routes: every replica should own namespaces", n+1, count)
			}
		}
		for i, ns := range spaces {
			r.save(ns+".yaml", backend(ns, "web")+"---\n"+route(ns, "web", "/"+ns, fmt.Sprintf("web=%d", turn*len(spaces)+i+1)))
			r.waitLive(ns, "web", int64(turn+1), 20*time.Second)
		}
		after, each := compiled()
		if after-before == float64(len(spaces)) {
			return
		}
		if r.tableAtRest() == rows || turn == 5 { // else rows of a replica that was starved for two seconds have moved, and are compiled by another one
			t.Fatalf("%d changed routes were compiled %v times (%v)", len(spaces), after-before, each)
		}
	}
}

// tableAtRest gives the shard table once it stays as it is.
func (r *rig) tableAtRest() (rows string) {
	r.t.Helper()
	r.until("the shard table is at rest", soon, func() bool {
		v, err := r.view()
		now := ""
		if err == nil {
			now = fmt.Sprint(v.Rows)
		}
		same := now != "" && now == rows
		rows = now
		if !same {
			time.Sleep(time.Second) // a table that was planned again would show within five rounds of planning
		}
		return same
	})
	return rows
}

// TestMeasureLeaks: after many changes and kills of its peers a replica has as many goroutines and open files as at the start.
func TestMeasureLeaks(t *testing.T) {
	long(t)
	manifests, spaces := spread(3)
	r := start(t, manifests)
	for _, ns := range spaces {
		r.waitLive(ns, "web", 1, soon)
	}
	admin := r.adminAddresses()[0]
	goroutines, files, streams, leads := metric(admin, "go_goroutines"), metric(admin, "process_open_fds"), metric(admin, "fleetgate_xds_streams"), metric(admin, "fleetgate_raft_leader")
	generation := int64(1)
	change := func() {
		generation++
		r.save(spaces[0]+".yaml", backend(spaces[0], "web")+"---\n"+route(spaces[0], "web", "/"+spaces[0], fmt.Sprintf("web=%d", generation)))
		r.waitLive(spaces[0], "web", generation, soon)
	}
	changes, kills := times(1000), times(20)
	for range changes {
		change()
	}
	for i := range kills {
		victim := 2 + i%2
		pid := r.pidsOf(fmt.Sprintf("replica-%d", victim))[0]
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		change()
		r.back(victim, pid)
	}
	// What came over from a killed peer is no leak: a stream (eight goroutines, one file), or the leadership (replication to two peers, planning, status).
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		led := max(0, metric(admin, "fleetgate_raft_leader")-leads) // what it had then and has not now need not have been as much as that
		more, g, f := max(0, metric(admin, "fleetgate_xds_streams")-streams), metric(admin, "go_goroutines"), metric(admin, "process_open_fds")
		if g <= goroutines+8*more+24*led+4 && f <= files+more+8*led+4 {
			break
		}
		if time.Since(begin) > soon {
			t.Errorf("%v goroutines and %v files after %d changes and %d kills; %v and %v before (%v more streams, %v more leadership)", g, f, changes, kills, goroutines, files, more, led)
			break
		}
	}
	row(t, "goroutines, files of a replica", "%v, %v before; %v, %v after %d changes and %d kills", goroutines, files, metric(admin, "go_goroutines"), metric(admin, "process_open_fds"), changes, kills)
}

// back waits until a replica whose process was killed runs again as another process, has caught up with the group, and the leader hears all three.
// The leader's word alone is not enough: it believes in a replica for two seconds after its last beat.
func (r *rig) back(replica, killed int) {
	r.t.Helper()
	admin := r.adminAddresses()[replica-1]
	r.until("the killed replica is back", soon, func() bool {
		if pids := r.pidsOf(fmt.Sprintf("replica-%d", replica)); len(pids) != 1 || pids[0] == killed {
			return false
		}
		own, err := viewOf(admin)
		if err != nil || own.Leader == "" {
			return false
		}
		v, err := r.view()
		if err != nil || own.Index < v.Index {
			return false
		}
		return !slices.ContainsFunc(v.Replicas, func(rep replicaView) bool { return !rep.Live }) && len(v.Replicas) == 3
	})
}
