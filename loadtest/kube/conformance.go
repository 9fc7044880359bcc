// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// exitFindings says that the suite ran and found failures.
const exitFindings = 2

// suiteRun is what the command conformance is told.
type suiteRun struct {
	rig.Options
	install, class, out string
	tests               []string
	parallel            int
	extra               []string
}

func newConformanceCommand(at directory) *cobra.Command {
	var s suiteRun
	cmd := &cobra.Command{
		Use:   "conformance [-- FLAG-OF-THE-SUITE...]",
		Short: "Install Fleetgate in a cluster and run the Gateway API's conformance suite against it",
		Long: "Install Fleetgate in a cluster and run the Gateway API's official conformance suite v1.7.0 against it: the five profiles of gateways, every feature that is not a mesh's.\n" +
			"A cluster that is up already is used and left up; otherwise one is started, and ended afterwards. The suite's report, the outcome of each test and its log are\n" +
			"written to --out. Exit code 2 says that tests failed.",
		Example: "  go run ./loadtest/kube conformance\n" +
			"  go run ./loadtest/kube conformance --test HTTPRouteWeight --test UDPRoute\n" +
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
	f.StringVar(&s.install, "install", "", "the manifest that installs Fleetgate (default: deploy/install.yaml of the repository; \"none\": it runs already)")
	f.StringVar(&s.class, "class", "fleetgate", "the name of the GatewayClass")
	f.StringVar(&s.out, "out", "", "the directory of report, results and log (default: conformance, beside the clusters' state)")
	f.StringArrayVar(&s.tests, "test", nil, "run this test only; may be repeated")
	f.IntVar(&s.parallel, "parallel", 0, "how many of the suite's parallel tests at once (default: as many as there are processors)")
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
	if s.install == "" {
		s.install = filepath.Join(root, "deploy", "install.yaml")
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
	if err := s.prepare(ctx, r, progress); err != nil {
		return err
	}
	return s.suite(ctx, r, program, out, progress)
}

// cluster attaches to the clusters that are up, or starts one that ends with this command.
func (s suiteRun) cluster(ctx context.Context, progress io.Writer) (*rig.Rig, func(), error) {
	r, err := rig.Attach(s.Dir)
	if err == nil || !errors.Is(err, rig.ErrNone) {
		return r, func() {}, err
	}
	s.Clusters = 1
	if r, err = start(ctx, s.Options, progress); err != nil {
		return nil, nil, err
	}
	return r, func() {
		if err := r.Down(); err != nil {
			_, _ = fmt.Fprintln(progress, "kube:", err)
		}
	}, nil
}

// prepare installs Fleetgate, and the GatewayClass that the suite uses.
func (s suiteRun) prepare(ctx context.Context, r *rig.Rig, progress io.Writer) error {
	class := filepath.Join(s.out, "gatewayclass.yaml")
	manifest := fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata:\n  name: %s\nspec:\n  controllerName: fleetgate.io/gatewayclass-controller\n", s.class)
	if err := os.WriteFile(class, []byte(manifest), 0o644); err != nil {
		return fmt.Errorf("write the GatewayClass: %w", err)
	}
	var steps [][]string
	if s.install != "none" {
		steps = append(steps, []string{"apply", "--server-side", "-f", s.install},
			[]string{"-n", "fleetgate-system", "rollout", "status", "statefulset/fleetgate", "--timeout=180s"})
	}
	steps = append(steps, []string{"apply", "--server-side", "-f", class}, []string{"wait", "--for=condition=Accepted", "gatewayclass/" + s.class, "--timeout=60s"})
	for _, step := range steps {
		_, _ = fmt.Fprintln(progress, "kubectl", strings.Join(step, " "))
		if err := kubectl(ctx, r, step...); err != nil {
			return err
		}
	}
	return nil
}

// kubectl runs it inside, on the first cluster, with its output on this command's standard error.
func kubectl(ctx context.Context, r *rig.Rig, args ...string) error {
	code, err := r.Run(ctx, rig.Command{Args: append([]string{"kubectl"}, args...), Env: append(environment(r.State()), "KUBECONFIG="+r.Cluster(0).NodeKubeconfig), Stdout: os.Stderr, Stderr: os.Stderr})
	if err == nil && code != 0 {
		err = fmt.Errorf("kubectl %s: exit code %d", strings.Join(args, " "), code)
	}
	return err
}

// suite runs the suite inside the rig's network and tells its outcome.
func (s suiteRun) suite(ctx context.Context, r *rig.Rig, program string, out, progress io.Writer) error {
	c := r.Cluster(0)
	results, report := filepath.Join(s.out, "results.tsv"), filepath.Join(s.out, "report.yaml")
	for _, stale := range []string{results, report} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the report of an earlier run: %w", err)
		}
	}
	log, err := os.Create(filepath.Join(s.out, "suite.log"))
	if err != nil {
		return fmt.Errorf("write the suite's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	args := []string{
		program, "-test.v", "-test.timeout=60m", "-test.run=^TestConformance$", "-gateway-class=" + s.class,
		"-results=" + results, "-report-output=" + report, "-organization=fleetgate", "-project=fleetgate",
		"-url=https://github.com/fleetgate/fleetgate", "-contact=https://github.com/fleetgate/fleetgate/issues", "-version=" + s.version(ctx),
		"-usable-address=" + usable(c), "-unusable-address=unusable.example",
	}
	if s.parallel > 0 {
		args = append(args, "-test.parallel="+strconv.Itoa(s.parallel))
	}
	if len(s.tests) == 1 {
		args = append(args, "-run-test="+s.tests[0])
	} else if len(s.tests) > 1 {
		args = append(args, "-test.run=^TestConformance$/^("+strings.Join(s.tests, "|")+")$")
	}
	_, _ = fmt.Fprintf(progress, "conformance: running; each outcome is written to %s as it is known, the suite's log to %s\n", results, log.Name())
	start := time.Now()
	code, err := r.Run(ctx, rig.Command{Args: append(args, s.extra...), Env: append(environment(r.State()), "KUBECONFIG="+c.NodeKubeconfig), Dir: s.out, Stdout: log, Stderr: log})
	if err != nil {
		return err
	}
	return tellResults(out, results, log.Name(), time.Since(start), code)
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

// tellResults counts the outcomes and names the failures.
func tellResults(out io.Writer, results, log string, took time.Duration, code int) error {
	f, err := os.Open(results)
	if err != nil {
		return fmt.Errorf("the suite did not start, exit code %d (see %s): %w", code, log, err)
	}
	defer func() { _ = f.Close() }()
	count := map[string]int{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		outcome, rest, _ := strings.Cut(lines.Text(), "\t")
		count[outcome]++
		if outcome == "fail" {
			name, _, _ := strings.Cut(rest, "\t")
			_, _ = fmt.Fprintln(out, "FAIL", name)
		}
	}
	_, _ = fmt.Fprintf(out, "%d passed, %d failed, %d skipped in %.0f s\n", count["pass"], count["fail"], count["skip"], took.Seconds())
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the results: %w", err)
	}
	if code != 0 {
		_, _ = fmt.Fprintf(out, "see %s\n", log)
		return exitError(exitFindings)
	}
	return nil
}
