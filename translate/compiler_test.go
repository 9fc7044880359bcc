package translate

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// envoyClass is a GatewayClass of ours, for Gateways to name.
const envoyClass = `kind: GatewayClass
metadata: {name: envoy}
spec: {controllerName: fleetgate.io/gatewayclass-controller}
---
`

const lab = envoyClass + `kind: Gateway
metadata: {namespace: shop, name: gw}
spec: {gatewayClassName: envoy, listeners: [{name: http, port: 8080, protocol: HTTP}]}
---
kind: Service
metadata: {namespace: shop, name: web}
spec: {ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
---
kind: HTTPRoute
metadata: {namespace: shop, name: r, generation: 1}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
kind: HTTPRoute
metadata: {namespace: shop, name: other}
spec: {rules: [{filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]}]}`

func changed(out Output) string {
	var b []string
	for _, p := range out.Puts {
		b = append(b, name(p.Key))
	}
	for _, k := range out.Deletes {
		b = append(b, "-"+name(k))
	}
	return fmt.Sprintf("%d compiled: %s", out.Compiled, strings.Join(b, ", "))
}

// TestWhatAChangeCosts: only what reads a thing is compiled again when it changes.
func TestWhatAChangeCosts(t *testing.T) {
	c := New(testConfig())
	c.Apply(parseObjects(t, lab))
	route := func(text string) []Event { return parseObjects(t, text) }
	for _, step := range []struct {
		name, text, want string
	}{
		{"the same again", lab, "0 compiled: "},
		{"endpoints change", strings.Replace(slice(lab, 3), "10.0.0.1", "10.0.0.2", 1), "0 compiled: endpoints shop web/80/auto"},
		{"a Gateway gets a selector", strings.Replace(slice(lab, 1), "protocol: HTTP", "protocol: HTTP, allowedRoutes: {namespaces: {from: All}}", 1), "0 compiled: gateway shop gw"},
		{"a Service gets another port too", strings.Replace(slice(lab, 2), "{port: 80}", "{name: a, port: 80}, {name: b, port: 90}", 1), "1 compiled: endpoints shop web/80/auto"},
		{"the route uses that port", strings.Replace(slice(lab, 4), "port: 80", "port: 90", 1),
			"1 compiled: backend shop web/90/auto, endpoints shop web/90/auto, route shop HTTPRoute/r, -backend shop web/80/auto, -endpoints shop web/80/auto"},
		{"a Service nobody uses", "kind: Service\nmetadata: {namespace: shop, name: idle}\nspec: {ports: [{port: 80}]}", "0 compiled: "},
	} {
		if got := changed(c.Apply(route(step.text))); got != step.want {
			t.Errorf("%s:\n got %s\nwant %s", step.name, got, step.want)
		}
	}
	gone := c.Apply([]Event{{Kind: "HTTPRoute", Namespace: "shop", Name: "r"}})
	if got, want := changed(gone), "0 compiled: -backend shop web/90/auto, -endpoints shop web/90/auto, -route shop HTTPRoute/r"; got != want {
		t.Errorf("route deleted:\n got %s\nwant %s", got, want)
	}
}

// TestEndpointsWaitForTheirFirstSlice: where a controller makes slices, a Service with a selector and without any says nothing of its endpoints yet; a slice without endpoints says that there are none.
func TestEndpointsWaitForTheirFirstSlice(t *testing.T) {
	selecting := strings.Replace(lab, "spec: {ports: [{port: 80}]}", "spec: {selector: {app: web}, ports: [{port: 80}]}", 1)
	without := func(text string) string { return strings.Replace(text, slice(text, 3)+"\n---\n", "", 1) }
	empty := strings.Replace(slice(lab, 3), "[{addresses: [10.0.0.1]}]", "[]", 1)
	cfg := testConfig()
	for _, step := range []struct {
		name, text string
		follow     bool
		then       string
		want       bool // there is a record of the endpoints
	}{
		{"nobody makes slices", without(selecting), false, "", true},
		{"its slices are somebody's own", without(lab), true, "", true},
		{"its slices are to come", without(selecting), true, "", false},
		{"the first has no endpoints", without(selecting), true, empty, true},
		{"the first has some", without(selecting), true, slice(lab, 3), true},
		{"the Service is no more", without(selecting), true, "delete", false},
	} {
		cfg.SlicesFollow = step.follow
		c := New(cfg)
		c.Apply(parseObjects(t, step.text))
		switch step.then {
		case "":
		case "delete":
			c.Apply([]Event{{Kind: "Service", Namespace: "shop", Name: "web"}})
		default:
			c.Apply(parseObjects(t, step.then))
		}
		if _, got := c.Record(record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindEndpoints, Name: "web/80/auto"}); got != step.want {
			t.Errorf("%s: there is a record: %v, want %v", step.name, got, step.want)
		}
	}
}

