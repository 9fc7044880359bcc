package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// newHealthCommand is `fleetgate health`: what a probe asks, for every replica.
func newHealthCommand(a *asking) *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Ask every replica whether it lives and is ready",
		Long:  "Ask the /livez and /readyz of every replica. Exit code 0 when all are ready, 1 when one is not, 3 when none answers.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.health(cmd.Context()) },
	}
}

func (a *asking) health(ctx context.Context) error {
	t := &table{head: []string{"ADMIN", "LIVE", "READY", "WHY"}}
	reached, ready := 0, 0
	var errs []error
	for _, server := range a.servers() {
		live, liveErr := a.probe(ctx, server, "/livez")
		isReady, readyErr := a.probe(ctx, server, "/readyz")
		if live {
			reached++
		}
		if isReady {
			ready++
		}
		errs = append(errs, liveErr)
		why := errors.Join(liveErr, readyErr)
		text := "<none>"
		if why != nil {
			text = oneLine(why.Error())
		}
		t.add([]string{server, fmt.Sprint(live), fmt.Sprint(isReady), text})
	}
	if err := t.write(a.out, false); err != nil {
		return err
	}
	switch {
	case reached == 0:
		return fmt.Errorf("%w: %w", errNotReached, errors.Join(errs...))
	case ready < len(t.rows):
		return fmt.Errorf("%d of %d replicas are ready", ready, len(t.rows))
	}
	return nil
}

func (a *asking) probe(ctx context.Context, server, page string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	_, err := get(ctx, baseURL(server)+page)
	return err == nil, err
}
