// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// exitFindings says that the suite ran and found failures.
const exitFindings = 2

// atOnce is how many of the suite's parallel tests run at the same time.
const atOnce = 8

// suiteRun is what the command conformance is told.
type suiteRun struct {
	rig.Options
	install, class, out string
	tests               []string
	parallel, runs      int
	killEvery           time.Duration
	extra               []string
}

func newConformanceCommand(at directory) *cobra.Command {
	var s suiteRun
	cmd := &cobra.Command{
		Use:   "conformance [-- FLAG-OF-THE-SUITE...]",
		Short: "Install Fleetgate in a cluster and run the Gateway API's conformance suite against it",
		Long: "Install Fleetgate in a cluster and run the Gateway API's official conformance suite v1.7.0 against it: the five profiles of gateways, with the features that the GatewayClass publishes.\n" +
			"Then it runs tests of our own, whose names begin with Own, of features that the suite names without testing them; their outcomes are told apart.\n" +
			"A cluster that is up already is used and left up; otherwise one is started, and ended afterwards. The suite's report, the outcome of each test and its log are\n" +
			"written to --out. Exit code 2 says that tests failed.\n\n" +
			"With several clusters Fleetgate is installed in the first and has the others as member clusters, and the suite runs on all at the same time.",
		Example: "  go run ./loadtest/kube conformance\n" +
			"  go run ./loadtest/kube conformance --test HTTPRouteWeight --test UDPRoute\n" +
			"  go run ./loadtest/kube conformance --channel experimental\n" +
			"  go run ./loadtest/kube conformance --runs 10\n" +
			"  go run ./loadtest/kube conformance --clusters 2 --kill-every 20s\n" +
			"  go run ./loadtest/kube conformance -- -debug -cleanup-test-resources=false",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := at(cmd.Context())
			if err != nil {
				return err
			}
			s.Dir, s.extra = dir, args
			return s.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.install, "install", "", "the manifest that installs Fleetgate (default: the one in deploy of the repository for the channel; \"none\": it runs already)")
	f.StringVar(&s.class, "class", "fleetgate", "the name of the GatewayClass")
	f.StringVar(&s.out, "out", "", "the directory of report, results and log (default: conformance, beside the clusters' state)")
	f.StringArrayVar(&s.tests, "test", nil, "run this test only; may be repeated")
	f.IntVar(&s.parallel, "parallel", atOnce, "how many of the suite's parallel tests at once, in all clusters together: they wait more than they work")
	f.IntVar(&s.Clusters, "clusters", 1, "how many, if they have to be started")
	f.IntVar(&s.runs, "runs", 1, "run the suite so many times, one after another, and stop at the first failure")
	f.DurationVar(&s.killEvery, "kill-every", 0, "kill a replica of Fleetgate by SIGKILL so often, one after another; kills are noted in kills.tsv beside the report (default: none)")
	f.StringVar(&s.Channel, "channel", "standard", "the Gateway API's CRDs, if a cluster has to be started: standard or experimental")
	return cmd
}

func (s suiteRun) run(ctx context.Context, out, progress io.Writer) error {
	program, err := build.ConformanceTest(ctx, progress)
	if err != nil {
		return err
	}
	root, err := build.Root(ctx)
	if err != nil {
		return err
	}
	if s.out == "" {
		s.out = filepath.Join(filepath.Dir(s.Dir), "conformance")
	}
	if s.out, err = filepath.Abs(s.out); err != nil {
		return err
	}
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return fmt.Errorf("make the directory of the report: %w", err)
	}
	r, down, err := s.cluster(ctx, progress)
	if err != nil {
		return err
	}
	defer down()
	switch {
	case s.install != "":
	case r.State().Channel == experimental:
		s.install = filepath.Join(root, "deploy", "install-without-gateway-api.yaml")
	default:
		s.install = filepath.Join(root, "deploy", "install.yaml")
	}
	if err := s.prepare(ctx, r, progress); err != nil {
		return err
	}
	for n := 1; n <= max(1, s.runs) && err == nil; n++ {
		at := s.out
		if s.runs > 1 {
			at = filepath.Join(at, fmt.Sprintf("run-%02d", n))
			_, _ = fmt.Fprintf(progress, "conformance: run %d of %d\n", n, s.runs)
		}
		err = s.once(ctx, r, program, at, out, progress)
	}
	return err
}

