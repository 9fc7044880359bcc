package translate

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
)

const budgetGateway = httpGateway + `kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 80}], retry: {attempts: 1, codes: [503]}}]}
---
kind: XBackendTrafficPolicy
metadata: {namespace: shop, name: budget}
spec: {targetRefs: [{group: "", kind: Service, name: web}], retryConstraint: {budget: {percent: 0, interval: 10s}, minRetryRate: {count: 1, interval: 1s}}}
---
`

// failing answers two requests together with 503. The first retry waits until a client has got its answer, and succeeds; a second would release it.
type failing struct {
	mu       sync.Mutex
	requests int
	both     chan struct{} // two requests are there
	answered chan struct{} // a client has its answer, or a second retry came
	once     sync.Once
}

func (f *failing) release() { f.once.Do(func() { close(f.answered) }) }

func (f *failing) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	f.requests++
	n := f.requests
	f.mu.Unlock()
	switch {
	case n == 2:
		close(f.both)
		fallthrough
	case n == 1:
		<-f.both
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case n > 3:
		f.release()
	}
	<-f.answered
}

// TestRealEnvoyKeepsRetryBudgets: with a budget of nothing but one retry at a time, of two requests that fail together one is retried, and the other's client gets the 503.
func TestRealEnvoyKeepsRetryBudgets(t *testing.T) {
	backend := &failing{both: make(chan struct{}), answered: make(chan struct{})}
	server := httptest.NewServer(backend)
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	r := run(t, strings.TrimSuffix(budgetGateway+slicesOf("web", "TCP", port), "---\n"))
	codes := make(chan int, 2)
	for range 2 {
		go func() {
			resp, err := http.Get("http://" + r.address("http") + "/")
			if err != nil {
				codes <- 0
				return
			}
			_ = resp.Body.Close()
			codes <- resp.StatusCode
		}()
	}
	got := []int{<-codes}
	backend.release()
	got = append(got, <-codes)
	if !slices.Equal(got, []int{http.StatusServiceUnavailable, http.StatusOK}) || backend.requests != 3 {
		t.Errorf("answers %v after %d requests at the backend, want a 503 at once, then a 200, after 3", got, backend.requests)
	}
}

// nameServer answers every question for an IPv4 address with 127.0.0.1, and says that there is none of another kind. It gives the bootstrap that asks it.
func nameServer(t *testing.T) (bootstrap string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if answer, err := resolved(b[:n]); err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	_, port, _ := net.SplitHostPort(conn.LocalAddr().String())
	return fmt.Sprintf(`"typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
	"resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": %s}}]}}`, port)
}

func resolved(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	m.Response, m.Additionals = true, nil
	for _, q := range m.Questions {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
		}
	}
	return m.Pack()
}

const xbackendGateway = httpGateway + ``

// xbackend writes an XBackend at a port, and a route that sends there what begins with its name.
func xbackend(name, port, more string) string {
	return fmt.Sprintf(`kind: XBackend
metadata: {namespace: shop, name: %[1]s}
spec: {type: ExternalHostname, port: {number: %[2]s}, externalHostname: {hostname: %[1]s.example}%[3]s}
---
kind: HTTPRoute
metadata: {namespace: shop, name: %[1]s}
spec: {parentRefs: [{name: gw}], rules: [{matches: [{path: {value: /%[1]s}}], backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: %[1]s}]}]}
---
`, name, port, more)
}

// TestRealEnvoyReachesExternalHosts: a name is looked up and reached in the protocol that is said, by TLS only where the certificate is the right one.
func TestRealEnvoyReachesExternalHosts(t *testing.T) {
	p := certificates()["ecdsa"]
	cert, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	protocol := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })
	plain, secure := httptest.NewServer(protocol), httptest.NewUnstartedServer(protocol)
	secure.TLS, secure.EnableHTTP2 = &tls.Config{Certificates: []tls.Certificate{cert}}, true
	secure.StartTLS()
	defer plain.Close()
	defer secure.Close()
	_, port, _ := net.SplitHostPort(plain.Listener.Addr().String())
	_, securePort, _ := net.SplitHostPort(secure.Listener.Addr().String())
	validated := func(host string) string {
		return fmt.Sprintf(`, tls: {mode: ServerOnly, validation: {caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}], hostname: %s}}`, host)
	}
	r := run(t, xbackendGateway+xbackend("plain", port, "")+xbackend("negotiated", securePort, ", protocol: HTTP"+validated("a.example"))+xbackend("old", securePort, ", protocol: HTTP11"+validated("a.example"))+
		xbackend("wrong", securePort, validated("b.example"))+xbackend("refused", port, ", protocol: TCP")+
		"kind: ConfigMap\nmetadata: {namespace: shop, name: ca}\ndata: {ca.crt: \""+strings.ReplaceAll(string(p.cert), "\n", "\\n")+"\"}", nameServer(t))
	for path, want := range map[string]string{"/plain": "200 HTTP/1.1", "/negotiated": "200 HTTP/2.0", "/old": "200 HTTP/1.1", "/wrong": "503", "/refused": "500"} {
		got := ask(t, "http://"+r.address("http"), "GET "+path)
		for _, part := range strings.Fields(want) {
			if !strings.Contains(got, part) {
				t.Errorf("%s: %q in\n%s", path, part, got)
			}
		}
	}
}

