package translate

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/translate/record"
)

// podsOf writes an XBackend that selects pods, and the EndpointSlice of these.
func podsOf(name, addresses, port, more string) string {
	return fmt.Sprintf(`kind: XBackend
metadata: {namespace: shop, name: %[1]s}
spec: {type: EndpointSelector, port: {number: %[3]s}, endpointSelector: {matchLabels: {app: %[1]s}}%[4]s}
---
kind: EndpointSlice
metadata: {namespace: shop, name: %[1]s-1, labels: {fleetgate.io/xbackend: %[1]s}}
addressType: IPv4
ports: [{port: %[3]s}]
endpoints: [{addresses: [%[2]s]}]
---
`, name, addresses, port, more)
}

// TestRealEnvoyReachesPodsOfXBackends: requests go to all pods that are selected, and those of one session to one of them.
func TestRealEnvoyReachesPodsOfXBackends(t *testing.T) {
	service := endpointsOf(t, "one", "127.0.3.1", "127.0.3.2", "127.0.3.3")
	_, port, _ := strings.Cut(service, "ports: [{port: ")
	_, port, _ = strings.Cut(port, "ports: [{port: ")
	port, _, _ = strings.Cut(port, ",")
	all := "127.0.3.1, 127.0.3.2, 127.0.3.3"
	route := `kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{name: gw}]
  rules:
  - {matches: [{path: {value: /any}}], backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: any}]}
  - {matches: [{path: {value: /same}}], backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: same}]}
  - {matches: [{path: {value: /twice}}], backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: same, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-new, value: look}]}}]}, {group: gateway.networking.x-k8s.io, kind: XBackend, name: same}]}
  - {matches: [{path: {value: /header}}], backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: header}]}`
	r := run(t, httpGateway+podsOf("any", all, port, "")+podsOf("same", all, port, ", sessionPersistence: {cookie: {name: sid}}")+
		podsOf("header", all, port, ", sessionPersistence: {type: Header, header: {name: x-session}}")+route)
	for path, hosts := range map[string]int{"/any": 3, "/same": 1, "/twice": 1, "/header": 1} {
		if got := visit(t, "http://"+r.address("http")+path, 50); len(got) != hosts {
			t.Errorf("%s: 50 requests went to %v, want %d hosts", path, got, hosts)
		}
	}
	if got := setCookie(t, "http://"+r.address("http")+"/same"); !strings.Contains(got, "sid=") {
		t.Errorf("Set-Cookie %q has no sid", got)
	}
}

// mutual is a gateway with a certificate of its own for backends.
const mutual = envoyClass + `kind: Gateway
metadata: {namespace: shop, name: gw}
spec: {gatewayClassName: envoy, tls: {backend: {clientCertificateRef: {name: gateway}}}, listeners: [{name: http, port: {port http}, protocol: HTTP}]}
---
`

// TestRealEnvoyShowsXBackendsTheirCertificate: what an XBackend names is shown to it, and nothing where it asks for none, whatever the Gateway has for others.
func TestRealEnvoyShowsXBackendsTheirCertificate(t *testing.T) {
	p := certificates()["ecdsa"]
	cert, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "clients=%d", len(r.TLS.PeerCertificates))
	}))
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	secure.StartTLS()
	defer secure.Close()
	_, port, _ := net.SplitHostPort(secure.Listener.Addr().String())
	says := func(mode string) string {
		return fmt.Sprintf(", tls: {mode: %s, validation: {caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}], hostname: a.example}}", mode)
	}
	r := run(t, mutual+xbackend("both", port, says("ClientAndServer, clientCertificateRef: {name: mine}"))+xbackend("server", port, says("ServerOnly"))+
		xbackend("gone", port, says("ClientAndServer, clientCertificateRef: {name: gone}"))+secretOf("gateway", p)+secretOf("mine", p)+
		"kind: ConfigMap\nmetadata: {namespace: shop, name: ca}\ndata: {ca.crt: \""+strings.ReplaceAll(string(p.cert), "\n", "\\n")+"\"}", nameServer(t))
	for path, want := range map[string]string{"/both": "200 clients=1", "/server": "200 clients=0", "/gone": "500"} {
		holds(t, path, ask(t, "http://"+r.address("http"), "GET "+path), want)
	}
}

