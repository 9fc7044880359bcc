// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// The files of outcomes: of the suite's tests, and of our own.
const (
	resultsFile    = "results.tsv"
	ownResultsFile = "own.tsv"
)

// outcomes are those of a run's tests.
type outcomes struct {
	count  map[string]int // by pass, fail and skip
	failed []string
	ran    []string
}

func readOutcomes(file string) (outcomes, error) {
	out := outcomes{count: map[string]int{}}
	f, err := os.Open(file)
	if err != nil {
		return out, fmt.Errorf("read the results: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		outcome, rest, _ := strings.Cut(lines.Text(), "\t")
		name, _, _ := strings.Cut(rest, "\t")
		out.count[outcome]++
		out.ran = append(out.ran, name)
		if outcome == "fail" {
			out.failed = append(out.failed, name)
		}
	}
	if err := lines.Err(); err != nil {
		return out, fmt.Errorf("read the results: %w", err)
	}
	return out, nil
}

// tellResults counts the outcomes and names the failures, and those that were asked for and that there are not. Our own tests are told apart: the suite's count is what others compare.
func tellResults(out io.Writer, cluster string, asked []string, at, log string, took time.Duration, code int) error {
	suite, err := readOutcomes(filepath.Join(at, resultsFile))
	own, ownErr := readOutcomes(filepath.Join(at, ownResultsFile))
	if err != nil && ownErr != nil {
		return fmt.Errorf("the suite did not start, exit code %d (see %s): %w", code, log, err)
	}
	for _, name := range append(suite.failed, own.failed...) {
		_, _ = fmt.Fprintln(out, "FAIL", cluster, name)
	}
	if err == nil {
		_, _ = fmt.Fprintf(out, "%s: %d passed, %d failed, %d skipped in %.0f s\n", cluster, suite.count["pass"], suite.count["fail"], suite.count["skip"], took.Seconds())
	}
	if ownErr == nil {
		_, _ = fmt.Fprintf(out, "%s, tests of our own: %d passed, %d failed, %d skipped\n", cluster, own.count["pass"], own.count["fail"], own.count["skip"])
	}
	ran := append(suite.ran, own.ran...)
	if lack := slices.DeleteFunc(slices.Clone(asked), func(a string) bool { return slices.Contains(ran, a) }); len(lack) > 0 {
		return usageError{fmt.Errorf("--test %s: there is no such test, or the GatewayClass does not publish what it tests", strings.Join(lack, ", "))}
	}
	if code != 0 {
		_, _ = fmt.Fprintf(out, "see %s\n", log)
		return exitError(exitFindings)
	}
	return nil
}

// conformanceReport is what the table of features tells of gateway.networking.k8s.io's ConformanceReport.
type conformanceReport struct {
	GatewayAPIVersion string `json:"gatewayAPIVersion"`
	GatewayAPIChannel string `json:"gatewayAPIChannel"`
	Date              string `json:"date"`
	Implementation    struct {
		Version string `json:"version"`
	} `json:"implementation"`
	Profiles []struct {
		Name     string          `json:"name"`
		Core     *reportedStatus `json:"core"`
		Extended *reportedStatus `json:"extended"`
	} `json:"profiles"`
	SucceededProvisionalTests []string `json:"succeededProvisionalTests"`
}

type reportedStatus struct {
	Result     string `json:"result"`
	Statistics struct{ Passed, Skipped, Failed int }
	Supported  []string `json:"supportedFeatures"`
	Lacking    []string `json:"unsupportedFeatures"`
}

// writeFeatures makes the table of features of a report. There is no report of a run that was told to run single tests.
func writeFeatures(report, to string) error {
	text, err := os.ReadFile(report)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the report: %w", err)
	}
	var r conformanceReport
	if err := yaml.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("read the report %s: %w", report, err)
	}
	if err := os.WriteFile(to, []byte(r.features()), 0o644); err != nil {
		return fmt.Errorf("write the table of features: %w", err)
	}
	return nil
}

func (r conformanceReport) features() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Gateway API %s, %s channel: what Fleetgate %s passes\n\nWritten by `make conformance` on %s, from the report beside it.\n\n", r.GatewayAPIVersion, r.GatewayAPIChannel, r.Implementation.Version, r.Date)
	b.WriteString("| profile | | result | passed | failed | skipped |\n|---|---|---|---|---|---|\n")
	for _, p := range r.Profiles {
		for _, part := range []struct {
			name string
			of   *reportedStatus
		}{{"core", p.Core}, {"extended", p.Extended}} {
			if part.of != nil {
				n := part.of.Statistics
				fmt.Fprintf(&b, "| %s | %s | %s | %d | %d | %d |\n", p.Name, part.name, part.of.Result, n.Passed, n.Failed, n.Skipped)
			}
		}
	}
	b.WriteString("\n| profile | extended feature | |\n|---|---|---|\n")
	for _, p := range r.Profiles {
		if p.Extended == nil {
			continue
		}
		for _, f := range p.Extended.Supported {
			fmt.Fprintf(&b, "| %s | %s | supported |\n", p.Name, f)
		}
		for _, f := range p.Extended.Lacking {
			fmt.Fprintf(&b, "| %s | %s | not supported |\n", p.Name, f)
		}
	}
	if len(r.SucceededProvisionalTests) > 0 {
		fmt.Fprintf(&b, "\nProvisional tests that passed: %s.\n", strings.Join(r.SucceededProvisionalTests, ", "))
	}
	return b.String()
}
