package assemble

import (
	"maps"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// guards tells for each host of a configuration which backend its filters ask, "off" = none, and what it answers to what no route takes.
func guards(t *testing.T, c *routev3.RouteConfiguration) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, v := range c.VirtualHosts {
		all := maps.Clone(c.TypedPerFilterConfig)
		if all == nil {
			all = map[string]*anypb.Any{}
		}
		maps.Copy(all, v.TypedPerFilterConfig)
		out[v.Name] = asked(t, all) + " " + answer(c, strings.Replace(v.Name, "*", "x", 1), "/nowhere", nil)
	}
	return out
}

func asked(t *testing.T, all map[string]*anypb.Any) string {
	t.Helper()
	what := all[envoy.ListenerSlot(0)]
	if what == nil || what.MessageIs(&routev3.FilterConfig{}) {
		return "off"
	}
	for _, name := range []string{envoy.RouteSlot(0), envoy.RouteSlot(envoy.RouteSlots - 1), envoy.SessionFilter} {
		c := &routev3.FilterConfig{}
		if err := all[name].UnmarshalTo(c); err != nil || c.Config == nil || c.Disabled {
			t.Errorf("%s is not on from the start: %v %v", name, c, err)
		}
	}
	if err := what.UnmarshalTo(&compositev3.CompositePerRoute{}); err != nil {
		t.Error(err)
	}
	for _, s := range []string{"s1", "s2"} {
		if strings.Contains(string(what.Value), s+"/80/x") {
			return s
		}
	}
	return "?"
}

func filtered(l record.Listener, f *record.Filters) record.Listener {
	l.Filters = f
	return l
}

// TestWhoGuardsAHost: each host is guarded by what the listener that it belongs to says, on plaintext ports by the most specific one, and only there some route takes every request.
func TestWhoGuardsAHost(t *testing.T) {
	w := newWorld(t)
	s := New(testConfig)
	one, two, cert := serviceKey("a", "s1"), serviceKey("a", "s2"), secretKey("infra", "cert")
	refused := &record.Filters{Problems: []record.Problem{{Condition: "Accepted", Reason: "UnsupportedValue", Message: "m", Rule: -1}}}
	gw := gatewayKey("infra", "gw")
	changes := append(w.service(one), w.service(two)...)
	changes = append(changes, w.put(classKey("one"), class("one", ours)), w.put(cert, secretOK(cert)),
		w.put(gw, gatewayRecord(gw, "one",
			filtered(httpListener("wide", "*.example.com", 80), filtersTo(one)),
			filtered(httpListener("exact", "foo.example.com", 80), filtersTo(two)),
			httpListener("bare", "bar.example.com", 80),
			filtered(httpListener("refused", "*.no.example.com", 80), refused),
			httpListener("alone", "", 81),
			filtered(httpsListener("tls", "", 443, cert), filtersTo(one)),
			httpsListener("tls-bare", "bar.example.com", 443, cert),
		), append(refsOf(one), append(refsOf(two), cert)...)...),
		w.put(routeKey("infra", "r"), routeRecord(routeKey("infra", "r"), []string{"*.example.com", "foo.example.com", "bar.example.com", "baz.example.com", "x.no.example.com"}, []record.Parent{parentOf(gw)},
			rule(t, routeKey("infra", "r"), 0, one, "prefix /a")), refsOf(one)...))
	s.Apply(changes)
	for name, want := range map[string]map[string]string{
		"c/infra/gw/80":      {"*": "off 404", "*.example.com": "s1 404", "foo.example.com": "s2 404", "bar.example.com": "off 404", "baz.example.com": "s1 404", "*.no.example.com": "off 500", "x.no.example.com": "off 500"},
		"c/infra/gw/81":      {"*": "off 404", "*.example.com": "off 404", "foo.example.com": "off 404", "bar.example.com": "off 404", "baz.example.com": "off 404", "x.no.example.com": "off 404"},
		"c/infra/gw/443/tls": {"*": "s1 404", "*.example.com": "s1 404", "foo.example.com": "s1 404", "bar.example.com": "off 421", "baz.example.com": "s1 404", "x.no.example.com": "s1 404"},
	} {
		c := routeConfig(t, s, name)
		same(t, name, want, guards(t, c))
		for _, v := range c.VirtualHosts {
			last := v.Routes[len(v.Routes)-1]
			if takesAll := last.GetDirectResponse() != nil && last.Match.GetPrefix() == "/"; !takesAll && guards(t, c)[v.Name][:3] != "off" {
				t.Errorf("%s %s: what no route takes passes by the filters", name, v.Name)
			}
		}
	}
	for _, r := range s.Resources("c/infra/gw") {
		if r.Type == TypeRoute && r.Name == "c/infra/gw/80" && !slices.Equal(r.Uses, []string{record.ClusterName(one), record.ClusterName(two)}) {
			t.Errorf("%s uses %v", r.Name, r.Uses)
		}
	}
}

