package main

import (
	"time"

	"github.com/spf13/cobra"
)

// newPolicyCommand is `fleetgate policy`.
func newPolicyCommand(a *asking) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Aliases: []string{"policies"}, Short: "Policies and XBackends, and whether they are followed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(policies().command(a))
	return cmd
}

func policies() listing[policyView] {
	return listing[policyView]{kind: "PolicyList", what: "policies", namespaced: true, of: func(v view) []policyView { return v.Policies },
		at: func(p policyView) (string, string) { return p.Cluster, p.Namespace }, table: policyTable}
}

// policyTable has one line for each policy and ancestor: a policy on Services that no route leads to has none, and nobody says anything of it.
func policyTable(items []policyView, now time.Time, namespaces bool) *table {
	t := &table{head: []string{"KIND", "NAME", "ANCESTOR", "ACCEPTED", "RESOLVEDREFS", "AGE"}, wideHead: []string{"REASON", "CLUSTER"}}
	if namespaces {
		t.head = append([]string{"NAMESPACE"}, t.head...)
	}
	for _, p := range items {
		ancestors := p.Ancestors
		if len(ancestors) == 0 {
			ancestors = []parentView{{Parent: "<none>"}}
		}
		for _, a := range ancestors {
			cells := []string{p.Kind, p.Name, a.Parent, condition(a.Conditions, "Accepted").Status, condition(a.Conditions, "ResolvedRefs").Status, age(now, p.Created)}
			if namespaces {
				cells = append([]string{p.Namespace}, cells...)
			}
			t.add(cells, firstFalse(a.Conditions), p.Cluster)
		}
	}
	return t
}
