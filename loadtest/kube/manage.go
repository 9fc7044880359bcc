// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

func newDownCommand(at directory) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the clusters, or remove what killed ones left, with all their state",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := at(cmd.Context())
			if err != nil {
				return err
			}
			if err := rig.Remove(dir); !errors.Is(err, rig.ErrNone) {
				return err
			}
			_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "no cluster was up")
			return nil
		},
	}
}

func newStatusCommand(at directory) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say which clusters are up, and where",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := at.attach(cmd.Context())
			if err != nil {
				return err
			}
			switch format {
			case "":
				printRig(cmd.OutOrStdout(), r.State())
				return nil
			case "json":
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				return encoder.Encode(r.State())
			default:
				return usageError{fmt.Errorf("-o %s: want json or nothing", format)}
			}
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "json")
	return cmd
}

func newRunCommand(at directory) *cobra.Command {
	return &cobra.Command{
		Use:   "run [--] COMMAND [ARGUMENT...]",
		Short: "Run a command inside the clusters' network, with kubectl and KUBECONFIG set up",
		Long: "Run a command inside the clusters' network, where pods, Services and load balancers have their addresses. KUBECONFIG names all clusters, and kubectl is the\n" +
			"clusters' own. Exits as the command did; 128 and the signal when a signal ended it.",
		Example: "  go run ./loadtest/kube run -- kubectl --context c1 get pods -A\n  go run ./loadtest/kube run -- bash",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := at.attach(cmd.Context())
			if err != nil {
				return err
			}
			here, err := os.Getwd()
			if err != nil {
				return fmt.Errorf("find the working directory: %w", err)
			}
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
			defer signal.Stop(signals)
			// The command's context ends at the first signal, but what a signal means is for the command that runs inside to decide.
			code, err := r.Run(context.WithoutCancel(cmd.Context()), rig.Command{
				Args: args, Env: environment(r.State()), Dir: here,
				Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Signals: signals,
			})
			if err == nil && code != 0 {
				return exitError(code)
			}
			return err
		},
	}
}

// environment is this process's, with the clusters' kubectl and kubeconfig.
func environment(s rig.State) []string {
	return append(os.Environ(), "KUBECONFIG="+s.Kubeconfig, "PATH="+s.Binaries+":"+os.Getenv("PATH"))
}

func newKubeconfigCommand(at directory) *cobra.Command {
	var cluster string
	var path bool
	cmd := &cobra.Command{
		Use:     "kubeconfig",
		Short:   "Print the kubeconfig of all clusters, or of one",
		Example: "  export KUBECONFIG=$(go run ./loadtest/kube kubeconfig --path)\n  go run ./loadtest/kube kubeconfig --cluster c2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := at.attach(cmd.Context())
			if err != nil {
				return err
			}
			file := r.State().Kubeconfig
			if cluster != "" {
				c, err := r.Find(cluster)
				if err != nil {
					return usageError{err}
				}
				file = c.Kubeconfig
			}
			if path {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), file)
				return err
			}
			data, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("read the kubeconfig: %w", err)
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "of this cluster only")
	cmd.Flags().BoolVar(&path, "path", false, "print where the file lies instead")
	return cmd
}

func newBuildCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build the programs of Kubernetes, if they are not there, and say where they lie",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := build.Kubernetes(cmd.Context(), cmd.ErrOrStderr())
			if err == nil {
				_, _ = fmt.Fprintln(cmd.OutOrStdout(), dir)
			}
			return err
		},
	}
}

func newImagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "images",
		Short: "Build what pods' images stand for, and list it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			images, err := build.Images(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			for _, name := range slices.Sorted(maps.Keys(images)) {
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%s\t%s%s\n", name, images[name].Root, images[name].Binary)
			}
			return nil
		},
	}
}

// newComponentCommand makes `stop` and `start`.
func newComponentCommand(at directory, verb string) *cobra.Command {
	short := map[string]string{
		"stop":  "Kill a component of a control plane and keep it down",
		"start": "Start a component that was stopped",
	}
	return &cobra.Command{
		Use:     verb + " CLUSTER COMPONENT",
		Short:   short[verb],
		Example: "  go run ./loadtest/kube " + verb + " c1 kube-apiserver",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := at.attach(cmd.Context())
			if err != nil {
				return err
			}
			if verb == "stop" {
				return r.Stop(cmd.Context(), args[0], args[1])
			}
			return r.Start(cmd.Context(), args[0], args[1])
		},
	}
}
