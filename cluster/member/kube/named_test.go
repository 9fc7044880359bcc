package kube

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
)

// TestServicesOfRoutes: whatever a route names as a Service is found, wherever it stands.
func TestServicesOfRoutes(t *testing.T) {
	for _, c := range []struct {
		kind, spec string
		want       map[key]bool
	}{
		{"HTTPRoute", "rules: [{backendRefs: [{name: a}, {name: b, namespace: other}]}, {backendRefs: [{name: a, kind: Service, group: \"\"}]}]", map[key]bool{{"shop", "a"}: true, {"other", "b"}: true}},
		{"HTTPRoute", "rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m}}}], backendRefs: [{name: a, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: own}}}]}]}]",
			map[key]bool{{"shop", "m"}: true, {"shop", "a"}: true, {"shop", "own"}: true}},
		{"HTTPRoute", "rules: [{backendRefs: [{name: x, kind: XBackend, group: gateway.networking.x-k8s.io}]}]", map[key]bool{}},
		{"HTTPRoute", "hostnames: [a.example]", map[key]bool{}},
		{"GRPCRoute", "rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m}}}], backendRefs: [{name: a}]}]", map[key]bool{{"shop", "m"}: true, {"shop", "a"}: true}},
		{"TLSRoute", "rules: [{backendRefs: [{name: a}]}]", map[key]bool{{"shop", "a"}: true}},
		{"TCPRoute", "rules: [{backendRefs: [{name: a}]}]", map[key]bool{{"shop", "a"}: true}},
		{"UDPRoute", "rules: [{backendRefs: [{name: a}]}]", map[key]bool{{"shop", "a"}: true}},
	} {
		o := kindOf(c.kind).object()
		if err := yaml.Unmarshal([]byte("metadata: {namespace: shop, name: r}\nspec: {"+c.spec+"}"), o); err != nil {
			t.Fatal(err)
		}
		if got := services(o); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s %s: %v, want %v", c.kind, c.spec, got, c.want)
		}
	}
}

// TestServiceBeforeItsRoute: the watch of Services lags behind that of routes, and yet no route is delivered before the Service that was there when it was made; a route to a Service that does
// not exist is not held up.
func TestServiceBeforeItsRoute(t *testing.T) {
	s := startAPIServer(t)
	s.installCRDs()
	var lag lag
	_, v := follow(t, s.behind(&lag))
	v.synced()
	end := lag.begin(t)
	s.apply("/api/v1/namespaces/default/services/b", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"b","namespace":"default"},"spec":{"ports":[{"port":80}]}}`)
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "a.example.com"))
	v.until("the route", func() bool { return v.there("HTTPRoute default/r") })
	if order := v.order("Service default/b", "HTTPRoute default/r"); order != "Service default/b, HTTPRoute default/r" {
		t.Errorf("delivered in the order %q", order)
	}
	s.remove("/api/v1/namespaces/default/services/b")
	s.apply("/api/v1/namespaces/default/services/c", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"c","namespace":"default"},"spec":{"ports":[{"port":80}]}}`)
	end()
	v.until("what the watch was late with", func() bool { return v.gone("Service default/b") && v.there("Service default/c") })
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "b.example.com"))
	v.until("a route to no Service", func() bool {
		r, ok := v.last["HTTPRoute default/r"].Object.(*gatewayv1.HTTPRoute)
		return ok && r.Spec.Hostnames[0] == "b.example.com"
	})
}

// order lists which of the objects were first delivered in which order.
func (v *view) order(ids ...string) (out string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	for _, e := range v.all {
		if id := e.Kind + " " + e.Namespace + "/" + e.Name; wanted[id] {
			delete(wanted, id)
			if out != "" {
				out += ", "
			}
			out += id
		}
	}
	return out
}

// behind is how to reach the API server by a way on which watches of Services lag.
func (s *apiServer) behind(l *lag) *rest.Config {
	s.t.Helper()
	to, err := url.Parse(s.host)
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.ca)
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		FlushInterval: -1,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true},
		ModifyResponse: func(r *http.Response) error {
			if r.Request.URL.Path == "/api/v1/services" && r.Request.URL.Query().Get("watch") != "" {
				r.Body = lagging{r.Body, l}
			}
			return nil
		},
	}
	server := httptest.NewServer(proxy)
	s.t.Cleanup(server.Close)
	return &rest.Config{Host: server.URL, BearerToken: adminToken}
}

// lag holds back what comes while it lasts.
type lag struct{ over atomic.Pointer[chan struct{}] }

// begin has everything wait until end is called, or the test is over.
func (l *lag) begin(t *testing.T) (end func()) {
	over := make(chan struct{})
	l.over.Store(&over)
	end = sync.OnceFunc(func() { close(over) })
	t.Cleanup(end)
	return end
}

type lagging struct {
	io.ReadCloser
	lag *lag
}

func (l lagging) Read(b []byte) (int, error) {
	n, err := l.ReadCloser.Read(b)
	if over := l.lag.over.Load(); over != nil {
		<-*over
	}
	return n, err
}