func slice(text string, i int) string { return strings.Split(text, "\n---\n")[i] }

// TestReferenced: who owns a backend's namespace compiles it for others, "missing" included, and only while they refer to it.
func TestReferenced(t *testing.T) {
	cfg := testConfig()
	cfg.Owns = func(ns string) bool { return ns == "shop" }
	c := New(cfg)
	c.Apply(parseObjects(t, slice(lab, 2)+"\n---\n"+slice(lab, 3)))
	key := func(ns string, kind record.Kind, name string) record.Key {
		return record.Key{Cluster: "c1", Namespace: ns, Kind: kind, Name: name}
	}
	keys := []record.Key{
		key("shop", record.KindBackend, "web/80/h2"), key("shop", record.KindEndpoints, "gone/80/auto"), key("shop", record.KindSecret, "cert"),
		key("elsewhere", record.KindBackend, "web/80/auto"), key("shop", record.KindRoute, "HTTPRoute/r"), {Cluster: "c2", Namespace: "shop", Kind: record.KindBackend, Name: "web/80/auto"},
	}
	want := "0 compiled: backend shop gone/80/auto, backend shop web/80/h2, endpoints shop gone/80/auto, endpoints shop web/80/h2, secret shop cert"
	if got := changed(c.Referenced(keys)); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	var missing record.Backend
	if err := record.Unmarshal(c.Records()[key("shop", record.KindBackend, "gone/80/auto")].Payload, &missing); err != nil || !missing.Missing || missing.Bytes != nil {
		t.Errorf("backend of a missing Service: %+v, %v", missing, err)
	}
	if got := changed(c.Referenced(keys)); got != "0 compiled: " {
		t.Errorf("the same again: %s", got)
	}
	if got := changed(c.Referenced(keys[:1])); got != "0 compiled: -backend shop gone/80/auto, -endpoints shop gone/80/auto, -secret shop cert" {
		t.Errorf("fewer: %s", got)
	}
}

