package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/cluster/store"
)

func TestIdentitiesOfObjectsDeletedUnseenAreFoundAndNoOthers(t *testing.T) {
	db, err := store.Open(filepath.Join(t.TempDir(), "store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	for i, cluster := range []string{"a", "b"} {
		data, err := store.EncodeCommand(store.Command{Identity: &store.IdentityCommand{Cluster: cluster, Objects: []store.IdentityObservation{
			{Kind: "HTTPRoute", Namespace: "ns", Name: "kept", SpecHash: "1"}, {Kind: "HTTPRoute", Namespace: "ns", Name: "gone", SpecHash: "1"},
			{Kind: "HTTPRoute", Namespace: "ns", Name: "deleted", SpecHash: "1"}}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Apply([]store.Entry{{Index: uint64(i + 1), Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	live := map[store.Key]bool{}
	there := func(name string) member.Event {
		return member.Event{Cluster: "a", Kind: "HTTPRoute", Namespace: "ns", Name: name, Object: &gatewayv1.HTTPRoute{}}
	}
	observe(live, []member.Event{there("kept"), there("deleted")})
	observe(live, []member.Event{{Cluster: "a", Kind: "HTTPRoute", Namespace: "ns", Name: "deleted"}})
	got := unseen(db.Identities("a"), live)
	slices.SortFunc(got, func(x, y store.IdentityObservation) int { return strings.Compare(x.Name, y.Name) })
	want := []store.IdentityObservation{{Kind: "HTTPRoute", Namespace: "ns", Name: "deleted"}, {Kind: "HTTPRoute", Namespace: "ns", Name: "gone"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}
