package assemble

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

var (
	theGateway = gatewayKey("infra", "gw")
	theService = serviceKey("a", "s1")
	theSecret  = secretKey("infra", "cert")
)

// start gives a State with one Gateway of ours, a service and a secret.
func start(t testing.TB, listeners ...record.Listener) (*world, *State) {
	t.Helper()
	w, s := newWorld(t), New(testConfig)
	changes := append(w.service(theService), w.put(theSecret, secretOK(theSecret)), w.put(classKey("one"), class("one", ours)))
	s.Apply(append(changes, w.put(theGateway, gatewayRecord(theGateway, "one", listeners...), secretsOf(listeners)...)))
	return w, s
}

func secretsOf(listeners []record.Listener) []record.Key {
	var out []record.Key
	for _, l := range listeners {
		out = append(out, l.SecretKeys...)
	}
	return out
}

func withProtocol(l record.Listener, protocol string) record.Listener {
	l.Protocol = protocol
	return l
}

// addRoute puts a route with one rule for all paths.
func addRoute(t testing.TB, w *world, s *State, k record.Key, hosts []string, parents ...record.Parent) Delta {
	t.Helper()
	if len(parents) == 0 {
		parents = []record.Parent{parentOf(theGateway)}
	}
	return s.Apply([]Change{w.update(k, routeRecord(k, hosts, parents, rule(t, k, 0, theService, "prefix /")), refsOf(theService)...)})
}

func section(name string, port int32) record.Parent {
	p := parentOf(theGateway)
	p.SectionName, p.Port = name, port
	return p
}

func find(t testing.TB, in []metav1.Condition, kind string) metav1.Condition {
	t.Helper()
	for _, c := range in {
		if c.Type == kind {
			return c
		}
	}
	return metav1.Condition{Type: kind, Status: "absent"}
}

func show(c metav1.Condition) string { return fmt.Sprintf("%s %s", c.Status, c.Reason) }

func TestAttachment(t *testing.T) {
	selector := httpListener("sel", "", 81)
	selector.Allowed = record.Allowed{From: "Selector", Selector: "team in (x),zone notin (z)"}
	nobody := httpListener("none", "", 82)
	nobody.Allowed = record.Allowed{From: "None"}
	own := httpListener("same", "", 83)
	own.Allowed = record.Allowed{From: "Same"}
	grpc := httpListener("grpc", "", 84)
	grpc.Kinds = []string{"GRPCRoute"}
	emptySelector := httpListener("empty", "", 85)
	emptySelector.Allowed = record.Allowed{From: "Selector"}
	listeners := []record.Listener{httpListener("http", "*.example.com", 80), selector, nobody, own, grpc, emptySelector}

	for _, c := range []struct {
		name   string
		route  record.Key
		hosts  []string
		parent record.Parent
		want   string
		count  map[string]int32
	}{
		{"the whole Gateway", routeKey("a", "r"), []string{"foo.example.com"}, section("", 0), "True Accepted", map[string]int32{"http": 1, "sel": 1}},
		{"no such section", routeKey("a", "r"), nil, section("nope", 0), "False NoMatchingParent", nil},
		{"no such port", routeKey("a", "r"), nil, section("", 8080), "False NoMatchingParent", nil},
		{"section on another port", routeKey("a", "r"), nil, section("http", 81), "False NoMatchingParent", nil},
		{"namespace of None", routeKey("a", "r"), nil, section("none", 0), "False NotAllowedByListeners", nil},
		{"foreign namespace of Same", routeKey("a", "r"), nil, section("same", 0), "False NotAllowedByListeners", nil},
		{"own namespace of Same", routeKey("infra", "r"), nil, section("same", 0), "True Accepted", map[string]int32{"same": 1}},
		{"labels not selected", routeKey("b", "r"), nil, section("sel", 0), "False NotAllowedByListeners", nil},
		{"namespace without a record", routeKey("unknown", "r"), nil, section("sel", 0), "False NotAllowedByListeners", nil},
		{"labels selected", routeKey("a", "r"), nil, section("sel", 0), "True Accepted", map[string]int32{"sel": 1}},
		{"empty selector selects nothing", routeKey("a", "r"), nil, section("empty", 0), "False NotAllowedByListeners", nil},
		{"kind not allowed", routeKey("a", "r"), nil, section("grpc", 0), "False NotAllowedByListeners", nil},
		{"foreign hostname", routeKey("a", "r"), []string{"example.com", "foo.example.org"}, section("http", 0), "False NoMatchingListenerHostname", nil},
		{"parent domain as wildcard", routeKey("a", "r"), []string{"*.com"}, section("http", 0), "True Accepted", map[string]int32{"http": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, s := start(t, listeners...)
			s.Apply([]Change{
				w.put(namespaceKey("a"), record.Namespace{Name: "a", Labels: map[string]string{"team": "x"}}),
				w.put(namespaceKey("b"), record.Namespace{Name: "b", Labels: map[string]string{"team": "x", "zone": "z"}}),
			})
			addRoute(t, w, s, c.route, c.hosts, c.parent)
			r, _ := s.RouteStatus(c.route)
			got := find(t, r.Parents[0].Conditions, "Accepted")
			if show(got) != c.want || got.ObservedGeneration != 7 {
				t.Errorf("got %s (generation %d): %s", show(got), got.ObservedGeneration, got.Message)
			}
			if r.Parents[0].Attached != strings.HasPrefix(c.want, "True") || r.Parents[0].Controller != ours {
				t.Errorf("parent %+v", r.Parents[0])
			}
			g, _ := s.GatewayStatus(theGateway)
			for _, l := range g.Listeners {
				if l.AttachedRoutes != c.count[string(l.Name)] {
					t.Errorf("listener %s has %d attached routes, want %d", l.Name, l.AttachedRoutes, c.count[string(l.Name)])
				}
			}
		})
	}
}

