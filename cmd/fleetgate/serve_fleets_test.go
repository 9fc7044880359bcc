package main

import (
	"path/filepath"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/shard"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
)

// TestWhatBecomesOfAFleetWithoutARecord: the owner of a Gateway may have heard of its end, or of its new class, before the leader has.
func TestWhatBecomesOfAFleetWithoutARecord(t *testing.T) {
	gateway := translate.Event{Kind: "Gateway", Namespace: "n", Name: "g", Object: &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "g"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: "c"}}}
	class := func(controller gatewayv1.GatewayController) translate.Event {
		return translate.Event{Kind: "GatewayClass", Name: "c", Object: &gatewayv1.GatewayClass{
			ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: controller}}}
	}
	for _, c := range []struct {
		name   string
		seen   []translate.Event
		synced bool
		want   fleet.Decision
	}{
		{"the cluster was not seen whole", nil, false, fleet.Unknown},
		{"the leader still sees it as ours", []translate.Event{class("ours"), gateway}, true, fleet.Unknown},
		{"its class is gone", []translate.Event{gateway}, true, fleet.Unknown},
		{"another controller's", []translate.Event{class("theirs"), gateway}, true, fleet.Remove},
		{"gone", []translate.Event{class("ours")}, true, fleet.Forget},
	} {
		r := &replica{manager: shard.NewManager(shard.Config{}), pipe: &pipeline{state: assemble.New(assemble.Config{})}, cfg: serveConfig{ControllerNames: []string{"ours"}}}
		r.manager.Observe("home", c.seen, c.synced)
		if g, got := r.decide("home", "n", "g"); got != c.want || got == fleet.Remove && g.Class != "c" {
			t.Errorf("%s: decision %d of class %q, want %d", c.name, got, g.Class, c.want)
		}
	}
}

// TestFleetsOfGatewaysThatWentUnseenAreLookedAt: while nobody led, the garbage collector has taken what a Gateway had, and the row alone is left of it.
func TestFleetsOfGatewaysThatWentUnseenAreLookedAt(t *testing.T) {
	db, err := store.Open(filepath.Join(t.TempDir(), "store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	for i, f := range []store.Fleet{
		{Name: record.FleetName("home", "n", "gone"), Provisioned: true, Proxies: []string{"u"}},
		{Name: record.FleetName("away", "n", "another cluster's"), Provisioned: true},
		{Name: record.FleetName("home", "n", "not provisioned"), Proxies: []string{"vm"}},
	} {
		data, err := store.EncodeCommand(store.Command{Fleet: &f})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Apply([]store.Entry{{Index: uint64(i + 1), Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	r := &replica{db: db, pipe: &pipeline{state: assemble.New(assemble.Config{})}}
	if got, want := r.fleetsOf("home"), [][2]string{{"n", "gone"}}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
