package translate

import (
	"strings"
	"testing"
)

const defaultManifests = envoyClass + `kind: Gateway
metadata: {namespace: shop, name: gw}
spec: {gatewayClassName: envoy, defaultScope: All, listeners: [{name: http, port: {port http}, protocol: HTTP}, {name: tcp, port: {port tcp}, protocol: TCP}]}
---
kind: HTTPRoute
metadata: {namespace: shop, name: asks}
spec: {useDefaultGateways: All, rules: [{matches: [{path: {value: /asks}}], backendRefs: [{name: web, port: 80}]}, {matches: [{path: {value: /moved}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}}}]}]}
---
kind: HTTPRoute
metadata: {namespace: shop, name: silent}
spec: {useDefaultGateways: None, rules: [{matches: [{path: {value: /silent}}], backendRefs: [{name: web, port: 80}]}]}
---
kind: TCPRoute
metadata: {namespace: shop, name: asks}
spec: {useDefaultGateways: All, rules: [{backendRefs: [{name: stream, port: 80}]}]}
---
`

// TestRealEnvoyServesRoutesOfDefaultGateways: a route that names nobody is served where it asks to be, and a redirect of it leads to the port where it came in.
func TestRealEnvoyServesRoutesOfDefaultGateways(t *testing.T) {
	r := run(t, defaultManifests+slicesOf("web", "TCP", echoing(t, "web", nil))+strings.TrimSuffix(slicesOf("stream", "TCP", backend(t, "stream")), "---\n"))
	for request, want := range map[string]string{"GET /asks": "200", "GET /silent": "404", "GET /moved": "302 location=http://name.example:" + r.port("http") + "/new"} {
		if got := exchange(t, "http://"+r.address("http"), request); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", request, got, want)
		}
	}
	if got := say(t, "tcp", r.address("tcp"), nil); got != "stream hello" {
		t.Errorf("TCP: %q", got)
	}
}
