// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

func newUpCommand(at directory) *cobra.Command {
	var o rig.Options
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start clusters and print how to reach them",
		Long: "Start clusters and print how to reach them. Without --detach they end with this command, by ctrl-C or in any other way.\n" +
			"The first time on a machine Kubernetes is built from its Go modules, which takes about ten minutes on two cores.",
		Example: "  go run ./loadtest/kube up\n  go run ./loadtest/kube up --clusters 3 --channel experimental --detach",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := at(cmd.Context())
			if err != nil {
				return err
			}
			o.Dir = dir
			return up(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Clusters, "clusters", 1, fmt.Sprintf("how many clusters, at most %d", rig.MaxClusters))
	f.StringVar(&o.Channel, "channel", "standard", "the Gateway API's CRDs to install: standard, experimental or none")
	f.BoolVar(&o.Audit, "audit", false, "have each API server write every change that it is asked for to audit.log")
	f.BoolVar(&o.Detach, "detach", false, "return when the clusters are ready and leave them running")
	return cmd
}

func up(ctx context.Context, o rig.Options, out, progress io.Writer) error {
	if o.Clusters < 1 || o.Clusters > rig.MaxClusters {
		return usageError{fmt.Errorf("--clusters %d: there is room for 1 to %d", o.Clusters, rig.MaxClusters)}
	}
	r, err := start(ctx, o, progress)
	if err != nil {
		return err
	}
	printRig(out, r.State())
	if o.Detach {
		return nil
	}
	_, _ = fmt.Fprintln(progress, "The clusters end with this command (ctrl-C).")
	return hold(ctx, r)
}

// start builds what is missing and starts clusters, telling every step.
func start(ctx context.Context, o rig.Options, progress io.Writer) (*rig.Rig, error) {
	var err error
	if o.Program == "" {
		if o.Program, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
	}
	if o, err = build.Options(ctx, o, progress); err != nil {
		return nil, err
	}
	o.Progress = func(e rig.Event) {
		_, _ = fmt.Fprintf(progress, "%6.1fs  %-4s %s\n", e.After.Seconds(), e.Cluster, e.Text)
	}
	return rig.Up(ctx, o)
}

// hold keeps a rig up until the context ends.
func hold(ctx context.Context, r *rig.Rig) error {
	ended := make(chan error, 1)
	go func() { ended <- r.Wait() }()
	select {
	case err := <-ended:
		return fmt.Errorf("the clusters ended by themselves: %w (see %s/supervisor.log)", err, r.State().Dir)
	case <-ctx.Done():
		start := time.Now()
		if err := r.Down(); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "down after %.1fs\n", time.Since(start).Seconds())
		return nil
	}
}

func printRig(out io.Writer, s rig.State) {
	for _, c := range s.Clusters {
		_, _ = fmt.Fprintf(out, "%s  %s  pods %s  services %s  load balancers %s\n", c.Name, c.Server, c.PodCIDR, c.ServiceCIDR, c.LoadBalancerCIDR)
	}
	_, _ = fmt.Fprintf(out, "export KUBECONFIG=%s  # contexts %s to %s\nexport PATH=%s:$PATH  # kubectl\n", s.Kubeconfig, s.Clusters[0].Name, s.Clusters[len(s.Clusters)-1].Name, s.Binaries)
}
