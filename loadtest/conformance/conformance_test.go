// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	official "sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
)

var results = flag.String("results", "", "a file to which the outcome of each test is written as soon as it is known")

// profiles are the five of gateways; the others are of meshes.
var profiles = []suite.ConformanceProfileName{
	suite.GatewayHTTPConformanceProfileName, suite.GatewayGRPCConformanceProfileName, suite.GatewayTLSConformanceProfileName,
	suite.GatewayTCPConformanceProfileName, suite.GatewayUDPConformanceProfileName,
}

// TestConformance takes the suite's own flags. Unless they say otherwise it claims the five profiles of gateways, and those features that the GatewayClass publishes in its
// status: what is claimed and what users read is one list.
func TestConformance(t *testing.T) {
	o := official.DefaultOptions(t)
	if len(o.ConformanceProfiles) == 0 {
		o.ConformanceProfiles = profiles
	}
	o.Hook = newJournal(t, *results).note
	official.RunConformanceWithOptions(t, o)
}

// journal tells the outcome of each test when it ends, which `go test -v` does only when all have.
type journal struct {
	start time.Time
	mu    sync.Mutex
	file  *os.File // guarded by mu
}

func newJournal(t *testing.T, path string) *journal {
	j := &journal{start: time.Now(), file: os.Stdout}
	if path == "" {
		return j
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatalf("open the file of results: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	j.file = f
	return j
}

func (j *journal) note(t *testing.T, test suite.ConformanceTest, _ *suite.ConformanceTestSuite) {
	outcome := "pass"
	switch {
	case t.Failed():
		outcome = "fail"
	case t.Skipped():
		outcome = "skip"
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := fmt.Fprintf(j.file, "%s\t%s\t%.1f\n", outcome, test.ShortName, time.Since(j.start).Seconds()); err != nil {
		t.Errorf("note the outcome: %v", err)
	}
}
