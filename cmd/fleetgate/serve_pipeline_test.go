package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/shard"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

const ourController = "fleetgate.io/gatewayclass-controller"

// committed is a store that holds what the owner of all rows would put there.
type committed struct {
	t   *testing.T
	db  *store.Store
	seq uint64
}

func newCommitted(t *testing.T) *committed {
	t.Helper()
	db, err := store.Open(filepath.Join(t.TempDir(), "store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	c := &committed{t: t, db: db}
	c.apply(store.Command{Table: &store.TableCommand{Rows: []store.Row{{ID: 1, Cluster: devCluster, Owner: "owner", Epoch: 1}}}})
	return c
}

func (c *committed) apply(cmd store.Command) {
	c.t.Helper()
	data, err := store.EncodeCommand(cmd)
	if err != nil {
		c.t.Fatal(err)
	}
	res, err := c.db.Apply([]store.Entry{{Index: c.db.Applied() + 1, Data: data}})
	if err != nil || res[0].Code != "" {
		c.t.Fatalf("%+v: %v", res, err)
	}
}

// put commits what these manifests come to, and nothing else.
func (c *committed) put(manifests string) {
	c.t.Helper()
	objects, problems := member.Decode(map[string][]byte{"in.yaml": []byte(manifests)})
	if len(problems) > 0 {
		c.t.Fatal(problems)
	}
	compiler := translate.New(translate.Config{Cluster: devCluster, ControllerNames: []string{ourController}, Owns: func(string) bool { return true }})
	events := make([]translate.Event, len(objects))
	for i, o := range objects {
		events[i] = translate.Event{Kind: o.GetObjectKind().GroupVersionKind().Kind, Namespace: o.GetNamespace(), Name: o.GetName(), Object: o}
	}
	compiler.Apply(events)
	var named []record.Key
	for _, p := range compiler.Records() {
		named = append(named, p.Refs...)
	}
	compiler.Referenced(named)
	put := &store.PutCommand{}
	there := map[store.Key]bool{}
	for k, p := range compiler.Records() {
		content := &store.Content{Hash: record.Hash(p.Payload), Payload: p.Payload}
		for _, ref := range p.Refs {
			content.Refs = append(content.Refs, shard.StoreKey(ref))
		}
		there[shard.StoreKey(k)] = true
		put.Ops = append(put.Ops, store.Op{Key: shard.StoreKey(k), Content: content})
	}
	if err := c.db.Scan(func(r *store.Record) error {
		if !there[r.Key] {
			put.Ops = append(put.Ops, store.Op{Key: r.Key})
		}
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	c.propose(put.Ops...)
}

// propose commits what an owner proposes.
func (c *committed) propose(ops ...store.Op) {
	c.t.Helper()
	c.seq++
	c.apply(store.Command{Put: &store.PutCommand{Proposer: "owner", Row: 1, Epoch: 1, Seq: c.seq, Ops: ops}})
}

// serving is a pipeline over a committed store; its steps are taken one by one.
func (c *committed) serving() *pipeline {
	c.t.Helper()
	p := &pipeline{db: c.db, log: slog.New(slog.DiscardHandler), check: func(*store.Record) error { return nil }, config: assemble.Config{ControllerNames: []string{ourController}},
		server: xds.New(xds.Config{Gate: true, Identify: func(*tls.ConnectionState) (xds.Identity, error) {
			return xds.Identity{Cluster: devCluster, Namespace: "default", Gateway: "gw", Proxy: "p"}, nil
		}})}
	if err := p.start(nil); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(p.cancel)
	return p
}

func take(t *testing.T, p *pipeline) {
	t.Helper()
	if err := p.step(<-p.events); err != nil {
		t.Fatal(err)
	}
}

// listens connects a proxy that asks for listeners; what it gives tells the names of the next response, "-" before one that is removed, and ACKs it.
func listens(t *testing.T, s *xds.Server) (next func() []string) {
	t.Helper()
	answer := asks(t, s, xds.Listener)
	return func() (out []string) {
		t.Helper()
		r := answer()
		for _, l := range r.Resources {
			out = append(out, l.Name)
		}
		for _, name := range r.RemovedResources {
			out = append(out, "-"+name)
		}
		slices.Sort(out)
		return out
	}
}

// asks connects a proxy that asks for one type; what it gives takes the next response and ACKs it.
func asks(t *testing.T, s *xds.Server, ty xds.Type, names ...string) (next func() *discovery.DeltaDiscoveryResponse) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, lis, nil) }()
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); cancel(); <-done })
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	say := func(r *discovery.DeltaDiscoveryRequest) {
		r.TypeUrl = xds.URLs[ty]
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	say(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
	return func() *discovery.DeltaDiscoveryResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		say(&discovery.DeltaDiscoveryRequest{ResponseNonce: r.Nonce})
		return r
	}
}

