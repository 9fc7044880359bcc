package translate

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/fleetgate/fleetgate/translate/assemble"
)

// obedient is a server of ext_authz that does what a header tells it: it refuses ("deny") or sets a header ("name=value").
type obedient struct {
	authv3.UnimplementedAuthorizationServer
	header string
	asked  atomic.Int64
}

func (o *obedient) serve(t *testing.T) (port string) {
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, o)
	return serveGRPC(t, s, "127.0.0.1:0")
}

func (o *obedient) Check(_ context.Context, in *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	o.asked.Add(1)
	order := in.Attributes.Request.Http.Headers[o.header]
	if order == "deny" {
		return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}}, nil
	}
	ok := &authv3.OkHttpResponse{}
	if name, value, tells := strings.Cut(order, "="); tells {
		ok.Headers = []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}}
	}
	return &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok}}, nil
}

// obey is the same of an HTTP server, by the header x-first; it counts how often it is asked.
func obey(asked *atomic.Int64) func(http.ResponseWriter, *http.Request) int {
	return func(w http.ResponseWriter, r *http.Request) int {
		asked.Add(1)
		order := r.Header.Get("x-first")
		if order == "deny" {
			return http.StatusUnauthorized
		}
		if name, value, tells := strings.Cut(order, "="); tells {
			w.Header().Set(name, value)
		}
		return http.StatusOK
	}
}

const filteredGateway = envoyClass + `kind: Gateway
metadata: {namespace: shop, name: gw}
spec:
  gatewayClassName: envoy
  listeners:
  - name: one
    port: {port http}
    protocol: HTTP
    hostname: "*.one.example"
    filters:
      requests:
      - {type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: first, port: 80}, http: {allowedHeaders: [x-first]}}}
      - {type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: second, port: 80}, grpc: {}}}
  - name: two
    port: {port http}
    protocol: HTTP
    hostname: two.example
    filters:
      requests:
      - {type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: second, port: 80}, grpc: {}}}
      - {type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: first, port: 80}, http: {allowedHeaders: [x-first]}}}
  - {name: open, port: {port http}, protocol: HTTP}
  - {name: idle, port: {port http}, protocol: HTTP, hostname: idle.example, filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: idle, port: 80}}}]}}
  - {name: gone, port: {port http}, protocol: HTTP, hostname: gone.example, filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: gone, port: 80}}}]}}
  - {name: unknown, port: {port http}, protocol: HTTP, hostname: "*.unknown.example", filters: {requests: [{type: ExtensionRef, extensionRef: {group: x.example, kind: Thing, name: t}}]}}
  - {name: tls, port: {port https}, protocol: HTTPS, hostname: "*.tls.example", tls: {certificateRefs: [{name: cert}]}, filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: first, port: 80}, http: {allowedHeaders: [x-first]}}}]}}
  - {name: tls-open, port: {port https}, protocol: HTTPS, hostname: open.tls.example, tls: {certificateRefs: [{name: cert}]}}
---
kind: Service
metadata: {namespace: shop, name: idle}
spec: {ports: [{port: 80}]}
---
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{name: gw}]
  rules:
  - {matches: [{headers: [{name: x-user, value: ana}]}, {path: {value: /plain}, headers: [{name: x-user, value: ana}]}], backendRefs: [{name: ana, port: 80}]}
  - {matches: [{headers: [{name: x-user, value: bob}]}, {path: {value: /plain}, headers: [{name: x-user, value: bob}]}], filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: third, port: 80}, grpc: {}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{headers: [{name: x-user, value: kept}]}], sessionPersistence: {cookie: {name: kept}}, backendRefs: [{name: web, port: 80}]}
  - {matches: [{headers: [{name: x-user, value: shared}], method: PUT}], filters: [{type: CORS, cors: {allowOrigins: ["https://a.example"], allowMethods: [PUT]}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /moved}}], backendRefs: [{name: moved, port: 80}]}
  - {matches: [{path: {value: /plain}}], backendRefs: [{name: web, port: 80}]}
---
kind: HTTPRoute
metadata: {namespace: shop, name: many}
spec:
  parentRefs: [{name: gw}]
  hostnames: [many.one.example]
  rules:
  - {matches: [{path: {value: /ana}, headers: [{name: x-user, value: ana}]}], backendRefs: [{name: ana, port: 80}]}
MANY
---
`

