package translate

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	oracle "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/fleetgate/fleetgate/loadtest/freeport"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
)

// rig is a real Envoy that runs one Gateway, shop/gw of class envoy, from manifests; in these "{name}" stands for a free port, the same wherever it stands.
type rig struct {
	t     *testing.T
	ports map[string]string
	state *assemble.State

	snapshots cache.SnapshotCache
	version   int // of the snapshot
}

// run compiles and assembles manifests and has the real Envoy serve them, by ADS from go-control-plane's server; more is more of its bootstrap.
func run(t *testing.T, manifests string, more ...string) *rig {
	t.Helper()
	r := &rig{t: t, ports: map[string]string{}, snapshots: cache.NewSnapshotCache(true, cache.IDHash{}, nil)}
	all := r.serve(manifests)
	startProxy(t, serveSnapshots(t, r.snapshots), more...)
	for _, m := range all[resource.ListenerType] {
		if at := m.(*listenerv3.Listener).Address.GetSocketAddress(); at.Protocol == corev3.SocketAddress_TCP {
			awaitListener(t, fmt.Sprintf("127.0.0.1:%d", at.GetPortValue()))
		}
	}
	return r
}

var snapshotKinds = []struct {
	url  string
	make func() types.Resource
}{
	assemble.TypeSecret:    {resource.SecretType, func() types.Resource { return &tlsv3.Secret{} }},
	assemble.TypeCluster:   {resource.ClusterType, func() types.Resource { return &clusterv3.Cluster{} }},
	assemble.TypeEndpoints: {resource.EndpointType, func() types.Resource { return &endpointv3.ClusterLoadAssignment{} }},
	assemble.TypeListener:  {resource.ListenerType, func() types.Resource { return &listenerv3.Listener{} }},
	assemble.TypeRoute:     {resource.RouteType, func() types.Resource { return &routev3.RouteConfiguration{} }},
}

// serve makes what manifests come to the next snapshot, and gives it.
func (r *rig) serve(manifests string) map[resource.Type][]types.Resource {
	r.t.Helper()
	r.assemble(manifests)
	all := map[resource.Type][]types.Resource{}
	for _, one := range r.state.Resources("c1/shop/gw") {
		kind := snapshotKinds[one.Type]
		m := kind.make()
		if err := proto.Unmarshal(slices.Concat(one.Bytes...), m); err != nil {
			r.t.Fatal(err)
		}
		all[kind.url] = append(all[kind.url], m)
	}
	r.version++
	snapshot, err := cache.NewSnapshot(strconv.Itoa(r.version), all)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.snapshots.SetSnapshot(r.t.Context(), "n", snapshot); err != nil {
		r.t.Fatal(err)
	}
	return all
}

