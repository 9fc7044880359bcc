package xds

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/fleetgate/fleetgate/loadtest/freeport"
)

// findEnvoy finds the real Envoy: FLEETGATE_ENVOY, PATH, or the repository's cache.
func findEnvoy(t *testing.T) string {
	if p := os.Getenv("FLEETGATE_ENVOY"); p != "" {
		return p
	}
	if p, err := exec.LookPath("envoy"); err == nil {
		return p
	}
	p, err := filepath.Abs(filepath.Join("..", ".cache", "envoy", "envoy"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Fatal("no Envoy: run `make .cache/envoy`, or name one in FLEETGATE_ENVOY")
	}
	return p
}

// envoy is a running Envoy with its admin socket.
type envoy struct {
	t     *testing.T
	admin *http.Client
	log   *bytes.Buffer
}

func startEnvoy(t *testing.T, w *world, a *authority, id Identity, args ...string) *envoy {
	t.Helper()
	dir, err := os.MkdirTemp("", "xds") // a unix socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	a.issue("proxy", nil, id.URI())
	sock := filepath.Join(dir, "admin")
	b, err := Bootstrap(BootstrapConfig{ProxyID: id.Proxy, FleetCluster: id.Fleet(), XDSAddresses: []string{w.addr}, AdminPath: sock,
		CertFile: filepath.Join(a.dir, "proxy.crt"), KeyFile: filepath.Join(a.dir, "proxy.key"), CAFile: a.caFile(), ServerName: "xds.fleetgate"})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "bootstrap.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	e := &envoy{t: t, log: &bytes.Buffer{}}
	cmd := exec.Command(findEnvoy(t), append([]string{"-c", file, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"}, args...)...)
	cmd.Stdout, cmd.Stderr = e.log, e.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Logf("Envoy says:\n%s", e.log)
		}
	})
	e.admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}}
	return e
}

func backend(t *testing.T, body string) uint32 {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }))
	t.Cleanup(s.Close)
	return uint32(s.Listener.Addr().(*net.TCPAddr).Port)
}

