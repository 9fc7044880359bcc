package envoy

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestConcatenation holds the hand-made concatenation against the protobuf library.
func TestConcatenation(t *testing.T) {
	routes := []*routev3.Route{
		{Name: "a", Match: ExactPath("/a"), Action: DirectResponse(500)},
		{Name: "b", Match: PrefixPath("/b/"), Action: &routev3.Route_Route{Route: Forward([]*routev3.WeightedCluster_ClusterWeight{Weighted("x", 1), Weighted("y", 3)}, 0)}},
	}
	want := &routev3.RouteConfiguration{
		Name:                     "rc",
		VirtualHosts:             []*routev3.VirtualHost{{Name: "v", Domains: []string{"a.example", "*"}, Routes: routes}, {Name: "w", Domains: []string{"b.example"}}},
		IgnorePortInHostMatching: true,
	}
	var parts [][]byte
	for _, r := range routes {
		parts = append(parts, must(Marshal(r))(t))
	}
	got := slices.Concat(RouteConfigurationHead("rc"),
		VirtualHostsBytes([][]byte{VirtualHostBytes("v", []string{"a.example", "*"}, parts), VirtualHostBytes("w", []string{"b.example"}, nil)}))
	back := &routev3.RouteConfiguration{}
	if err := proto.Unmarshal(got, back); err != nil || !proto.Equal(back, want) {
		t.Fatalf("got %v (%v)\nwant %v", back, err, want)
	}
}

// TestFiltersOfHosts holds what is appended for the filters of listeners against the protos.
func TestFiltersOfHosts(t *testing.T) {
	one, two := must(Authorize(Authorization{Cluster: "c", Authority: "a", BeforeRouting: true}))(t), must(Authorize(Authorization{Cluster: "d", Authority: "a", BeforeRouting: true}))(t)
	packedOne, packedTwo := must(Marshal(one))(t), must(Marshal(two))(t)
	on, off := must(Any(&routev3.FilterConfig{Config: &anypb.Any{}}))(t), must(Any(&routev3.FilterConfig{Disabled: true}))(t)
	all := func(of map[string]*anypb.Any) map[string]*anypb.Any {
		for i := range RouteSlots {
			of[RouteSlot(i)] = on
		}
		of[SessionFilter] = on
		return of
	}
	host := func(entries map[string]*anypb.Any) proto.Message {
		return &routev3.VirtualHost{Name: "v", Domains: []string{"*"}, TypedPerFilterConfig: entries}
	}
	hostBytes := func(more []byte) []byte { return append(VirtualHostBytes("v", []string{"*"}, nil), more...) }
	for _, c := range []struct {
		want proto.Message
		b    []byte
	}{
		{&routev3.RouteConfiguration{Name: "rc", IgnorePortInHostMatching: true, TypedPerFilterConfig: all(map[string]*anypb.Any{ListenerSlot(0): one, ListenerSlot(1): two})},
			append(RouteConfigurationHead("rc"), ConfigurationFilters([][]byte{packedOne, packedTwo})...)},
		{host(all(map[string]*anypb.Any{ListenerSlot(0): two})), hostBytes(HostFilters([][]byte{packedTwo}, nil))},
		{host(map[string]*anypb.Any{ListenerSlot(0): two, ListenerSlot(1): off}), hostBytes(HostFilters([][]byte{packedTwo}, [][]byte{packedOne, packedTwo}))},
		{host(map[string]*anypb.Any{ListenerSlot(0): off}), hostBytes(HostFilters(nil, [][]byte{packedOne}))},
	} {
		got := c.want.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(c.b, got); err != nil || !proto.Equal(got, c.want) {
			t.Errorf("got %v (%v)\nwant %v", got, err, c.want)
		}
	}
}

// TestReplacePrefix runs the rewrites the way RE2 does in Envoy.
func TestReplacePrefix(t *testing.T) {
	for _, c := range []struct{ prefix, with, path, want string }{
		{"/old", "/new", "/old", "/new"},
		{"/old", "/new/", "/old/a", "/new/a"},
		{"/old/", "/", "/old", "/"},
		{"/old", "/", "/old/a", "/a"},
		{"/old", "/", "/old//a", "/a"},
		{"/old", "/", "/old?q=1", "/?q=1"},
		{"/", "/new", "/", "/new/"},
		{"/", "/new/", "/a/b", "/new/a/b"},
		{"/", "/", "/a", "/a"},
		{"/o.d", "/n", "/o.d/x", "/n/x"},
		{"/old", "new", "/old/a", "/new/a"},
		{"/", "new", "/a", "/new/a"},
	} {
		r := ReplacePrefix(c.prefix, c.with)
		re := regexp.MustCompile(r.Pattern.Regex)
		loc := re.FindStringIndex(c.path)
		if loc == nil {
			t.Fatalf("%q does not match %q", r.Pattern.Regex, c.path)
		}
		if got := c.path[:loc[0]] + r.Substitution + c.path[loc[1]:]; got != c.want {
			t.Errorf("prefix %q -> %q: %q became %q, want %q", c.prefix, c.with, c.path, got, c.want)
		}
	}
}

// TestHeaderValueIsNotAFormat is the accident of a "%" that Envoy takes for an operator.
func TestHeaderValueIsNotAFormat(t *testing.T) {
	if got := SetHeader("x", "100%REQ(y)%").Header.Value; got != "100%%REQ(y)%%" {
		t.Errorf("got %q", got)
	}
}

