package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newGatewayCommand is `fleetgate gateway`.
func newGatewayCommand(a *asking) *cobra.Command {
	cmd := &cobra.Command{Use: "gateway", Aliases: []string{"gateways", "gtw"}, Short: "Gateways and how far their fleets are", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(gateways().command(a), newGatewayShow(a), newGatewayBootstrap(a))
	return cmd
}

// gateways are listed with the columns of `kubectl get gateway`.
func gateways() listing[gatewayView] {
	return listing[gatewayView]{kind: "GatewayList", what: "Gateways", namespaced: true, of: func(v view) []gatewayView { return v.Gateways },
		at: func(g gatewayView) (string, string) { return g.Cluster, g.Namespace }, table: gatewayTable}
}

// gatewayTable has the columns of `kubectl get gateway`; namespaces only where there may be several.
func gatewayTable(items []gatewayView, now time.Time, namespaces bool) *table {
	t := &table{head: []string{"NAME", "CLASS", "ADDRESS", "PROGRAMMED", "AGE"}, wideHead: []string{"PROXIES", "ROUTES", "REASON", "CLUSTER"}}
	if namespaces {
		t.head = append([]string{"NAMESPACE"}, t.head...)
	}
	for _, g := range items {
		cells := []string{g.Name, g.Class, strings.Join(g.Addresses, ","), orUnknown(g.Programmed), age(now, g.Created)}
		if namespaces {
			cells = append([]string{g.Namespace}, cells...)
		}
		var routes int32
		for _, l := range g.Listeners {
			routes += l.AttachedRoutes
		}
		t.add(cells, fmt.Sprintf("%d/%d", g.Acked, g.Proxies), fmt.Sprint(routes), orNone(g.Reason), g.Cluster)
	}
	return t
}

func orUnknown(s string) string {
	if s == "" {
		return "Unknown"
	}
	return s
}

func newGatewayShow(a *asking) *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{Use: "show NAME", Short: "Show one Gateway with its conditions and listeners", Args: cobra.ExactArgs(1)}
	f.add(cmd, "json, yaml")
	f.addFilters(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		list, err := gateways().ask(cmd.Context(), a, &f)
		if err != nil {
			return err
		}
		list.Items = slices.DeleteFunc(list.Items, func(g gatewayView) bool { return g.Name != args[0] })
		if len(list.Items) == 0 {
			return fmt.Errorf("there is no Gateway %q; see fleetgate gateway list", args[0])
		}
		if f.format != "" {
			return printList(a.out, f.format, list, gatewayTable(list.Items, a.now(), true), "")
		}
		for i, g := range list.Items {
			if i > 0 {
				_, _ = fmt.Fprintln(a.out)
			}
			describeGateway(a, g)
		}
		return nil
	}
	return cmd
}

func describeGateway(a *asking, g gatewayView) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format+"\n", args...) }
	p("Gateway %s/%s in cluster %s, class %s, generation %d", g.Namespace, g.Name, g.Cluster, g.Class, g.Generation)
	p("  address     %s", orNone(strings.Join(g.Addresses, ", ")))
	p("  programmed  %s: %s", orUnknown(g.Programmed), g.Message)
	describeConditions(a, "  ", g.Conditions)
	for _, l := range g.Listeners {
		p("  listener %s: %s, port %d, hostname %s, %d routes", l.Name, l.Protocol, l.Port, orAny(l.Hostname), l.AttachedRoutes)
		describeConditions(a, "    ", l.Conditions)
	}
}

func describeConditions(a *asking, indent string, list []conditionView) {
	for _, c := range list {
		_, _ = fmt.Fprintf(a.out, "%s%-28s %-7s %s: %s\n", indent, c.Type, c.Status, c.Reason, c.Message)
	}
}

func orAny(s string) string {
	if s == "" {
		return "*"
	}
	return s
}
