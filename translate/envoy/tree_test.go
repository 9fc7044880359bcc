package envoy

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
)

// TestVirtualHostTree reads the hand-made bytes back by the protobuf library; an unknown field would be a wrong number.
func TestVirtualHostTree(t *testing.T) {
	a := must(Marshal(&routev3.Route{Name: "a", Match: ExactPath("/a"), Action: DirectResponse(500)}))(t)
	b := must(Marshal(&routev3.Route{Name: "b", Match: PrefixPath("/"), Action: DirectResponse(404)}))(t)
	v := &routev3.VirtualHost{}
	if err := proto.Unmarshal(VirtualHostTreeBytes("v", []string{"v.example"}, []Leaf{{"/", [][]byte{b}}, {"/a", [][]byte{a, b}}}, [][]byte{b}), v); err != nil {
		t.Fatal(err)
	}
	if err := v.ValidateAll(); err != nil || v.Name != "v" || len(v.Domains) != 1 {
		t.Fatalf("%v: %v", err, v)
	}
	tree := v.Matcher.GetMatcherTree()
	input := &matcherv3.HttpRequestHeaderMatchInput{}
	if err := tree.Input.TypedConfig.UnmarshalTo(input); err != nil || input.HeaderName != ":path" {
		t.Errorf("input %v: %v", input, err)
	}
	list := &routev3.RouteList{}
	if err := tree.GetPrefixMatchMap().Map["/a"].GetAction().TypedConfig.UnmarshalTo(list); err != nil || len(list.Routes) != 2 || list.Routes[0].Name != "a" {
		t.Errorf("leaf %v: %v", list, err)
	}
	if err := v.Matcher.OnNoMatch.GetAction().TypedConfig.UnmarshalTo(list); err != nil || len(list.Routes) != 1 || list.Routes[0].Name != "b" {
		t.Errorf("otherwise %v: %v", list, err)
	}
}
