package translate

import (
	"slices"
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	upstream "sigs.k8s.io/gateway-api/pkg/features"
)

// TestTrustBundlesAreClaimedWhereTheyAreServed: GEP-5075 wants the feature to tell of the cluster, not of the binary.
func TestTrustBundlesAreClaimedWhereTheyAreServed(t *testing.T) {
	for _, c := range []struct{ experimental, served, claimed bool }{{false, false, false}, {false, true, false}, {true, false, false}, {true, true, true}} {
		claimed := slices.ContainsFunc(SupportedFeatures(c.experimental, c.served), func(f gatewayv1.SupportedFeature) bool { return f.Name == clusterTrustBundle })
		if claimed != c.claimed {
			t.Errorf("experimental CRDs %v, served %v: claimed %v", c.experimental, c.served, claimed)
		}
	}
}

// TestFeaturesAreThoseOfTheModule: a misspelled feature is never tested by anybody, and one that a new version brings is decided about, not forgotten.
func TestFeaturesAreThoseOfTheModule(t *testing.T) {
	names := func(f gatewayv1.SupportedFeature) string { return string(f.Name) }
	for _, all := range [][]gatewayv1.SupportedFeature{SupportedFeatures(false, true), SupportedFeatures(true, true)} {
		if len(all) > 64 || !slices.IsSortedFunc(all, func(a, b gatewayv1.SupportedFeature) int { return strings.Compare(names(a), names(b)) }) {
			t.Errorf("%d features; the API wants them sorted and at most 64: %v", len(all), all)
		}
	}
	known := map[string]bool{}
	for f := range upstream.AllFeatures {
		name := string(f.Name)
		known[name] = true
		if mesh := len(name) > 3 && name[:4] == "Mesh"; mesh || slices.ContainsFunc(SupportedFeatures(true, true), func(o gatewayv1.SupportedFeature) bool { return names(o) == name }) {
			continue
		}
		t.Errorf("%s is not honoured", name)
	}
	for _, f := range features {
		if !known[f] {
			t.Errorf("%s is no feature of this version of the Gateway API", f)
		}
	}
}