// TestPanicQuarantinesTheObject: the last good record stays, with a problem; everything else goes on; the next good version lifts it.
func TestPanicQuarantinesTheObject(t *testing.T) {
	c := New(testConfig())
	c.Apply(parseObjects(t, lab))
	bad := record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindRoute, Name: "HTTPRoute/r"}
	good := c.Records()[bad]
	c.before = func(k record.Key) {
		if k == bad {
			panic("deliberate")
		}
	}
	edit := strings.Replace(slice(lab, 4), "generation: 1", "generation: 2", 1)
	other := strings.Replace(slice(lab, 5), "scheme: https", "hostname: a.example", 1)
	out := c.Apply(parseObjects(t, edit+"\n---\n"+other))
	if got := changed(out); got != "2 compiled: route shop HTTPRoute/other, route shop HTTPRoute/r" || len(out.Quarantined) != 1 || out.Quarantined[0].Name != "r" {
		t.Fatalf("%s, quarantined %v", got, out.Quarantined)
	}
	kept := routeOf(t, c.Records()[bad])
	if n := len(kept.Problems); n != 1 || !strings.Contains(kept.Problems[0].Message, "deliberate") || len(kept.Rules) != 1 || kept.Object.Generation != 1 {
		t.Errorf("kept %+v", kept)
	}
	if !slices.Equal(c.Records()[bad].Refs, good.Refs) || !slices.Contains(c.Quarantined(), bad) {
		t.Error("its backends are not wanted any more, or it is not known as quarantined")
	}

	restarted := New(testConfig())
	restarted.before = c.before
	restarted.Apply(parseObjects(t, lab))
	if _, ok := restarted.Records()[bad]; ok || !slices.Contains(restarted.Quarantined(), bad) {
		t.Error("without a last good record there must be none, and the sweep must know it")
	}
	recalling := testConfig()
	stored := c.Records()[bad].Payload
	recalling.Last = func(k record.Key) []byte {
		if k == bad {
			return stored
		}
		return nil
	}
	restarted = New(recalling)
	restarted.before = c.before
	restarted.Apply(parseObjects(t, lab))
	if got := restarted.Records()[bad]; !record.Equal(got.Payload, stored) || !slices.Equal(got.Refs, good.Refs) {
		t.Errorf("after a restart the stored record is not what is kept: %+v", routeOf(t, got))
	}

	c.before = nil
	c.Apply(parseObjects(t, strings.Replace(edit, "generation: 2", "generation: 3", 1)))
	if r := routeOf(t, c.Records()[bad]); len(r.Problems) != 0 || r.Object.Generation != 3 || len(c.Quarantined()) != 0 {
		t.Errorf("not lifted: %+v", r)
	}
}

