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
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
)

// TestBackendsOfRoutes: whatever a route names as a Service or an XBackend is found, wherever it stands.
func TestBackendsOfRoutes(t *testing.T) {
	for _, c := range []struct {
		kind, spec string
		want       string
	}{
		{"HTTPRoute", "rules: [{backendRefs: [{name: a}, {name: b, namespace: other}]}, {backendRefs: [{name: a, kind: Service, group: \"\"}]}]", "Service other/b, Service shop/a"},
		{"HTTPRoute", "rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m}}}], backendRefs: [{name: a, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: own}}}]}]}]",
			"Service shop/a, Service shop/m, Service shop/own"},
		{"HTTPRoute", "rules: [{backendRefs: [{name: x, kind: XBackend, group: gateway.networking.x-k8s.io}, {name: z, kind: XBackend, group: other}]}]", "XBackend shop/x"},
		{"HTTPRoute", "hostnames: [a.example]", ""},
		{"GRPCRoute", "rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m}}}], backendRefs: [{name: a}]}]", "Service shop/a, Service shop/m"},
		{"TLSRoute", "rules: [{backendRefs: [{name: a}]}]", "Service shop/a"},
		{"TCPRoute", "rules: [{backendRefs: [{name: a}]}]", "Service shop/a"},
		{"UDPRoute", "rules: [{backendRefs: [{name: a}]}]", "Service shop/a"},
	} {
		o := kindOf(c.kind).object()
		if err := yaml.Unmarshal([]byte("metadata: {namespace: shop, name: r}\nspec: {"+c.spec+"}"), o); err != nil {
			t.Fatal(err)
		}
		var got []string
		for id := range backends(o) {
			got = append(got, fmt.Sprintf("%s %s/%s", id.kind, id.at.namespace, id.at.name))
		}
		slices.Sort(got)
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s %s: %v, want %v", c.kind, c.spec, got, c.want)
		}
	}
}

// backendBeforeItsRoute: the watches of Services and XBackends lag behind that of routes, and yet no route is delivered before the backend that was there when it was made; a route to a
// Service that does not exist is not held up.
func backendBeforeItsRoute(t *testing.T, s *apiServer) {
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
	s.apply(xbackendPath("default", "x"), `{"apiVersion":"gateway.networking.x-k8s.io/v1alpha1","kind":"XBackend","metadata":{"name":"x","namespace":"default"},"spec":{"type":"ExternalHostname","port":{"number":80},"externalHostname":{"hostname":"a.example"}}}`)
	s.apply(gatewayPath("default", "httproutes", "to-x"), `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"to-x","namespace":"default"},"spec":{"rules":[{"backendRefs":[{"group":"gateway.networking.x-k8s.io","kind":"XBackend","name":"x"}]}]}}`)
	v.until("the route to the XBackend", func() bool { return v.there("HTTPRoute default/to-x") })
	if order := v.order("XBackend default/x", "HTTPRoute default/to-x"); order != "XBackend default/x, HTTPRoute default/to-x" {
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

// behind is how to reach the API server by a way on which watches of Services and XBackends lag.
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
			if slices.Contains([]string{"/api/v1/services", xbackendPath("")}, r.Request.URL.Path) && r.Request.URL.Query().Get("watch") != "" {
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