// once runs the suite on every cluster at the same time, with replicas dying meanwhile if that is asked for.
func (s suiteRun) once(ctx context.Context, r *rig.Rig, program, at string, out, progress io.Writer) error {
	work, end := context.WithCancel(ctx)
	var kills, suites sync.WaitGroup
	var killed error
	if s.killEvery > 0 {
		kills.Go(func() {
			if killed = s.kill(work, r, filepath.Join(at, "kills.tsv"), progress); killed != nil {
				end() // a run without its faults proves nothing
			}
		})
	}
	clusters := r.State().Clusters
	errs := make([]error, len(clusters))
	for i, c := range clusters {
		suites.Go(func() {
			in := at
			if len(clusters) > 1 {
				in = filepath.Join(at, c.Name)
			}
			errs[i] = s.suite(work, r, c, program, in, out, progress)
		})
	}
	suites.Wait()
	end()
	kills.Wait()
	return cmp.Or(killed, errors.Join(errs...))
}

// cluster attaches to the clusters that are up, or starts one that ends with this command.
func (s suiteRun) cluster(ctx context.Context, progress io.Writer) (*rig.Rig, func(), error) {
	r, err := rig.Attach(s.Dir)
	if err == nil || !errors.Is(err, rig.ErrNone) {
		return r, func() {}, err
	}
	s.Clusters = max(1, s.Clusters)
	if r, err = start(ctx, s.Options, progress); err != nil {
		return nil, nil, err
	}
	return r, func() {
		if err := r.Down(); err != nil {
			_, _ = fmt.Fprintln(progress, "kube:", err)
		}
	}, nil
}

// suite runs the suite on one cluster, inside the rig's network, and tells its outcome.
func (s suiteRun) suite(ctx context.Context, r *rig.Rig, c rig.Cluster, program, at string, out, progress io.Writer) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return fmt.Errorf("make the directory of the report: %w", err)
	}
	results, own, report := filepath.Join(at, resultsFile), filepath.Join(at, ownResultsFile), filepath.Join(at, "report.yaml")
	for _, stale := range []string{results, own, report} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the report of an earlier run: %w", err)
		}
	}
	log, err := os.Create(filepath.Join(at, "suite.log"))
	if err != nil {
		return fmt.Errorf("write the suite's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	args := []string{
		program, "-test.v", "-test.timeout=60m", "-test.parallel=" + strconv.Itoa(max(1, s.parallel/len(r.State().Clusters))), "-test.run=" + chosen(s.tests), "-gateway-class=" + s.class,
		"-results=" + results, "-own-results=" + own, "-report-output=" + report, "-organization=fleetgate", "-project=fleetgate",
		"-url=https://github.com/fleetgate/fleetgate", "-contact=https://github.com/fleetgate/fleetgate/issues", "-version=" + s.version(ctx),
		"-usable-address=" + usable(c), "-unusable-address=unusable.example",
	}
	_, _ = fmt.Fprintf(progress, "conformance: running; each outcome is written to %s as it is known, the suite's log to %s\n", results, log.Name())
	start := time.Now()
	code, err := r.Run(ctx, rig.Command{Args: append(args, s.extra...), Env: append(environment(r.State()), "KUBECONFIG="+c.NodeKubeconfig), Dir: at, Stdout: log, Stderr: log})
	if err != nil {
		return err
	}
	if err := writeFeatures(report, filepath.Join(at, "features.md")); err != nil {
		return err
	}
	return tellResults(out, c.Name, s.tests, at, log.Name(), time.Since(start), code)
}

// chosen is what the program is to run: the official suite and then our own tests, or those of either that are named. It is not the flag -run-test, with which the suite asks nobody
// what is supported.
func chosen(tests []string) string {
	if len(tests) == 0 {
		return "^(TestConformance|TestOwn)$"
	}
	var of []string
	for _, t := range tests {
		in := "TestConformance"
		if strings.HasPrefix(t, "Own") {
			in = "TestOwn"
		}
		if !slices.Contains(of, in) {
			of = append(of, in)
		}
	}
	return "^(" + strings.Join(of, "|") + ")$/^(" + strings.Join(tests, "|") + ")$"
}

// usable is an address of a cluster's load balancers that they do not give to anybody unasked, because they begin at the other end.
func usable(c rig.Cluster) string {
	a := c.LoadBalancerCIDR.Addr().As4()
	return fmt.Sprintf("%d.%d.255.200", a[0], a[1])
}

// version is what the report calls the tested software.
func (s suiteRun) version(ctx context.Context) string {
	v, err := build.Describe(ctx)
	if err != nil {
		return "unknown"
	}
	return v
}
