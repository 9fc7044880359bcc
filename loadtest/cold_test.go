package loadtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/fleetgate/fleetgate/xds"
)

// TestMeasureColdServe: without a quorum, with the manifests gone, one restarted replica gives restarted Envoys their full configuration from its disk,
// says that it accepts no change and why; and a client that connects from its exec on has a complete first answer soon.
func TestMeasureColdServe(t *testing.T) {
	routes := times(1000)
	manifests := map[string]string{"gateway.yaml": base, "backends.yaml": backend("default", "web")}
	var all strings.Builder
	for i := range routes {
		all.WriteString("---\n" + route("default", fmt.Sprintf("r%d", i), fmt.Sprintf("/r%d", i), "web"))
	}
	manifests["routes.yaml"] = all.String()
	// The demo pods live in dev, which will be stopped: this one is answered by Envoy itself.
	manifests["moved.yaml"] = strings.Replace(route("default", "moved", "/moved"), "    backendRefs:\n", "    filters: [{type: RequestRedirect, requestRedirect: {hostname: elsewhere.example, statusCode: 302}}]\n", 1)
	r := start(t, manifests)
	last := fmt.Sprintf("/r%d", routes-1)
	r.until("the last route is served", soon, func() bool { code, _ := r.get(last); return code == http.StatusOK })
	_ = r.waitLive("default", fmt.Sprintf("r%d", routes-1), 1, soon)

	// dev restarts what dies: it must not, so it is stopped, and what is to live is started by hand.
	names := r.pids()
	_ = syscall.Kill(r.cmd.Process.Pid, syscall.SIGSTOP)
	defer func() { _ = syscall.Kill(r.cmd.Process.Pid, syscall.SIGCONT) }()
	for n := 1; n <= 3; n++ {
		if err := syscall.Kill(names[fmt.Sprintf("replica-%d", n)], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range r.adminAddresses() {
		r.until("the killed replica has let go of its ports", soon, func() bool { _, err := viewOf(a); return err != nil })
	}
	if err := os.Rename(r.dir, r.dir+".away"); err != nil {
		t.Fatal(err)
	}
	took := make([]time.Duration, 0, 5)
	for range 5 {
		took = append(took, r.coldStart(last))
	}
	row(t, "exec -> complete first xDS answer", "%d routes, no quorum: p50 %v, max %v", routes, quantile(took, .5), quantile(took, 1))
	r.freshEnvoys("/moved")
	if err := os.Rename(r.dir+".away", r.dir); err != nil {
		t.Fatal(err)
	}
}

// lonely starts replica 1 as dev would; end stops it.
func (r *rig) lonely() (end func()) {
	r.t.Helper()
	bin, err := build()
	if err != nil {
		r.t.Fatal(err)
	}
	dir := filepath.Join(r.state, "replica-1")
	return r.spawn(filepath.Join(dir, "serve.log"), "", bin, "serve", "--config", filepath.Join(dir, "serve.yaml"))
}

// spawn runs a program; end kills it.
func (r *rig) spawn(logFile, dir string, argv ...string) (end func()) {
	r.t.Helper()
	log, err := os.OpenFile(logFile, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	proc, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Dir: dir, Files: []*os.File{nil, log, log}, Env: os.Environ()})
	if err != nil {
		r.t.Fatal(err)
	}
	return func() { _ = proc.Kill(); _, _ = proc.Wait() }
}

// coldStart starts replica 1 alone and asks it as an Envoy would, from the exec on.
func (r *rig) coldStart(last string) time.Duration {
	r.t.Helper()
	creds := r.proxyCredentials()
	begin := time.Now()
	defer r.lonely()()
	for time.Since(begin) < soon {
		if body, err := r.firstAnswer(creds); err == nil {
			took := time.Since(begin)
			if !strings.Contains(body, strings.TrimPrefix(last, "/")) {
				r.t.Error("the first answer lacks the last route")
			}
			v, err := viewOf(r.adminAddresses()[0])
			if err != nil || v.Leader != "" || !strings.Contains(v.Notice, "no change can be accepted") {
				r.t.Errorf("view of the lonely replica: %+v, %v", v, err)
			}
			return took
		}
		time.Sleep(time.Millisecond)
	}
	r.t.Fatal("no complete answer within a minute")
	return 0
}

// freshEnvoys kills both Envoys and starts new ones, which know only what the lonely replica tells them.
func (r *rig) freshEnvoys(path string) {
	r.t.Helper()
	for _, pid := range r.pidsOf("default/") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	r.until("nobody serves", soon, func() bool { return r.status(path) == 0 })
	defer r.lonely()()
	for _, name := range []string{"gw-1", "gw-2"} {
		dir := filepath.Join(r.state, "proxy", "dev.default."+name)
		_ = os.Remove(filepath.Join(dir, "admin.sock"))
		defer r.spawn(filepath.Join(dir, "envoy.log"), dir, os.Getenv("FLEETGATE_ENVOY"), "-c", "bootstrap.json", "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")()
	}
	took := r.until("both fresh Envoys serve", soon, func() bool {
		v, err := viewOf(r.adminAddresses()[0])
		return err == nil && len(v.Proxies) == 2 && r.status(path) == http.StatusFound
	})
	row(r.t, "fresh Envoys served by one replica", "%v", took)
}

func (r *rig) proxyCredentials() credentials.TransportCredentials {
	dir := filepath.Join(r.state, "proxy", "dev.default.gw-1")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "proxy.crt"), filepath.Join(dir, "proxy.key"))
	if err != nil {
		r.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	cas, _ := filepath.Glob(filepath.Join(r.state, "pki", "*ca.crt"))
	for _, f := range cas {
		b, err := os.ReadFile(f)
		if err != nil {
			r.t.Fatal(err)
		}
		roots.AppendCertsFromPEM(b)
	}
	return credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: "xds.fleetgate", MinVersion: tls.VersionTLS13})
}

