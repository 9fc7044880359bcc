// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestResultsAreTold: what failed is named; a run that lacks a test that was asked for is no success. Our own tests change no figure of the suite's.
func TestResultsAreTold(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if err := tellResults(&out, "c2", nil, dir, "suite.log", time.Second, 1); err == nil || !strings.Contains(err.Error(), "did not start") {
		t.Errorf("without any result: %v", err)
	}
	write(resultsFile, "pass\tHTTPRouteWeight\t1.0\nfail\tUDPRoute\t2.0\nskip\tMeshBasic\t2.1\n")
	if err := tellResults(&out, "c2", []string{"UDPRoute"}, dir, "suite.log", 3*time.Second, 1); !errors.Is(err, exitError(exitFindings)) {
		t.Errorf("a run with failures ends with %v", err)
	}
	if want := "FAIL c2 UDPRoute\nc2: 1 passed, 1 failed, 1 skipped in 3 s\nsee suite.log\n"; out.String() != want {
		t.Errorf("told %q, want %q", out.String(), want)
	}
	if err := tellResults(&out, "c2", []string{"HTTPRouteWeigth"}, dir, "suite.log", time.Second, 0); err == nil || !strings.Contains(err.Error(), "HTTPRouteWeigth") {
		t.Errorf("a test that does not exist: %v", err)
	}
	write(ownResultsFile, "pass\tOwnOne\t1.0\n")
	out.Reset()
	if err := tellResults(&out, "c2", []string{"OwnOne", "HTTPRouteWeight"}, dir, "suite.log", time.Second, 0); err != nil {
		t.Error(err)
	}
	if want := "FAIL c2 UDPRoute\nc2: 1 passed, 1 failed, 1 skipped in 1 s\nc2, tests of our own: 1 passed, 0 failed, 0 skipped\n"; out.String() != want {
		t.Errorf("told %q, want %q", out.String(), want)
	}
}

// TestChosenTests: a test is looked for where it is, and a run without any of the suite's does not set the suite up.
func TestChosenTests(t *testing.T) {
	for want, tests := range map[string][]string{
		"^(TestConformance|TestOwn)$":                   nil,
		"^(TestConformance)$/^(UDPRoute)$":              {"UDPRoute"},
		"^(TestOwn)$/^(OwnA|OwnB)$":                     {"OwnA", "OwnB"},
		"^(TestConformance|TestOwn)$/^(UDPRoute|OwnA)$": {"UDPRoute", "OwnA"},
	} {
		if got := chosen(tests); got != want {
			t.Errorf("%v: %s, want %s", tests, got, want)
		}
	}
}

// TestTableOfFeatures has all that a report says of profiles and features.
func TestTableOfFeatures(t *testing.T) {
	dir := t.TempDir()
	report, table := filepath.Join(dir, "report.yaml"), filepath.Join(dir, "features.md")
	if err := writeFeatures(report, table); err != nil {
		t.Errorf("without a report: %v", err)
	}
	if err := os.WriteFile(report, []byte(`
gatewayAPIVersion: v1.7.0
gatewayAPIChannel: standard
implementation: {version: v9}
profiles:
- name: GATEWAY-UDP
  core: {result: success, statistics: {Failed: 0, Passed: 21, Skipped: 0}}
  extended: {result: partial, statistics: {Failed: 1, Passed: 2, Skipped: 3}, supportedFeatures: [GatewayPort8080], unsupportedFeatures: [GatewayListenerFilters]}
succeededProvisionalTests: [One, Two]
`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeFeatures(report, table); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"v1.7.0, standard channel: what Fleetgate v9", "| GATEWAY-UDP | core | success | 21 | 0 | 0 |", "| GATEWAY-UDP | extended | partial | 2 | 1 | 3 |",
		"| GATEWAY-UDP | GatewayPort8080 | supported |", "| GATEWAY-UDP | GatewayListenerFilters | not supported |", "One, Two"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("the table lacks %q:\n%s", want, got)
		}
	}
}
