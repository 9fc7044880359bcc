package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fleetgate/fleetgate/cluster/member"
)

const shop = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, version: v1}}
    spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: a, port: 8080, targetPort: http}, {name: b, port: 8081, targetPort: 81, appProtocol: kubernetes.io/h2c}, {name: c, port: 8082, targetPort: nowhere}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: elsewhere}
spec: {selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: manual, namespace: shop}
spec: {ports: [{port: 8080}]}
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackend
metadata: {name: pods, namespace: shop}
spec: {type: EndpointSelector, port: {number: 81}, endpointSelector: {matchLabels: {app: web}}}
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackend
metadata: {name: outside, namespace: shop}
spec: {type: ExternalHostname, port: {number: 81}, externalHostname: {hostname: a.example}}
`

func TestPlanBackings(t *testing.T) {
	objects, problems := member.Decode(map[string][]byte{"shop.yaml": []byte(shop)})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var got []string
	for _, b := range planBackings(objects, planPods(objects)) {
		line := b.service.Namespace + "/" + b.service.Name + " " + b.pod.name + " " + b.pod.version
		for _, p := range b.ports {
			line += fmt.Sprintf(" %s=%d", p.name, p.container)
		}
		got = append(got, line)
	}
	want := []string{"shop/web web-1 v1 a=80 b=81", "shop/web web-2 v1 a=80 b=81", "shop/xbackend.pods web-1 v1 =81", "shop/xbackend.pods web-2 v1 =81"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func testPods(t *testing.T) *pods {
	t.Helper()
	p := newPods(t.TempDir(), t.TempDir(), &devState{Backends: map[string]int{}}, func() error { return nil }, t.Logf)
	t.Cleanup(p.close)
	return p
}

func step(t *testing.T, p *pods) {
	t.Helper()
	if !p.read() {
		t.Fatal("a change was not seen")
	}
	if err := p.apply(); err != nil {
		t.Fatal(err)
	}
}

func listDir(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestPodsFollowTheDirectory(t *testing.T) {
	p := testPods(t)
	file := filepath.Join(p.dir, "shop.yaml")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(shop)
	step(t, p)
	if d := cmp.Diff([]string{"shop.web-web-1.yaml", "shop.web-web-2.yaml", "shop.xbackend.pods-web-1.yaml", "shop.xbackend.pods-web-2.yaml"}, listDir(t, p.endpoints)); d != "" {
		t.Fatal(d)
	}
	if p.read() {
		t.Error("nothing changed, yet a change was seen")
	}
	port := p.state.Backends["shop/web-1/80"]
	write(strings.Replace(shop, "replicas: 2", "replicas: 1", 1))
	step(t, p)
	if d := cmp.Diff([]string{"shop.web-web-1.yaml", "shop.xbackend.pods-web-1.yaml"}, listDir(t, p.endpoints)); d != "" {
		t.Error("after one replica less:", d)
	}
	write("half: [written")
	step(t, p)
	if len(listDir(t, p.endpoints)) != 2 || p.state.Backends["shop/web-1/80"] != port {
		t.Error("a broken file took away its pods")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	step(t, p)
	if got := listDir(t, p.endpoints); len(got) != 0 {
		t.Error("after the file was deleted:", got)
	}
}

func TestEndpointSlicesAreWhatTheSourceTakes(t *testing.T) {
	p := testPods(t)
	if err := os.WriteFile(filepath.Join(p.dir, "shop.yaml"), []byte(shop), 0o644); err != nil {
		t.Fatal(err)
	}
	step(t, p)
	files := map[string][]byte{}
	for _, name := range listDir(t, p.endpoints) {
		b, err := os.ReadFile(filepath.Join(p.endpoints, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	if _, problems := member.Decode(files); len(problems) > 0 {
		t.Error(problems)
	}
}

func TestBackendSpeaksEveryProtocol(t *testing.T) {
	s, port, err := startEcho(echo{pod: "web-1", namespace: "shop", version: "v1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	h2c := &http.Transport{Protocols: new(http.Protocols)}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	for proto, transport := range map[string]*http.Transport{"HTTP/1.1": {}, "HTTP/2.0": h2c} {
		resp, err := (&http.Client{Transport: transport}).Get(url + "/a?b=c")
		if err != nil {
			t.Fatal(err)
		}
		var got received
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Pod != "web-1" || got.Version != "v1" || got.Path != "/a?b=c" || got.Proto != proto {
			t.Errorf("over %s: %+v", proto, got)
		}
	}
	frame := []byte{0, 0, 0, 0, 3, 'a', 'b', 'c'}
	req, _ := http.NewRequest(http.MethodPost, url+"/demo.Echo/Shout", bytes.NewReader(frame))
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := h2c.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(body, frame) || resp.Trailer.Get("Grpc-Status") != "0" || resp.Header.Get("X-Pod") != "web-1" {
		t.Errorf("gRPC: %v %q trailers %v headers %v", err, body, resp.Trailer, resp.Header)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for _, lived := range []time.Duration{0, 0, 0, time.Minute, 0, 0, 0, 0, 0, 0, 0} {
		got = append(got, b.next(lived)/time.Millisecond)
	}
	if d := cmp.Diff([]time.Duration{100, 200, 400, 100, 200, 400, 800, 1600, 3200, 5000, 5000}, got); d != "" {
		t.Error(d)
	}
}

// TestSupervisor starts a process again when it is killed, and ends it with all of its children.
func TestSupervisor(t *testing.T) {
	started := make(chan int, 10)
	s := newSupervisor(t.Logf, func(pids map[string]int) {
		if pid := pids["p"]; pid != 0 {
			started <- pid
		}
	})
	dir := t.TempDir()
	s.keep(context.Background(), &process{name: "p", path: "/bin/sh", args: []string{"-c", "sleep 1000 & wait"}, dir: dir, stdout: "log", stderr: "log"})
	first := <-started
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := <-started
	if first == second {
		t.Fatal("not started again")
	}
	s.stopAll(func(string) bool { return true })
	eventually(t, "the end of the process group", func() bool { return len(groupMembers(t, second)) == 0 }) // all were asked, and only the first was waited for
	_ = syscall.Kill(-first, syscall.SIGKILL)                                                               // its sleep was orphaned by our kill -9
}

// groupMembers lists the processes of a group that are not zombies; nobody may have reaped those yet.
func groupMembers(t *testing.T, group int) (alive []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		rest := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // state, parent, group
		if len(rest) > 2 && rest[2] == fmt.Sprint(group) && rest[0] != "Z" {
			alive = append(alive, string(b))
		}
	}
	return alive
}

func TestHurryKillsWhatDoesNotStop(t *testing.T) {
	started := make(chan bool, 10)
	s := newSupervisor(t.Logf, func(pids map[string]int) { started <- pids["p"] != 0 })
	dir := t.TempDir()
	s.keep(context.Background(), &process{name: "p", path: "/bin/sh", args: []string{"-c", "trap '' TERM; echo ready; while :; do sleep 1; done"}, dir: dir, stdout: "log", stderr: "log"})
	<-started
	for { // until the trap is set
		if b, _ := os.ReadFile(filepath.Join(dir, "log")); len(b) > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	s.kill()
	began := time.Now()
	s.stopAll(func(string) bool { return true })
	if took := time.Since(began); took >= stopPatience {
		t.Errorf("took %s", took)
	}
}

func TestStateIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	first, err := loadState(dir, 0)
	if err != nil || len(first.Replicas) != 3 {
		t.Fatal(err, first)
	}
	if err := first.save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := loadState(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(first, again); d != "" {
		t.Error(d)
	}
	wantFresh := func(what string, replicas int) {
		if _, err := loadState(dir, replicas); err == nil || !strings.Contains(err.Error(), "--fresh") {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantFresh("another number of replicas", 5)
	l, err := net.Listen("tcp", again.Replicas[1].Raft)
	if err != nil {
		t.Fatal(err)
	}
	wantFresh("a port that is taken", 0)
	_ = l.Close()
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(`{"apiVersion":"x"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	wantFresh("a state of another version", 0)
}