func TestNamespaceLabelsMoveRoutes(t *testing.T) {
	l := httpListener("http", "", 80)
	l.Allowed = record.Allowed{From: "Selector", Selector: "team=x"}
	w, s := start(t, l)
	k := routeKey("a", "r")
	addRoute(t, w, s, k, nil)
	accepted := func() string {
		r, _ := s.RouteStatus(k)
		return show(find(t, r.Parents[0].Conditions, "Accepted"))
	}
	if got := accepted(); got != "False NotAllowedByListeners" {
		t.Fatal(got)
	}
	d := s.Apply([]Change{w.put(namespaceKey("a"), record.Namespace{Name: "a", Labels: map[string]string{"team": "x"}})})
	if got := accepted(); got != "True Accepted" || len(d.Fleets) != 1 || !slices.Contains(d.Status, theGateway) {
		t.Fatalf("%s, delta %v", got, d)
	}
	s.Apply([]Change{w.remove(namespaceKey("a"))})
	if got := accepted(); got != "False NotAllowedByListeners" {
		t.Fatal(got)
	}
}

func TestGatewaysOfOthersAreIgnored(t *testing.T) {
	w, s := start(t, httpListener("http", "", 80))
	addRoute(t, w, s, routeKey("a", "r"), nil)
	d := s.Apply([]Change{w.put(classKey("one"), class("one", "other/controller"))})
	if len(d.Fleets) != 1 || !d.Fleets[0].Gone || len(s.Gateways()) != 0 || s.Resources("c/infra/gw") != nil {
		t.Fatalf("delta %+v", d)
	}
	r, _ := s.RouteStatus(routeKey("a", "r"))
	if len(r.Parents) != 0 || len(r.MissingParents) != 0 {
		t.Errorf("route status %+v", r)
	}
	s.Apply([]Change{w.remove(theGateway)})
	if r, _ = s.RouteStatus(routeKey("a", "r")); !slices.Equal(r.MissingParents, []string{"infra/gw"}) {
		t.Errorf("route status %+v", r)
	}
	if _, ok := s.ClassStatus(classKey("one")); ok {
		t.Error("a class of somebody else has a status")
	}
}

