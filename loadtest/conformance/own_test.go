// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"embed"
	"flag"
	"io/fs"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	official "sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
)

var ownResults = flag.String("own-results", "", "a file to which the outcome of each test of our own is written as soon as it is known")

// own are tests of our own in the suite's form, written from the GEPs, of features that version 1.7 of the suite names and does not test. Their names begin with Own, by which the
// command conformance tells them from the suite's.
var own = []suite.ConformanceTest{ownAddressRoutability, ownAddressRoutabilityCluster, ownListenerFilters, ownListenerFiltersRefused, ownTrustBundleFrontend, ownTrustBundleBackend, ownXBackend}

//go:embed own
var manifests embed.FS

// TestOwn runs our own tests after the official suite and apart from it: its report knows nothing of them. A test whose features the GatewayClass does not publish is skipped; where
// that is all of them, nothing is set up.
func TestOwn(t *testing.T) {
	o := official.DefaultOptions(t)
	o.ReportOutputPath = ""
	o.ManifestFS = []fs.FS{manifests, &official.Manifests}
	s, err := suite.NewConformanceTestSuite(o)
	require.NoError(t, err)
	if !slices.ContainsFunc(own, func(test suite.ConformanceTest) bool { return s.SupportedFeatures.HasAll(test.Features...) }) {
		t.Skip("the GatewayClass publishes none of the features that are tested here")
	}
	s.Hook = newJournal(t, *ownResults).note
	s.Setup(t, own)
	require.NoError(t, s.Run(t, own))
}