// TestListenerBytesAreFrozen: any change of these bytes drops every connection of every fleet at the upgrade that brings it. Change the sum only on purpose.
func TestListenerBytesAreFrozen(t *testing.T) {
	hcm, err := HTTPConnectionManager("p", "rc", AccessLog{Path: Stdout}, nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := must(HTTPChain("http", hcm))(t)
	tls := must(HTTPSChain("https", []string{"*.example"}, []string{"s"}, nil, hcm))(t)
	for _, c := range []struct {
		name string
		l    *listenerv3.Listener
		want string
	}{
		{"plain", must(Listener("l", "", 80, false, nil, plain))(t), "1c6bcd87da7ef17f"},
		{"tls", must(Listener("l", "", 443, true, []*listenerv3.FilterChain{tls}, nil))(t), "4250be269bed095b"},
		{"tcp", must(Listener("l", "", 9000, false, nil, must(StreamChain("tcp", nil, nil, "c", AccessLog{}))(t)))(t), "d87257cb359daaf3"},
		{"udp", must(DatagramListener("l", "", 53, "c"))(t), "e7896413e96b43de"},
	} {
		if got := sum(must(Marshal(c.l))(t)); got != c.want {
			t.Errorf("%s: %s, frozen as %s", c.name, got, c.want)
		}
	}
}

// TestRejectedByValidation: what Envoy's own rules reject never becomes bytes.
func TestRejectedByValidation(t *testing.T) {
	_, err := Marshal(&routev3.Route{Name: "no match"})
	if err == nil || !strings.Contains(err.Error(), "Route would be rejected") {
		t.Errorf("err = %v", err)
	}
}

func TestLookUpStream(t *testing.T) {
	assignment := StreamAssignment("s", []StreamPart{{"a", 9, must(Marshal(LoadAssignment("a", []Endpoint{HostEndpoint("a.example", 80)})))(t)}})
	got := &clusterv3.Cluster{}
	if err := proto.Unmarshal(must(LookUpStream(StreamCluster("s"), assignment))(t), got); err != nil {
		t.Fatal(err)
	}
	at := got.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress()
	if got.GetType() != clusterv3.Cluster_STRICT_DNS || got.EdsClusterConfig != nil || at.GetAddress() != "a.example." {
		t.Errorf("not a cluster of names: %v", got)
	}
}

// TestStreamAssignment holds the splicing against the protos: parts keep their weights, and one without endpoints keeps its part by refusing it.
func TestStreamAssignment(t *testing.T) {
	two := must(Marshal(LoadAssignment("a", []Endpoint{{"10.0.0.1", 80}, {"10.0.0.2", 80}})))(t)
	none := must(Marshal(LoadAssignment("b", nil)))(t)
	got := &endpointv3.ClusterLoadAssignment{}
	if err := proto.Unmarshal(StreamAssignment("s", []StreamPart{{"a", 9, two}, {"b", 1, none}, {"gone", 2, nil}}), got); err != nil {
		t.Fatal(err)
	}
	want := LoadAssignment("s", nil)
	for _, p := range []struct {
		name      string
		weight    uint32
		endpoints []Endpoint
	}{{"a", 9, []Endpoint{{"10.0.0.1", 80}, {"10.0.0.2", 80}}}, {"refused", 3, []Endpoint{{"127.0.0.1", 0}}}} {
		group := LoadAssignment("", p.endpoints).Endpoints[0]
		group.Locality = &corev3.Locality{Zone: p.name}
		group.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.transport_socket_match": {Fields: map[string]*structpb.Value{"part": structpb.NewStringValue(p.name)}}}}
		group.LoadBalancingWeight = wrapperspb.UInt32(p.weight)
		want.Endpoints = append(want.Endpoints, group)
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// TestClusterTLS holds the field that is appended to a Cluster against the proto.
func TestClusterTLS(t *testing.T) {
	tls := BackendTLS{ServerName: "a.example", Names: []SubjectName{{URI: true, Value: "spiffe://a"}}, Trust: []byte("pem"), Client: "client"}
	plain := must(Cluster("c", HTTP2))(t)
	got := &clusterv3.Cluster{}
	if err := proto.Unmarshal(append(must(Marshal(plain))(t), must(ClusterTLS(tls))(t)...), got); err != nil {
		t.Fatal(err)
	}
	plain.TransportSocket = must(UpstreamTLS(tls))(t)
	if !proto.Equal(got, plain) {
		t.Errorf("got %v\nwant %v", got, plain)
	}
}

// TestEmptyAssignment: a backend without endpoints is still an answer.
func TestEmptyAssignment(t *testing.T) {
	if a := LoadAssignment("c", nil); len(a.Endpoints) != 0 || a.ClusterName != "c" {
		t.Errorf("got %v", a)
	}
	a := LoadAssignment("c", []Endpoint{{"10.0.0.2", 80}, {"10.0.0.1", 80}, {"10.0.0.2", 80}})
	if n := len(a.Endpoints[0].LbEndpoints); n != 2 {
		t.Errorf("%d endpoints after removing duplicates, want 2", n)
	}
	must(Marshal(a))(t)
	must(Cluster("c", HTTP2))(t)
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:8])
}