// TestRealEnvoyRunsFiltersOfListeners: all requests of a listener pass them in their order, and what they change decides about the route, but never about the host. Nothing passes
// by them: not what no route matched at first, not to a filter that only the second route has, and not where a filter cannot run.
func TestRealEnvoyRunsFiltersOfListeners(t *testing.T) {
	var first atomic.Int64
	second, third := &obedient{header: "x-second"}, &obedient{header: "x-third"}
	manifests := strings.Replace(filteredGateway, "MANY", many(70), 1)
	for name, port := range map[string]string{
		"first": echoing(t, "first", obey(&first)), "second": second.serve(t), "third": third.serve(t),
		"web": echoing(t, "web", nil), "ana": echoing(t, "ana", nil), "moved": echoing(t, "moved", nil),
	} {
		manifests += slicesOf(name, "TCP", port)
	}
	r := run(t, strings.TrimSuffix(manifests+secretOf("cert", certificates()["ecdsa"]), "---\n"))
	for _, c := range []struct {
		request              string // method path headers
		want                 string // as in TestRealEnvoyServes
		first, second, third int64  // how often each server is asked
	}{
		{"GET /plain host:a.one.example", "200 web~GET~/plain", 1, 1, 0},
		{"GET /none host:a.one.example", "404", 1, 1, 0},
		{"GET /none host:a.one.example x-first:x-user=ana", "200 ana~GET~/none x-user=ana", 1, 1, 0},
		{"GET /plain host:a.one.example x-first:x-user=ana", "200 ana~GET~/plain !web", 1, 1, 0},
		{"GET /plain host:a.one.example x-user:ana", "200 ana", 1, 1, 0},
		{"GET /plain host:a.one.example x-first:deny", "401 !web~GET", 1, 0, 0},
		{"GET /none host:a.one.example x-first:deny", "401", 1, 0, 0},
		{"GET /plain host:a.one.example x-second:deny", "403 !web", 1, 1, 0},
		// The second filter obeys the first.
		{"GET /plain host:a.one.example x-first:x-second=x-user=ana", "200 ana", 1, 1, 0},
		{"GET /plain host:a.one.example x-first:x-second=deny", "403 !web", 1, 1, 0},
		{"GET /plain host:two.example x-first:x-second=x-user=ana", "200 web x-second=x-user=ana !~x-user=ana", 1, 1, 0},
		{"GET /plain host:two.example x-second:deny", "403 !web", 0, 1, 0},
		// Path and method are changed, hosts are not.
		{"GET /none host:a.one.example x-second::path=/moved/a?q", "200 moved~GET~/moved/a?q", 1, 1, 0},
		{"GET /plain host:a.one.example x-second::method=PUT", "200 web~PUT~/plain", 1, 1, 0},
		{"GET /plain host:a.one.example x-second::authority=open.example", "200 web host=a.one.example !open.example~body", 1, 1, 0},
		{"GET /plain host:a.one.example x-second:host=open.example", "200 web host=a.one.example !open.example~body", 1, 1, 0},
		{"GET /plain host:a.one.example x-first:Host=open.example", "200 web host=a.one.example !open.example~body", 1, 1, 0},
		// What only the route that is chosen in the end asks for.
		{"GET /none host:a.one.example x-first:x-user=bob", "200 web", 1, 1, 1},
		{"GET /plain host:a.one.example x-first:x-user=bob x-third:deny", "403 !web", 1, 1, 1},
		{"GET /none host:a.one.example x-first:x-user=kept", "200 web set-cookie=kept=", 1, 1, 0},
		{"OPTIONS /none host:a.one.example x-first:x-user=shared origin:https://a.example access-control-request-method:PUT", "200 access-control-allow-origin=https://a.example !web", 1, 1, 0},
		{"OPTIONS /none host:a.one.example x-first:deny origin:https://a.example access-control-request-method:PUT", "401", 1, 0, 0},
		// A host with an index.
		{"GET /p5 host:many.one.example", "200 web", 1, 1, 0},
		{"GET /p5 host:many.one.example x-first:deny", "401 !web", 1, 0, 0},
		{"GET /p5x host:many.one.example", "404", 1, 1, 0},
		{"GET /ana host:many.one.example x-first:x-user=ana", "200 ana", 1, 1, 0},
		{"GET /zzz host:many.one.example x-first:deny", "401", 1, 0, 0},
		// Other listeners of the port.
		{"GET /plain host:open.example x-first:deny x-second:deny", "200 web", 0, 0, 0},
		{"GET /none host:open.example", "404", 0, 0, 0},
		{"GET /plain host:idle.example", "403 !web", 0, 0, 0},
		{"GET /plain host:gone.example", "500", 0, 0, 0},
		{"GET /plain host:a.unknown.example", "500", 0, 0, 0},
		// TLS has chosen the listener.
		{"GET /plain host:a.tls.example sni:a.tls.example x-first:x-user=ana", "200 ana", 1, 0, 0},
		{"GET /plain host:a.tls.example sni:a.tls.example x-first:deny", "401 !web", 1, 0, 0},
		{"GET /plain host:elsewhere.example sni:a.tls.example x-first:deny", "401 !web", 1, 0, 0},
		{"GET /plain host:open.tls.example sni:a.tls.example x-first:deny", "421", 0, 0, 0},
		{"GET /plain host:open.tls.example sni:open.tls.example x-first:deny", "200 web", 0, 0, 0},
	} {
		first.Store(0)
		second.asked.Store(0)
		third.asked.Store(0)
		got := r.send(c.request)
		holds(t, c.request, got, c.want)
		if a, b, d := first.Load(), second.asked.Load(), third.asked.Load(); a != c.first || b != c.second || d != c.third {
			t.Errorf("%s: the servers are asked %d, %d and %d times, want %d, %d and %d", c.request, a, b, d, c.first, c.second, c.third)
		}
	}
}

