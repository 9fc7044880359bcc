// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
	"github.com/fleetgate/fleetgate/loadtest/kube/supervisor"
)

// Exit codes. `run` exits as its command did.
const (
	exitFailed = 1
	exitDown   = 3
	exitUsage  = 64
)

// exitError ends the program with a code and without a word: all has been said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a mistake on the command line.
type usageError struct{ error }

func main() {
	if len(os.Args) > 1 {
		inside(os.Args[1], os.Args[2:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newRootCommand().ExecuteContext(ctx)
	if code := (exitError)(0); err != nil && !errors.As(err, &code) {
		fmt.Fprintln(os.Stderr, "kube:", err)
	}
	os.Exit(exitCode(err))
}

// inside turns the program into one of those that make up a rig, when it is started as one; it returns when it is not.
func inside(command string, args []string) {
	var code int
	var err error
	switch command {
	case rig.InitCommand:
		code, err = supervisor.Init(args)
	case supervisor.Command:
		err = supervisor.Run(args)
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func exitCode(err error) int {
	var code exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, rig.ErrNone):
		return exitDown
	default:
		return exitFailed
	}
}

func newRootCommand() *cobra.Command {
	var dir string
	root := &cobra.Command{
		Use:   "kube",
		Short: "Local Kubernetes clusters without containers: real control planes, pods as processes",
		Long: "Local Kubernetes clusters without containers: etcd, kube-apiserver, kube-controller-manager and kube-scheduler of Kubernetes " + build.Version + ",\n" +
			"and pods as processes in network namespaces. Needs Go, and root or a kernel that allows user namespaces.\n\n" +
			"Exit codes: 0 fine, 1 failed, 2 tests of the conformance suite failed, 3 no cluster is up, 64 wrong usage; run exits as its command did.",
		Example: "  go run ./loadtest/kube up --clusters 3 --detach\n" +
			"  export KUBECONFIG=$(go run ./loadtest/kube kubeconfig --path)\n" +
			"  kubectl --context c2 get nodes\n" +
			"  go run ./loadtest/kube run -- curl http://10.101.0.7\n" +
			"  go run ./loadtest/kube down",
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
	})
	root.PersistentFlags().StringVar(&dir, "dir", "", "where the clusters keep their state (default: .cache/kube/rig of the repository)")
	at := func(ctx context.Context) (string, error) {
		if dir != "" {
			return dir, nil
		}
		return build.Directory(ctx)
	}
	root.AddCommand(newUpCommand(at), newDownCommand(at), newStatusCommand(at), newRunCommand(at), newKubeconfigCommand(at), newComponentCommand(at, "stop"), newComponentCommand(at, "start"), newBuildCommand(), newImagesCommand(), newConformanceCommand(at))
	return root
}

// directory finds the directory that a command is about.
type directory func(context.Context) (string, error)

// attach finds the running rig that a command is about.
func (d directory) attach(ctx context.Context) (*rig.Rig, error) {
	dir, err := d(ctx)
	if err != nil {
		return nil, err
	}
	return rig.Attach(dir)
}
