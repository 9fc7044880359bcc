package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// newServeCommand runs one replica: `fleetgate serve`.
func newServeCommand() *cobra.Command {
	var file string
	var check bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run one replica",
		Long: "Run one replica. Every flag can be given as a variable too (--data-dir is FLEETGATE_DATA_DIR), or as a line of the YAML file\n" +
			"that --config names (data-dir: ...); a flag beats the variable, and the variable beats the file.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&file, "config", os.Getenv("FLEETGATE_CONFIG"), "YAML file with settings")
	cmd.Flags().BoolVar(&check, "check-config", false, "check the configuration and stop")
	flags := addFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(flags, os.LookupEnv, file)
		if err != nil {
			return usageError{err}
		}
		if check {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "configuration is fine")
			return err
		}
		return serveUntilSignal(cmd.Context(), cfg, cmd.OutOrStdout())
	}
	return cmd
}

// serveUntilSignal stops in order at the first SIGTERM or SIGINT, and at once at the second.
func serveUntilSignal(ctx context.Context, cfg serveConfig, out io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // from now on a signal does what it does to a program that does not listen: it ends it
	return runServe(ctx, cfg, out)
}
