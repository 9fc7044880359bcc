package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate/record"
)

// provision keeps the fleets of all clusters that have an API server, while this replica leads.
func (r *replica) provision(ctx context.Context) {
	authority, err := os.ReadFile(r.cfg.ProxyCA)
	if err != nil {
		r.log.Error("fleets are not provisioned: their authority cannot be read", "err", err)
		return
	}
	made := map[string]*fleet.Provisioner{}
	for name, cluster := range r.infrastructure {
		made[name] = fleet.NewProvisioner(fleet.Config{
			Cluster: cluster, Install: r.install(name, authority), Log: r.log.With("cluster", name),
			Decide: func(namespace, gateway string) (fleet.Gateway, fleet.Decision) {
				return r.decide(name, namespace, gateway)
			},
			All:  func() [][2]string { return r.fleetsOf(name) },
			Told: func(namespace, gateway string) *fleet.Row { return r.told(name, namespace, gateway) },
			Tell: func(ctx context.Context, namespace, gateway string, row *fleet.Row) error {
				return r.tellRow(ctx, name, namespace, gateway, row)
			},
		})
	}
	r.provisioners.Store(&made)
	defer r.provisioners.Store(nil)
	runAll(ctx, r.log, made, "fleets are not provisioned")
}

// runAll runs something of each member cluster until ctx ends; failure is what to log where one of them ends before.
func runAll[T interface{ Run(context.Context) error }](ctx context.Context, log *slog.Logger, byCluster map[string]T, failure string) {
	var running sync.WaitGroup
	for cluster, one := range byCluster {
		running.Go(func() {
			if err := one.Run(ctx); err != nil && ctx.Err() == nil {
				log.Error(failure, "cluster", cluster, "err", err)
			}
		})
	}
	running.Wait()
}

// install is what the fleets of a cluster have in common.
func (r *replica) install(cluster string, authority []byte) fleet.Install {
	i := slices.IndexFunc(r.cfg.Clusters, func(m clusterConfig) bool { return m.Name == cluster })
	m := r.cfg.Clusters[i]
	return fleet.Install{Image: r.cfg.FleetImage, XDS: m.XDS, Certificates: m.Certificates, ServerName: xdsServerName, Authority: authority}
}

// touchFleets has the fleets of changed Gateways looked at, where this replica provisions.
func (r *replica) touchFleets(keys []record.Key) {
	made := r.provisioners.Load()
	if made == nil {
		return
	}
	for _, k := range keys {
		if p := (*made)[k.Cluster]; p != nil && k.Kind == record.KindGateway {
			p.Touch(k.Namespace, k.Name)
		}
	}
}

// fleetsOf are the Gateways of a cluster, and those that have gone while nobody led: the group still has a row of them, and where their things are gone too nothing else speaks of them.
func (r *replica) fleetsOf(cluster string) [][2]string {
	out := r.gatewaysOf(cluster)
	for _, f := range r.db.Fleets() {
		if of, namespace, name := splitName(f.Name); of == cluster && f.Provisioned {
			out = append(out, [2]string{namespace, name})
		}
	}
	return out
}

func (r *replica) gatewaysOf(cluster string) [][2]string {
	gateways, _ := r.pipe.keys()
	var out [][2]string
	for _, k := range gateways {
		if k.Cluster == cluster {
			out = append(out, [2]string{k.Namespace, k.Name})
		}
	}
	return out
}

func gatewayKey(cluster, namespace, name string) record.Key {
	return record.Key{Cluster: cluster, Namespace: namespace, Kind: record.KindGateway, Name: name}
}

// decide reads what a Gateway asks for out of its committed record. Where there is no record, unknown is not absent (D10): only a complete view of the cluster
// can say that a Gateway is gone, or another controller's.
func (r *replica) decide(cluster, namespace, name string) (fleet.Gateway, fleet.Decision) {
	i, ok := r.pipe.Infrastructure(gatewayKey(cluster, namespace, name))
	if !ok {
		return r.orphaned(cluster, namespace, name)
	}
	g := fleet.Gateway{Cluster: cluster, Namespace: namespace, Name: name, UID: i.Object.UID, Class: i.Class,
		Labels: i.Asked.Labels, Annotations: i.Asked.Annotations}
	for _, a := range i.Asked.Addresses {
		g.Addresses = append(g.Addresses, fleet.Address(a))
	}
	for _, p := range i.Ports {
		protocol := "TCP"
		if p.UDP {
			protocol = "UDP"
		}
		g.Ports = append(g.Ports, fleet.Port{Number: p.Number, Protocol: protocol})
	}
	if i.Asked.Invalid {
		return g, fleet.Keep
	}
	if i.Asked.Parameters != "" {
		if err := json.Unmarshal([]byte(i.Asked.Parameters), &g.Parameters); err != nil {
			r.log.Error("the parameters of a Gateway cannot be read", "gateway", namespace+"/"+name, "err", err)
			return g, fleet.Keep
		}
	}
	return g, fleet.Run
}

func (r *replica) orphaned(cluster, namespace, name string) (fleet.Gateway, fleet.Decision) {
	if !r.manager.Synced(cluster) {
		return fleet.Gateway{}, fleet.Unknown
	}
	g, ok := r.manager.Object(cluster, "Gateway", namespace, name).(*gatewayv1.Gateway)
	if !ok {
		return fleet.Gateway{}, fleet.Forget
	}
	class, ok := r.manager.Object(cluster, "GatewayClass", "", string(g.Spec.GatewayClassName)).(*gatewayv1.GatewayClass)
	if ok && !slices.Contains(r.cfg.ControllerNames, string(class.Spec.ControllerName)) {
		return fleet.Gateway{Class: class.Name}, fleet.Remove
	}
	return fleet.Gateway{}, fleet.Unknown
}

// told is the row that the group has of a fleet, nil = none.
func (r *replica) told(cluster, namespace, name string) *fleet.Row {
	row, ok := r.db.Fleet(record.FleetName(cluster, namespace, name))
	if !ok || !row.Provisioned {
		return nil
	}
	return &fleet.Row{Proxies: row.Proxies, Addresses: row.Addresses, ClusterIPs: row.ClusterIPs, Refused: row.Refused, Problem: row.Problem}
}

// tellRow has the group take up a row, and the statuses that it decides written.
func (r *replica) tellRow(ctx context.Context, cluster, namespace, name string, row *fleet.Row) error {
	f := store.Fleet{Name: record.FleetName(cluster, namespace, name)}
	if row != nil {
		f.Proxies, f.Provisioned, f.Addresses, f.ClusterIPs, f.Refused, f.Problem = row.Proxies, true, row.Addresses, row.ClusterIPs, row.Refused, row.Problem
	}
	before := r.told(cluster, namespace, name)
	if _, err := r.group.Propose(ctx, store.Command{Fleet: &f}); err != nil {
		return fmt.Errorf("fleet %s: %w", f.Name, err)
	}
	if before != nil && row != nil && slices.Equal(before.Proxies, row.Proxies) { // routes do not care where they are reached
		r.status.Touch([]record.Key{gatewayKey(cluster, namespace, name)})
		return nil
	}
	r.touchFleet(cluster, namespace, name)
	return nil
}