func routeOf(t *testing.T, p Put) record.Route {
	t.Helper()
	var r record.Route
	if err := record.Unmarshal(p.Payload, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTooLargeIsRefused: a record above the limit becomes a small one that names it.
func TestTooLargeIsRefused(t *testing.T) {
	events := parseObjects(t, slice(lab, 4)+"\n---\n"+slice(lab, 2)+"\n---\n"+slice(lab, 3))
	r := events[0].Object.(*gatewayv1.HTTPRoute)
	big := r.Spec.Rules[0]
	r.Spec.Rules = nil
	for i := range 64 {
		rule := *big.DeepCopy()
		for j := range 64 {
			path := fmt.Sprintf("/%d/%d/%s", i, j, strings.Repeat("x", 200))
			rule.Matches = append(rule.Matches, gatewayv1.HTTPRouteMatch{Path: &gatewayv1.HTTPPathMatch{Value: &path}})
		}
		r.Spec.Rules = append(r.Spec.Rules, rule)
	}
	c := New(testConfig())
	out := c.Apply(events)
	if got := changed(out); got != "1 compiled: route shop HTTPRoute/r" {
		t.Fatal(got)
	}
	small := routeOf(t, out.Puts[0])
	if len(small.Rules) != 0 || len(small.Parents) != 1 || len(small.Problems) != 1 || !strings.Contains(small.Problems[0].Message, "the limit is 524288") {
		t.Errorf("%+v", small)
	}
}

// TestTooManyEndpointsAreCut: a Service with more endpoints than fit keeps those that do.
func TestTooManyEndpointsAreCut(t *testing.T) {
	var addresses []string
	for i := range 40_000 {
		addresses = append(addresses, fmt.Sprintf("{addresses: [10.%d.%d.%d]}", i>>16, i>>8&255, i&255))
	}
	c := New(testConfig())
	c.Apply(parseObjects(t, lab+"\n---\n"+strings.Replace(slice(lab, 3), "{addresses: [10.0.0.1]}", strings.Join(addresses, ", "), 1)))
	put := c.Records()[record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindEndpoints, Name: "web/80/auto"}]
	var e record.Endpoints
	if err := record.Unmarshal(put.Payload, &e); err != nil || len(put.Payload) > MaxPayload || len(e.Bytes) < MaxPayload*8/10 || e.Problem == nil {
		t.Errorf("%v: %d bytes, problem %v", err, len(put.Payload), e.Problem)
	}
}

// TestRealEnvoyAcceptsCases puts every route that any case compiles before the real binary.
func TestRealEnvoyAcceptsCases(t *testing.T) {
	binary := realEnvoy(t)
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	config := fmt.Sprintf(`{"node": {"id": "n", "cluster": "c"}, "static_resources": {"listeners": [%s]}}`, protojson.Format(listenerOf(t, allRoutes(t))))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "--mode", "validate", "--disable-hot-restart", "-l", "warn", "-c", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func listenerOf(t *testing.T, routes [][]byte) *listenerv3.Listener {
	rc := &routev3.RouteConfiguration{}
	if err := proto.Unmarshal(slices.Concat(envoy.RouteConfigurationHead("rc"), envoy.VirtualHostsBytes([][]byte{envoy.VirtualHostBytes("v", []string{"*"}, routes)})), rc); err != nil {
		t.Fatal(err)
	}
	rc.ValidateClusters = wrapperspb.Bool(false)
	hcm, err := envoy.HTTPConnectionManager("p", "rc", envoy.AccessLog{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	hcm.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: rc}
	chain, err := envoy.HTTPChain("http", hcm)
	if err != nil {
		t.Fatal(err)
	}
	l, err := envoy.Listener("l", "127.0.0.1", 10080, false, nil, chain)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func allRoutes(t *testing.T) [][]byte {
	var routes [][]byte
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, f := range files {
		archive, err := txtar.ParseFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c := New(testConfig())
		c.Apply(parseObjects(t, string(archive.Files[0].Data)))
		routes = append(routes, routesOf(t, c)...)
	}
	return routes
}

// routesOf gives all Envoy routes and variants that a compiler has, in the order of a single route's rules.
func routesOf(t *testing.T, c *Compiler) [][]byte {
	var routes [][]byte
	for k, put := range c.Records() {
		if k.Kind != record.KindRoute {
			continue
		}
		for _, rule := range routeOf(t, put).Rules {
			for _, m := range rule.Matches {
				routes = append(routes, m.Bytes)
				for _, b := range m.Variants {
					routes = append(routes, b)
				}
			}
		}
	}
	return routes
}

// BenchmarkOneChangedRoute: the cost of one changed route must not depend on how many there are.
func BenchmarkOneChangedRoute(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("of=%d", n), func(b *testing.B) {
			c, events := crowd(b, n)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				out := c.Apply(events[i%2 : i%2+1])
				if out.Compiled != 1 || len(out.Puts) != 1 {
					b.Fatal(changed(out))
				}
			}
		})
	}
}

// crowd is n routes over 500 namespaces, and two versions of one of them.
func crowd(tb testing.TB, n int) (*Compiler, []Event) {
	c := New(testConfig())
	var events []Event
	for i := range n {
		ns := fmt.Sprintf("team-%03d", i%500)
		r := parseObjects(tb, slice(lab, 4))[0].Object.(*gatewayv1.HTTPRoute)
		r.Namespace, r.Name = ns, fmt.Sprintf("r%d", i)
		events = append(events, eventOf("HTTPRoute", r))
		if i < 500 {
			s := parseObjects(tb, slice(lab, 2))[0].Object
			s.SetNamespace(ns)
			events = append(events, eventOf("Service", s))
		}
	}
	c.Apply(events)
	one := events[0].Object.(*gatewayv1.HTTPRoute)
	two := one.DeepCopy()
	two.Generation++
	two.Spec.Rules[0].BackendRefs[0].Weight = new(int32(7))
	return c, []Event{eventOf("HTTPRoute", two), eventOf("HTTPRoute", one)}
}

// realEnvoy finds the real binary; without it what these tests are for would go untested.
func realEnvoy(t *testing.T) string {
	t.Helper()
	if binary := os.Getenv("FLEETGATE_ENVOY"); binary != "" {
		return binary
	}
	binary, err := exec.LookPath("envoy")
	if err != nil {
		t.Fatal("no Envoy: run the tests by make, put envoy on PATH, or name one in FLEETGATE_ENVOY")
	}
	return binary
}