func gatewayWith(ports ...string) string {
	listeners := ""
	for _, p := range ports {
		listeners += "\n  - {name: at-" + p + ", protocol: HTTP, port: " + p + "}"
	}
	return strings.NewReplacer("LISTENERS", listeners, "CONTROLLER", ourController).Replace(`
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: envoy}
spec: {controllerName: CONTROLLER}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: default}
spec:
  gatewayClassName: envoy
  listeners:LISTENERS
`)
}

// TestSnapshotTakesAwayWhatItLacks: a replica that was too far behind gets a snapshot, and its proxies lose what was deleted meanwhile.
func TestSnapshotTakesAwayWhatItLacks(t *testing.T) {
	behind, ahead := newCommitted(t), newCommitted(t)
	p := behind.serving()
	next := listens(t, p.server)
	behind.put(gatewayWith("8080", "9090"))
	take(t, p)
	if got := next(); !slices.Equal(got, []string{"dev/default/gw/8080", "dev/default/gw/9090"}) {
		t.Fatalf("at first: %v", got)
	}
	ahead.put(gatewayWith("8080", "9090"))
	ahead.put(gatewayWith("7070", "8080"))
	var snapshot bytes.Buffer
	if _, err := ahead.db.WriteSnapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	if err := behind.db.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	take(t, p)
	if got := next(); !slices.Equal(got, []string{"-dev/default/gw/9090", "dev/default/gw/7070"}) {
		t.Errorf("after the snapshot: %v", got)
	}
}

// TestServedComesAfterApplied: what the store has is not in the hands of xds yet, and a proxy that is ahead of this replica may only be caught up with by what is (D4).
func TestServedComesAfterApplied(t *testing.T) {
	c := newCommitted(t)
	p := c.serving()
	c.put(gatewayWith("8080"))
	index := c.db.Applied()
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.db.WaitApplied(now, index); err != nil {
		t.Fatal(err)
	}
	if err := p.await(now, index); !errors.Is(err, context.Canceled) {
		t.Errorf("before the step was taken: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- p.await(t.Context(), index) }()
	take(t, p)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := p.await(now, index); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestPinShowsTheRecordOfItsTime: a replica that is behind takes one step after the other. A record that is newer than its step names backends that are not there yet, so that
// nothing of its route was served until they came.
func TestPinShowsTheRecordOfItsTime(t *testing.T) {
	c := newCommitted(t)
	p := c.serving()
	to := func(backend string) string {
		return gatewayWith("8080") + strings.NewReplacer("{name: web,", "{name: "+backend+",", "service-name: web", "service-name: "+backend).Replace(oneBackend)
	}
	c.put(to("one"))
	take(t, p)
	routes, err := c.db.List(string(record.KindRoute), "")
	if err != nil || len(routes) != 1 {
		t.Fatalf("%d routes, %v", len(routes), err)
	}
	pin := &store.Pin{Key: routes[0].Key, Hash: "of the past"}
	c.apply(store.Command{Pin: pin})
	c.apply(store.Command{Unpin: pin})
	c.put(to("two"))
	c.put(to("three"))
	for _, want := range []string{"one", "one", "two", "three"} {
		take(t, p)
		var clusters []string
		for _, r := range p.state.Resources("dev/default/gw") {
			if r.Type == assemble.TypeCluster {
				clusters = append(clusters, r.Name)
			}
		}
		if len(clusters) != 1 || !strings.Contains(clusters[0], "/"+want+"/") {
			t.Errorf("served: %v, want that of %s", clusters, want)
		}
	}
}