func TestListenerConflicts(t *testing.T) {
	tcp := httpListener("tcp", "", 80)
	tcp.Protocol = "SCTP"
	for _, c := range []struct {
		name      string
		listeners []record.Listener
		want      []string // Conflicted of each
		gateway   string
		ports     int
	}{
		{"same port and hostname", []record.Listener{httpListener("a", "x.org", 80), httpListener("b", "x.org", 80), httpListener("c", "y.org", 80)},
			[]string{"True HostnameConflict", "True HostnameConflict", "False NoConflicts"}, "True ListenersNotValid", 1},
		{"same port, other protocol", []record.Listener{httpListener("a", "x.org", 443), httpsListener("b", "y.org", 443, theSecret)},
			[]string{"True ProtocolConflict", "True ProtocolConflict"}, "False ListenersNotValid", 0},
		{"an unsupported protocol conflicts with nobody", []record.Listener{httpListener("a", "", 80), tcp},
			[]string{"False NoConflicts", "False NoConflicts"}, "True ListenersNotValid", 1},
		{"TCP beside HTTP", []record.Listener{httpListener("a", "", 80), withProtocol(httpListener("b", "", 80), "TCP")},
			[]string{"True ProtocolConflict", "True ProtocolConflict"}, "False ListenersNotValid", 0},
		{"two TCP listeners of one port", []record.Listener{withProtocol(httpListener("a", "", 80), "TCP"), withProtocol(httpListener("b", "", 80), "TCP")},
			[]string{"True HostnameConflict", "True HostnameConflict"}, "False ListenersNotValid", 0},
		{"TCP and UDP are two ports", []record.Listener{withProtocol(httpListener("a", "", 80), "TCP"), withProtocol(httpListener("b", "", 80), "UDP")},
			[]string{"False NoConflicts", "False NoConflicts"}, "True Accepted", 1},
		{"TLS and HTTPS share a port by server name", []record.Listener{withProtocol(httpsListener("a", "a.org", 443, theSecret), "TLS"), httpsListener("b", "b.org", 443, theSecret)},
			[]string{"False NoConflicts", "False NoConflicts"}, "True Accepted", 1},
		{"TLS and HTTPS of one server name", []record.Listener{withProtocol(httpsListener("a", "a.org", 443, theSecret), "TLS"), httpsListener("b", "a.org", 443, theSecret)},
			[]string{"True ProtocolConflict", "True ProtocolConflict"}, "False ListenersNotValid", 0},
		{"two hostnames", []record.Listener{httpListener("a", "", 80), httpListener("b", "*.org", 80)},
			[]string{"False NoConflicts", "False NoConflicts"}, "True Accepted", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, s := start(t, c.listeners...)
			g, _ := s.GatewayStatus(theGateway)
			for i, l := range g.Listeners {
				conflicted, accepted := find(t, l.Conditions, "Conflicted"), find(t, l.Conditions, "Accepted")
				if show(conflicted) != c.want[i] {
					t.Errorf("%s: %s", l.Name, show(conflicted))
				}
				if conflicted.Status == "True" && accepted.Reason != conflicted.Reason {
					t.Errorf("%s: accepted is %s", l.Name, show(accepted))
				}
			}
			if got := show(find(t, g.Conditions, "Accepted")); got != c.gateway || len(g.Ports) != c.ports || g.Valid != (c.ports > 0) {
				t.Errorf("%s, ports %v, valid %v", got, g.Ports, g.Valid)
			}
			sound(t, s)
		})
	}
}

func TestIsolation(t *testing.T) {
	w, s := start(t, httpListener("all", "", 80), httpListener("wild", "*.example.com", 80), httpListener("deep", "*.foo.example.com", 80), httpListener("one", "abc.foo.example.com", 80))
	addRoute(t, w, s, routeKey("a", "all"), nil, section("all", 0))
	addRoute(t, w, s, routeKey("a", "greedy"), []string{"bar.example.com", "example.net"}, section("all", 0))
	addRoute(t, w, s, routeKey("a", "deep"), nil, section("deep", 0))
	c := routeConfig(t, s, "c/infra/gw/80")
	for host, want := range map[string]string{
		"else.org":            "HTTPRoute/a/all/0/0",
		"example.net":         "HTTPRoute/a/greedy/0/0",
		"bar.example.com":     "404", // owned by the listener wild, which has no route
		"example.com":         "HTTPRoute/a/all/0/0",
		"x.foo.example.com":   "HTTPRoute/a/deep/0/0",
		"abc.foo.example.com": "404",
	} {
		if got := answer(c, host, "/", nil); got != want {
			t.Errorf("%s: got %s, want %s", host, got, want)
		}
	}
}

