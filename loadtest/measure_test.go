package loadtest

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/loadtest/freeport"
)

const base = `apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: envoy}
spec: {controllerName: fleetgate.io/gatewayclass-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: default}
spec:
  gatewayClassName: envoy
  listeners:
  - {name: http, protocol: HTTP, port: PORT, allowedRoutes: {namespaces: {from: All}}}
`

// backend is a Deployment with its Service.
func backend(namespace, name string) string {
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  replicas: 1
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s}}
    spec: {containers: [{name: c, image: demo, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: %[2]s, namespace: %[1]s}
spec: {selector: {app: %[2]s}, ports: [{port: 8080, targetPort: 80}]}
`, namespace, name)
}

// route sends a prefix to weighted backends.
func route(namespace, name, prefix string, backends ...string) string {
	var refs strings.Builder
	for _, b := range backends {
		svc, weight, _ := strings.Cut(b, "=")
		if weight == "" {
			weight = "1"
		}
		fmt.Fprintf(&refs, "    - {name: %s, port: 8080, weight: %s}\n", svc, weight)
	}
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: %s}
spec:
  parentRefs: [{name: gw, namespace: default}]
  rules:
  - matches: [{path: {type: PathPrefix, value: %s}}]
    backendRefs:
%s`, name, namespace, prefix, refs.String())
}

