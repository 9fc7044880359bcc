package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetgate/fleetgate/xds"
)

// newProxyCommand is `fleetgate proxy`.
func newProxyCommand(a *asking) *cobra.Command {
	cmd := &cobra.Command{Use: "proxy", Aliases: []string{"proxies"}, Short: "Envoys and what they ACKed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(proxies().command(a), newProxyRun(a.terminal))
	return cmd
}

func proxies() listing[xds.Report] {
	return listing[xds.Report]{kind: "ProxyList", what: "proxies", of: func(v view) []xds.Report { return v.Proxies },
		table: func(items []xds.Report, now time.Time, _ bool) *table { return proxyTable(items, now) }}
}

// proxyTable says of each proxy whether it runs the newest that its fleet should.
func proxyTable(items []xds.Report, now time.Time) *table {
	t := &table{head: []string{"FLEET", "PROXY", "STATE", "ACKED", "REPLICA", "AGE"}, wideHead: []string{"WHY"}}
	for _, p := range items {
		state, why := proxyState(p)
		t.add([]string{p.Fleet, p.Proxy, state, fmt.Sprint(p.Acked), orNone(p.Replica), age(now, p.SinceUnix)}, orNone(why))
	}
	return t
}

// proxyState is current, behind, rejected or gone, and why.
func proxyState(p xds.Report) (state, why string) {
	switch {
	case !p.Connected:
		return "Gone", "not connected"
	case len(p.Rejected) > 0:
		return "Rejected", oneLine(p.Rejected[0].Type + " " + p.Rejected[0].Name + ": " + p.Rejected[0].Message)
	case len(p.Waiting) > 0:
		return "Behind", oneLine(p.Waiting[0].Type + " " + p.Waiting[0].Name + ": " + p.Waiting[0].Why)
	default:
		return "Current", ""
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