// TestMisdirected is the table of the conformance test of 421: for each SNI, a host and its answer.
func TestMisdirected(t *testing.T) {
	w, s := start(t, httpsListener("exact", "second.example.org", 443, theSecret), httpsListener("wild", "*.wildcard.org", 443, theSecret),
		httpsListener("very", "very.specific.com", 443, theSecret), httpsListener("any", "", 443, theSecret), httpsListener("other", "x.other.org", 8443, theSecret))
	for _, l := range []string{"exact", "wild", "very", "any"} {
		addRoute(t, w, s, routeKey("a", l), nil, section(l, 0))
	}
	for _, c := range []struct{ listener, host, want string }{
		{"exact", "second.example.org", "HTTPRoute/a/exact/0/0"},
		{"exact", "unknown.org", "421"},
		{"exact", "a.wildcard.org", "421"},
		{"exact", "x.other.org", "421"}, // the catch-all of this port would take it
		{"wild", "b.wildcard.org", "HTTPRoute/a/wild/0/0"},
		{"wild", "very.specific.com", "421"},
		{"any", "unknown.org", "HTTPRoute/a/any/0/0"},
		{"any", "second.example.org", "421"},
		{"any", "z.wildcard.org", "421"},
		{"any", "wildcard.org", "HTTPRoute/a/any/0/0"},
	} {
		if got := answer(routeConfig(t, s, "c/infra/gw/443/"+c.listener), c.host, "/", nil); got != c.want {
			t.Errorf("SNI of %s, host %s: got %s, want %s", c.listener, c.host, got, c.want)
		}
	}
	if got := answer(routeConfig(t, s, "c/infra/gw/8443/other"), "unknown.org", "/", nil); got != "404" {
		t.Errorf("without a catch-all listener: %s", got)
	}
	g, _ := s.GatewayStatus(theGateway)
	if got := show(find(t, g.Listeners[0].Conditions, "OverlappingTLSConfig")); got != "True OverlappingHostnames" {
		t.Errorf("overlap: %s", got)
	}
	if got := find(t, g.Listeners[4].Conditions, "OverlappingTLSConfig").Status; got != "absent" {
		t.Errorf("overlap alone on its port: %s", got)
	}
}

func listenerOf(t testing.TB, s *State, name string) Resource {
	t.Helper()
	for _, r := range s.Resources("c/infra/gw") {
		if r.Type == TypeListener && r.Name == name {
			return r
		}
	}
	t.Fatalf("no listener %s", name)
	return Resource{}
}

func TestPlaintextListenerBytesAreConstant(t *testing.T) {
	w, s := start(t, httpListener("one", "", 80))
	before := listenerOf(t, s, "c/infra/gw/80")
	s.Apply([]Change{w.update(theGateway, gatewayRecord(theGateway, "one", httpListener("one", "x.org", 80), httpListener("two", "*.org", 80), httpListener("three", "", 81)))})
	if after := listenerOf(t, s, "c/infra/gw/80"); after.Version != before.Version {
		t.Error("a listener with another hostname on a plaintext port would drop every connection")
	}
	addRoute(t, w, s, routeKey("a", "r"), nil)
	if after := listenerOf(t, s, "c/infra/gw/80"); after.Version != before.Version {
		t.Error("a route changed a listener")
	}
}

func TestCertificateDecidesAboutTheChain(t *testing.T) {
	second := secretKey("infra", "second")
	w, s := start(t, httpsListener("one", "one.org", 443, theSecret), httpsListener("two", "two.org", 443, second))
	chains := func() string {
		l := &listenerv3.Listener{}
		if err := proto.Unmarshal(listenerOf(t, s, "c/infra/gw/443").Bytes[0], l); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, c := range l.FilterChains {
			out = append(out, c.Name)
		}
		return strings.Join(out, " ")
	}
	resolved := func() string {
		g, _ := s.GatewayStatus(theGateway)
		return show(find(t, g.Listeners[1].Conditions, "ResolvedRefs"))
	}
	if chains() != "one" || resolved() != "False InvalidCertificateRef" {
		t.Fatalf("absent: %s, %s", chains(), resolved())
	}
	s.Apply([]Change{w.put(second, secretOK(second))})
	if chains() != "one two" || resolved() != "True ResolvedRefs" {
		t.Fatalf("there: %s, %s", chains(), resolved())
	}
	rotated := secretOK(second)
	rotated.Version, rotated.Sealed = "v2", []byte("other")
	d := s.Apply([]Change{w.put(second, rotated)})
	types := map[ResourceType]bool{}
	for _, r := range d.Fleets[0].Resources {
		types[r.Type] = true
	}
	if !types[TypeSecret] || types[TypeRoute] {
		t.Errorf("a rotation changes %v", types)
	}
	bad := secretOK(second)
	bad.Problem = &record.Problem{Condition: "ResolvedRefs", Reason: "InvalidCertificateRef", Message: "no PEM"}
	s.Apply([]Change{w.put(second, bad)})
	if chains() != "one" || resolved() != "False InvalidCertificateRef" {
		t.Fatalf("broken: %s, %s", chains(), resolved())
	}
	sound(t, s)
}