// awaitListener returns when a worker accepts connections.
func awaitListener(t *testing.T, address string) {
	t.Helper()
	for t.Context().Err() == nil {
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// assemble makes the state of manifests.
func (r *rig) assemble(manifests string) {
	cfg := testConfig()
	cfg.Seal = func(plain, _ []byte) ([]byte, error) { return plain, nil }
	c := New(cfg)
	c.Apply(parseObjects(r.t, r.fill(manifests)))
	var changes []assemble.Change
	for k, p := range c.Records() {
		changes = append(changes, assemble.Change{Key: k, Cur: &assemble.Content{Hash: record.Hash(p.Payload), Payload: p.Payload, Refs: p.Refs, Index: 1}})
	}
	r.state = assemble.New(assemble.Config{ControllerNames: cfg.ControllerNames, ListenAddress: "127.0.0.1"})
	r.state.Apply(changes)
}

// fill puts ports in place of names.
func (r *rig) fill(text string) string {
	for {
		_, rest, found := strings.Cut(text, "{port ")
		if !found {
			return text
		}
		name, _, _ := strings.Cut(rest, "}")
		text = strings.ReplaceAll(text, "{port "+name+"}", r.port(name))
	}
}

// port is the number that a name stands for, for TCP or UDP.
func (r *rig) port(name string) string {
	if r.ports[name] == "" {
		r.ports[name] = fmt.Sprint(freeport.Take(r.t))
	}
	return r.ports[name]
}

func (r *rig) address(name string) string { return "127.0.0.1:" + r.port(name) }

func serveSnapshots(t *testing.T, snapshots cache.Cache) (address string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(srv, oracle.NewServer(ctx, snapshots, nil))
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() {
		cancel()
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String()
}

func startProxy(t *testing.T, xds string, more ...string) {
	t.Helper()
	host, port, _ := net.SplitHostPort(xds)
	config := "{" + strings.Join(append(more, ""), ", ") + fmt.Sprintf(`"node": {"id": "n", "cluster": "c"},
	"dynamic_resources": {"cds_config": {"ads": {}, "resource_api_version": "V3"}, "lds_config": {"ads": {}, "resource_api_version": "V3"},
	  "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]}},
	"static_resources": {"clusters": [{"name": "xds", "connect_timeout": "1s", "type": "STATIC",
	  "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}},
	  "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": %q, "port_value": %s}}}}]}]}}]}}`, host, port)
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	runUntil(t, exec.Command(realEnvoy(t), "--disable-hot-restart", "--concurrency", "1", "-l", "info", "-c", file), "all dependencies initialized. starting workers")
}

// backend answers each connection with its name and what the first line was.
func backend(t *testing.T, name string) (port string) {
	t.Helper()
	return secureBackend(t, name, nil)
}

// secureBackend is a backend that speaks TLS, unless config is nil.
func secureBackend(t *testing.T, name string, config *tls.Config) (port string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if config != nil {
		lis = tls.NewListener(lis, config)
	}
	t.Cleanup(func() { _ = lis.Close() })
	answer(lis, name)
	_, port, _ = net.SplitHostPort(lis.Addr().String())
	return port
}

func answer(lis net.Listener, name string) {
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				b := make([]byte, 64)
				if n, err := c.Read(b); err == nil {
					_, _ = fmt.Fprintf(c, "%s %s", name, b[:n])
				}
			}()
		}
	}()
}

// serveGRPC runs a server at an address until the test ends.
func serveGRPC(t *testing.T, s *grpc.Server, address string) (port string) {
	t.Helper()
	lis, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	_, port, _ = net.SplitHostPort(lis.Addr().String())
	return port
}

// packets answers each datagram with its name.
func packets(t *testing.T, name string) (port string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo([]byte(name+" "+string(b[:n])), from)
		}
	}()
	_, port, _ = net.SplitHostPort(conn.LocalAddr().String())
	return port
}

// say sends a line and gives the answer, "" where the connection is refused or cut.
func say(t *testing.T, network, address string, config *tls.Config) string {
	t.Helper()
	return sayWithin(t, time.Minute, network, address, config)
}

// sayWithin is say to who may never answer.
func sayWithin(t *testing.T, limit time.Duration, network, address string, config *tls.Config) string {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(limit))
	if config != nil {
		conn = tls.Client(conn, config)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return ""
	}
	var out bytes.Buffer
	b := make([]byte, 256)
	if n, err := conn.Read(b); err == nil {
		out.Write(b[:n])
	}
	return out.String()
}

// slicesOf writes a Service and its EndpointSlice.
func slicesOf(name, protocol, port string) string {
	return fmt.Sprintf(`kind: Service
metadata: {namespace: shop, name: %[1]s}
spec: {ports: [{port: 80, protocol: %[2]s}]}
---
kind: EndpointSlice
metadata: {namespace: shop, name: %[1]s-1, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{port: %[3]s, protocol: %[2]s}]
endpoints: [{addresses: [127.0.0.1]}]
---
`, name, protocol, port)
}

// secretOf writes a TLS secret.
func secretOf(name string, p pair) string {
	return fmt.Sprintf("kind: Secret\nmetadata: {namespace: shop, name: %s}\ntype: kubernetes.io/tls\ndata: {tls.crt: %s, tls.key: %s}\n---\n",
		name, base64.StdEncoding.EncodeToString(p.cert), base64.StdEncoding.EncodeToString(p.key))
}

// httpGateway is a Gateway with one listener, for tests that have nothing to say of it.
const httpGateway = envoyClass + `kind: Gateway
metadata: {namespace: shop, name: gw}
spec: {gatewayClassName: envoy, listeners: [{name: http, port: {port http}, protocol: HTTP}]}
---
`

