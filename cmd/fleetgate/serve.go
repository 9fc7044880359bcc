package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/cluster/group"
	"github.com/fleetgate/fleetgate/cluster/headless"
	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/cluster/member/kube"
	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/fleetgate/fleetgate/cluster/seal"
	"github.com/fleetgate/fleetgate/cluster/status"
	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/shard"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

// replica is one running `fleetgate serve`. This file is the only place where the parts meet: reading runServe tells how it starts, and live how it stops.
type replica struct {
	cfg       serveConfig
	log       *slog.Logger
	db        *store.Store
	key       *seal.Key
	pipe      *pipeline
	xds       *xds.Server
	group     *group.Group
	session   string
	manager   *shard.Manager
	spreader  *spreader
	leader    *shard.Leader
	status    *status.Writer
	acks      *acks
	peers     *pki.Source // certificates for talking to replicas
	proxies   *pki.Source // and for serving proxies
	sources   map[string]member.Source
	installed *kube.Install // what this replica was installed as; nil outside of a Pod
	metrics   *metrics

	infrastructure map[string]*kube.Infrastructure               // of the clusters that have an API server
	provisioners   atomic.Pointer[map[string]*fleet.Provisioner] // while we lead
	keepers        atomic.Pointer[map[string]*headless.Keeper]   // likewise

	ready chan struct{} // closed when this replica takes part in the group
}

// runServe runs a replica until ctx ends, then hands over leadership, drains the streams and stops.
func runServe(ctx context.Context, cfg serveConfig, _ io.Writer) error {
	r := &replica{cfg: cfg, log: cfg.logger(os.Stderr), sources: map[string]member.Source{}, ready: make(chan struct{}), metrics: newMetrics(), infrastructure: map[string]*kube.Infrastructure{}}
	if err := r.cfg.obtainKeys(ctx); err != nil {
		return err
	}
	if err := r.loadCertificates(); err != nil {
		return err
	}
	if err := r.openInstall(); err != nil {
		return err
	}
	if err := r.openSources(); err != nil {
		return err
	}
	admin, err := listen("admin port", "--admin-listen", cfg.AdminListen)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	records, err := r.openStore()
	if err != nil {
		return err
	}
	defer func() { _ = r.db.Close() }()
	stopXDS, err := r.serveXDS(ctx, records)
	if err != nil {
		return err
	}
	stopCertificates, err := r.serveCertificates()
	if err != nil {
		return err
	}
	defer stopCertificates()
	server := &http.Server{Handler: r.admin(), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(admin) }()
	defer func() { _ = server.Close() }()
	return r.live(ctx, stopXDS)
}

