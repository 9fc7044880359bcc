package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// newReplicaCommand is `fleetgate replica`.
func newReplicaCommand(a *asking) *cobra.Command {
	cmd := &cobra.Command{Use: "replica", Aliases: []string{"replicas"}, Short: "Replicas of the group", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(replicas().command(a))
	return cmd
}

func replicas() listing[replicaView] {
	return listing[replicaView]{kind: "ReplicaList", what: "replicas", of: func(v view) []replicaView { return v.Replicas },
		table: func(items []replicaView, _ time.Time, _ bool) *table { return replicaTable(items) }}
}

func replicaTable(items []replicaView) *table {
	t := &table{head: []string{"ID", "ROLE", "APPLIED", "ROWS", "PROXIES", "VERSION"}, wideHead: []string{"RAFT", "XDS", "ADMIN"}}
	for _, r := range items {
		t.add([]string{r.ID, r.Role, fmt.Sprint(r.Applied), fmt.Sprint(r.Rows), fmt.Sprint(r.Proxies), orNone(r.Version)}, r.Raft, r.XDS, r.Admin)
	}
	return t
}