// TestRejectedCertificateSaysSo: one that proxies rejected is there, and its listener tells what they said, also while the previous version is served.
func TestRejectedCertificateSaysSo(t *testing.T) {
	w, s := start(t, httpsListener("https", "", 443, theSecret))
	resolved := func() metav1.Condition {
		g, _ := s.GatewayStatus(theGateway)
		return find(t, g.Listeners[0].Conditions, "ResolvedRefs")
	}
	s.Apply([]Change{w.pin(theSecret, "")})
	if got := resolved(); show(got) != "False InvalidCertificateRef" || !strings.Contains(got.Message, "regex too large") {
		t.Errorf("without a previous version: %+v", got)
	}
	s.Apply([]Change{w.put(theSecret, secretOK(theSecret))})
	rotated := secretOK(theSecret)
	rotated.Version = "v2"
	s.Apply([]Change{w.update(theSecret, rotated)})
	if got := resolved(); show(got) != "True ResolvedRefs" {
		t.Errorf("rotated: %+v", got)
	}
	s.Apply([]Change{w.pin(theSecret, "")})
	if got := resolved(); show(got) != "False InvalidCertificateRef" || !strings.Contains(got.Message, "regex too large") || !strings.Contains(got.Message, "the previous version is served") {
		t.Errorf("with a previous version: %+v", got)
	}
	if g, _ := s.GatewayStatus(theGateway); !g.Valid {
		t.Error("the previous version is served, and the Gateway is said to be invalid")
	}
}

func TestMissingBackendIsNotServed(t *testing.T) {
	w, s := start(t, httpListener("http", "", 80))
	addRoute(t, w, s, routeKey("a", "r"), nil)
	has := func(kind ResourceType) bool {
		return slices.ContainsFunc(s.Resources("c/infra/gw"), func(r Resource) bool { return r.Type == kind })
	}
	if !has(TypeCluster) || !has(TypeEndpoints) {
		t.Fatal("cluster or endpoints are not served")
	}
	missing := backendRecord(theService)
	missing.Missing = true
	s.Apply([]Change{w.update(theService, missing)})
	if has(TypeCluster) || has(TypeEndpoints) {
		t.Error("a missing backend is served")
	}
	sound(t, s)
	s.Apply([]Change{w.update(theService, backendRecord(theService))})
	s.Apply([]Change{w.remove(routeKey("a", "r"))})
	if has(TypeCluster) {
		t.Error("a cluster that nothing uses is served")
	}
}