func get(t *testing.T, port uint32) (int, string) {
	t.Helper()
	c := http.Client{Timeout: time.Minute}
	resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestRealEnvoy goes the whole way over mutual TLS: traffic, a change, a rejected listener beside good changes, a swap of clusters under load.
func TestRealEnvoy(t *testing.T) {
	a := newAuthority(t)
	w := newWorld(t, Config{Gate: true, GateTimeout: time.Minute}, a.serverTLS()) // an Envoy that is starved for two seconds may lose requests
	id := Identity{Cluster: "c", Namespace: "ns", Gateway: "gw", Proxy: "pod-1"}
	one, two, port := backend(t, "one"), backend(t, "two"), uint32(freeport.Take(t))
	w.apply(7, clusterOf("a", "1"), endpointsOf("a", "1", one), listenerOf("l", "1", "rc", port), routeOf("rc", "1", "a"))
	startEnvoy(t, w, a, id)

	w.await("pod-1", "the first configuration", func(r Report) bool { return r.Acked == 7 })
	if code, body := get(t, port); code != 200 || body != "one" {
		t.Fatalf("got %d %q", code, body)
	}
	w.apply(8, clusterOf("b", "1"), endpointsOf("b", "1", two), routeOf("rc", "2", "b"), gone(Cluster, "a"), gone(Endpoints, "a"))
	w.await("pod-1", "the swap of clusters", func(r Report) bool { return r.Acked == 8 })
	if code, body := get(t, port); code != 200 || body != "two" {
		t.Fatalf("after the swap: %d %q", code, body)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bad := uint32(taken.Addr().(*net.TCPAddr).Port)
	good := uint32(freeport.Take(t))
	w.apply(9, listenerOf("bad", "1", "rc", bad), listenerOf("good", "1", "rc", good))
	r := w.await("pod-1", "the rejection", func(r Report) bool { return len(r.Rejected) == 1 && r.Acked == 9 })
	if got := r.Rejected[0]; got.Name != "bad" || got.Version != "1" || !strings.Contains(got.Message, "bind") || got.Parts["bad"] != "1" {
		t.Fatalf("rejected %+v", got)
	}
	if code, _ := get(t, good); code != 200 {
		t.Fatalf("the good listener beside the bad one answers %d", code)
	}
	w.apply(10, gone(Listener, "bad"), endpointsOf("b", "2", one))
	w.await("pod-1", "the withdrawal", func(r Report) bool { return len(r.Rejected) == 0 && r.Acked == 10 })
	swapUnderLoad(t, w, port, one, two)
}

// swapUnderLoad replaces the cluster again and again while requests run; not one may fail.
func swapUnderLoad(t *testing.T, w *world, port, one, two uint32) {
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- load(port, stop) }()
	last := "b"
	for i := range 50 {
		next := fmt.Sprintf("c%d", i)
		index := uint64(11 + i)
		w.apply(index, clusterOf(next, "1"), endpointsOf(next, "1", []uint32{one, two}[i%2]), routeOf("rc", next, next), gone(Cluster, last), gone(Endpoints, last))
		w.await("pod-1", next, func(r Report) bool { return r.Acked >= index })
		last = next
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func load(port uint32, stop <-chan struct{}) error {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			return err
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return fmt.Errorf("request %d answered %d", n, resp.StatusCode)
		}
	}
}

// TestRealEnvoyWithoutClusters starts with a listener and nothing behind it: an unanswered CDS would keep it from ever listening.
func TestRealEnvoyWithoutClusters(t *testing.T) {
	a := newAuthority(t)
	w := newWorld(t, Config{Gate: true}, a.serverTLS())
	port := uint32(freeport.Take(t))
	w.apply(3, listenerOf("l", "1", "rc", port), routeOf("rc", "1"))
	startEnvoy(t, w, a, Identity{Cluster: "c", Namespace: "ns", Gateway: "gw", Proxy: "pod-1"})
	w.await("pod-1", "the first configuration", func(r Report) bool { return r.Acked == 3 })
	if code, _ := get(t, port); code != 404 {
		t.Fatalf("got %d", code)
	}
}

// matching is a RouteConfiguration whose routes match paths by regex, one for each part. A refused part goes back to the regex that it had before.
func matching(_ string, t Type, name string, refuse map[string]string) (Resource, bool) {
	host := &routev3.VirtualHost{Name: "all", Domains: []string{"*"}}
	parts := map[string]string{}
	for i := range 20 {
		p := fmt.Sprintf("r%02d", i)
		parts[p] = "new"
		size := 2
		if i == 3 || i == 14 {
			size = 400
		}
		if refuse[p] != "" {
			parts[p], size = "old", 1
		}
		host.Routes = append(host.Routes, &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: fmt.Sprintf("/%s/a{%d}", p, size)}}},
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200}}})
	}
	r := resource(t, name, fmt.Sprint(parts), &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{host}})
	r.Parts = []map[string]string{parts}
	return r, true
}

// TestRealEnvoyRejectsTwoRoutesOfTwenty by a lowered limit of regex programs: the other eighteen changes are served, and nobody else is accused.
func TestRealEnvoyRejectsTwoRoutesOfTwenty(t *testing.T) {
	a := newAuthority(t)
	w := newWorld(t, Config{Gate: true, Trial: matching}, a.serverTLS())
	port := uint32(freeport.Take(t))
	old := map[string]string{}
	for i := range 20 {
		old[fmt.Sprintf("r%02d", i)] = "new"
	}
	before, _ := matching("", Route, "rc", old)
	after, _ := matching("", Route, "rc", nil)
	w.apply(1, listenerOf("l", "1", "rc", port), before)
	startEnvoy(t, w, a, Identity{Cluster: "c", Namespace: "ns", Gateway: "gw", Proxy: "pod-1"},
		"--config-yaml", "layered_runtime: {layers: [{name: limits, static_layer: {re2.max_program_size.error_level: 100}}]}")
	w.await("pod-1", "the first configuration", func(r Report) bool { return r.Acked == 1 })
	w.apply(2, after)
	r := w.await("pod-1", "the rejection", func(r Report) bool { return len(r.Rejected) == 1 && r.Acked == 2 })
	if got := r.Rejected[0]; !maps.Equal(got.Parts, map[string]string{"r03": "new", "r14": "new"}) || !strings.Contains(got.Message, "max program size") {
		t.Errorf("rejected %+v", got)
	}
	for path, want := range map[string]int{"r02/aa": 200, "r03/a": 200, "r14/a": 200, "r19/aa": 200, "r19/a": 404} {
		if code := getPath(t, port, path); code != want {
			t.Errorf("%s answers %d, want %d", path, code, want)
		}
	}
	t.Logf("found after %d rejected responses", w.srv.Stats().Nacks)
}

func getPath(t *testing.T, port uint32, path string) int {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/%s", port, path))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
