package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// errNotYet says that what was waited for has not come.
var errNotYet = errors.New("not yet")

// poll asks until it is so, the time is over, or ctx ends. With no time it asks once. A failure to ask is tried again within the time.
func poll(ctx context.Context, within time.Duration, ask func() (bool, error)) error {
	deadline := time.Now().Add(within)
	for {
		done, err := ask()
		if done && err == nil {
			return nil
		}
		if !time.Now().Before(deadline) {
			if err == nil {
				err = errNotYet
			}
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// newWaitCommand is `fleetgate wait`: is it out yet?
func newWaitCommand(a *asking) *cobra.Command {
	var namespace, cluster string
	var within time.Duration
	cmd := &cobra.Command{
		Use:   "wait KIND/NAME",
		Short: "Wait until every proxy of its fleet runs a Gateway or route",
		Long: "Wait until every proxy of its fleet runs the newest of a Gateway or route: gateway/nginx-gateway, httproute/nginx-route, grpcroute/echo,\ntlsroute/, tcproute/ and udproute/ likewise. " +
			"Exit code 1 when the time is over, 3 when no replica answers, 4 when nobody leads.",
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "its namespace (default: any)")
	cmd.Flags().StringVar(&cluster, "cluster", "", "its member cluster (default: any)")
	cmd.Flags().DurationVar(&within, "within", 60*time.Second, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		kind, name, ok := strings.Cut(args[0], "/")
		if !ok || name == "" || !waitable(kind) {
			return usageError{fmt.Errorf("%q: want gateway/NAME, or httproute, grpcroute, tlsroute, tcproute or udproute in its place", args[0])}
		}
		f := listFlags{namespace: namespace, cluster: cluster}
		var last string
		var leaderless bool
		err := poll(cmd.Context(), within, func() (bool, error) {
			v, err := a.view(cmd.Context())
			if err != nil {
				return false, err
			}
			leaderless = v.Leader == ""
			var done bool
			done, last = arrived(v, kind, name, f)
			return done, nil
		})
		switch {
		case errors.Is(err, errNotYet) && leaderless:
			return fmt.Errorf("%s after %s: %s: %w", args[0], within, last, errNoLeader)
		case errors.Is(err, errNotYet):
			return fmt.Errorf("%s is not live after %s: %s; see fleetgate status", args[0], within, last)
		case err != nil:
			return err
		}
		_, err = fmt.Fprintf(a.out, "%s is live: %s\n", args[0], last)
		return err
	}
	return cmd
}

func waitable(kind string) bool {
	switch strings.ToLower(kind) {
	case "gateway", "gtw", "httproute", "grpcroute", "tlsroute", "tcproute", "udproute":
		return true
	}
	return false
}

// arrived tells whether everything of that name is live, and says how it is.
func arrived(v view, kind, name string, f listFlags) (bool, string) {
	found, all, say := false, true, ""
	note := func(ok bool, text string) {
		found = true
		if !ok || say == "" {
			say = text
		}
		all = all && ok
	}
	switch strings.ToLower(kind) {
	case "gateway", "gtw":
		for _, g := range v.Gateways {
			if g.Name == name && f.wants(g.Cluster, g.Namespace) {
				c := condition(g.Conditions, "Programmed")
				note(g.Programmed == "True" && c.ObservedGeneration >= g.Generation, g.Message)
			}
		}
	default:
		for _, r := range v.Routes {
			if strings.EqualFold(r.Kind, kind) && r.Name == name && f.wants(r.Cluster, r.Namespace) {
				noteRoute(r, note)
			}
		}
	}
	if !found {
		return false, "there is none of that name"
	}
	return all, say
}

func noteRoute(r routeView, note func(bool, string)) {
	if len(r.Parents) == 0 {
		note(false, "none of its parents is ours")
	}
	for _, p := range r.Parents {
		if bad := firstBad(p.Conditions); bad != nil {
			note(false, bad.Reason+": "+bad.Message)
			continue
		}
		c := condition(p.Conditions, conditionProgrammed)
		note(c.Status == "True" && c.ObservedGeneration >= r.Generation, c.Message)
	}
}