const streamGateway = envoyClass + `kind: Gateway
metadata: {namespace: shop, name: gw}
spec:
  gatewayClassName: envoy
  listeners:
  - {name: tcp, port: {port tcp}, protocol: TCP}
  - {name: idle, port: {port idle}, protocol: TCP}
  - {name: udp, port: {port udp}, protocol: UDP}
  - {name: lost, port: {port lost}, protocol: UDP}
  - {name: pass, port: {port tls}, protocol: TLS, hostname: "*.pass.example", tls: {mode: Passthrough}}
  - {name: end, port: {port tls}, protocol: TLS, hostname: "*.end.example", tls: {mode: Terminate, certificateRefs: [{name: cert}]}}
---
`

const streamRoutes = `kind: TCPRoute
metadata: {namespace: shop, name: old, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {parentRefs: [{name: gw, sectionName: tcp}], rules: [{backendRefs: [{name: one, port: 80, weight: 1}, {name: two, port: 80, weight: 1}, {name: none, port: 80, weight: 1}, {name: gone, port: 80, weight: 1}, {name: one, port: 80, weight: 0}]}]}
---
kind: TCPRoute
metadata: {namespace: shop, name: young, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {parentRefs: [{name: gw, sectionName: tcp}], rules: [{backendRefs: [{name: three, port: 80}]}]}
---
kind: UDPRoute
metadata: {namespace: shop, name: u}
spec: {parentRefs: [{name: gw, sectionName: udp}], rules: [{backendRefs: [{name: datagrams, port: 80}]}]}
---
kind: UDPRoute
metadata: {namespace: shop, name: lost}
spec: {parentRefs: [{name: gw, sectionName: lost}], rules: [{backendRefs: [{name: gone, port: 80}]}]}
---
kind: TLSRoute
metadata: {namespace: shop, name: pass}
spec: {parentRefs: [{name: gw}], hostnames: ["a.pass.example", "a.end.example"], rules: [{backendRefs: [{name: secure, port: 80}]}]}
---
kind: TLSRoute
metadata: {namespace: shop, name: end, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {parentRefs: [{name: gw}], hostnames: ["*.end.example"], rules: [{backendRefs: [{name: one, port: 80}]}]}
---
kind: Service
metadata: {namespace: shop, name: none}
spec: {ports: [{port: 80}]}`

