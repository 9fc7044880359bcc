// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// gatewayTests is how many tests of the suite are not a mesh's. A suite that runs fewer has left some out.
const gatewayTests = 147

// TestConformance: an installation from deploy/install.yaml passes all of the official suite, and what it claims is what its GatewayClass says.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("starts Kubernetes and runs the whole conformance suite")
	}
	program, err := build.Program(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	var told bytes.Buffer
	s := suiteRun{Options: rig.Options{Dir: filepath.Join(t.TempDir(), "rig"), Program: program, Channel: "standard"}, class: "fleetgate", parallel: atOnce, out: out}
	if err := s.run(t.Context(), &told, os.Stderr); err != nil {
		log, _ := os.ReadFile(filepath.Join(out, "suite.log")) // without it there is still what was told
		t.Errorf("%v\n%s\n%s", err, told.String(), failures(string(log)))
	}
	results, err := os.ReadFile(filepath.Join(out, "results.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for line := range strings.Lines(string(results)) {
		outcome, rest, _ := strings.Cut(line, "\t")
		if outcome == "pass" {
			passed++
		} else if !strings.HasPrefix(rest, "Mesh") {
			t.Errorf("%s: %s", outcome, rest)
		}
	}
	if passed != gatewayTests {
		t.Errorf("%d tests passed, want %d", passed, gatewayTests)
	}
}

// failures picks the lines of a suite's log that say what went wrong.
func failures(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if strings.Contains(line, "Error:") || strings.Contains(line, "--- FAIL") || strings.Contains(line, "Error Trace") {
			b.WriteString(line)
		}
	}
	return b.String()
}
