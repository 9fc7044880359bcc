package assemble

import (
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// TestAheadIsWhatWillBeCommitted: endpoints that run ahead of the log (D18) are served as they will be once they are committed, those of a route's cluster as those of a stream, which
// has the endpoints of two backends in one resource of its own name.
func TestAheadIsWhatWillBeCommitted(t *testing.T) {
	postgres := withProtocol(httpListener("tcp", "", 5432), "TCP")
	postgres.Kinds = []string{"TCPRoute"}
	w, s := start(t, httpListener("http", "", 80), postgres)
	other := serviceKey("a", "other")
	assignment := func(k record.Key, address string) record.Endpoints {
		name := record.ClusterName(k)
		b, err := envoy.Marshal(envoy.LoadAssignment(name, []envoy.Endpoint{{Address: address, Port: 80}}))
		if err != nil {
			t.Fatal(err)
		}
		return record.Endpoints{Name: name, Bytes: b}
	}
	stream := record.Rule{Stream: []record.Share{{Backend: &theService, Weight: 1}, {Backend: &other, Weight: 3}}}
	tcp := routeKey("a", "")
	tcp.Name = "TCPRoute/r"
	r := routeRecord(tcp, nil, []record.Parent{section("tcp", 5432)}, stream)
	r.Object.Kind, r.Object.Name = "TCPRoute", "r"
	s.Apply(append(w.service(other), w.update(endpointsKey(theService), assignment(theService, "10.0.0.1")), w.update(endpointsKey(other), assignment(other, "10.0.1.1")),
		w.put(tcp, r, append(refsOf(theService), refsOf(other)...)...)))
	addRoute(t, w, s, routeKey("a", "r"), nil, section("http", 80))

	payloads := map[record.Key][]byte{}
	ahead := func(k record.Key) ([]byte, bool) { p, ok := payloads[k]; return p, ok }
	changes := []Change{w.update(endpointsKey(theService), assignment(theService, "10.0.0.2")), w.update(endpointsKey(other), assignment(other, "10.0.1.2"))}
	for _, c := range changes {
		payloads[c.Key] = c.Cur.Payload
	}
	got := map[string][][]byte{}
	for _, c := range changes {
		byFleet, err := s.Ahead(c.Key, ahead)
		if err != nil || !slices.Equal(slices.Collect(maps.Keys(byFleet)), []string{"c/infra/gw"}) {
			t.Fatalf("%v: %v", byFleet, err)
		}
		for _, r := range byFleet["c/infra/gw"] {
			got[r.Name+" "+r.Version] = r.Bytes
		}
	}
	s.Apply(changes)
	want := map[string][][]byte{}
	for _, r := range s.Resources("c/infra/gw") {
		if r.Type == TypeEndpoints {
			want[r.Name+" "+r.Version] = r.Bytes
		}
	}
	if len(want) != 2 || !reflect.DeepEqual(got, want) {
		t.Errorf("ahead of the log\n%q\ncommitted\n%q", got, want)
	}
	payloads[endpointsKey(other)] = []byte("{")
	if _, err := s.Ahead(endpointsKey(theService), ahead); err == nil {
		t.Error("a payload that cannot be read is no error")
	}
}