func TestPinsAndPending(t *testing.T) {
	k := routeKey("a", "r")
	late := serviceKey("b", "late")
	w, s := start(t, httpListener("http", "", 80))
	state := func() (string, string) {
		r, _ := s.RouteStatus(k)
		return answer(routeConfig(t, s, "c/infra/gw/80"), "x.org", "/", nil), r.Pending
	}
	expect := func(what, served, pending string) {
		t.Helper()
		gotServed, gotPending := state()
		if gotServed != served || (pending == "") != (gotPending == "") || !strings.Contains(gotPending, pending) {
			t.Errorf("%s: serves %s, pending %q", what, gotServed, gotPending)
		}
	}
	put := func(number int, b record.Key) Change {
		return w.update(k, routeRecord(k, nil, []record.Parent{parentOf(theGateway)}, rule(t, k, number, b, "prefix /")), refsOf(b)...)
	}

	s.Apply([]Change{put(0, late)})
	expect("first version waits for its backend", "404", "waiting for the backend b/late/80/x")
	s.Apply(w.service(late))
	expect("the backend came", "HTTPRoute/a/r/0/0", "")
	r, _ := s.RouteStatus(k)
	if want := w.last[late].Cur.Index; r.Index != want {
		t.Errorf("index %d: it went live at %d", r.Index, want)
	}
	s.Apply([]Change{w.pin(k, "")})
	expect("rejected without a previous version", "500", "regex too large")
	s.Apply([]Change{w.pin(k, degradedSuffix)})
	expect("its matches are rejected too", "404", "regex too large")
	unpinned := w.last[k]
	unpinned.PinnedHash = ""
	s.Apply([]Change{unpinned})
	expect("unpinned", "HTTPRoute/a/r/0/0", "")
	s.Apply([]Change{put(1, serviceKey("b", "later"))})
	expect("new version waits, the previous one serves", "HTTPRoute/a/r/0/0", "previous version is served")
	s.Apply(w.service(serviceKey("b", "later")))
	expect("new version is live", "HTTPRoute/a/r/1/0", "")
	s.Apply([]Change{w.pin(k, "")})
	expect("rejected: the previous one serves", "HTTPRoute/a/r/0/0", "proxies rejected it: regex too large")
	if parts := s.Resources("c/infra/gw"); !slices.ContainsFunc(parts, func(r Resource) bool { return allParts(r)[PartID(k)] == w.last[k].Cur.Hash+previousSuffix }) {
		t.Error("a rejection of the previous bytes could not be told from one of the newest")
	}
	s.Apply([]Change{w.pin(k, previousSuffix)})
	expect("the previous one is rejected too", "500", "regex too large")
	s.Apply([]Change{w.pin(k, degradedSuffix)})
	expect("so are its matches", "404", "regex too large")
	c := put(2, theService)
	s.Apply([]Change{c})
	expect("a new hash lifts the pin", "HTTPRoute/a/r/2/0", "")
}

func TestRefusedRouteAnswers500AndDoesNotCount(t *testing.T) {
	w, s := start(t, httpListener("http", "", 80))
	k := routeKey("a", "r")
	r := routeRecord(k, nil, []record.Parent{parentOf(theGateway)}, rule(t, k, 0, theService, "prefix /"), rule(t, k, 1, theService, "prefix /a"))
	r.Problems = []record.Problem{{Condition: "Accepted", Reason: "UnsupportedValue", Message: "rule 0: no such filter", Rule: 0}}
	s.Apply([]Change{w.put(k, r)})
	status, _ := s.RouteStatus(k)
	if got := find(t, status.Parents[0].Conditions, "PartiallyInvalid"); show(got) != "True UnsupportedValue" || got.Message != "Dropped Rule: rule 0: no such filter" {
		t.Errorf("partial: %v", got)
	}
	r.Problems = append(r.Problems, record.Problem{Condition: "Accepted", Reason: "UnsupportedValue", Message: "no such filter", Rule: 1})
	s.Apply([]Change{w.put(k, r)})
	status, _ = s.RouteStatus(k)
	if got := show(find(t, status.Parents[0].Conditions, "Accepted")); got != "False UnsupportedValue" || status.Parents[0].Attached {
		t.Errorf("refused: %s %+v", got, status.Parents[0])
	}
	if got := find(t, status.Parents[0].Conditions, "PartiallyInvalid").Status; got != "absent" {
		t.Errorf("PartiallyInvalid is %s on a refused route", got)
	}
	if g, _ := s.GatewayStatus(theGateway); g.Listeners[0].AttachedRoutes != 0 {
		t.Errorf("counted %d", g.Listeners[0].AttachedRoutes)
	}
	if got := answer(routeConfig(t, s, "c/infra/gw/80"), "x.org", "/", nil); got == "404" {
		t.Error("what is compiled of a refused route is left out, its requests go elsewhere")
	}
}

func TestVariantOfThePort(t *testing.T) {
	w, s := start(t, httpListener("a", "", 80), httpListener("b", "", 8080))
	k := routeKey("a", "r")
	r := routeRecord(k, nil, []record.Parent{parentOf(theGateway)}, rule(t, k, 0, theService, "prefix /"))
	r.Rules[0].Matches[0].Variants = map[string][]byte{"http/8080": rule(t, k, 9, theService, "prefix /").Matches[0].Bytes}
	s.Apply([]Change{w.put(k, r)})
	for port, want := range map[int]string{80: "HTTPRoute/a/r/0/0", 8080: "HTTPRoute/a/r/9/0"} {
		if got := answer(routeConfig(t, s, fmt.Sprintf("c/infra/gw/%d", port)), "x", "/", nil); got != want {
			t.Errorf("port %d: %s", port, got)
		}
	}
}

