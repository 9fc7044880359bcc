package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

// devFleet is the Envoys of one Gateway that dev runs.
type devFleet struct {
	name    string
	proxies []string
	running []*process
	ports   []int32
	told    bool   // the group knows which proxies count
	blocked string // why its Envoys do not run
}

// fleets keeps a fleet for every Gateway in the group's view.
type fleets struct {
	dir        string // <state>/proxy
	envoy      string
	size       int
	re2Program int    // 0 = as many as our Envoys should take
	listen     string // address that listeners bind
	xds        []string
	certs      *devCerts
	sup        *supervisor
	say        func(string, ...any)
	tell       func(ctx context.Context, f store.Fleet) error
	running    map[string]*devFleet
}

// follow starts, tells and stops fleets, as the view asks.
func (f *fleets) follow(ctx context.Context, v view) {
	seen := map[string]bool{}
	for _, g := range v.Gateways {
		name := record.FleetName(g.Cluster, g.Namespace, g.Name)
		seen[name] = true
		one := f.running[name]
		if one == nil {
			one = &devFleet{name: name, proxies: proxyNames(g.Name, f.size)}
			f.running[name] = one
		}
		if len(one.running) == 0 {
			f.start(ctx, one, g)
		}
		f.announce(ctx, one, v.Leader)
	}
	// A view without a leader, or of a replica that has just started, may lack Gateways that are there: unknown is not absent.
	if v.Leader == "" || !allSynced(v) {
		return
	}
	for name, one := range f.running {
		if !seen[name] {
			f.stop(ctx, one)
		}
	}
}

func allSynced(v view) bool {
	for _, c := range v.Clusters {
		if !c.Synced {
			return false
		}
	}
	return len(v.Clusters) > 0
}

func proxyNames(gateway string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("%s-%d", gateway, i+1))
	}
	return out
}

// announce says which proxies count, before they have all connected: a fleet of which one proxy cannot start is not converged.
func (f *fleets) announce(ctx context.Context, one *devFleet, leader string) {
	if one.told || leader == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	one.told = f.tell(ctx, store.Fleet{Name: one.name, Proxies: one.proxies}) == nil
}

// start starts the Envoys of a Gateway, if all of its ports can be had.
func (f *fleets) start(ctx context.Context, one *devFleet, g gatewayView) {
	ports := listenerPorts(g)
	if why := f.unavailable(one, ports); why != "" {
		if one.blocked != why {
			f.say("Gateway %s/%s has no proxies: %s", g.Namespace, g.Name, why)
		}
		one.blocked = why
		return
	}
	one.blocked, one.ports = "", ports
	var ready []*process
	for _, proxy := range one.proxies {
		id := xds.Identity{Cluster: g.Cluster, Namespace: g.Namespace, Gateway: g.Name, Proxy: proxy}
		p, err := f.prepare(id)
		if err != nil {
			f.say("proxy %s: %v", proxy, err)
			return
		}
		ready = append(ready, p)
	}
	for _, p := range ready {
		f.sup.keep(ctx, p)
	}
	one.running = ready
}

func listenerPorts(g gatewayView) []int32 {
	var out []int32
	for _, l := range g.Listeners {
		if !slices.Contains(out, l.Port) {
			out = append(out, l.Port)
		}
	}
	slices.Sort(out)
	return out
}

// unavailable says which port cannot be had and why, "" = all can.
func (f *fleets) unavailable(one *devFleet, ports []int32) string {
	for _, port := range ports {
		for _, other := range f.running {
			if other != one && len(other.running) > 0 && slices.Contains(other.ports, port) {
				return fmt.Sprintf("port %d is used by the Gateway of fleet %s; give one of the two another port", port, other.name)
			}
		}
		if err := probe(net.JoinHostPort(f.listen, fmt.Sprint(port))); err != nil {
			return fmt.Sprintf("%v; stop it, or change the listener's port", err)
		}
	}
	return ""
}

// prepare writes what an Envoy needs into a directory of its own, where it runs: so its admin socket can have a short, relative path.
func (f *fleets) prepare(id xds.Identity) (*process, error) {
	dir := filepath.Join(f.dir, strings.Join([]string{id.Cluster, id.Namespace, id.Proxy}, "."))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making its directory: %w", err)
	}
	if err := f.certs.issueProxy(dir, id); err != nil {
		return nil, err
	}
	b, err := xds.Bootstrap(xds.BootstrapConfig{
		ProxyID: id.Proxy, FleetCluster: id.Fleet(), XDSAddresses: f.xds, AdminPath: adminSocket,
		CertFile: "proxy.crt", KeyFile: "proxy.key", CAFile: f.certs.proxies.CertFile(), ServerName: xdsServerName, RE2Program: f.re2Program,
	})
	if err != nil {
		return nil, err
	}
	if err := replaceFile(filepath.Join(dir, "bootstrap.json"), b); err != nil {
		return nil, err
	}
	_ = os.Remove(filepath.Join(dir, adminSocket))
	return &process{
		name: id.Namespace + "/" + id.Proxy, path: f.envoy, dir: dir, stdout: "access.log", stderr: "envoy.log", env: os.Environ(),
		args: []string{"-c", "bootstrap.json", "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"},
	}, nil
}

// adminSocket is where an Envoy's admin interface is, in its directory: curl --unix-socket <dir>/admin.sock http://envoy/stats
const adminSocket = "admin.sock"

func (f *fleets) stop(ctx context.Context, one *devFleet) {
	f.say("Gateway of fleet %s is gone: stopping its proxies", one.name)
	for _, p := range one.running {
		f.sup.forget(p)
	}
	delete(f.running, one.name)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := f.tell(ctx, store.Fleet{Name: one.name}); err != nil {
		f.say("fleet %s: %v", one.name, err)
	}
}
