package assemble

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

const ours = "fleetgate.io/controller"

var testConfig = Config{ControllerNames: []string{ours}}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func classKey(name string) record.Key {
	return record.Key{Cluster: "c", Kind: record.KindClass, Name: name}
}

func gatewayKey(namespace, name string) record.Key {
	return record.Key{Cluster: "c", Namespace: namespace, Kind: record.KindGateway, Name: name}
}

func routeKey(namespace, name string) record.Key {
	return record.Key{Cluster: "c", Namespace: namespace, Kind: record.KindRoute, Name: "HTTPRoute/" + name}
}

func namespaceKey(name string) record.Key {
	return record.Key{Cluster: "c", Namespace: name, Kind: record.KindNamespace, Name: name}
}

func serviceKey(namespace, name string) record.Key {
	return record.Key{Cluster: "c", Namespace: namespace, Kind: record.KindBackend, Name: name + "/80/x"}
}

func setKey(namespace, name string) record.Key {
	return record.Key{Cluster: "c", Namespace: namespace, Kind: record.KindListenerSet, Name: name}
}

func trustKey(name string) record.Key {
	return record.Key{Cluster: "c", Namespace: "infra", Kind: record.KindTrust, Name: "ConfigMap/" + name}
}

func secretKey(namespace, name string) record.Key {
	return record.Key{Cluster: "c", Namespace: namespace, Kind: record.KindSecret, Name: name}
}

// world makes changes with growing indexes and remembers the last of each record.
type world struct {
	t     testing.TB
	index uint64
	last  map[record.Key]Change
}

func newWorld(t testing.TB) *world { return &world{t: t, last: map[record.Key]Change{}} }

// put writes a record; refs are what it names.
func (w *world) put(k record.Key, v any, refs ...record.Key) Change {
	w.t.Helper()
	w.index++
	payload, err := record.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	c := Change{Key: k, Cur: &Content{Hash: record.Hash(payload), Payload: payload, Refs: refs, Index: w.index}}
	w.last[k] = c
	return c
}

// update is put that keeps the content before as the previous one.
func (w *world) update(k record.Key, v any, refs ...record.Key) Change {
	old := w.last[k]
	c := w.put(k, v, refs...)
	c.Prev = old.Cur
	w.last[k] = c
	return c
}

// pin rejects the newest content of a record, or its degraded form.
func (w *world) pin(k record.Key, suffix string) Change {
	c := w.last[k]
	c.PinnedHash, c.PinReason = c.Cur.Hash+suffix, "regex too large"
	w.last[k] = c
	return c
}

func (w *world) remove(k record.Key) Change {
	w.index++
	delete(w.last, k)
	return Change{Key: k}
}

// all gives the last change of each record, sorted.
func (w *world) all() []Change {
	var out []Change
	for _, k := range slices.SortedFunc(maps.Keys(w.last), record.Key.Compare) {
		out = append(out, w.last[k])
	}
	return out
}

func class(name, controller string) record.Class {
	return record.Class{Object: record.Object{Kind: "GatewayClass", Name: name, Generation: 1}, ControllerName: controller}
}

func httpListener(name, hostname string, port int32) record.Listener {
	return record.Listener{Name: name, Hostname: hostname, Port: port, Protocol: "HTTP", Allowed: record.Allowed{From: "All"}, Kinds: []string{"HTTPRoute", "GRPCRoute"}}
}

func httpsListener(name, hostname string, port int32, secret record.Key) record.Listener {
	l := httpListener(name, hostname, port)
	l.Protocol, l.Secrets, l.SecretKeys = "HTTPS", []string{secretName(secret)}, []record.Key{secret}
	return l
}

// filtersTo are filters that name a backend.
func filtersTo(backend record.Key) *record.Filters {
	packed, err := envoy.Authorize(envoy.Authorization{Cluster: record.ClusterName(backend), Authority: "a", BeforeRouting: true})
	if err != nil {
		panic(err)
	}
	b, err := envoy.Marshal(packed)
	if err != nil {
		panic(err)
	}
	return &record.Filters{Run: []record.Filter{{Config: b, Backend: backend}}}
}

func secretName(k record.Key) string { return record.Join(k.Cluster, k.Namespace, k.Name) }

func secretOK(k record.Key) record.Secret {
	return record.Secret{Name: secretName(k), Version: "v-" + k.Name, Sealed: []byte("sealed " + k.Name)}
}

func gatewayRecord(k record.Key, class string, listeners ...record.Listener) record.Gateway {
	return record.Gateway{Object: record.Object{Kind: "Gateway", Namespace: k.Namespace, Name: k.Name, Generation: 3}, Class: class, Listeners: listeners}
}

func parentOf(g record.Key) record.Parent {
	return record.Parent{Group: gatewayv1.GroupName, Kind: "Gateway", Namespace: g.Namespace, Name: g.Name}
}