func TestRecordsThatCannotBeReadDisturbNobody(t *testing.T) {
	w, s := start(t, httpListener("http", "", 80))
	addRoute(t, w, s, routeKey("a", "good"), nil)
	for _, k := range []record.Key{routeKey("a", "bad"), gatewayKey("infra", "bad"), secretKey("infra", "bad"), namespaceKey("bad"), classKey("bad"), serviceKey("a", "bad"), {Cluster: "c", Kind: "new"}} {
		s.Apply([]Change{{Key: k, Cur: &Content{Hash: "x", Payload: []byte{0xff}, Index: 99}}, {Key: k}, {Key: k, Cur: &Content{Hash: "x", Payload: []byte{0x61}, Index: 100}}})
	}
	if r, ok := s.RouteStatus(routeKey("a", "bad")); !ok || !strings.Contains(r.Pending, "cannot be read") {
		t.Errorf("%+v", r)
	}
	if got := answer(routeConfig(t, s, "c/infra/gw/80"), "x", "/", nil); got != "HTTPRoute/a/good/0/0" {
		t.Error(got)
	}
	_ = w
}

func TestPortThatEnvoyRefuses(t *testing.T) {
	_, s := start(t, httpListener("good", "", 80), httpListener("bad", "", 70000))
	g, _ := s.GatewayStatus(theGateway)
	if got := show(find(t, g.Listeners[1].Conditions, "Accepted")); got != "False UnsupportedValue" || !g.Valid {
		t.Errorf("%s, valid %v", got, g.Valid)
	}
	sound(t, s)
}

func TestHostnames(t *testing.T) {
	for _, c := range []struct {
		a, b, both string
		ok         bool
	}{
		{"", "", "", true},
		{"", "x.org", "x.org", true},
		{"*.org", "x.org", "x.org", true},
		{"*.org", "org", "", false},
		{"*.x.org", "*.org", "*.x.org", true},
		{"*.x.org", "a.b.x.org", "a.b.x.org", true},
		{"*.x.org", "ax.org", "", false},
		{"*.x.org", "*.ax.org", "", false},
		{"x.org", "y.org", "", false},
	} {
		for _, swap := range []bool{false, true} {
			a, b := c.a, c.b
			if swap {
				a, b = b, a
			}
			if got, ok := intersect(a, b); ok != c.ok || ok && got != c.both {
				t.Errorf("%q and %q: %q %v", a, b, got, ok)
			}
		}
	}
}

func TestRejectedGatewaySaysSo(t *testing.T) {
	w, s := start(t, httpListener("http", "", 80))
	k := routeKey("a", "r")
	addRoute(t, w, s, k, nil)
	s.Apply([]Change{w.pin(theGateway, "")})
	g, ok := s.GatewayStatus(theGateway)
	if !ok || g.Valid || !strings.Contains(g.Pending, "regex too large") || !strings.Contains(find(t, g.Listeners[0].Conditions, "Accepted").Message, "regex too large") {
		t.Errorf("%v %+v", ok, g)
	}
	if got := s.Resources("c/infra/gw"); len(got) != 0 {
		t.Errorf("serves %d resources", len(got))
	}
	if r, _ := s.RouteStatus(k); r.Parents[0].Attached {
		t.Error("the route claims to be served")
	}
	s.Apply([]Change{w.update(theGateway, gatewayRecord(theGateway, "one", httpListener("http", "", 81)))})
	if got := answer(routeConfig(t, s, "c/infra/gw/81"), "x", "/", nil); got != "HTTPRoute/a/r/0/0" {
		t.Error(got)
	}
	s.Apply([]Change{w.pin(theGateway, "")})
	if got := answer(routeConfig(t, s, "c/infra/gw/80"), "x", "/", nil); got != "HTTPRoute/a/r/0/0" {
		t.Errorf("the previous listeners do not serve: %s", got)
	}
}

