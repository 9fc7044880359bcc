package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// The types that -o json and -o yaml print: named, versioned, and held by golden files in testdata. Fields are only ever added.

// list is GatewayList, RouteList, ProxyList or ReplicaList.
type list[T any] struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Items      []T    `json:"items"`
}

// statusReport is what `fleetgate status` prints: the whole on one screen, and what is wrong.
type statusReport struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"` // Status
	Healthy    bool     `json:"healthy"`
	Leader     string   `json:"leader"`
	Index      uint64   `json:"index"`
	Replicas   counted  `json:"replicas"`
	Gateways   counted  `json:"gateways"`
	Routes     counted  `json:"routes"`
	Proxies    counted  `json:"proxies"`
	Findings   []string `json:"findings"`
}

// counted is how many of how many are well: live, programmed, accepted, up to date.
type counted struct {
	Good  int `json:"good"`
	Total int `json:"total"`
}

type versionInfo struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"` // Version
	Version    string `json:"version"`
	Go         string `json:"go"`
	Envoy      string `json:"envoy"` // the version that the configuration is made for
}

// listing is one `list` command: what it lists, and how a person sees it.
type listing[T any] struct {
	kind       string // of the list
	what       string // in help and in "No ... found."
	namespaced bool   // -n and --cluster choose by what at gives
	of         func(view) []T
	at         func(T) (cluster, namespace string)
	table      func(items []T, now time.Time, namespaces bool) *table // namespaces: there may be several
}

// command makes the command.
func (l listing[T]) command(a *asking) *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List " + l.what, Args: cobra.NoArgs}
	f.add(cmd, "json, yaml, wide")
	if l.namespaced {
		f.addFilters(cmd)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		found, err := l.ask(cmd.Context(), a, &f)
		if err != nil {
			return err
		}
		return printList(a.out, f.format, found, l.table(found.Items, a.now(), f.namespace == ""), "No "+l.what+" found.")
	}
	return cmd
}

// ask asks a replica for what passes the filters.
func (l listing[T]) ask(ctx context.Context, a *asking, f *listFlags) (list[T], error) {
	found := list[T]{APIVersion: apiVersion, Kind: l.kind, Items: []T{}}
	v, err := a.ask(ctx)
	for _, item := range l.of(v) {
		if !l.namespaced || f.wants(l.at(item)) {
			found.Items = append(found.Items, item)
		}
	}
	return found, err
}
