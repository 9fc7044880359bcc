package assemble

import (
	"fmt"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// TestHostsInRealEnvoy asks the real binary for hosts of a configuration that fills every piece: as written, in capitals, with a port, below a wildcard.
func TestHostsInRealEnvoy(t *testing.T) {
	w := newWorld(t)
	g := gatewayKey("infra", "gw")
	changes := []Change{w.put(classKey("one"), class("one", ours)), w.put(g, gatewayRecord(g, "one", httpListener("http", "", 80)))}
	add := func(host string) {
		k := routeKey("a", fmt.Sprint("r", len(changes)))
		r := routeRecord(k, []string{host}, []record.Parent{parentOf(g)}, record.Rule{Matches: []record.Match{answering(t, host)}})
		changes = append(changes, w.put(k, r))
	}
	for i := range 2000 {
		add(fmt.Sprintf("h%d.example.com", i))
	}
	add("*.wild.org")
	add("*.b.wild.org")
	add("web")
	add("web-x.example")
	s := New(testConfig)
	s.Apply(changes)
	url := serve(t, routeConfig(t, s, "c/infra/gw/80"))
	for host, want := range map[string]string{
		"h17.example.com": "h17.example.com", "H17.Example.COM": "h17.example.com", "h1999.example.com:8080": "h1999.example.com", "H0.EXAMPLE.com:80": "h0.example.com",
		"a.wild.org": "*.wild.org", "A.b.c.wild.org:81": "*.wild.org", "a.b.wild.org": "*.b.wild.org",
		"web": "web", "web:8080": "web", "web-x.example:1": "web-x.example", "h2000.example.com": "404", "wild.org": "404",
	} {
		if got := get(t, url+"/any", host, ""); got != want {
			t.Errorf("%s: got %s, want %s", host, got, want)
		}
	}
}

// answering is a match of every path that answers with a text.
func answering(t *testing.T, text string) record.Match {
	t.Helper()
	b, err := envoy.Marshal(&routev3.Route{Name: text, Match: envoy.PrefixPath("/"), Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: 200, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return record.Match{Sort: record.SortKey{PathKind: pathPrefix, PathLength: 1, Path: "/"}, Name: text, Bytes: b}
}
