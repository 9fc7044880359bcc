package assemble

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

func TestDegraded(t *testing.T) {
	whole := &routev3.Route{
		Name:     "HTTPRoute/a/r/0/0",
		Match:    envoy.PrefixPath("/a"),
		Action:   &routev3.Route_Route{Route: envoy.Forward([]*routev3.WeightedCluster_ClusterWeight{envoy.Weighted("x", 1), envoy.Weighted("y", 2)}, 0)},
		Metadata: nil,
	}
	b, err := envoy.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	b, ok := answer500(b)
	if !ok {
		t.Fatal("not taken")
	}
	got := &routev3.Route{}
	if err := proto.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	want := &routev3.Route{Name: whole.Name, Match: whole.Match, Action: envoy.DirectResponse(500)}
	if !proto.Equal(got, want) || got.ValidateAll() != nil {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzDegraded(f *testing.F) {
	f.Add([]byte{0x0a, 0xff, 0x01})
	f.Add([]byte{0x0b, 0x0c})
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, ok := answer500(b); ok && len(out) < 5 {
			t.Errorf("%x lost its answer", out)
		}
	})
}

func TestPartIDRoundTrip(t *testing.T) {
	for _, k := range []record.Key{
		routeKey("a", "r"),
		classKey("one"),
		{Cluster: "a/b", Namespace: "%2F", Kind: record.KindBackend, Name: "s/80/x%"},
		{Cluster: "a", Namespace: "b/%252F", Kind: record.KindBackend, Name: "/"},
	} {
		got, err := ParsePart(PartID(k))
		if err != nil || got != k {
			t.Errorf("%q: got %v, %v", PartID(k), got, err)
		}
	}
	if _, err := ParsePart("a/b/c"); err == nil {
		t.Error("three parts are no part")
	}
}