// TestRouteWithoutRulesCanGo: its host has nothing to serve and is not kept, and the route goes all the same.
func TestRouteWithoutRulesCanGo(t *testing.T) {
	w, s := start(t, httpListener("http", "", 80))
	k := routeKey("a", "empty")
	s.Apply([]Change{w.update(k, routeRecord(k, []string{"empty.example"}, []record.Parent{parentOf(theGateway)}))})
	if st, _ := s.RouteStatus(k); !st.Parents[0].Attached {
		t.Fatal("the route is not attached")
	}
	s.Apply([]Change{w.remove(k)})
	if _, there := s.RouteStatus(k); there {
		t.Error("the route is still there")
	}
}

// TestUnknownRouteKindHidesNoMissingCertificate: both say ResolvedRefs=False, but only the one keeps the listener from being served.
func TestUnknownRouteKindHidesNoMissingCertificate(t *testing.T) {
	l := httpsListener("https", "", 443, secretKey("infra", "gone"))
	l.Problems = []record.Problem{{Condition: "ResolvedRefs", Reason: "InvalidRouteKinds", Message: "no such kind", Rule: -1}}
	_, s := start(t, l)
	for _, r := range s.Resources("c/infra/gw") {
		if r.Type == TypeListener {
			t.Errorf("%s is served and uses %v, which is not there", r.Name, r.Uses)
		}
	}
}

// TestANewFleetIsToldThatItHasNothingToRun: an Envoy whose Gateway has no valid listener would wait for ever, and its pod never be ready.
// TestServiceOfTheGatewaysName: a UDP listener and the Service behind it have a namespace, a name and a port in common, and what becomes of one is not taken for the other.
func TestServiceOfTheGatewaysName(t *testing.T) {
	l := withProtocol(httpListener("dns", "", 53), protocolUDP)
	l.Kinds = []string{"UDPRoute"}
	w, s := start(t, l)
	service, k := serviceKey("infra", "gw"), routeKey("infra", "r")
	service.Name, k.Name = "gw/53/udp", "UDPRoute/r"
	r := routeRecord(k, nil, []record.Parent{parentOf(theGateway)}, record.Rule{Stream: []record.Share{{Backend: &service, Weight: 1}}})
	r.Object.Kind = "UDPRoute"
	s.Apply(append(w.service(service), w.put(k, r, refsOf(service)...)))
	endpoints := endpointsRecord(service)
	endpoints.Bytes = append(endpoints.Bytes, 'x')
	for _, f := range s.Apply([]Change{w.put(endpointsKey(service), endpoints)}).Fleets {
		for _, r := range f.Resources {
			if r.Bytes == nil {
				t.Errorf("%v %s is removed", r.Type, r.Name)
			}
		}
	}
}

// TestResolvedRefsSpeaksOfListenersToo: a Gateway that says of its own certificate that it is resolved does not say so of all references while a listener's is missing.
func TestResolvedRefsSpeaksOfListenersToo(t *testing.T) {
	cert, client := secretKey("infra", "later"), secretKey("infra", "client")
	w, s := start(t)
	r := gatewayRecord(theGateway, "one", httpListener("http", "", 80), httpsListener("https", "", 443, cert))
	r.Client, r.ClientKey = secretName(client), &client
	s.Apply([]Change{w.put(client, secretOK(client)), w.put(theGateway, r, client, cert)})
	for _, want := range []string{"False ListenersNotResolved", "True ResolvedRefs"} {
		status, _ := s.GatewayStatus(theGateway)
		if got := show(find(t, status.Conditions, "ResolvedRefs")); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		s.Apply([]Change{w.put(cert, secretOK(cert))})
	}
}

func TestANewFleetIsToldThatItHasNothingToRun(t *testing.T) {
	w, s := newWorld(t), New(testConfig)
	s.Apply([]Change{w.put(classKey("one"), class("one", ours))})
	nothing := gatewayRecord(theGateway, "one")
	if d := s.Apply([]Change{w.put(theGateway, nothing)}); len(d.Fleets) != 1 || d.Fleets[0].Gone || len(d.Fleets[0].Resources) != 0 {
		t.Fatalf("delta of a new Gateway without listeners: %+v", d)
	}
	nothing.Object.Generation++
	if d := s.Apply([]Change{w.put(theGateway, nothing)}); len(d.Fleets) != 0 {
		t.Fatalf("told twice: %+v", d)
	}
}
