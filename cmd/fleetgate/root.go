package main

import (
	"time"

	"github.com/spf13/cobra"
)

// asking is what every command that asks a replica needs.
type asking struct {
	terminal
	server  string
	timeout time.Duration
}

func newRootCommand(t terminal) *cobra.Command {
	a := &asking{terminal: t}
	root := &cobra.Command{
		Use:   "fleetgate",
		Short: "One control plane for every Envoy gateway in every Kubernetes cluster",
		Long: "One control plane for every Envoy gateway in every Kubernetes cluster.\n\n" +
			"Exit codes: 0 fine, 1 failed, 2 differences or findings, 3 no replica reached, 4 no leader, 64 wrong usage.",
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{withHint(err, "see "+cmd.CommandPath()+" --help")}
	})
	pf := root.PersistentFlags()
	pf.StringVar(&a.server, "server", t.getenv("FLEETGATE_SERVER"), "admin addresses of replicas, separated by commas: each is tried (default: those of fleetgate dev here, else 127.0.0.1:9901)")
	pf.DurationVar(&a.timeout, "timeout", 5*time.Second, "how long to wait for one replica's answer")
	root.AddCommand(
		newDevCommand(t), newServeCommand(),
		newStatusCommand(a), newWaitCommand(a), newHealthCommand(a),
		newGatewayCommand(a), newListenerSetCommand(a), newRouteCommand(a), newPolicyCommand(a), newProxyCommand(a), newReplicaCommand(a),
		newTranslateCommand(t), newVersionCommand(t),
	)
	return root
}

type hinted struct {
	err  error
	hint string
}

func (h hinted) Error() string { return h.err.Error() + " (" + h.hint + ")" }
func (h hinted) Unwrap() error { return h.err }

// withHint adds what to do to an error.
func withHint(err error, hint string) error { return hinted{err, hint} }