// firstAnswer asks for clusters, listeners and the listener's routes, and gives the routes.
func (r *rig) firstAnswer(creds credentials.TransportCredentials) (string, error) {
	b, err := os.ReadFile(filepath.Join(r.state, "dev.json"))
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(b), `"xds": "`)
	addr, _, _ := strings.Cut(rest, `"`)
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return "", err
	}
	ask := func(t xds.Type, names ...string) error {
		return stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.URLs[t], ResourceNamesSubscribe: names})
	}
	if err := ask(xds.Cluster); err != nil {
		return "", err
	}
	if err := ask(xds.Listener); err != nil {
		return "", err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return "", err
		}
		if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce}); err != nil {
			return "", err
		}
		var names []string
		for _, res := range resp.Resources {
			names = append(names, res.Name)
		}
		switch resp.TypeUrl {
		case xds.URLs[xds.Cluster]:
			err = ask(xds.Endpoints, names...)
		case xds.URLs[xds.Listener]:
			err = ask(xds.Route, routeConfigs(resp)...)
		case xds.URLs[xds.Route]:
			return string(resp.Resources[0].Resource.Value), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// routeConfigs reads the names of the RouteConfigurations that listeners ask for.
func routeConfigs(resp *discovery.DeltaDiscoveryResponse) (out []string) {
	for _, res := range resp.Resources {
		var l listener.Listener
		if res.Resource.UnmarshalTo(&l) != nil {
			continue
		}
		chains := l.FilterChains
		if l.DefaultFilterChain != nil {
			chains = append(chains, l.DefaultFilterChain)
		}
		for _, c := range chains {
			for _, f := range c.Filters {
				var h hcm.HttpConnectionManager
				if f.GetTypedConfig().UnmarshalTo(&h) == nil && h.GetRds() != nil {
					out = append(out, h.GetRds().RouteConfigName)
				}
			}
		}
	}
	return out
}

// status asks without following redirects; 0 = nobody answered.
func (r *rig) status(path string) int {
	c := http.Client{Timeout: time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer c.CloseIdleConnections()
	resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d%s", r.port, path))
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode
}
