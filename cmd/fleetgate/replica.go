package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// newReplicaCommand is `fleetgate replica`.
func newReplicaCommand(a *asking) *cobra.Command {
	cmd := &cobra.Command{Use: "replica", Aliases: []string{"replicas"}, Short: "Replicas of the group", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newReplicaList(a))
	return cmd
}

func newReplicaList(a *asking) *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List replicas", Args: cobra.NoArgs}
	f.add(cmd, "json, yaml, wide")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v, err := a.ask(cmd.Context())
		if err != nil {
			return err
		}
		list := replicaList{APIVersion: apiVersion, Kind: "ReplicaList", Items: v.Replicas}
		if list.Items == nil {
			list.Items = []replicaView{}
		}
		return printList(a.out, f.format, list, replicaTable(v), "No replicas found.")
	}
	return cmd
}

func replicaTable(v view) *table {
	t := &table{head: []string{"ID", "ROLE", "APPLIED", "ROWS", "PROXIES", "VERSION"}, wideHead: []string{"RAFT", "XDS", "ADMIN"}}
	for _, r := range v.Replicas {
		t.add([]string{r.ID, r.Role, fmt.Sprint(r.Applied), fmt.Sprint(r.Rows), fmt.Sprint(r.Proxies), orNone(r.Version)}, r.Raft, r.XDS, r.Admin)
	}
	return t
}