func TestFreshEmptiesOnlyItsOwn(t *testing.T) {
	stranger := t.TempDir()
	for _, f := range []string{"lock", "thesis.tex"} {
		if err := os.WriteFile(filepath.Join(stranger, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := wipe(stranger); err == nil || len(listDir(t, stranger)) != 2 {
		t.Error("a stranger's directory was emptied:", err)
	}
	own := t.TempDir()
	for _, f := range []string{"lock", stateFile, "seal.key"} {
		if err := os.WriteFile(filepath.Join(own, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := wipe(own); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"lock"}, listDir(t, own)); d != "" {
		t.Error(d)
	}
}

func TestOneDevForEachState(t *testing.T) {
	dir := t.TempDir()
	if err := lockState(dir); err != nil {
		t.Fatal(err)
	}
	if err := lockState(dir); err == nil || !strings.Contains(err.Error(), "another fleetgate dev uses") {
		t.Error(err)
	}
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := int32(l.Addr().(*net.TCPAddr).Port)
	f := &fleets{listen: "127.0.0.1", running: map[string]*devFleet{}}
	if why := f.unavailable(&devFleet{}, []int32{port}); !strings.Contains(why, "port taken") {
		t.Errorf("a port in use: %q", why)
	}
	f.running["a"] = &devFleet{name: "a", ports: []int32{1234}, running: []*process{{}}}
	if why := f.unavailable(&devFleet{}, []int32{1234}); !strings.Contains(why, "used by the Gateway of fleet a") {
		t.Errorf("a port of another Gateway: %q", why)
	}
}

func testView(t *testing.T, programmed, message string) view {
	t.Helper()
	return view{Leader: "replica-1", Clusters: []memberCluster{{Name: "dev", Synced: true}},
		Replicas: []replicaView{{ID: "replica-1", Role: "Leader", Live: true}},
		Gateways: []gatewayView{{Cluster: "dev", Namespace: "default", Name: "g", Class: "envoy", Addresses: []string{"127.0.0.1"}, Programmed: programmed, Message: message}}}
}

func TestPlainScreenPrintsOnceThenChanges(t *testing.T) {
	var out bytes.Buffer
	world := terminal{now: func() time.Time { return time.Unix(0, 0).UTC() }, getenv: func(string) string { return "" }}
	s := newScreen(&out, world, []string{"Try next:"})
	s.show(testView(t, "False", "1 of 2 proxies"))
	first := out.String()
	if !strings.Contains(first, "g      envoy   127.0.0.1   False") || !strings.Contains(first, "Try next:") {
		t.Errorf("first block:\n%s", first)
	}
	out.Reset()
	s.show(testView(t, "False", "1 of 2 proxies"))
	s.show(testView(t, "True", "2 of 2 proxies"))
	gone := testView(t, "", "")
	gone.Gateways, gone.Leader = nil, ""
	s.show(gone)
	want := "00:00:00  gateway default/g: programmed True: 2 of 2 proxies\n00:00:00  leader: <none>\n00:00:00  gateway default/g: gone\n" +
		"00:00:00  nobody leads the group: changes are not accepted\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

func TestLiveScreenRedrawsInPlace(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, now: func() time.Time { return time.Unix(0, 0).UTC() }, live: true, width: 60}
	s.show(testView(t, "False", "1 of 2 proxies"))
	lines := strings.Count(out.String(), "\n")
	out.Reset()
	s.show(testView(t, "False", "1 of 2 proxies"))
	if out.Len() != 0 {
		t.Errorf("redrawn although nothing changed: %q", out.String())
	}
	s.show(testView(t, "True", "2 of 2 proxies"))
	if !strings.HasPrefix(out.String(), fmt.Sprintf("\x1b[%dA\x1b[J", lines)) {
		t.Errorf("not redrawn in place: %q", out.String())
	}
	for line := range strings.Lines(out.String()) {
		if len(strings.TrimSpace(line)) > 60 {
			t.Errorf("a line that wraps: %q", line)
		}
	}
}

func TestAge(t *testing.T) {
	now := time.Unix(10_000_000, 0)
	var got []string
	for _, ago := range []time.Duration{0, 119 * time.Second, 125 * time.Second, 11 * time.Minute, 3*time.Hour + 5*time.Minute, 9 * time.Hour, 50 * time.Hour, 500 * time.Hour} {
		got = append(got, age(now, now.Add(-ago).Unix()))
	}
	if d := cmp.Diff([]string{"0s", "119s", "2m5s", "11m", "3h5m", "9h", "2d2h", "20d"}, got); d != "" {
		t.Error(d)
	}
}

func TestReplicasDoNotInheritOurVariables(t *testing.T) {
	got := cleanEnvironment([]string{"HOME=/h", "FLEETGATE_DATA_DIR=/x", "PATH=/p"})
	if d := cmp.Diff([]string{"HOME=/h", "PATH=/p"}, got); d != "" {
		t.Error(d)
	}
}

// TestDevSettingsAreValid: what dev writes is what serve takes.
func TestDevSettingsAreValid(t *testing.T) {
	state := t.TempDir()
	d, err := prepareDev(devOptions{dir: t.TempDir(), state: state, listen: "127.0.0.1", replicas: 3, serveSettings: []string{"heartbeat-timeout=200ms"}},
		terminal{out: io.Discard, now: time.Now, getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range d.saved.Replicas {
		cfg, err := loadConfig(nil, func(string) (string, bool) { return "", false }, filepath.Join(d.replicaDir(r), "serve.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if cfg.HeartbeatTimeout != 200*time.Millisecond || len(cfg.Peers) != 3 || len(cfg.Clusters) != 1 || len(cfg.Clusters[0].Dirs) != 2 {
			t.Errorf("%+v", cfg)
		}
	}
	if n := len(d.asking.servers()); n != 3 {
		t.Errorf("%d admin addresses", n)
	}
}
