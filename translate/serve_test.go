package translate

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/fleetgate/fleetgate/loadtest/freeport"
	"github.com/fleetgate/fleetgate/translate/record"
)

// served is what TestRealEnvoyServes asks of the real binary; PORT is the backend's.
const served = `kind: Service
metadata: {namespace: shop, name: web}
spec: {ports: [{port: 80}]}
---
kind: Service
metadata: {namespace: shop, name: empty}
spec: {ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: PORT}]
endpoints: [{addresses: [127.0.0.1]}]
---
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{name: gw}]
  rules:
  - {matches: [{path: {type: Exact, value: /exact}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {type: Exact, value: /%7Eana/%41%2d%c3%A9%20}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /%7Eben}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /ben}}}], backendRefs: [{name: web, port: 80}]}
  - matches: [{path: {value: /headers/}}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: "100% %REQ(x-a)%"}], add: [{name: x-a, value: two}], remove: [x-gone]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answer, value: "50%"}]}}
    backendRefs: [{name: web, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: backend wins}]}}]}]
  - {matches: [{path: {value: /set}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: "100% %REQ(x-a)%"}]}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /once}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: first}, {name: x-set, value: second}], add: [{name: x-a, value: two}, {name: X-A, value: three}]}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /old}}], filters: [{type: URLRewrite, urlRewrite: {hostname: in.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new/}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /root}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /full}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: "/a\\1b"}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /top}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: ""}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /bare}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: new}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /begin}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: new/}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /up}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: to.example, path: {type: ReplaceFullPath, replaceFullPath: ""}}}]}
  - {matches: [{path: {value: /tls}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]}
  - {matches: [{path: {value: /moved}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: to.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /here}}}]}
  - {matches: [{path: {value: /gone}}], backendRefs: [{name: gone, port: 80}]}
  - {matches: [{path: {value: /half}}], backendRefs: [{name: gone, port: 80, weight: 1}, {name: empty, port: 80, weight: 0}, {name: web, port: 80, weight: 0}]}
  - {matches: [{path: {value: /share}}], backendRefs: [{name: gone, port: 80, weight: 1000000}, {name: web, port: 80, weight: 1}]}
  - {matches: [{path: {value: /empty}}], backendRefs: [{name: empty, port: 80}]}
  - {matches: [{path: {value: /slow}}], timeouts: {request: 50ms}, backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /try}}], timeouts: {backendRequest: 50ms}, backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /query}, queryParams: [{name: animal, value: whale}], headers: [{name: color, type: RegularExpression, value: "bl.e"}], method: POST}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /cors}, method: PUT}], filters: [{type: CORS, cors: {allowOrigins: ["https://*.a.example"], allowMethods: [PUT]}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /origins}}], filters: [{type: CORS, cors: {allowOrigins: ["https://B.example:443", "http://*.c.example:80", "https://d.example:80"], exposeHeaders: ["*"]}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /known}}], filters: [{type: CORS, cors: {allowOrigins: ["*"], allowCredentials: true, exposeHeaders: ["*", x-a]}}], backendRefs: [{name: web, port: 80}]}`

// TestRealEnvoyServes sends requests through the real binary, configured with what the compiler made.
func TestRealEnvoyServes(t *testing.T) {
	url := startEnvoy(t)
	for _, c := range []struct {
		request string // method path headers...
		want    string // status, then what the answer's head or body contains
	}{
		{"GET /exact", "200 GET /exact"},
		{"GET /exact/", "404"},
		{"GET /%7Eana/%41%2d%c3%A9%20", "200"},
		{"GET /~ana/A-%c3%A9%20", "200"},
		{"GET /%7eben/a", "200 GET /ben/a"},
		{"GET /headers x-a:one x-gone:1", "200 x-a=one,two x-answer=50% x-set=backend~wins !x-gone"},
		{"GET /set x-a:one", "200 x-set=100%~%REQ(x-a)%"},
		{"GET /once x-a:one", "200 x-set=first x-a=one,two !three"},
		{"GET /headersuffix", "404"},
		{"GET /old/a?q=1", "200 GET /new/a?q=1 host=in.example"},
		{"GET /old", "200 GET /new "},
		{"GET /root/a", "200 GET /a "},
		{"GET /root?q", "200 GET /?q"},
		{"GET /full/x?q", `200 GET /a\1b?q`},
		{"GET /top/x?q", "200 GET /?q"},
		{"GET /bare/x?q", "200 GET /new?q"},
		{"GET /begin/x?q", "200 GET /new/x?q"},
		{"GET /up/x?q", "302 location=http://to.example/?q"},
		{"GET /tls/a?q", "301 location=https://name.example:443/tls/a?q"},
		{"GET /moved/a", "302 location=http://to.example/here/a"},
		{"GET /gone", "500"},
		{"GET /half", "500"},
		{"GET /share", "500"},
		{"GET /empty", "503"},
		{"GET /slow", "504"},
		{"GET /try/slow", "504"},
		{"POST /query?animal=whale color:blue", "200"},
		{"POST /query?animal=dog&animal=whale color:blue", "404"},
		{"POST /query?animal=whale color:blueish", "404"},
		{"GET /query?animal=whale color:blue", "404"},
		{"OPTIONS /cors origin:https://x.a.example access-control-request-method:PUT", "200 access-control-allow-origin=https://x.a.example"},
		{"GET /origins origin:https://b.example", "200 access-control-allow-origin=https://b.example access-control-expose-headers=*"},
		{"GET /origins origin:http://x.c.example", "200 access-control-allow-origin=http://x.c.example"},
		{"GET /origins origin:https://d.example:80", "200 access-control-allow-origin=https://d.example:80"},
		{"GET /origins origin:https://d.example", "200 !access-control-allow-origin"},
		{"GET /known origin:https://d.example", "200 access-control-allow-credentials=true access-control-expose-headers=x-a !access-control-expose-headers=*"},
		{"OPTIONS /cors origin:https://x.b.example access-control-request-method:PUT", "200 !access-control-allow-origin"},
	} {
		got := ask(t, url, c.request)
		holds(t, c.request, got, c.want)
	}
	resp, err := http.Get(url + "/try/stalls")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("an answer that is not there in full when the time-out of its try ends: %q", body)
	}
}