// rule makes a rule of matches "kind value" such as "exact /a", "prefix /a", each going to the backend.
func rule(t testing.TB, k record.Key, number int, backend record.Key, matches ...string) record.Rule {
	t.Helper()
	out := record.Rule{}
	for i, m := range matches {
		kind, path, _ := strings.Cut(m, " ")
		match, sort := envoy.PrefixPath(path), record.SortKey{PathKind: pathPrefix, PathLength: len(path), Path: path}
		switch kind {
		case "exact":
			match, sort.PathKind = envoy.ExactPath(path), pathExact
		case "regex":
			match, sort.PathKind = envoy.RegexPath(path), pathRegex
		case "header":
			match.Headers, sort.Headers = append(match.Headers, envoy.HeaderIs("x-test", "yes")), 1
		case "method":
			match.Headers, sort.Method = append(match.Headers, envoy.MethodIs("GET")), true
		}
		name := fmt.Sprintf("HTTPRoute/%s/%s/%d/%d", k.Namespace, strings.TrimPrefix(k.Name, "HTTPRoute/"), number, i)
		b, err := envoy.Marshal(&routev3.Route{Name: name, Match: match, Action: &routev3.Route_Route{
			Route: envoy.Forward([]*routev3.WeightedCluster_ClusterWeight{envoy.Weighted(record.ClusterName(backend), 1)}, 0)}})
		if err != nil {
			t.Fatal(err)
		}
		out.Matches = append(out.Matches, record.Match{Sort: sort, Name: name, Bytes: b, Backends: []record.Key{backend}})
	}
	return out
}

func routeRecord(k record.Key, hostnames []string, parents []record.Parent, rules ...record.Rule) record.Route {
	return record.Route{
		Object:    record.Object{Kind: "HTTPRoute", Namespace: k.Namespace, Name: strings.TrimPrefix(k.Name, "HTTPRoute/"), Generation: 7},
		Created:   epoch,
		Hostnames: hostnames,
		Parents:   parents,
		Rules:     rules,
	}
}

func backendRecord(k record.Key) record.Backend {
	return record.Backend{Name: record.ClusterName(k), Bytes: []byte("cluster " + k.Name)}
}

func endpointsRecord(k record.Key) record.Endpoints {
	return record.Endpoints{Name: record.ClusterName(k), Bytes: []byte("endpoints " + k.Name)}
}

// service gives a backend with endpoints.
func (w *world) service(k record.Key) []Change {
	return []Change{w.put(k, backendRecord(k)), w.put(endpointsKey(k), endpointsRecord(k))}
}

func refsOf(backend record.Key) []record.Key {
	return []record.Key{backend, endpointsKey(backend)}
}

// routeConfig opens a RouteConfiguration of a fleet, as Envoy would, and holds it against Envoy's rules.
func routeConfig(t testing.TB, s *State, name string) *routev3.RouteConfiguration {
	t.Helper()
	for _, r := range s.Resources("c/infra/gw") {
		if r.Type == TypeRoute && r.Name == name {
			return openConfig(t, r)
		}
	}
	t.Fatalf("no RouteConfiguration %s", name)
	return nil
}

func openConfig(t testing.TB, r Resource) *routev3.RouteConfiguration {
	t.Helper()
	c := &routev3.RouteConfiguration{}
	if err := proto.Unmarshal(slices.Concat(r.Bytes...), c); err != nil {
		t.Fatal(err)
	}
	if err := c.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	domains := map[string]bool{}
	for _, v := range c.VirtualHosts {
		for _, d := range v.Domains {
			if domains[d] {
				t.Fatalf("%s: domain %s twice", r.Name, d)
			}
			domains[d] = true
		}
	}
	if !domains["*"] {
		t.Fatalf("%s: no catch-all virtual host", r.Name)
	}
	return c
}

// answer gives the name of the route that Envoy takes, or the status of a direct response.
func answer(c *routev3.RouteConfiguration, host, path string, headers map[string]string) string {
	var best *routev3.VirtualHost
	bestDomain := ""
	for _, v := range c.VirtualHosts {
		d := v.Domains[0]
		matches := d == "*" || d == host || strings.HasPrefix(d, "*.") && strings.HasSuffix(host, d[1:]) && len(host) >= len(d)
		better := best == nil || bestDomain == "*" || d == host || bestDomain != host && d != "*" && len(d) > len(bestDomain)
		if matches && better {
			best, bestDomain = v, d
		}
	}
	if best == nil {
		return "404"
	}
	for _, r := range best.Routes {
		if matchesRequest(r.Match, path, headers) {
			if d := r.GetDirectResponse(); d != nil {
				return fmt.Sprint(d.Status)
			}
			return r.Name
		}
	}
	return "404"
}

func matchesRequest(m *routev3.RouteMatch, path string, headers map[string]string) bool {
	switch p := m.PathSpecifier.(type) {
	case *routev3.RouteMatch_Path:
		if path != p.Path {
			return false
		}
	case *routev3.RouteMatch_SafeRegex:
		if !regexp.MustCompile("^(?:" + p.SafeRegex.Regex + ")$").MatchString(path) {
			return false
		}
	case *routev3.RouteMatch_Prefix:
		if !strings.HasPrefix(path, p.Prefix) {
			return false
		}
	case *routev3.RouteMatch_PathSeparatedPrefix:
		if path != p.PathSeparatedPrefix && !strings.HasPrefix(path, p.PathSeparatedPrefix+"/") {
			return false
		}
	}
	for _, h := range m.Headers {
		if headers[h.Name] != h.GetStringMatch().GetExact() {
			return false
		}
	}
	return true
}

func allParts(r Resource) map[string]string {
	out := map[string]string{}
	for _, p := range r.Parts {
		maps.Copy(out, p)
	}
	return out
}