// many are n rules, so many that Envoy gets an index of them.
func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  - {matches: [{path: {value: /p%d}}], backendRefs: [{name: web, port: 80}]}\n", i)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// send sends one request on a connection of its own, over TLS where it has an "sni:", and gives status, headers and body as text.
func (r *rig) send(request string) string {
	r.t.Helper()
	fields := strings.Fields(request)
	url, transport := "http://"+r.address("http"), &http.Transport{}
	defer transport.CloseIdleConnections()
	headers := http.Header{}
	host := ""
	for _, h := range fields[2:] {
		switch name, value, _ := strings.Cut(h, ":"); name {
		case "host":
			host = value
		case "sni":
			url = "https://" + r.address("https")
			transport.TLSClientConfig = &tls.Config{ServerName: value, InsecureSkipVerify: true} //nolint:gosec // what is asked for is who answers, not whether to trust him
		default:
			headers.Add(name, value)
		}
	}
	req, err := http.NewRequest(fields[0], url+fields[1], nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Host, req.Header = host, headers
	res, body := roundTrip(r.t, transport, req)
	return fmt.Sprintf("%d\n%s%s", res.StatusCode, heads(res.Header), body)
}

// upgrading switches to lines that are echoed.
func upgrading(t *testing.T) (port string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			return
		}
		c, in, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = fmt.Fprint(c, line)
		}
	}))
	t.Cleanup(s.Close)
	_, port, _ = net.SplitHostPort(s.Listener.Addr().String())
	return port
}

// TestFiltersOfListenersDrainNothing: filters come, change, break and go, and a connection that was there before lives on: the listener is the same to Envoy.
func TestFiltersOfListenersDrainNothing(t *testing.T) {
	with := func(filters string) string {
		return strings.Replace(httpGateway, "protocol: HTTP}", "protocol: HTTP"+filters+"}", 1) + `kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
`
	}
	var asked atomic.Int64
	services := strings.TrimSuffix(slicesOf("web", "TCP", upgrading(t))+slicesOf("first", "TCP", echoing(t, "first", obey(&asked))), "---\n")
	r := run(t, with("")+services)
	listeners := versions(r, assemble.TypeListener)

	conn, err := net.Dial("tcp", r.address("http"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %v", res, err)
	}
	auth := func(name string) string {
		return `, filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: ` + name + `, port: 80}, http: {allowedHeaders: [x-first]}}}]}`
	}
	for _, step := range []struct{ filters, want string }{
		{auth("first"), "401"},
		{auth("gone"), "500"},
		{`, filters: {requests: [{type: ExtensionRef, extensionRef: {group: x.example, kind: Thing, name: t}}]}`, "500"},
		{"", "200"},
	} {
		r.serve(with(step.filters) + services)
		if got := versions(r, assemble.TypeListener); got != listeners {
			t.Errorf("%q: listeners %s, before %s", step.filters, got, listeners)
		}
		got := ""
		for !strings.HasPrefix(got, step.want) && t.Context().Err() == nil {
			got = r.send("GET / host:a.example x-first:deny")
		}
		if _, err := fmt.Fprintf(conn, "%s\n", step.want); err != nil {
			t.Fatalf("%q: %v", step.filters, err)
		}
		if line, err := in.ReadString('\n'); err != nil || line != step.want+"\n" {
			t.Fatalf("%q: the connection answers %q, %v", step.filters, line, err)
		}
	}
}

// versions are the versions of a fleet's resources of a type.
func versions(r *rig, kind assemble.ResourceType) string {
	out := ""
	for _, one := range r.state.Resources("c1/shop/gw") {
		if one.Type == kind {
			out += one.Name + "=" + one.Version + " "
		}
	}
	return out
}
