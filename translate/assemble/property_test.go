package assemble

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/fleetgate/fleetgate/translate/record"
)

// TestIncrementalAgainstFull makes random edits and holds every step against a State that got all records at once.
func TestIncrementalAgainstFull(t *testing.T) {
	sequences := 2000
	if testing.Short() || raced {
		sequences = 150
	}
	for seed := range sequences {
		runSequence(t, uint64(seed))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func runSequence(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t)
	s := New(testConfig)
	client := map[string]map[resourceKey]Resource{}
	before, selected := allStatuses(s), allSelections(s)
	for step := range 20 {
		var batch []Change
		for range 1 + r.IntN(4) {
			batch = append(batch, randomEdit(r, w))
		}
		d := s.Apply(batch)
		follow(client, d)
		after := allStatuses(s)
		told(t, before, after, d.Status)
		before = after
		selections := allSelections(s)
		told(t, selected, selections, d.Selections)
		selected = selections
		if step%4 == 3 {
			tryPins(t, r, w, s)
			full := New(testConfig)
			full.Apply(shuffled(r, w.all()))
			sameState(t, s, full)
			sameClient(t, s, client)
			sound(t, s)
			routesOf(t, s)
		}
		if t.Failed() {
			return
		}
	}
}

// tryPins holds a Trial of some parts against a State in which they are pinned; that it leaves nothing behind is seen by who compares s next.
func tryPins(t *testing.T, r *rand.Rand, w *world, s *State) {
	for _, f := range s.fleets {
		for k, res := range f.resources {
			refuse, changes := map[string]string{}, map[record.Key]Change{}
			maps.Copy(changes, w.last)
			for part, hash := range allParts(res) {
				key, err := ParsePart(part)
				if err != nil {
					t.Fatal(err)
				}
				if c := changes[key]; key.Kind != record.KindGateway && r.IntN(2) == 0 {
					refuse[part], c.PinnedHash, c.PinReason = hash, hash, "on trial"
					changes[key] = c
				}
			}
			pinned := New(testConfig)
			pinned.Apply(slices.Collect(maps.Values(changes)))
			var want Resource
			for _, pf := range pinned.fleets {
				if pf.name == f.name {
					want = pf.resources[k]
				}
			}
			if got, ok := s.Trial(f.name, k.Type, k.Name, refuse); ok != (want.Bytes != nil) || !reflect.DeepEqual(got, want) {
				t.Errorf("%v without %v: got %v %+v, pins give %+v", k, refuse, ok, got, want)
			}
			return
		}
	}
}

func shuffled(r *rand.Rand, in []Change) []Change {
	r.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
	return in
}

// follow keeps what a client of the deltas knows.
func follow(client map[string]map[resourceKey]Resource, d Delta) {
	for _, f := range d.Fleets {
		if f.Gone {
			delete(client, f.Fleet)
			continue
		}
		if client[f.Fleet] == nil {
			client[f.Fleet] = map[resourceKey]Resource{}
		}
		for _, r := range f.Resources {
			if r.Bytes == nil {
				delete(client[f.Fleet], resourceKey{r.Type, r.Name})
			} else {
				client[f.Fleet][resourceKey{r.Type, r.Name}] = r
			}
		}
	}
}

func sameClient(t *testing.T, s *State, client map[string]map[resourceKey]Resource) {
	t.Helper()
	for _, name := range s.Fleets() {
		got := map[resourceKey]Resource{}
		for _, r := range s.Resources(name) {
			got[resourceKey{r.Type, r.Name}] = r
		}
		want := client[name]
		if want == nil {
			want = map[resourceKey]Resource{}
		}
		same(t, "fleet "+name+": deltas against resources", want, got)
	}
	for name := range client {
		if !slices.Contains(s.Fleets(), name) {
			t.Errorf("fleet %s is gone and no delta said so", name)
		}
	}
}

// allStatuses gives every status by record.
func allStatuses(s *State) map[record.Key]any {
	out := map[record.Key]any{}
	for k := range s.entries {
		if v, ok := s.ClassStatus(k); ok {
			out[k] = v
		}
	}
	for _, k := range s.Gateways() {
		out[k], _ = s.GatewayStatus(k)
	}
	for _, k := range s.Routes() {
		out[k], _ = s.RouteStatus(k)
	}
	for _, k := range s.Policies() {
		out[k], _ = s.PolicyStatus(k)
	}
	for _, k := range s.ListenerSets() {
		out[k], _ = s.ListenerSetStatus(k)
	}
	return out
}

// allSelections gives the pods that are to be found, of XBackends for which there are any.
func allSelections(s *State) map[record.Key]any {
	out := map[record.Key]any{}
	for _, k := range s.Selections() {
		if v, known := s.Selection(k); known && v != nil {
			out[k] = *v
		}
	}
	return out
}

// told holds that what comes to be said of a record was announced; that a selection is needed no more need not be, for what there is stays.
func told(t *testing.T, before, after map[record.Key]any, announced []record.Key) {
	t.Helper()
	for _, m := range []map[record.Key]any{before, after} {
		for k := range m {
			if _, selection := before[k].(Selection); selection && after[k] == nil {
				continue
			}
			if !slices.Contains(announced, k) && !reflect.DeepEqual(before[k], after[k]) {
				t.Errorf("what is said of %v changed and was not announced:\n%s", k, cmp.Diff(before[k], after[k]))
			}
		}
	}
}

func sameState(t *testing.T, got, want *State) {
	t.Helper()
	same(t, "fleets", want.Fleets(), got.Fleets())
	for _, f := range want.Fleets() {
		same(t, "fleet "+f+": full against incremental", want.Resources(f), got.Resources(f))
	}
	same(t, "statuses: full against incremental", allStatuses(want), allStatuses(got))
	same(t, "selections: full against incremental", allSelections(want), allSelections(got))
}

// same compares; the slow description is only made of a difference.
func same(t *testing.T, what string, want, got any) {
	t.Helper()
	if !reflect.DeepEqual(want, got) {
		t.Errorf("%s (-want +got):\n%s", what, cmp.Diff(want, got))
	}
}

// routesOf holds the routes of each Gateway against what the statuses of all routes say.
func routesOf(t *testing.T, s *State) {
	t.Helper()
	want := map[string]map[record.Key]bool{}
	for _, k := range s.Routes() {
		status, _ := s.RouteStatus(k)
		for _, p := range status.Parents {
			if p.Attached {
				if want[p.Fleet] == nil {
					want[p.Fleet] = map[record.Key]bool{}
				}
				want[p.Fleet][k] = true
			}
		}
	}
	for _, g := range s.Gateways() {
		for _, k := range s.RoutesOf(g) {
			delete(want[record.FleetName(g.Cluster, g.Namespace, g.Name)], k)
		}
	}
	for fleet, missing := range want {
		for k := range missing {
			t.Errorf("fleet %s: %v is attached and not among its Gateway's routes", fleet, k)
		}
	}
}

// sound holds what Envoy needs: valid messages, and nothing named before it is served.
func sound(t *testing.T, s *State) {
	t.Helper()
	for _, f := range s.Fleets() {
		names := map[resourceKey]bool{}
		for _, r := range s.Resources(f) {
			names[resourceKey{r.Type, r.Name}] = true
		}
		for _, r := range s.Resources(f) {
			switch r.Type {
			case TypeCluster:
				for _, u := range r.Uses {
					if !names[resourceKey{TypeSecret, u}] {
						t.Errorf("cluster %s uses secret %s, which is not served", r.Name, u)
					}
				}
			case TypeRoute:
				openConfig(t, r)
				for _, u := range r.Uses {
					if !names[resourceKey{TypeCluster, u}] {
						t.Errorf("%s uses cluster %s, which is not served", r.Name, u)
					}
				}
			case TypeListener:
				l := &listenerv3.Listener{}
				if err := proto.Unmarshal(slices.Concat(r.Bytes...), l); err != nil || l.ValidateAll() != nil {
					t.Errorf("%s: %v %v", r.Name, err, l.ValidateAll())
				}
				for _, u := range r.Uses {
					if !names[resourceKey{TypeRoute, u}] && !names[resourceKey{TypeSecret, u}] && !names[resourceKey{TypeCluster, u}] {
						t.Errorf("%s names %s, which is not served", r.Name, u)
					}
				}
			}
		}
	}
}

func pick[T any](r *rand.Rand, in ...T) T { return in[r.IntN(len(in))] }

var (
	randomNamespaces = []string{"infra", "a", "b"}
	randomHosts      = []string{"", "*.com", "*.example.com", "foo.example.com", "bar.example.com", "*.foo.example.com", "x.foo.example.com", "other.org"}
)

// randomEdit writes, changes, pins or removes one record of any kind.
func randomEdit(r *rand.Rand, w *world) Change {
	k := randomKey(r)
	_, there := w.last[k]
	switch n := r.IntN(10); {
	case there && n == 0:
		return w.remove(k)
	case there && n == 1:
		return w.pin(k, pick(r, "", "", previousSuffix, degradedSuffix))
	case there && n < 6:
		v, refs := randomValue(r, w, k)
		return w.update(k, v, refs...)
	}
	v, refs := randomValue(r, w, k)
	return w.put(k, v, refs...)
}

func randomKey(r *rand.Rand) record.Key {
	ns := pick(r, randomNamespaces...)
	switch r.IntN(16) {
	case 15:
		return record.Key{Cluster: "c", Namespace: pick(r, "a", "b"), Kind: record.KindPolicy, Name: "XBackend/s1"}
	case 14:
		return record.Key{Cluster: "c", Namespace: pick(r, "a", "b"), Kind: record.KindPolicy, Name: pick(r, "BackendTLSPolicy/p", "XTelemetryPolicy/p")}
	case 12:
		return setKey(pick(r, "infra", "a"), pick(r, "set1", "set2"))
	case 13:
		return trustKey(pick(r, "ca1", "ca2"))
	case 0:
		return classKey(pick(r, "one", "two"))
	case 1, 2:
		return gatewayKey(pick(r, "infra", "a"), "gw")
	case 3:
		return namespaceKey(ns)
	case 4:
		return serviceKey(pick(r, "a", "b"), pick(r, "s1", "s2", "XBackend:s1"))
	case 5:
		return endpointsKey(serviceKey(pick(r, "a", "b"), pick(r, "s1", "s2", "XBackend:s1")))
	case 6:
		return secretKey("infra", pick(r, "cert1", "cert2"))
	}
	k := routeKey(ns, pick(r, "r1", "r2", "r3"))
	if r.IntN(3) == 0 {
		k.Name = pick(r, "TLSRoute", "TCPRoute", "UDPRoute") + "/" + pick(r, "r1", "r2")
	}
	return k
}

func randomValue(r *rand.Rand, w *world, k record.Key) (any, []record.Key) {
	switch k.Kind {
	case record.KindClass:
		return class(k.Name, pick(r, ours, ours, ours, "other/controller")), nil
	case record.KindGateway:
		return randomGateway(r, k)
	case record.KindListenerSet:
		g, refs := randomGateway(r, k)
		return record.ListenerSet{Object: record.Object{Kind: "ListenerSet", Namespace: k.Namespace, Name: k.Name, Generation: 2}, Created: epoch.Add(time.Duration(r.IntN(2)) * time.Second), Parent: parentOf(gatewayKey(pick(r, "infra", "a"), "gw")), Listeners: g.(record.Gateway).Listeners}, listenerRefs(refs)
	case record.KindPolicy:
		if k.Name == "XBackend/s1" {
			return randomXBackend(r, k), nil
		}
		if k.Name == "XTelemetryPolicy/p" {
			collector := serviceKey(pick(r, "a", "b"), pick(r, "s1", "s2"))
			return record.Policy{Object: record.Object{Kind: "XTelemetryPolicy", Namespace: k.Namespace, Name: "p"}, Gateways: []string{"gw"}, Collector: pick(r, nil, &collector)}, nil
		}
		p := record.Policy{Object: record.Object{Kind: "BackendTLSPolicy", Namespace: k.Namespace, Name: "p"}, Services: []string{pick(r, "s1", "s2")}}
		if r.IntN(3) == 0 {
			p.Problems = []record.Problem{{Condition: "Accepted", Reason: "Conflicted", Message: "another", Rule: -1}}
		}
		return p, nil
	case record.KindTrust:
		t := record.Trust{PEM: []byte(pick(r, "one", "two"))}
		if r.IntN(3) == 0 {
			t = record.Trust{Problem: &record.Problem{Condition: "ResolvedRefs", Reason: "InvalidCACertificateRef", Message: "no certificate"}}
		}
		return t, nil
	case record.KindNamespace:
		return record.Namespace{Name: k.Name, Labels: pick(r, nil, map[string]string{"team": "x"}, map[string]string{"team": "y"})}, nil
	case record.KindBackend:
		b := backendRecord(k)
		b.Missing = r.IntN(4) == 0
		b.Bytes = append(b.Bytes, byte('0'+r.IntN(3)))
		switch r.IntN(6) {
		case 2:
			secret := secretKey("infra", pick(r, "cert1", "cert2"))
			b.TLS = &record.BackendTLS{ServerName: "s.example", Own: true, Client: secretName(secret), ClientKey: &secret}
			return b, []record.Key{secret}
		case 3:
			b.Named, b.TLS = true, pick(r, nil, &record.BackendTLS{ServerName: "s.example", Own: true})
		case 0:
			b.TLS = &record.BackendTLS{ServerName: "s.example", Trust: []byte("pem")}
		case 1:
			b.Missing, b.Problem = true, &record.Problem{Condition: "ResolvedRefs", Reason: "UnsupportedProtocol", Message: "https", Rule: -1}
		}
		return b, nil
	case record.KindEndpoints:
		e := endpointsRecord(backendKey(k))
		e.Bytes = append(e.Bytes, byte('0'+r.IntN(3)))
		return e, nil
	case record.KindSecret:
		s := secretOK(k)
		s.Version += pick(r, "", "2")
		if r.IntN(4) == 0 {
			s.Problem = &record.Problem{Condition: "ResolvedRefs", Reason: "InvalidCertificateRef", Message: "not a certificate"}
		}
		return s, nil
	}
	return randomRoute(r, w, k)
}

func randomXBackend(r *rand.Rand, k record.Key) record.Policy {
	p := record.Policy{Object: record.Object{Kind: kindXBackend, Namespace: k.Namespace, Name: "s1", UID: pick(r, "u1", "u2")}, Services: []string{"XBackend:s1"}}
	if r.IntN(3) > 0 {
		p.Pods = &record.Pods{Labels: map[string]string{"app": pick(r, "x", "y")}, Port: 80, Backends: []string{"XBackend:s1/80/x"}}
	}
	if r.IntN(3) == 0 {
		secret := secretKey("infra", pick(r, "cert1", "cert2"))
		p.Secret = &secret
	}
	return p
}

func randomGateway(r *rand.Rand, k record.Key) (any, []record.Key) {
	g := gatewayRecord(k, pick(r, "one", "one", "two"))
	var refs []record.Key
	for i := range r.IntN(5) {
		l := httpListener(fmt.Sprintf("l%d", i), pick(r, randomHosts...), pick[int32](r, 80, 80, 81))
		if r.IntN(3) == 0 {
			secret := secretKey("infra", pick(r, "cert1", "cert2"))
			l = httpsListener(l.Name, l.Hostname, pick[int32](r, 443, 443, 443, 80), secret)
			refs = append(refs, secret)
		}
		if r.IntN(3) == 0 {
			refs = append(refs, randomFilters(r, &l)...)
		}
		l.Allowed = pick(r, record.Allowed{From: "All"}, record.Allowed{From: "All"}, record.Allowed{From: "Same"}, record.Allowed{From: "Selector", Selector: "team=x"}, record.Allowed{From: "None"})
		switch r.IntN(6) {
		case 0:
			l.Protocol = pick(r, "TCP", "UDP", "SCTP")
			l.Kinds, l.Hostname, l.SecretKeys, l.Filters = []string{l.Protocol + "Route"}, "", nil, nil
		case 1:
			l.Protocol, l.Passthrough = "TLS", len(l.SecretKeys) == 0
			l.Port, l.Kinds, l.Filters = 443, []string{"TLSRoute"}, nil
		}
		if r.IntN(6) == 0 {
			l.Kinds = []string{"GRPCRoute"}
		}
		g.Listeners = append(g.Listeners, l)
	}
	g.AllowedListeners = pick(r, nil, &record.Allowed{From: "All"}, &record.Allowed{From: "Same"}, &record.Allowed{From: "Selector", Selector: "team=x"})
	if r.IntN(3) == 0 {
		ca := trustKey(pick(r, "ca1", "ca2"))
		g.Frontend = &record.Frontend{Default: &record.ClientValidation{Trust: []record.Key{ca}, AllowInsecure: r.IntN(2) == 0}}
		refs = append(refs, ca)
		if r.IntN(2) == 0 {
			g.Frontend.PerPort = []record.PortValidation{{Port: 443}}
		}
	}
	g.Scope = pick(r, "", "", "All")
	if r.IntN(4) == 0 {
		secret := secretKey("infra", "cert1")
		g.Client, g.ClientKey = secretName(secret), &secret
		refs = append(refs, secret)
	}
	return g, refs
}

// listenerRefs are those of the references that listeners make.
func listenerRefs(refs []record.Key) []record.Key {
	return filter(refs, func(k record.Key) bool { return k.Kind != record.KindTrust })
}

// randomFilters gives a listener filters, with the records that these need.
func randomFilters(r *rand.Rand, l *record.Listener) []record.Key {
	if r.IntN(4) == 0 {
		l.Filters = &record.Filters{Problems: []record.Problem{{Condition: pick(r, "Accepted", "ResolvedRefs"), Reason: "InvalidListenerFilter", Message: "m", Rule: -1}}}
		return nil
	}
	b := serviceKey(pick(r, "a", "b"), pick(r, "s1", "s2", "XBackend:s1"))
	l.Filters = filtersTo(b)
	return refsOf(b)
}

func randomRoute(r *rand.Rand, w *world, k record.Key) (any, []record.Key) {
	var hosts []string
	for range r.IntN(3) {
		if h := pick(r, randomHosts...); h != "" {
			hosts = append(hosts, h)
		}
	}
	parents := []record.Parent{}
	for range 1 + r.IntN(2) {
		p := parentOf(gatewayKey(pick(r, "infra", "a"), "gw"))
		if r.IntN(3) == 0 {
			p.Kind, p.Name = "ListenerSet", pick(r, "set1", "set2")
		}
		p.SectionName = pick(r, "", "", "l0", "l1", "nope")
		p.Port = pick[int32](r, 0, 0, 80, 443)
		parents = append(parents, p)
	}
	var rules []record.Rule
	var refs []record.Key
	for i := range 1 + r.IntN(2) {
		b := serviceKey(pick(r, "a", "b"), pick(r, "s1", "s2", "XBackend:s1"))
		refs = append(refs, refsOf(b)...)
		rules = append(rules, rule(w.t, k, i, b, pick(r, "prefix /", "exact /a", "prefix /a", "header /", "method /a", "regex /a.*")))
	}
	kind, _, _ := strings.Cut(k.Name, "/")
	if kind != "HTTPRoute" {
		rules, refs = randomStream(r)
	}
	if kind == "TCPRoute" || kind == "UDPRoute" {
		hosts = nil
	}
	if r.IntN(4) == 0 {
		parents = nil
	}
	out := routeRecord(k, hosts, parents, rules...)
	out.Scope = pick(r, "", "", "All")
	out.Object.Kind = kind
	out.Created = epoch.Add(time.Duration(r.IntN(3)) * time.Second)
	if r.IntN(8) == 0 {
		out.Problems = append(out.Problems, record.Problem{Condition: pick(r, "Accepted", "ResolvedRefs"), Reason: "BackendNotFound", Message: "m", Rule: pick(r, -1, 0)})
	}
	return out, refs
}

func randomStream(r *rand.Rand) ([]record.Rule, []record.Key) {
	var refs []record.Key
	out := record.Rule{}
	for range r.IntN(3) {
		share := record.Share{Weight: pick[uint32](r, 1, 9)}
		if r.IntN(4) > 0 {
			b := serviceKey(pick(r, "a", "b"), pick(r, "s1", "s2", "XBackend:s1"))
			share.Backend = &b
			refs = append(refs, refsOf(b)...)
		}
		out.Stream = append(out.Stream, share)
	}
	return []record.Rule{out}, refs
}
