package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newRouteCommand is `fleetgate route`.
func newRouteCommand(a *asking) *cobra.Command {
	cmd := &cobra.Command{Use: "route", Aliases: []string{"routes"}, Short: "Routes and whether they are live", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(routes().command(a))
	return cmd
}

func routes() listing[routeView] {
	return listing[routeView]{kind: "RouteList", what: "routes", namespaced: true, of: func(v view) []routeView { return v.Routes },
		at: func(r routeView) (string, string) { return r.Cluster, r.Namespace }, table: routeTable}
}

// conditionProgrammed is the condition in our parents entry that says what proxies ACKed (D8).
const conditionProgrammed = "fleetgate.io/Programmed"

// routeTable has one line for each route and parent: what attached there is what people ask about.
func routeTable(items []routeView, now time.Time, namespaces bool) *table {
	t := &table{head: []string{"KIND", "NAME", "HOSTNAMES", "PARENT", "ACCEPTED", "PROGRAMMED", "AGE"}, wideHead: []string{"RESOLVEDREFS", "REASON", "CLUSTER"}}
	if namespaces {
		t.head = append([]string{"NAMESPACE"}, t.head...)
	}
	for _, r := range items {
		parents := r.Parents
		if len(parents) == 0 {
			parents = []parentView{{Parent: "<none>"}}
		}
		for _, p := range parents {
			hosts := strings.Join(r.Hostnames, ",")
			cells := []string{r.Kind, r.Name, orAny(hosts), p.Parent, condition(p.Conditions, "Accepted").Status,
				condition(p.Conditions, conditionProgrammed).Status, age(now, r.Created)}
			if namespaces {
				cells = append([]string{r.Namespace}, cells...)
			}
			t.add(cells, condition(p.Conditions, "ResolvedRefs").Status, firstFalse(p.Conditions), r.Cluster)
		}
	}
	return t
}

// firstFalse gives the reason of the first condition that a person has to look at.
func firstFalse(list []conditionView) string {
	if c := firstBad(list); c != nil {
		return c.Reason
	}
	return "<none>"
}