// TestRealEnvoyForwardsStreams: TCP by weight with the parts of what is not there refused, the oldest route, UDP, and TLS passed through and ended on one port.
func TestRealEnvoyForwardsStreams(t *testing.T) {
	cert, _ := tls.X509KeyPair(certificates()["ecdsa"].cert, certificates()["ecdsa"].key)
	securePort := secureBackend(t, "secure", &tls.Config{Certificates: []tls.Certificate{cert}})
	r := run(t, streamGateway+secretOf("cert", certificates()["ecdsa"])+slicesOf("one", "TCP", backend(t, "one"))+slicesOf("two", "TCP", backend(t, "two"))+
		slicesOf("three", "TCP", backend(t, "three"))+slicesOf("secure", "TCP", securePort)+slicesOf("datagrams", "UDP", packets(t, "datagrams"))+streamRoutes)

	counts := map[string]int{}
	for range 200 {
		counts[say(t, "tcp", r.address("tcp"), nil)]++
	}
	for answer, want := range map[string]int{"one hello": 50, "two hello": 50, "": 100} {
		if got := counts[answer]; got < want-3 || got > want+3 {
			t.Errorf("1:1:1:1 with two parts refused: %v", counts)
		}
	}
	for _, c := range []struct{ what, network, at, name, want string }{
		{"a listener without a route", "tcp", "idle", "", ""},
		{"UDP", "udp", "udp", "", "datagrams hello"},
		{"UDP to a Service that is not there", "udp", "lost", "", ""},
		{"TLS passed through", "tcp", "tls", "a.pass.example", "secure hello"},
		{"TLS ended, where the more specific route is meant for TLS backends", "tcp", "tls", "b.end.example", "one hello"},
		{"TLS passed through, no route", "tcp", "tls", "b.pass.example", ""},
		{"TLS of no listener", "tcp", "tls", "c.example", ""},
	} {
		var config *tls.Config
		if c.name != "" {
			config = &tls.Config{ServerName: c.name, InsecureSkipVerify: true} //nolint:gosec // who answers is what is asked, not who it claims to be
		}
		limit := time.Minute
		if c.at == "lost" {
			limit = 300 * time.Millisecond // a dropped datagram answers nothing, ever
		}
		if got := sayWithin(t, limit, c.network, r.address(c.at), config); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

const secureGateway = envoyClass + `kind: Gateway
metadata: {namespace: shop, name: gw}
spec:
  gatewayClassName: envoy
  tls: {backend: {clientCertificateRef: {name: cert}}}
  listeners:
  - {name: http, port: {port http}, protocol: HTTP}
  - {name: end, port: {port tls}, protocol: TLS, hostname: "*.end.example", tls: {mode: Terminate, certificateRefs: [{name: cert}]}}
---
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{name: gw, sectionName: http}]
  rules:
  - {matches: [{path: {value: /right}}], backendRefs: [{name: right, port: 80}]}
  - {matches: [{path: {value: /name}}], backendRefs: [{name: name, port: 80}]}
  - {matches: [{path: {value: /system}}], backendRefs: [{name: system, port: 80}]}
  - {matches: [{path: {value: /nobody}}], backendRefs: [{name: nobody, port: 80}]}
---
kind: TLSRoute
metadata: {namespace: shop, name: end}
spec: {parentRefs: [{name: gw, sectionName: end}], hostnames: [a.end.example], rules: [{backendRefs: [{name: echo, port: 80, weight: 1}, {name: plain, port: 80, weight: 1}]}]}
---
`

func tlsPolicy(service, validation string) string {
	return fmt.Sprintf("kind: BackendTLSPolicy\nmetadata: {namespace: shop, name: %[1]s}\nspec: {targetRefs: [{group: \"\", kind: Service, name: %[1]s}], validation: %[2]s}\n---\n", service, validation)
}

// TestRealEnvoyVerifiesBackends: only a backend whose certificate is signed and named as its policy says gets a request, and it sees the Gateway's certificate.
func TestRealEnvoyVerifiesBackends(t *testing.T) {
	p := certificates()["ecdsa"]
	cert, _ := tls.X509KeyPair(p.cert, p.key)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "clients=%d sni=%s", len(r.TLS.PeerCertificates), r.TLS.ServerName)
	}))
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	secure.StartTLS()
	defer secure.Close()
	_, port, _ := net.SplitHostPort(secure.Listener.Addr().String())
	echo := secureBackend(t, "secure", secure.TLS)

	manifests := secureGateway + slicesOf("echo", "TCP", echo) + tlsPolicy("echo", "{caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}], hostname: a.example}") + secretOf("cert", p) + slicesOf("plain", "TCP", backend(t, "plain"))
	for _, name := range []string{"right", "name", "system", "nobody"} {
		manifests += slicesOf(name, "TCP", port)
	}
	manifests += tlsPolicy("right", "{caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}], hostname: a.example}") +
		tlsPolicy("name", "{caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}], hostname: b.example}") +
		tlsPolicy("system", "{wellKnownCACertificates: System, hostname: a.example}") +
		tlsPolicy("nobody", "{caCertificateRefs: [{group: \"\", kind: ConfigMap, name: gone}], hostname: a.example}")
	manifests += "kind: ConfigMap\nmetadata: {namespace: shop, name: ca}\ndata: {ca.crt: \"" + strings.ReplaceAll(string(p.cert), "\n", "\\n") + "\"}"
	r := run(t, manifests)
	for path, want := range map[string]string{"/right": "200 clients=1 sni=a.example", "/name": "503", "/system": "503", "/nobody": "500"} {
		got := ask(t, "http://"+r.address("http"), "GET "+path)
		for _, part := range strings.Fields(want) {
			if !strings.Contains(got, part) {
				t.Errorf("%s: %q in\n%s", path, part, got)
			}
		}
	}
	counts := map[string]int{}
	for range 20 {
		counts[say(t, "tcp", r.address("tls"), &tls.Config{ServerName: "a.end.example", InsecureSkipVerify: true})]++ //nolint:gosec // which backend answers is what is asked
	}
	if n := counts["plain hello"]; n < 8 || n > 12 || counts["secure hello"] != 20-n {
		t.Errorf("TLS to one backend and none to the other: %v", counts)
	}
}