// TestFilterWhoseBackendGoes: while the backend of a filter is not there the listener answers 500 and says why, and its address stays open; nobody else gets its hosts.
func TestFilterWhoseBackendGoes(t *testing.T) {
	w := newWorld(t)
	s := New(testConfig)
	auth, web, gw := serviceKey("a", "s1"), serviceKey("a", "s2"), gatewayKey("infra", "gw")
	changes := append(w.service(auth), w.service(web)...)
	changes = append(changes, w.put(classKey("one"), class("one", ours)),
		w.put(gw, gatewayRecord(gw, "one", filtered(httpListener("l", "foo.example.com", 80), filtersTo(auth)), httpListener("m", "", 80)), refsOf(auth)...),
		w.put(routeKey("infra", "r"), routeRecord(routeKey("infra", "r"), nil, []record.Parent{parentOf(gw)}, rule(t, routeKey("infra", "r"), 0, web, "prefix /")), refsOf(web)...))
	s.Apply(changes)
	listener := resourceOf(t, s, TypeListener, "c/infra/gw/80").Version
	step := func(what string, c Change, want, reason string) {
		s.Apply([]Change{c})
		if got := answer(routeConfig(t, s, "c/infra/gw/80"), "foo.example.com", "/", nil); got != want {
			t.Errorf("%s: foo.example.com answers %s, want %s", what, got, want)
		}
		if got := answer(routeConfig(t, s, "c/infra/gw/80"), "bar.example.com", "/", nil); got != "HTTPRoute/infra/r/0/0" {
			t.Errorf("%s: bar.example.com answers %s", what, got)
		}
		if got := resourceOf(t, s, TypeListener, "c/infra/gw/80").Version; got != listener {
			t.Errorf("%s: the listener changed", what)
		}
		status, _ := s.GatewayStatus(gw)
		for _, c := range status.Listeners[0].Conditions {
			if c.Type == "ResolvedRefs" && c.Reason != reason {
				t.Errorf("%s: ResolvedRefs says %s (%s), want %s", what, c.Reason, c.Message, reason)
			}
		}
	}
	missing := backendRecord(auth)
	missing.Missing, missing.Problem = true, &record.Problem{Condition: "ResolvedRefs", Reason: "UnsupportedProtocol", Message: "https", Rule: -1}
	step("refused", w.put(auth, missing), "500", "InvalidListenerFilterRef")
	step("back", w.put(auth, backendRecord(auth)), "HTTPRoute/infra/r/0/0", "ResolvedRefs")
	step("without endpoints", w.remove(endpointsKey(auth)), "HTTPRoute/infra/r/0/0", "ResolvedRefs")
}

func resourceOf(t *testing.T, s *State, kind ResourceType, name string) Resource {
	t.Helper()
	for _, r := range s.Resources("c/infra/gw") {
		if r.Type == kind && r.Name == name {
			return r
		}
	}
	t.Fatalf("no %d %s", kind, name)
	return Resource{}
}