// collector takes reports of OTLP and gives their spans as text: trace, name, and attributes, with the authority and the token of the report.
type collector struct{ spans chan string }

// export is TraceService/Export. An ExportTraceServiceRequest is TracesData on the wire, and an empty answer says that all is well.
func (c *collector) export(_ any, stream grpc.ServerStream) error {
	var report tracev1.TracesData
	if err := stream.RecvMsg(&report); err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	for _, resource := range report.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				text := fmt.Sprintf("at=%s token=%s trace=%x name=%s", strings.Join(md.Get(":authority"), ","), strings.Join(md.Get("token"), ","), s.TraceId, s.Name)
				for _, a := range append(resource.Resource.Attributes, s.Attributes...) {
					text += fmt.Sprintf(" %s=%s", a.Key, a.Value.GetStringValue())
				}
				c.spans <- text
			}
		}
	}
	return stream.SendMsg(&emptypb.Empty{})
}

const tracedGateway = httpGateway + `kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
kind: XTelemetryPolicy
metadata: {namespace: shop, name: traced}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw}]
  tracing:
    mode: Enabled
    provider: {backendRef: {name: collector, port: 80}, headers: [{name: Token, value: secret}]}
    serviceName: edge
    spanName: ingress
    samplingRate: {numerator: RATE}
    parentBasedSampling: {mode: PARENTS}
    attributes: [{name: user, sourceType: Header, headerName: x-user}, {name: site, sourceType: Literal, literalValue: "a%"}, {name: path, sourceType: Attribute, attributeKey: url.path}]
---
`

// traced runs a Gateway with a sampling, sends requests with and without a caller's span, and gives the first span of a request that the collector gets.
func traced(t *testing.T, rate, parents string, requests ...string) string {
	t.Helper()
	c := &collector{spans: make(chan string, 1000)}
	spans := serveGRPC(t, grpc.NewServer(grpc.UnknownServiceHandler(c.export)), "127.0.0.1:0")
	web := httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(web.Close)
	_, port, _ := net.SplitHostPort(web.Listener.Addr().String())
	manifests := strings.NewReplacer("RATE", rate, "PARENTS", parents).Replace(tracedGateway)
	r := run(t, strings.TrimSuffix(manifests+slicesOf("web", "TCP", port)+slicesOf("collector", "TCP", spans), "---\n"))
	for _, request := range requests {
		ask(t, "http://"+r.address("http"), request)
	}
	for s := range c.spans { // those of the way to the backend have another name
		if strings.Contains(s, " name=ingress ") {
			return s
		}
	}
	return ""
}

// TestRealEnvoyTraces: spans reach the collector with all that the policy puts into them. A share of none leaves those that the caller sampled, unless his decision is not asked for.
func TestRealEnvoyTraces(t *testing.T) {
	const caller = "traceparent:00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
	for _, c := range []struct {
		name, rate, parents string
		requests            []string
		want                string
	}{
		{"all", "100", "Enabled", []string{"GET /a?q x-user:me"}, "at=collector.shop token=secret name=ingress service.name=edge user=me site=a% path=/a"},
		{"the caller decides", "0", "Enabled", []string{"GET /new", "GET /unsampled " + caller + "00", "GET /sampled " + caller + "01"}, "trace=0af7651916cd43dd8448eb211c80319c path=/sampled"},
		{"the caller is not asked", "100", "Disabled", []string{"GET /unsampled " + caller + "00"}, "trace=0af7651916cd43dd8448eb211c80319c path=/unsampled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := traced(t, c.rate, c.parents, c.requests...)
			for _, part := range strings.Fields(c.want) {
				if !strings.Contains(got+" ", part+" ") {
					t.Errorf("%q in %s", part, got)
				}
			}
		})
	}
}