// TestRealEnvoyForwardsStreamsToHosts: a name is looked up for a stream as well, beside a Service by weight, and spoken TLS with where it says so, although the client speaks none.
func TestRealEnvoyForwardsStreamsToHosts(t *testing.T) {
	p := certificates()["ecdsa"]
	cert, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	securePort := secureBackend(t, "secure", &tls.Config{Certificates: []tls.Certificate{cert}})
	host := func(name, port, more string) string {
		made, _, _ := strings.Cut(xbackend(name, port, ", protocol: TCP"+more), "kind: HTTPRoute")
		return made
	}
	route := `kind: TCPRoute
metadata: {namespace: shop, name: mixed}
spec: {parentRefs: [{name: gw, sectionName: tcp}], rules: [{backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: secure, weight: 2}, {group: gateway.networking.x-k8s.io, kind: XBackend, name: clear, weight: 1}, {name: web, port: 80, weight: 1}, {name: gone, port: 80, weight: 1}]}]}
---
kind: TCPRoute
metadata: {namespace: shop, name: pods}
spec: {parentRefs: [{name: gw, sectionName: idle}], rules: [{backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: pods}]}]}
---
kind: TLSRoute
metadata: {namespace: shop, name: through}
spec: {parentRefs: [{name: gw, sectionName: pass}], hostnames: [a.pass.example], rules: [{backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: through}]}]}
---
kind: TLSRoute
metadata: {namespace: shop, name: doubled}
spec: {parentRefs: [{name: gw, sectionName: pass}], hostnames: [b.pass.example], rules: [{backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: secure}]}]}
---
`
	r := run(t, streamGateway+secretOf("cert", p)+host("secure", securePort, ", tls: {mode: ServerOnly, validation: {caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}], hostname: a.example}}")+
		host("clear", backend(t, "clear"), "")+host("through", securePort, "")+podsOf("pods", "127.0.0.1", backend(t, "pods"), "")+slicesOf("web", "TCP", backend(t, "web"))+route+
		"kind: ConfigMap\nmetadata: {namespace: shop, name: ca}\ndata: {ca.crt: \""+strings.ReplaceAll(string(p.cert), "\n", "\\n")+"\"}", nameServer(t))
	counts := map[string]int{}
	for range 100 {
		counts[say(t, "tcp", r.address("tcp"), nil)]++
	}
	for answer, want := range map[string]int{"secure hello": 40, "clear hello": 20, "web hello": 20, "": 20} {
		if got := counts[answer]; got < want-3 || got > want+3 {
			t.Errorf("2:1:1:1, of which the last is refused: %v", counts)
		}
	}
	for name, want := range map[string]string{"a.pass.example": "secure hello", "b.pass.example": ""} {
		if got := say(t, "tcp", r.address("tls"), &tls.Config{ServerName: name, InsecureSkipVerify: true}); got != want { //nolint:gosec // who answers is what is asked
			t.Errorf("TLS passed through for %s: %q, want %q", name, got, want)
		}
	}
	if got := say(t, "tcp", r.address("idle"), nil); got != "pods hello" {
		t.Errorf("pods: %q", got)
	}
}

// TestXBackendWaitsForItsPods: where Kubernetes makes EndpointSlices nothing is compiled of an XBackend's endpoints before there is one, and then only of the one with its UID.
func TestXBackendWaitsForItsPods(t *testing.T) {
	cfg := testConfig()
	cfg.SlicesFollow = true
	c := New(cfg)
	c.Apply(parseObjects(t, strings.ReplaceAll(httpGateway, "{port http}", "80")+`kind: XBackend
metadata: {namespace: shop, name: pods, uid: new}
spec: {type: EndpointSelector, port: {number: 80}, endpointSelector: {matchLabels: {app: web}}}
---
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: pods}]}]}
---
`+sliceFor("old", "192.0.2.1")))
	endpoints := record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindEndpoints, Name: "XBackend:pods/0/auto"}
	if _, there := c.Record(endpoints); there {
		t.Error("endpoints of an XBackend of that name that was deleted")
	}
	state, policy := assembled(c), record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindPolicy, Name: "XBackend/pods"}
	got, known := state.Selection(policy)
	if !known || got == nil || got.Object.UID != "new" || got.Pods.Labels["app"] != "web" || got.Pods.Port != 80 {
		t.Errorf("a route that waits for pods: selected are %+v, %v", got, known)
	}
	if s, _ := state.RouteStatus(record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindRoute, Name: "HTTPRoute/r"}); !strings.Contains(s.Pending, "endpoints") {
		t.Errorf("the route is pending: %q", s.Pending)
	}
	c.Apply(parseObjects(t, sliceFor("new", "192.0.2.2")))
	put, there := c.Record(endpoints)
	if !there || !strings.Contains(string(put.Payload), "Bytes") {
		t.Errorf("no endpoints although there is a slice: %s", put.Payload)
	}
	c.Apply([]Event{{Kind: "HTTPRoute", Namespace: "shop", Name: "r"}})
	if got, known := assembled(c).Selection(policy); known {
		t.Errorf("no route leads to it, and selected are %+v", got)
	}
}

func sliceFor(uid, address string) string {
	return fmt.Sprintf("kind: EndpointSlice\nmetadata: {namespace: shop, name: %[1]s, labels: {%[3]s: %[1]s}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [%[2]s]}]", uid, address, v1alpha1.LabelXBackend)
}

// TestXBackendOfAFilter: the pods of an XBackend that only a filter of a listener asks are looked for too, whether it is a Gateway's own listener or a ListenerSet's.
func TestXBackendOfAFilter(t *testing.T) {
	listener := func(name string) string {
		return "{name: l, port: 80, protocol: HTTP, filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: GRPC, grpc: {}, backendRef: {group: gateway.networking.x-k8s.io, kind: XBackend, name: " + name + "}}}]}}"
	}
	cfg := testConfig()
	cfg.SlicesFollow = true
	c := New(cfg)
	c.Apply(parseObjects(t, envoyClass+`kind: Gateway
metadata: {namespace: shop, name: gw}
spec: {gatewayClassName: envoy, allowedListeners: {namespaces: {from: Same}}, listeners: [`+listener("one")+`]}
---
kind: ListenerSet
metadata: {namespace: shop, name: set}
spec: {parentRef: {name: gw}, listeners: [`+strings.Replace(listener("two"), "80", "81", 1)+`]}
`))
	for _, name := range []string{"one", "two"} {
		c.Apply(parseObjects(t, strings.Split(podsOf(name, "127.0.0.1", "80", ""), "\n---\n")[0]))
		policy := record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindPolicy, Name: "XBackend/" + name}
		if got, known := assembled(c).Selection(policy); !known || got == nil {
			t.Errorf("%s: selected are %+v, %v", name, got, known)
		}
	}
}
