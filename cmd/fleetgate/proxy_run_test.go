package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetgate/fleetgate/cluster/enroll"
	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/fleetgate/fleetgate/loadtest/freeport"
)

// fleetPod is a pod's program with the real Envoy, and the real replica that it hears of a Gateway from.
type fleetPod struct {
	*proxyRun
	dir, replica, admin, listener string
	stop                          func()
	ended                         chan error
}

// startFleetPod returns when Envoy serves the Gateway's listener.
func startFleetPod(t *testing.T, drainDelay time.Duration) *fleetPod {
	t.Helper()
	binary := os.Getenv("FLEETGATE_ENVOY")
	if binary == "" {
		binary = "envoy"
	}
	dir, err := os.MkdirTemp("", "proxy-run-") // t.TempDir is too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var ports []string
	for range 5 {
		ports = append(ports, freeport.Address(t))
	}
	startReplica(t, dir, ports[0], ports[1], ports[2], ports[3])
	p := &fleetPod{dir: dir, replica: ports[1], admin: ports[2], listener: ports[3], ended: make(chan error, 1)}
	p.proxyRun = &proxyRun{
		cluster: "c", namespace: "shop", gateway: "gw", xds: []string{ports[1]}, serverName: xdsServerName, poll: 50 * time.Millisecond,
		certificates: startIssuer(t, dir), stateDir: filepath.Join(dir, "state"), authority: filepath.Join(dir, "authority.pem"), token: filepath.Join(dir, "token"),
		envoy: binary, health: ports[4], concurrency: 1, drainDelay: drainDelay, drainTimeout: 10 * time.Minute, pod: "gw-1", uid: "u1",
		log: slog.New(slog.DiscardHandler),
	}
	write(t, p.token, "good")
	write(t, p.authority, read(t, filepath.Join(dir, "proxies-ca.crt")))
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go func() { p.ended <- p.run(ctx) }()
	t.Cleanup(stop)
	await(t, "ready", "http://"+p.health+"/ready", http.StatusOK)
	await(t, "the listener's own answer", "http://"+p.listener, http.StatusNotFound)
	return p
}

// ends waits until the pod's program has ended, and Envoy with it.
func (p *fleetPod) ends(t *testing.T, held string) {
	t.Helper()
	select {
	case err := <-p.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s holds the drain up", held)
	}
}

// TestProxyOfADeletedGatewayEnds: where there is nothing that a load balancer could lead to, nobody waits for one.
func TestProxyOfADeletedGatewayEnds(t *testing.T) {
	p := startFleetPod(t, 10*time.Minute)
	watch := &proxyWatch{admin: adminClient(filepath.Join(p.stateDir, adminSocket))}
	if n, err := watch.listeners(); n == 0 || err != nil {
		t.Fatalf("%d listeners: %v", n, err)
	}
	p.stop()
	await(t, "unready while it waits for load balancers", "http://"+p.health+"/ready", http.StatusServiceUnavailable)
	if err := os.Remove(filepath.Join(p.dir, "manifests", "gw.yaml")); err != nil {
		t.Fatal(err)
	}
	p.ends(t, "a listener that is gone")
}

// TestProxyRun lets a pod's program live its life: it gets a certificate, becomes ready, serves what the replica sends, takes up another trust without a restart, and drains.
func TestProxyRun(t *testing.T) {
	p := startFleetPod(t, 5*time.Second) // long enough for the test to look while load balancers have not heard of it
	updates := func() string {
		resp, err := adminClient(filepath.Join(p.stateDir, adminSocket)).Get("http://envoy/stats?filter=sds.fleetgate_trust.update_success")
		if err != nil {
			return err.Error()
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		return strings.TrimSpace(string(b))
	}
	before := updates()
	other, err := pki.NewAuthority(filepath.Join(p.dir, "next"), "proxies")
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.authority, read(t, filepath.Join(p.dir, "proxies-ca.crt"))+read(t, other.CertFile()))
	eventually(t, "Envoy has read the new authority", func() bool { return updates() != before })
	await(t, "ready with the new authority", "http://"+p.health+"/ready", http.StatusOK)

	idle := idleConnection(t, p.listener) // now: the next Envoy shares the port
	joinElsewhere(t, p.dir, p.envoy, p.admin, p.replica)

	p.stop()
	await(t, "unready while it drains", "http://"+p.health+"/ready", http.StatusServiceUnavailable)
	if code := codeOf("http://" + p.listener); code != http.StatusNotFound {
		t.Errorf("while load balancers have not heard of it, it answers %d", code)
	}
	p.ends(t, "an idle connection")
	if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the idle connection was not closed in order: %v", err)
	}
}

// idleConnection is one that a client keeps after a request.
func idleConnection(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: idle\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Close {
		t.Fatalf("the connection cannot be kept: %v, close %t", err, resp.Close)
	}
	return conn
}

