package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// newListenerSetCommand is `fleetgate listenerset`.
func newListenerSetCommand(a *asking) *cobra.Command {
	cmd := &cobra.Command{Use: "listenerset", Aliases: []string{"listenersets", "lset"}, Short: "ListenerSets and whether their Gateways take them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(listenerSets().command(a))
	return cmd
}

func listenerSets() listing[listenerSetView] {
	return listing[listenerSetView]{kind: "ListenerSetList", what: "ListenerSets", namespaced: true, of: func(v view) []listenerSetView { return v.ListenerSets },
		at: func(l listenerSetView) (string, string) { return l.Cluster, l.Namespace }, table: listenerSetTable}
}

// listenerSetTable has the columns of `kubectl get listenerset`, and the Gateway.
func listenerSetTable(items []listenerSetView, now time.Time, namespaces bool) *table {
	t := &table{head: []string{"NAME", "GATEWAY", "ACCEPTED", "PROGRAMMED", "AGE"}, wideHead: []string{"LISTENERS", "ROUTES", "REASON", "CLUSTER"}}
	if namespaces {
		t.head = append([]string{"NAMESPACE"}, t.head...)
	}
	for _, l := range items {
		cells := []string{l.Name, l.Gateway, condition(l.Conditions, "Accepted").Status, condition(l.Conditions, "Programmed").Status, age(now, l.Created)}
		if namespaces {
			cells = append([]string{l.Namespace}, cells...)
		}
		var routes int32
		for _, listener := range l.Listeners {
			routes += listener.AttachedRoutes
		}
		t.add(cells, fmt.Sprint(len(l.Listeners)), fmt.Sprint(routes), firstFalse(l.Conditions), l.Cluster)
	}
	return t
}