// holds compares an answer with words that it must have, and with those after a ! that it must not; a ~ stands for a space in them.
func holds(t *testing.T, request, got, want string) {
	t.Helper()
	for _, part := range strings.Fields(want) {
		part = strings.ReplaceAll(part, "~", " ")
		if absent, ok := strings.CutPrefix(part, "!"); ok == strings.Contains(got, strings.TrimPrefix(part, "!")) {
			t.Errorf("%s: %q (absent: %v) in\n%s", request, absent, ok, got)
		}
	}
}

// ask sends one request and gives status, headers and body as text.
func ask(t *testing.T, url, request string) string {
	t.Helper()
	fields := strings.Fields(request)
	r, err := http.NewRequest(fields[0], url+fields[1], nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "name.example:10080"
	for _, h := range fields[2:] {
		name, value, _ := strings.Cut(h, ":")
		r.Header.Add(name, value)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d\n%s%s", resp.StatusCode, heads(resp.Header), body)
}

func heads(h http.Header) string {
	var b strings.Builder
	for name, values := range h {
		fmt.Fprintf(&b, "%s=%s\n", strings.ToLower(name), strings.Join(values, ","))
	}
	return b.String()
}

// echo answers with what it received; below /slow it answers late, and below /stalls it begins in time.
func echo(w http.ResponseWriter, r *http.Request) {
	stalls := strings.HasSuffix(r.URL.Path, "/stalls")
	if stalls {
		_ = http.NewResponseController(w).Flush()
	}
	if stalls || strings.HasSuffix(r.URL.Path, "/slow") {
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}
		return
	}
	fmt.Fprintf(w, "%s %s \nhost=%s\n%s", r.Method, r.RequestURI, r.Host, heads(r.Header))
}

// startEnvoy compiles served and runs it, with the EDS clusters made static.
func startEnvoy(t *testing.T) (url string) {
	binary := realEnvoy(t)
	backend := httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(backend.Close)
	_, port, _ := net.SplitHostPort(backend.Listener.Addr().String())
	c := New(testConfig())
	c.Apply(parseObjects(t, strings.ReplaceAll(served, "PORT", port)))

	l := listenerOf(t, routesOf(t, c))
	l.Address.GetSocketAddress().PortSpecifier = &corev3.SocketAddress_PortValue{PortValue: uint32(freeport.Take(t))}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	config := fmt.Sprintf(`{"node": {"id": "n", "cluster": "c"}, "static_resources": {"listeners": [%s], "clusters": [%s]}}`,
		protojson.Format(l), strings.Join(staticClusters(t, c), ","))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	runUntil(t, exec.Command(binary, "--disable-hot-restart", "--concurrency", "1", "-l", "info", "-c", file), "starting main dispatch loop")
	return fmt.Sprintf("http://127.0.0.1:%d", l.Address.GetSocketAddress().GetPortValue())
}

// staticClusters joins each backend with its endpoints.
func staticClusters(t *testing.T, c *Compiler) []string {
	var out []string
	for k, put := range c.Records() {
		if k.Kind != record.KindBackend {
			continue
		}
		k.Kind = record.KindEndpoints
		var b record.Backend
		var e record.Endpoints
		cluster, assignment := &clusterv3.Cluster{}, &endpointv3.ClusterLoadAssignment{}
		for _, err := range []error{
			record.Unmarshal(put.Payload, &b), record.Unmarshal(c.Records()[k].Payload, &e), proto.Unmarshal(b.Bytes, cluster), proto.Unmarshal(e.Bytes, assignment),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		cluster.EdsClusterConfig, cluster.LoadAssignment = nil, assignment
		out = append(out, protojson.Format(cluster))
	}
	return out
}

// ready closes its channel at the line with which Envoy says that it works.
type ready struct {
	line string
	log  bytes.Buffer
	done chan struct{}
	once bool
}

func (r *ready) Write(p []byte) (int, error) {
	r.log.Write(p)
	if !r.once && bytes.Contains(r.log.Bytes(), []byte(r.line)) {
		r.once = true
		close(r.done)
	}
	return len(p), nil
}

func runUntil(t *testing.T, cmd *exec.Cmd, line string) {
	t.Helper()
	out := &ready{line: line, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-died
	})
	select {
	case <-out.done:
	case err := <-died:
		died <- err
		t.Fatalf("envoy: %v\n%s", err, out.log.String())
	case <-time.After(2 * time.Minute):
		t.Fatal("envoy does not start")
	}
}
