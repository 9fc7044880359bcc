package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newStatusCommand is `fleetgate status`: is it me, or is it you?
func newStatusCommand(a *asking) *cobra.Command {
	var f listFlags
	var wait time.Duration
	cmd := &cobra.Command{Use: "status", Short: "Group, Gateways, routes and proxies on one screen", Args: cobra.NoArgs,
		Long: "Group, Gateways, routes and proxies on one screen. Exit code 0 when all is well, 2 when there is something to look at, 3 when no replica\nanswers, 4 when nobody leads."}
	f.add(cmd, "json, yaml")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait up to this long until all is well")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var report statusReport
		err := poll(cmd.Context(), wait, func() (bool, error) {
			v, err := a.view(cmd.Context())
			if err != nil {
				return false, err
			}
			report = summarize(v)
			return report.Healthy, nil
		})
		if err != nil && !errors.Is(err, errNotYet) {
			return err
		}
		if err := printStatus(a, f.format, report); err != nil {
			return err
		}
		return report.verdict()
	}
	return cmd
}

// errFindings is for exit code 2.
var errFindings = errors.New("there is something to look at")

func (r statusReport) verdict() error {
	switch {
	case r.Healthy:
		return nil
	case r.Leader == "":
		return errNoLeader
	default:
		return errFindings
	}
}

// summarize counts what is well and names what is not.
func summarize(v view) statusReport {
	r := statusReport{APIVersion: apiVersion, Kind: "Status", Leader: v.Leader, Index: v.Index, Findings: []string{}}
	find := func(format string, args ...any) {
		r.Findings = append(r.Findings, oneLine(fmt.Sprintf(format, args...)))
	}
	switch {
	case v.Leader == "":
		find("nobody leads the group: changes are not accepted")
	case v.Notice != "":
		find("%s", v.Notice)
	}
	for _, m := range v.Replicas {
		if r.Replicas.add(m.Live) {
			find("replica %s does not answer", m.ID)
		}
	}
	for _, g := range v.Gateways {
		if r.Gateways.add(g.Programmed == "True") {
			find("Gateway %s/%s%s: %s: %s", g.Namespace, g.Name, inParentheses(g.Where), orNone(g.Reason), g.Message)
		}
		findListeners(find, fmt.Sprintf("Gateway %s/%s%s", g.Namespace, g.Name, inParentheses(g.Where)), g.Listeners)
	}
	for _, l := range v.ListenerSets {
		what := fmt.Sprintf("ListenerSet %s/%s%s", l.Namespace, l.Name, inParentheses(l.Where))
		if bad := firstBad(l.Conditions); bad != nil {
			find("%s: %s: %s", what, bad.Reason, bad.Message)
		}
		findListeners(find, what, l.Listeners)
	}
	for _, route := range v.Routes {
		for _, p := range route.Parents {
			bad := firstBad(p.Conditions)
			if r.Routes.add(bad == nil) {
				find("%s %s/%s%s at %s: %s: %s", route.Kind, route.Namespace, route.Name, inParentheses(route.Where), p.Parent, bad.Reason, bad.Message)
			}
		}
	}
	for _, p := range v.Policies {
		for _, a := range p.Ancestors {
			if bad := firstBad(a.Conditions); bad != nil {
				find("%s %s/%s%s at %s: %s: %s", p.Kind, p.Namespace, p.Name, inParentheses(p.Where), a.Parent, bad.Reason, bad.Message)
			}
		}
	}
	for _, p := range v.Proxies {
		state, why := proxyState(p)
		if r.Proxies.add(state == "Current") {
			find("proxy %s of %s: %s", p.Proxy, p.Fleet, why)
		}
	}
	for _, c := range v.Clusters {
		if !c.Synced {
			find("member cluster %s has not been read completely yet: its last good configuration stays", c.Name)
		}
	}
	for _, p := range v.Problems {
		find("%s: %s", where(p), p.Message)
	}
	r.Healthy = len(r.Findings) == 0
	return r
}

func findListeners(find func(format string, args ...any), what string, listeners []listenerView) {
	for _, l := range listeners {
		if bad := firstBad(l.Conditions); bad != nil {
			find("%s: listener %s: %s: %s", what, l.Name, bad.Reason, bad.Message)
		}
	}
}

// inParentheses is " (s)", or nothing.
func inParentheses(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// add counts one, and tells whether it is bad.
func (c *counted) add(good bool) bool {
	c.Total++
	if good {
		c.Good++
	}
	return !good
}

// where names the place of a fault as editors know it: file:line.
func where(p problemView) string {
	s := p.File
	if p.Line > 0 {
		s = fmt.Sprintf("%s:%d", s, p.Line)
	} else if p.Document > 0 {
		s = fmt.Sprintf("%s, document %d", s, p.Document)
	}
	for _, more := range []string{p.Object, p.Field} {
		if more != "" {
			s = strings.TrimPrefix(s+", "+more, ", ")
		}
	}
	return s
}

func printStatus(a *asking, format string, r statusReport) error {
	if format != "" {
		return printList(a.out, format, r, &table{}, "")
	}
	t := &table{head: []string{"WHAT", "GOOD", "OF"}}
	for _, line := range []struct {
		what string
		n    counted
	}{{"replicas live", r.Replicas}, {"gateways programmed", r.Gateways}, {"routes live", r.Routes}, {"proxies current", r.Proxies}} {
		t.add([]string{line.what, fmt.Sprint(line.n.Good), fmt.Sprint(line.n.Total)})
	}
	if err := t.write(a.out, false); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.out, "\nleader %s, index %d\n", orNone(r.Leader), r.Index)
	for _, f := range r.Findings {
		_, _ = fmt.Fprintln(a.out, "- "+f)
	}
	return nil
}