// live takes part in the group until ctx ends or something fails that waiting cannot mend, and stops in order.
func (r *replica) live(ctx context.Context, stopXDS func()) error {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	fatal := make(chan error, 8)
	var running sync.WaitGroup
	run := func(what string, f func(context.Context) error) {
		running.Go(func() {
			if err := f(work); err != nil && work.Err() == nil {
				fatal <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	run("serving committed state", r.pipe.run)
	if r.cfg.HomeNamespace != "" {
		run("renewing own certificates", r.renewOwn)
	}
	err := r.join(ctx, run)
	if err == nil {
		close(r.ready)
		r.log.Info("replica is up", "session", r.session, "xds", r.cfg.XDSListen, "admin", r.cfg.AdminListen)
		select {
		case <-ctx.Done():
		case err = <-fatal:
		}
	}
	r.log.Info("stopping: handing over, draining streams")
	r.sayBye()
	if r.group != nil {
		err = errors.Join(err, r.group.Close())
	}
	r.leave()
	stopXDS()
	stopWork()
	running.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// loadCertificates reads both pairs before anything is opened: a replica that nobody would talk to does not start.
func (r *replica) loadCertificates() (err error) {
	if r.peers, err = pki.Load(r.cfg.PeerCert, r.cfg.PeerKey, r.cfg.PeerCA, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth); err != nil {
		return fmt.Errorf("--peer-cert, --peer-key, --peer-ca: %w", err)
	}
	if r.proxies, err = pki.Load(r.cfg.ProxyCert, r.cfg.ProxyKey, r.cfg.ProxyCA, x509.ExtKeyUsageServerAuth); err != nil {
		return fmt.Errorf("--proxy-cert, --proxy-key, --proxy-ca: %w", err)
	}
	if err := pki.CheckApart(r.peers, r.proxies); err != nil {
		return fmt.Errorf("--peer-ca and --proxy-ca: %w", err)
	}
	return nil
}

// listen opens a port of this replica.
func listen(what, flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: another process listens at %s: stop it, or choose another port with %s", what, address, flag)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: choose an address of this machine with %s", what, err, flag)
	}
	return l, nil
}

// openStore opens the route store; it gives all records.
func (r *replica) openStore() ([]*store.Record, error) {
	key, err := seal.Load(r.cfg.SealKeyFile)
	if err != nil {
		return nil, err
	}
	r.key = key
	var records []*store.Record
	visit := func(rec *store.Record) { records = append(records, rec) }
	if r.db, err = store.Open(filepath.Join(r.cfg.DataDir, "store"), store.Options{Logger: r.log, Visit: visit}); err != nil {
		return nil, err
	}
	r.acks = newAcks(r.cfg.Pod, r.log)
	return records, nil
}

// checkSealed refuses a sealed record that our key does not open.
func (r *replica) checkSealed(rec *store.Record) error {
	if rec.Key.Kind != string(record.KindSecret) {
		return nil
	}
	var s record.Secret
	if err := record.Unmarshal(rec.Cur.Payload, &s); err != nil || len(s.Sealed) == 0 {
		return err
	}
	if _, err := r.key.Open(s.Sealed, translate.SecretContext(shard.RecordKey(rec.Key))); err != nil {
		return fmt.Errorf("sealed record %s: %w; give this replica the seal key of its group (--seal-key-file)", rec.Key, err)
	}
	return nil
}

// serveXDS answers proxies from the disk, before anybody else was heard (D4).
func (r *replica) serveXDS(ctx context.Context, records []*store.Record) (stop func(), err error) {
	r.xds = xds.New(xds.Config{
		Replica: r.cfg.Pod, Logger: r.log, Report: r.acks.local, Gate: !r.cfg.TestGateOff, Hold: r.catchUp, Trial: r.trial,
		SystemVersion: func(index uint64) string { return fmt.Sprintf("1.%d", index) },
	})
	r.pipe = &pipeline{db: r.db, server: r.xds, open: r.key.Open, check: r.checkSealed, log: r.log, touch: r.touch, selects: r.touchSelections,
		config: assemble.Config{ControllerNames: r.cfg.ControllerNames, ListenAddress: r.cfg.ListenAddress, AccessLog: r.cfg.AccessLog}}
	if err := r.pipe.start(records); err != nil {
		return nil, err
	}
	lis, err := listen("xDS port", "--xds-listen", r.cfg.XDSListen)
	if err != nil {
		return nil, err
	}
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- r.xds.Serve(sctx, lis, r.proxies.ServerConfig("h2")) }()
	return func() {
		dctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
		defer stop()
		if err := r.xds.Drain(dctx); err != nil {
			r.log.Warn("not every stream was drained", "err", err)
		}
		cancel()
		if err := <-done; err != nil {
			r.log.Warn("xDS server ended", "err", err)
		}
	}, nil
}

// trial makes what a rejected resource would be with some records pinned.
func (r *replica) trial(fleet string, t xds.Type, name string, refuse map[string]string) (xds.Resource, bool) {
	return r.pipe.trial(fleet, t, name, refuse)
}

// touch passes changed objects to the status writer, once there is one.
func (r *replica) touch(keys []record.Key) {
	if r.status != nil {
		r.status.Touch(keys)
	}
	r.touchFleets(keys)
}

// join enters the group and starts everything that needs it.
func (r *replica) join(ctx context.Context, run func(string, func(context.Context) error)) error {
	config := r.groupConfig()
	var err error
	if config.Marker, err = r.cfg.marker(); err != nil {
		return err
	}
	g, err := group.Open(ctx, config)
	if err != nil {
		return fmt.Errorf("joining the group (--data-dir, --advertise, --raft-listen): %w", err)
	}
	r.group = g
	r.session = fmt.Sprintf("%s@%d", g.ID(), time.Now().UnixNano())
	r.build()
	r.handle()
	run("following the shard table", func(ctx context.Context) error { r.manager.Run(ctx); return nil })
	run("sending endpoints ahead", r.spreader.run)
	run("telling the leader", func(ctx context.Context) error { r.beat(ctx); return nil })
	run("reporting proxies", func(ctx context.Context) error {
		r.acks.send(ctx, r.session, func() (string, uint64) { return r.leaderID(), g.Term() }, func(ctx context.Context, b []byte) error { _, err := g.CallLeader(ctx, "reports", b); return err })
		return nil
	})
	for name := range r.sources {
		run("member cluster "+name, func(ctx context.Context) error { return r.follow(ctx, name) })
	}
	g.OnLeadership(r.lead)
	return nil
}

func (r *replica) leaderID() string { id, _ := r.group.Leader(); return id }

// build makes the parts that a member of the group has.
func (r *replica) build() {
	r.spreader = newSpreader(func(ctx context.Context, to string, body []byte) error {
		_, err := r.group.Call(ctx, to, "endpoints", body)
		return err
	}, r.log)
	r.manager = shard.NewManager(shard.Config{Ahead: r.sendAhead,
		Session: r.session, Store: r.db, Proposer: r.group, Logger: r.log, Guard: shard.Guard{Share: 0.5, Min: 10}, Want: r.want, SlicesFollow: r.slicesFollow,
		Translate: translate.Config{ControllerNames: r.cfg.ControllerNames, Seal: r.key.Seal, Version: r.key.Version, Last: r.last},
	})
	r.leader = &shard.Leader{Store: r.db, Proposer: r.group, Weights: r.manager.Weights, Logger: r.log, Now: time.Now,
		Expect: func() int { return len(r.group.Members()) }}
	r.status = status.NewWriter(r, r.cfg.ControllerNames, r.log)
	r.status.Features = func(c assemble.ClassStatus) []gatewayv1.SupportedFeature {
		return translate.SupportedFeatures(c.Experimental, c.TrustBundles)
	}
	r.status.Written = r.metrics.statusWrites.Inc
	r.acks.changed = r.status.Acked
}

// last gives the committed payload of a record, for an object that makes the compiler panic (D16).
func (r *replica) last(k record.Key) []byte {
	rec, err := r.db.Get(shard.StoreKey(k))
	if err != nil || rec == nil {
		return nil
	}
	return rec.Cur.Payload
}

// lead runs what only the leader does, until ctx ends with its leadership.
func (r *replica) lead(ctx context.Context) {
	r.log.Info("leading the group")
	r.leader.Begin() // who lives is known before anybody asks who has reported
	r.acks.lead(r.group.Term())
	gateways, routes := r.pipe.keys()
	r.status.Touch(append(gateways, routes...))
	r.status.Touch(r.pipe.attached())
	r.touchClasses()
	var wg sync.WaitGroup
	wg.Go(func() { r.leader.Run(ctx) })
	wg.Go(func() { r.seeProxies(ctx) })
	wg.Go(func() { r.keepPins(ctx) })
	wg.Go(func() { r.writeStatus(ctx) })
	wg.Go(func() { r.provision(ctx) })
	wg.Go(func() { r.selectPods(ctx) })
	wg.Go(func() { r.keepHold(ctx) })
	wg.Wait()
	r.log.Info("no longer leading")
}

// writeStatus waits until every live replica has reported its proxies, then writes.
func (r *replica) writeStatus(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(2 * shard.Silence)
	for {
		live := r.leader.Live()
		names := make([]string, 0, len(live))
		for s := range live {
			names = append(names, s)
		}
		if len(names) > 0 && r.acks.complete(names) || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	r.status.Run(ctx)
}

// seeProxies looks every second which proxies are there.
func (r *replica) seeProxies(ctx context.Context) {
	every(ctx, time.Second, func() {
		live := r.leader.Live()
		r.acks.see(func(session string) bool { _, ok := live[session]; return ok }, func(fleet string) []string {
			row, _ := r.db.Fleet(fleet)
			return row.Proxies
		})
	})
}

// keepPins pins what proxies reject (D7), and lifts pins of bytes that have changed. A pin of a lesser form of a record follows where that is rejected too.
func (r *replica) keepPins(ctx context.Context) {
	every(ctx, 50*time.Millisecond, func() {
		r.liftPins(ctx)
		for _, pin := range r.acks.rejections() {
			if r.pinnable(pin) {
				r.log.Warn("proxies rejected a record: its previous bytes are served", "record", pin.Key, "form", pin.Hash, "reason", pin.Reason)
				r.propose(ctx, store.Command{Pin: &pin})
			}
		}
	})
}

// every does something again and again until ctx ends, first after one interval.
func every(ctx context.Context, interval time.Duration, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		do()
	}
}

// liftPins removes pins of content that is not the newest any more.
func (r *replica) liftPins(ctx context.Context) {
	for _, p := range r.db.Pins() {
		if rec, err := r.db.Get(p.Key); err == nil && (rec == nil || !strings.HasPrefix(p.Hash, rec.Cur.Hash)) {
			r.propose(ctx, store.Command{Unpin: &p})
		}
	}
}

// pinnable tells whether a pin is of the newest content of its record, and news.
func (r *replica) pinnable(pin store.Pin) bool {
	rec, err := r.db.Get(pin.Key)
	if err != nil || rec == nil || !strings.HasPrefix(pin.Hash, rec.Cur.Hash) {
		return false
	}
	return !slices.ContainsFunc(r.db.Pins(), func(p store.Pin) bool {
		return p.Key == pin.Key && strings.HasPrefix(p.Hash, rec.Cur.Hash) && assemble.Rank(p.Hash) >= assemble.Rank(pin.Hash)
	})
}

func (r *replica) propose(ctx context.Context, cmd store.Command) {
	if _, err := r.group.Propose(ctx, cmd); err != nil && ctx.Err() == nil {
		r.log.Warn("a proposal was not accepted, it is made again", "err", err)
	}
}

// handle answers other replicas.
func (r *replica) handle() {
	r.group.Handle("beat", func(_ context.Context, _ string, body []byte) ([]byte, error) {
		var b shard.Heartbeat
		if err := json.Unmarshal(body, &b); err != nil {
			return nil, fmt.Errorf("heartbeat: %w", err)
		}
		r.leader.Beat(b)
		return nil, nil
	})
	r.group.Handle("reports", func(_ context.Context, _ string, body []byte) ([]byte, error) {
		var b reportBatch
		if err := json.Unmarshal(body, &b); err != nil {
			return nil, fmt.Errorf("proxy reports: %w", err)
		}
		r.acks.receive(b)
		return nil, nil
	})
	r.group.Handle("endpoints", r.answerAhead)
	r.group.Handle("view", func(context.Context, string, []byte) ([]byte, error) { return json.Marshal(r.view()) })
}

// beat tells the leader that this session lives.
func (r *replica) beat(ctx context.Context) {
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	registered := false
	for {
		if !registered {
			registered = r.register(ctx)
		}
		r.tell(ctx, false)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// register puts this replica's addresses where every replica can read them.
func (r *replica) register(ctx context.Context) bool {
	cctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := r.group.Propose(cctx, store.Command{Replica: &store.Replica{
		ID: r.group.ID(), Raft: r.cfg.Advertise, XDS: r.cfg.XDSAdvertise, Admin: r.cfg.AdminAdvertise, Version: buildVersion()}})
	return err == nil
}

func (r *replica) tell(ctx context.Context, bye bool) {
	_, rows := r.db.Table()
	b := shard.Heartbeat{Session: r.session, Applied: r.db.Applied(), Proxies: len(r.xds.Proxies()), Drained: r.manager.Drained(), Bye: bye}
	for _, row := range rows {
		if row.Owner == r.session {
			b.Rows++
		}
	}
	body, err := json.Marshal(b)
	if err != nil {
		return
	}
	cctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := r.group.CallLeader(cctx, "beat", body); err != nil {
		r.log.Debug("heartbeat not delivered", "err", err)
	}
}

// sayBye lets the leader move our rows at once.
func (r *replica) sayBye() {
	if r.manager == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if r.group.IsLeader() {
		err := r.group.TransferLeadership(ctx)
		if err == nil {
			err = r.group.WaitLeader(ctx) // it is elected by now, and has yet to say so
		}
		if err != nil {
			r.log.Debug("leadership not handed over", "err", err)
		}
	}
	r.tell(ctx, true)
}

// catchUp brings what this replica serves to the leader's commit index, for a proxy that knows something newer than we do (D4).
func (r *replica) catchUp(ctx context.Context, _ string) error {
	select {
	case <-r.ready:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(500 * time.Millisecond):
		return group.ErrNoLeader
	}
	index, err := r.group.AskCommitIndex(ctx)
	if err != nil {
		return err
	}
	return r.pipe.await(ctx, index)
}

// The writer's facts.

// Converged tells how far a fleet is.
func (r *replica) Converged(fleet string, index uint64, part record.Key) status.Convergence {
	row, _ := r.db.Fleet(fleet)
	return r.acks.converged(fleet, r.pipe.due(fleet, index), part, counts(row))
}

// counts are the proxies that count, nil = those seen lately.
func counts(row store.Fleet) []string {
	if row.Provisioned && row.Proxies == nil {
		return []string{}
	}
	return row.Proxies
}

// Reached tells how far a whole fleet is: beyond its last change there is nothing to ACK.
func (r *replica) Reached(fleet string) (uint64, bool) {
	row, _ := r.db.Fleet(fleet)
	index, rejects := r.acks.reached(fleet, counts(row))
	if index >= r.pipe.due(fleet, math.MaxUint64) && index > 0 {
		index = math.MaxUint64
	}
	return index, rejects
}

// Gateway passes on what is assembled.
func (r *replica) Gateway(k record.Key) (assemble.GatewayStatus, bool) { return r.pipe.Gateway(k) }

// Route passes on what is assembled.
func (r *replica) Route(k record.Key) (assemble.RouteStatus, bool) { return r.pipe.Route(k) }

// Reach is what a Gateway is reached at: what its fleet's row says where the fleet is provisioned, else what the cluster's configuration says.
func (r *replica) Reach(gateway record.Key) status.Reach {
	if row, ok := r.db.Fleet(record.FleetName(gateway.Cluster, gateway.Namespace, gateway.Name)); ok && row.Provisioned {
		return status.Reach{Addresses: row.Addresses, ClusterIPs: row.ClusterIPs, Refused: row.Refused, Provisioned: true, Problem: row.Problem}
	}
	return status.Reach{Addresses: r.addresses(gateway.Cluster)}
}

// addresses are what Gateways of a cluster are reached at where it has no fleets of its own.
func (r *replica) addresses(cluster string) []string {
	for _, c := range r.cfg.Clusters {
		if c.Name == cluster {
			return c.Addresses
		}
	}
	return nil
}

// Class passes on what is assembled.
func (r *replica) Class(k record.Key) (assemble.ClassStatus, bool)   { return r.pipe.Class(k) }
func (r *replica) Policy(k record.Key) (assemble.PolicyStatus, bool) { return r.pipe.Policy(k) }
func (r *replica) ListenerSet(k record.Key) (assemble.ListenerSetStatus, bool) {
	return r.pipe.ListenerSet(k)
}

// Source is a cluster's source, nil if it is none of ours.
func (r *replica) Source(cluster string) member.Source {
	if s, ok := r.sources[cluster]; ok {
		return s
	}
	return nil
}

func (r *replica) touchClasses() {
	records, err := r.db.List(string(record.KindClass), "")
	if err != nil {
		r.log.Error("reading class records", "err", err)
		return
	}
	for _, c := range records {
		r.status.Touch([]record.Key{shard.RecordKey(c.Key)})
	}
}

func (r *replica) groupConfig() group.Config {
	cfg := group.Config{
		Dir: filepath.Join(r.cfg.DataDir, "raft"), Pod: r.cfg.Pod, Advertise: r.cfg.Advertise, Listen: r.cfg.RaftListen, Peers: r.cfg.Peers,
		Certs: r.peers, Store: r.db, Logger: r.log, Heartbeat: r.cfg.HeartbeatTimeout,
	}
	return cfg
}

// splitName undoes record.Join of three parts.
func splitName(joined string) (cluster, namespace, name string) {
	r := strings.NewReplacer("%2F", "/", "%25", "%")
	parts := strings.Split(joined, "/")
	if len(parts) != 3 {
		return "", "", joined
	}
	return r.Replace(parts[0]), r.Replace(parts[1]), r.Replace(parts[2])
}
