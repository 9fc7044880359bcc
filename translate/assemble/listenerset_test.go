package assemble

import (
	"fmt"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

func setRecord(k record.Key, age time.Duration, listeners ...record.Listener) record.ListenerSet {
	return record.ListenerSet{
		Object: record.Object{Kind: "ListenerSet", Namespace: k.Namespace, Name: k.Name, Generation: 2}, Created: epoch.Add(-age),
		Parent: parentOf(theGateway), Listeners: listeners,
	}
}

func parentSet(k record.Key, section string) record.Parent {
	return record.Parent{Group: gatewayv1.GroupName, Kind: "ListenerSet", Namespace: k.Namespace, Name: k.Name, SectionName: section}
}

// open gives a State whose Gateway takes ListenerSets.
func open(t testing.TB, allowed *record.Allowed, listeners ...record.Listener) (*world, *State) {
	t.Helper()
	w, s := start(t, listeners...)
	g := gatewayRecord(theGateway, "one", listeners...)
	g.AllowedListeners = allowed
	s.Apply([]Change{w.put(theGateway, g, secretsOf(listeners)...)})
	return w, s
}

// showSet says how a ListenerSet and its listeners are.
func showSet(t testing.TB, s *State, k record.Key) string {
	t.Helper()
	v, ok := s.ListenerSetStatus(k)
	if !ok {
		return "no status"
	}
	out := show(find(t, v.Conditions, "Accepted")) + " " + show(find(t, v.Conditions, "Programmed"))
	for _, l := range v.Listeners {
		out += fmt.Sprintf("; %s: %s, %d routes", l.Name, show(find(t, l.Conditions, "Accepted")), l.AttachedRoutes)
	}
	return out
}

// TestListenerSetConflicts: the Gateway comes first, then the older ListenerSet; what loses is not served, what wins is.
func TestListenerSetConflicts(t *testing.T) {
	w, s := open(t, &record.Allowed{From: "All"}, httpListener("own", "own.org", 80))
	older, newer, only := setKey("a", "older"), setKey("b", "newer"), setKey("b", "only")
	s.Apply([]Change{
		w.put(newer, setRecord(newer, 1*time.Hour, httpListener("mine", "older.org", 80), httpListener("free", "newer.org", 80))),
		w.put(older, setRecord(older, 2*time.Hour, httpListener("mine", "older.org", 80), httpListener("own", "own.org", 80))),
		w.put(only, setRecord(only, time.Hour, httpListener("own", "own.org", 80))),
	})
	for k, want := range map[record.Key]string{
		older: "True ListenersNotValid absent ; mine: True Accepted, 0 routes; own: False HostnameConflict, 0 routes",
		newer: "True ListenersNotValid absent ; mine: False HostnameConflict, 0 routes; free: True Accepted, 0 routes",
		only:  "False ListenersNotValid False ListenersNotValid; own: False HostnameConflict, 0 routes",
	} {
		if got := showSet(t, s, k); got != want {
			t.Errorf("%s:\n got %s\nwant %s", k.Name, got, want)
		}
	}
	g, _ := s.GatewayStatus(theGateway)
	if g.AttachedListenerSets != 2 || len(g.Listeners) != 1 {
		t.Errorf("Gateway says %d ListenerSets, %d listeners", g.AttachedListenerSets, len(g.Listeners))
	}
}

// TestListenerSetAllowed: nobody adds listeners to a Gateway that does not say so, and a namespace that loses its label loses its listeners.
func TestListenerSetAllowed(t *testing.T) {
	k := setKey("a", "set")
	for _, c := range []struct {
		name    string
		allowed *record.Allowed
		want    string
	}{
		{"by default", nil, "False NotAllowed False NotAllowed"},
		{"None", &record.Allowed{From: "None"}, "False NotAllowed False NotAllowed"},
		{"Same", &record.Allowed{From: "Same"}, "False NotAllowed False NotAllowed"},
		{"a selector that does not fit", &record.Allowed{From: "Selector", Selector: "team=y"}, "False NotAllowed False NotAllowed"},
		{"a selector that fits", &record.Allowed{From: "Selector", Selector: "team=x"}, "True Accepted absent ; l: True Accepted, 1 routes"},
		{"All", &record.Allowed{From: "All"}, "True Accepted absent ; l: True Accepted, 1 routes"},
	} {
		w, s := open(t, c.allowed, httpListener("own", "own.org", 80))
		labelled := record.Namespace{Name: "a", Labels: map[string]string{"team": "x"}}
		s.Apply([]Change{w.put(namespaceKey("a"), labelled), w.put(k, setRecord(k, 0, httpListener("l", "set.org", 81)))})
		addRoute(t, w, s, routeKey("a", "r"), nil, parentSet(k, ""))
		if got := showSet(t, s, k); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if c.allowed != nil && c.allowed.Selector == "team=x" {
			s.Apply([]Change{w.put(namespaceKey("a"), record.Namespace{Name: "a"})})
			if got := showSet(t, s, k); got != "False NotAllowed False NotAllowed" {
				t.Errorf("without the label: %s", got)
			}
		}
	}
}

// TestRoutesOfListenerSets: a route that names a ListenerSet is served by its listeners only, one that names the Gateway by the Gateway's only.
func TestRoutesOfListenerSets(t *testing.T) {
	k := setKey("a", "set")
	w, s := open(t, &record.Allowed{From: "All"}, httpListener("own", "", 80))
	own := httpListener("l", "", 81)
	own.Allowed = record.Allowed{From: "Same"}
	s.Apply([]Change{w.put(k, setRecord(k, 0, own))})
	both, wrong, foreign := routeKey("a", "both"), routeKey("a", "wrong"), routeKey("b", "foreign")
	addRoute(t, w, s, both, []string{"x.org"}, parentOf(theGateway), parentSet(k, "l"))
	addRoute(t, w, s, wrong, []string{"y.org"}, section("l", 0), parentSet(k, "own"))
	addRoute(t, w, s, foreign, []string{"z.org"}, parentSet(k, ""))
	for _, c := range []struct {
		route record.Key
		want  string
	}{
		{both, "True Accepted, True Accepted"}, {wrong, "False NoMatchingParent, False NoMatchingParent"}, {foreign, "False NotAllowedByListeners"},
	} {
		status, _ := s.RouteStatus(c.route)
		var got []string
		for _, p := range status.Parents {
			got = append(got, show(find(t, p.Conditions, "Accepted")))
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %v, want %s", c.route.Name, got, c.want)
		}
	}
	if got := showSet(t, s, k); got != "True Accepted absent ; l: True Accepted, 1 routes" {
		t.Error(got)
	}
	s.Apply([]Change{w.remove(k)})
	if _, there := s.ListenerSetStatus(k); there {
		t.Error("a ListenerSet that is gone has a status")
	}
	if status, _ := s.RouteStatus(both); len(status.Parents) != 1 || len(status.MissingParents) != 1 {
		t.Errorf("a route whose ListenerSet is gone: %+v", status)
	}
}

// TestClientsOfAPort: clients are validated where the Gateway says so, a port's own word counts, and nothing is served where nobody can be validated.
func TestClientsOfAPort(t *testing.T) {
	listeners := []record.Listener{httpListener("plain", "", 80), httpsListener("default", "", 443, theSecret), httpsListener("open", "", 8443, theSecret), httpsListener("broken", "", 9443, theSecret)}
	w, s := start(t, listeners...)
	ca, bad := trustKey("ca1"), trustKey("ca2")
	g := gatewayRecord(theGateway, "one", listeners...)
	g.Frontend = &record.Frontend{
		Default: &record.ClientValidation{Trust: []record.Key{ca, bad}},
		PerPort: []record.PortValidation{{Port: 8443}, {Port: 9443, Clients: &record.ClientValidation{Trust: []record.Key{bad}}}},
	}
	problem := record.Problem{Condition: "ResolvedRefs", Reason: "InvalidCACertificateRef", Message: "holds no certificate"}
	s.Apply([]Change{
		w.put(ca, record.Trust{PEM: []byte("authorities")}), w.put(bad, record.Trust{Problem: &problem}),
		w.put(theGateway, g, append(secretsOf(listeners), ca, bad)...),
	})
	status, _ := s.GatewayStatus(theGateway)
	want := map[string]string{
		"plain": "True Accepted, True ResolvedRefs", "default": "True Accepted, False InvalidCACertificateRef",
		"open": "True Accepted, True ResolvedRefs", "broken": "False NoValidCACertificate, False InvalidCACertificateRef",
	}
	for _, l := range status.Listeners {
		if got := show(find(t, l.Conditions, "Accepted")) + ", " + show(find(t, l.Conditions, "ResolvedRefs")); got != want[string(l.Name)] {
			t.Errorf("%s: %s, want %s", l.Name, got, want[string(l.Name)])
		}
	}
	for port, want := range map[string]bool{"443": true, "8443": false} {
		if got := requiresClients(t, s, "c/infra/gw/"+port); got != want {
			t.Errorf("port %s requires certificates: %v", port, got)
		}
	}
}

// requiresClients opens the first chain of an Envoy listener.
func requiresClients(t testing.TB, s *State, name string) bool {
	t.Helper()
	for _, r := range s.Resources("c/infra/gw") {
		if r.Type != TypeListener || r.Name != name {
			continue
		}
		l, tls := &listenerv3.Listener{}, &tlsv3.DownstreamTlsContext{}
		if err := proto.Unmarshal(r.Bytes[0], l); err != nil {
			t.Fatal(err)
		}
		if err := l.FilterChains[0].TransportSocket.GetTypedConfig().UnmarshalTo(tls); err != nil {
			t.Fatal(err)
		}
		if err := l.FilterChains[0].Filters[0].GetTypedConfig().UnmarshalTo(&hcmv3.HttpConnectionManager{}); err != nil {
			t.Fatal(err)
		}
		return tls.RequireClientCertificate.GetValue()
	}
	t.Fatalf("no listener %s", name)
	return false
}