// TestUnderwayCountsWhatClientsWaitFor: an idle connection is nothing to wait for; a request, an upgraded connection and a stream of TCP are.
func TestUnderwayCountsWhatClientsWaitFor(t *testing.T) {
	const listener, http1 = "listener.[__]_8080.downstream_cx_active", "http.l.downstream_cx_active"
	const request, admin = "http.l.downstream_rq_active", "http.admin.downstream_rq_active"
	for name, c := range map[string]struct {
		stats []stat
		want  int64
	}{
		"nothing":                      {nil, 0},
		"an idle connection":           {[]stat{{listener, 1}, {"listener.[__]_8080.worker_0.downstream_cx_active", 1}, {http1, 1}, {request, 0}}, 0},
		"a request":                    {[]stat{{listener, 1}, {http1, 1}, {request, 1}}, 1},
		"a stream of TCP":              {[]stat{{listener, 2}, {http1, 1}, {request, 0}}, 1},
		"the question itself":          {[]stat{{"listener.admin.downstream_cx_active", 1}, {"http.admin.downstream_cx_active", 1}, {admin, 1}}, 0},
		"a gauge that lags a listener": {[]stat{{listener, 0}, {http1, 1}, {request, 0}}, 0},
	} {
		if got := underway(c.stats); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// joinElsewhere has an Envoy that nobody provisioned join by what `fleetgate gateway bootstrap` prints.
func joinElsewhere(t *testing.T, dir, binary, admin, xdsPort string) {
	t.Helper()
	var out, errs strings.Builder
	world := terminal{out: &out, err: &errs, now: time.Now, getenv: func(string) string { return "" }}
	code := run(context.Background(), []string{"gateway", "bootstrap", "gw", "-n", "shop", "--server", admin, "--proxy", "vm-1", "--xds", xdsPort, "--authority", dir,
		"--certificates", filepath.Join(dir, "vm")}, world)
	if code != exitFine {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	file := filepath.Join(dir, "vm.json")
	write(t, file, out.String())
	cmd := exec.Command(binary, "-c", file, "--disable-hot-restart", "--concurrency", "1", "-l", "error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(t, "the Envoy from elsewhere is in the fleet", func() bool {
		out.Reset()
		return run(context.Background(), []string{"proxy", "list", "--server", admin}, world) == exitFine && strings.Contains(out.String(), "vm-1")
	})
}

// startReplica runs a real replica on a directory that holds one Gateway.
func startReplica(t *testing.T, dir string, raft, xdsPort, admin, listener string) {
	t.Helper()
	certs, err := newDevCerts(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := certs.issueReplica(dir, "r1"); err != nil {
		t.Fatal(err)
	}
	manifests := filepath.Join(dir, "manifests")
	write(t, filepath.Join(manifests, "gw.yaml"), fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: envoy}
spec: {controllerName: fleetgate.io/gatewayclass-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: shop, name: gw}
spec: {gatewayClassName: envoy, listeners: [{name: http, port: %s, protocol: HTTP}]}
`, listener[strings.LastIndex(listener, ":")+1:]))
	env := map[string]string{
		"DATA_DIR": filepath.Join(dir, "data"), "POD": "r1", "ADVERTISE": raft, "XDS_LISTEN": xdsPort, "ADMIN_LISTEN": admin,
		"PEER_CERT": filepath.Join(dir, "peer.crt"), "PEER_KEY": filepath.Join(dir, "peer.key"), "PEER_CA": certs.peers.CertFile(),
		"PROXY_CERT": filepath.Join(dir, "xds.crt"), "PROXY_KEY": filepath.Join(dir, "xds.key"), "PROXY_CA": certs.proxies.CertFile(),
		"SEAL_KEY_FILE": filepath.Join(dir, "seal.key"), "CLUSTER": "name=c,dir=" + manifests + ",status-dir=" + filepath.Join(dir, "status"), "LOG_LEVEL": "error",
		"LISTEN_ADDRESS": "127.0.0.1",
	}
	keys, err := makeKeys()
	if err != nil {
		t.Fatal(err)
	}
	write(t, env["SEAL_KEY_FILE"], string(keys[sealKeyFile]))
	cfg, err := loadConfig(nil, func(name string) (string, bool) { v, ok := env[strings.TrimPrefix(name, "FLEETGATE_")]; return v, ok }, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runServe(ctx, cfg, io.Discard) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the replica ended: %v", err)
		}
	})
	await(t, "a replica", "http://"+admin+"/readyz", http.StatusOK)
}

// startIssuer issues certificates as a replica does; the API server behind it knows one token.
func startIssuer(t *testing.T, dir string) string {
	t.Helper()
	authority, err := pki.OpenAuthority(filepath.Join(dir, "proxies-ca.crt"), filepath.Join(dir, "proxies-ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	source, err := pki.Load(filepath.Join(dir, "xds.crt"), filepath.Join(dir, "xds.key"), authority.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(&enroll.Server{Sign: authority.Sign, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Review: func(_ context.Context, cluster, token string) (enroll.Pod, error) {
			if cluster != "c" || token != "good" {
				return enroll.Pod{}, enroll.ErrDenied
			}
			return enroll.Pod{Namespace: "shop", ServiceAccount: "gw-envoy", UID: "u1"}, nil
		},
		Gateway: func(string, string, string) (string, bool) { return "gw", true },
	})
	server.TLS = enroll.TLS(source.ServerConfig())
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// codeOf gives the status of an answer, 0 = none.
func codeOf(url string) int {
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Get(url)
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode
}

func await(t *testing.T, what, url string, want int) {
	t.Helper()
	eventually(t, what+" at "+url, func() bool { return codeOf(url) == want })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