func (r *rig) get(path string) (int, string) {
	resp, err := patient.Get(fmt.Sprintf("http://127.0.0.1:%d%s", r.port, path))
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func (r *rig) waitLive(namespace, name string, generation int64, limit time.Duration) time.Duration {
	return r.until(fmt.Sprintf("generation %d of %s/%s is ACKed by both Envoys", generation, namespace, name), limit, func() bool {
		v, err := r.view()
		return err == nil && v.live(namespace, name, generation)
	})
}

// TestMeasurePropagation: saving a weight change, from file close to both Envoys' ACK; then the split is right.
func TestMeasurePropagation(t *testing.T) {
	r := start(t, map[string]string{"gateway.yaml": base, "backends.yaml": backend("default", "v1") + backend("default", "v2"), "route.yaml": route("default", "split", "/", "v1=90", "v2=10")})
	r.waitLive("default", "split", 1, soon)
	var took []time.Duration
	n := times(200)
	for i := range n {
		weights := []string{"v1=50", "v2=50"}
		if i%2 == 1 && i != n-1 {
			weights = []string{"v1=90", "v2=10"}
		}
		if i == n-1 {
			weights = []string{"v1=70", "v2=30"}
		}
		time.Sleep(110 * time.Millisecond) // a change at a time: reports of one proxy are at most ten a second
		r.save("route.yaml", route("default", "split", "/", weights...))
		took = append(took, r.waitLive("default", "split", int64(i+2), 10*time.Second))
	}
	requests, hits := times(10000), 0
	for range requests {
		code, body := r.get("/split")
		if code != http.StatusOK {
			t.Fatalf("status %d: %s", code, body)
		}
		if strings.Contains(body, "v2-") || strings.Contains(body, `"v2`) {
			hits++
		}
	}
	want := 0.3 * float64(requests)
	if sigma := math.Sqrt(float64(requests) * 0.3 * 0.7); math.Abs(float64(hits)-want) > 5*sigma {
		t.Errorf("%d of %d requests went to v2, want %.0f within 5 sigma (%.0f)", hits, requests, want, 5*sigma)
	}
	row(t, "file close -> both Envoys' ACK", "%d changes, p50 %v, p99 %v, max %v; split %d of %d to the 30 %% backend", n, quantile(took, .5), quantile(took, .99), quantile(took, 1), hits, requests)
}

// swap runs changes of the backend under load and counts the lost requests.
func swap(t *testing.T, n int, args ...string) (sent, bad int, why map[string]int, took time.Duration) {
	t.Helper()
	r := start(t, map[string]string{"gateway.yaml": base, "backends.yaml": backend("default", "a") + backend("default", "b"), "route.yaml": route("default", "swap", "/", "a")}, args...)
	r.waitLive("default", "swap", 1, soon)
	r.until("traffic flows", soon, func() bool { code, _ := r.get("/load"); return code == http.StatusOK })
	l := fire(r.port, 8, 0, 30)
	begin := time.Now()
	for i := range n {
		r.save("route.yaml", route("default", "swap", "/", []string{"b", "a"}[i%2]))
		r.waitLive("default", "swap", int64(i+2), 20*time.Second)
	}
	took = time.Since(begin)
	sent, bad, why = l.end()
	return sent, bad, why, took
}

// TestMeasureSwaps: changing which backend a route uses, each time a new cluster, loses no request; without the gate it does.
func TestMeasureSwaps(t *testing.T) {
	long(t)
	n := times(1000)
	sent, bad, why, took := swap(t, n)
	row(t, "backend swaps under load", "%d swaps in %v, %d requests, %d not 200", n, took.Round(time.Millisecond), sent, bad)
	if bad > 0 {
		t.Errorf("lost requests: %v", why)
	}
	sent, bad, _, _ = swap(t, n, "--set", "test-gate-off=true")
	row(t, "the same without the gate", "%d requests, %d not 200", sent, bad)
	if bad == 0 {
		t.Error("no request was lost without the gate: this test cannot tell whether the gate works")
	}
}

// TestMeasureKills: kill -9 of each replica in turn under 500 requests a second.
func TestMeasureKills(t *testing.T) {
	long(t)
	manifests := map[string]string{"gateway.yaml": base, "backends.yaml": backend("default", "web"), "route.yaml": route("default", "web", "/", "web")}
	spaces := []string{"team-001", "team-002", "team-003", "team-004", "team-005", "team-006"}
	for _, ns := range spaces {
		manifests[ns+".yaml"] = backend(ns, "web") + "---\n" + route(ns, "web", "/"+ns, "web=1")
	}
	r := start(t, manifests)
	generation := map[string]int64{}
	for _, ns := range spaces {
		generation[ns] = 1
		r.waitLive(ns, "web", 1, soon)
	}
	change := func(ns string) {
		generation[ns]++
		r.save(ns+".yaml", backend(ns, "web")+"---\n"+route(ns, "web", "/"+ns, fmt.Sprintf("web=%d", generation[ns])))
	}
	l := fire(r.port, 10, 500, 0)
	var owned, led []time.Duration
	for round := range times(20) * 3 {
		victim := fmt.Sprintf("replica-%d", round%3+1)
		pids := r.pidsOf(victim)
		if len(pids) != 1 {
			t.Fatalf("processes of %s: %v in %v", victim, pids, r.pids())
		}
		v, err := r.view()
		if err != nil {
			t.Fatal(err)
		}
		leads := strings.HasPrefix(v.Leader, victim+"-")
		elsewhere := leads && len(led) <= len(owned) // what only needs the new leader, not a new owner
		ns := pick(v, victim, spaces, !elsewhere)
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		change(ns)
		r.waitLive(ns, "web", generation[ns], soon)
		if elsewhere {
			led = append(led, time.Since(begin))
		} else {
			owned = append(owned, time.Since(begin))
		}
		r.back(round%3+1, pids[0])
	}
	sent, bad, why := l.end()
	row(t, "kills of replicas under load", "%d kills, %d requests, %d not 200", len(owned)+len(led), sent, bad)
	row(t, "kill -> change of its namespace ACKed", "%d kills, p50 %v, max %v", len(owned), quantile(owned, .5), quantile(owned, 1))
	row(t, "leader kill -> change elsewhere ACKed", "%d kills, p50 %v, max %v", len(led), quantile(led, .5), quantile(led, 1))
	if bad > 0 {
		t.Errorf("lost requests: %v", why)
	}
	r.equalHashes()
}

// pick gives a namespace that a replica owns, or one that it does not own; where there is none such, any.
func pick(v *view, replica string, spaces []string, owned bool) string {
	for _, ns := range spaces {
		h := fmt.Sprintf("%016x", store.Hash(ns))
		for _, row := range v.Rows {
			if h >= row.From && (row.To == "0000000000000000" || h < row.To) && strings.HasPrefix(row.Owner, replica+"-") == owned {
				return ns
			}
		}
	}
	return spaces[0]
}

// equalHashes stops everything and compares the replicas' files by a full scan, if they ended at one index.
func (r *rig) equalHashes() {
	r.until("all replicas have applied the same", soon, func() bool {
		v, err := r.view()
		if err != nil {
			return false
		}
		for _, rep := range v.Replicas {
			if rep.Applied != v.Replicas[0].Applied {
				return false
			}
		}
		return len(v.Replicas) == 3
	})
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	r.exited <- <-r.exited
	files, _ := filepath.Glob(filepath.Join(r.state, "*", "store", "store.db"))
	more, _ := filepath.Glob(filepath.Join(r.state, "*", "*", "store", "store.db"))
	byIndex := map[uint64]string{}
	for _, f := range append(files, more...) {
		index, hash, err := store.FileHash(f)
		if err != nil {
			r.t.Errorf("%s: %v", f, err)
		}
		if other, ok := byIndex[index]; ok && other != hash {
			r.t.Errorf("%s differs from another replica at index %d", f, index)
		}
		byIndex[index] = hash
		r.t.Logf("%s: index %d, %s", filepath.Base(filepath.Dir(filepath.Dir(f))), index, hash[:16])
	}
	if len(files)+len(more) != 3 {
		r.t.Errorf("%d store files, want 3", len(files)+len(more))
	}
}

// TestMeasureStoppedProxy: with one Envoy stopped a new generation is not programmed, and it says "1 of 2 proxies".
func TestMeasureStoppedProxy(t *testing.T) {
	r := start(t, map[string]string{"gateway.yaml": base, "backends.yaml": backend("default", "web"), "route.yaml": route("default", "web", "/", "web")})
	r.waitLive("default", "web", 1, soon)
	envoys := r.pidsOf("default/")
	if len(envoys) != 2 {
		t.Fatalf("Envoys: %v in %v", envoys, r.pids())
	}
	if err := syscall.Kill(envoys[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	cont := func() { _ = syscall.Kill(envoys[0], syscall.SIGCONT) }
	defer cont()
	more := fmt.Sprintf("  - {name: more, protocol: HTTP, port: %d, allowedRoutes: {namespaces: {from: All}}}\n", freeport.Take(t))
	r.save("gateway.yaml", strings.ReplaceAll(base, "PORT", fmt.Sprint(r.port))+more)
	r.until("the Gateway says 1 of 2 proxies", soon, func() bool {
		v, err := r.view()
		return err == nil && v.Gateways[0].Generation == 2 && v.Gateways[0].Programmed == "False" && strings.Contains(v.Gateways[0].Message, "1 of 2 proxies")
	})
	cont()
	r.until("the Gateway is programmed again", soon, func() bool {
		v, err := r.view()
		return err == nil && v.Gateways[0].Programmed == "True"
	})
}

// TestRejectedRoute: bytes that pass our validation and that an Envoy with a lowered re2.max_program_size refuses are told on their route, keep their
// last good version, hold up nobody, and meet no starting Envoy.
func TestRejectedRoute(t *testing.T) {
	r := start(t, map[string]string{"gateway.yaml": base, "backends.yaml": backend("default", "a") + backend("default", "b"),
		"bad.yaml": route("default", "bad", "/bad", "a"), "good.yaml": route("default", "good", "/good", "a")}, "--test-re2-program", "100")
	r.waitLive("default", "bad", 1, soon)
	r.waitLive("default", "good", 1, soon)
	regex := strings.Replace(route("default", "bad", "/bad", "b"), "type: PathPrefix, value: /bad", "type: RegularExpression, value: \"/bad/[a-z]{1,200}\"", 1)
	r.save("bad.yaml", regex)
	told := r.until("the route says that proxies rejected it", 10*time.Second, func() bool { return r.rejected("bad") })
	row(t, "rejected by Envoy -> told on the route", "%v", told)
	r.save("good.yaml", route("default", "good", "/good", "b"))
	r.waitLive("default", "good", 2, 10*time.Second)
	r.serves("/good", "b-")
	r.serves("/bad", "a-")
	for n := 1; n <= 3; n++ {
		if pids := r.pidsOf(fmt.Sprintf("replica-%d", n)); len(pids) == 1 {
			_ = syscall.Kill(pids[0], syscall.SIGKILL)
		}
	}
	for _, pid := range r.pidsOf("default/") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	r.until("fresh Envoys of restarted replicas serve", soon, func() bool { code, _ := r.get("/good"); return code == http.StatusOK })
	r.serves("/bad", "a-")
	r.save("bad.yaml", route("default", "bad", "/bad", "b"))
	r.until("a corrected route goes live", soon, func() bool { _, body := r.get("/bad"); return strings.Contains(body, "b-") })
	r.until("and says so", soon, func() bool { return !r.rejected("bad") })
}

func (r *rig) serves(path, pod string) {
	r.t.Helper()
	if code, body := r.get(path); code != http.StatusOK || !strings.Contains(body, pod) {
		r.t.Errorf("%s answered %d %s, want pod %s", path, code, body, pod)
	}
}

// rejected tells whether a route's condition says that proxies rejected it.
func (r *rig) rejected(name string) bool {
	v, err := r.view()
	if err != nil {
		return false
	}
	for _, rt := range v.Routes {
		for _, p := range rt.Parents {
			for _, c := range p.Conditions {
				if rt.Name == name && c.Type == "fleetgate.io/Programmed" && c.Status == "False" && c.Reason == "Rejected" {
					return true
				}
			}
		}
	}
	return false
}
