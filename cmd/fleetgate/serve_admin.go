package main

import (
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fleetgate/fleetgate/cluster/store"
)

// metrics are what a replica counts itself; what its parts count is read when /metrics is.
type metrics struct {
	registry     *prometheus.Registry
	statusWrites prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), statusWrites: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "fleetgate_status_writes_total", Help: "Status writes to member clusters."})}
	m.registry.MustRegister(m.statusWrites, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watch registers what the parts count.
func (m *metrics) watch(r *replica) {
	gauge := func(name, help string, f func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
	}
	counter := func(name, help string, f func() float64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, f))
	}
	gauge("fleetgate_store_applied_index", "Raft index of the last entry applied to the store.", func() float64 { return float64(r.db.Applied()) })
	gauge("fleetgate_raft_leader", "1 where this replica leads.", func() float64 {
		if r.joined() && r.group.IsLeader() {
			return 1
		}
		return 0
	})
	counter("fleetgate_routes_compiled_total", "Routes compiled by this replica.", func() float64 {
		if !r.joined() {
			return 0
		}
		return float64(r.manager.Compiled())
	})
	stat := r.xds.Stats
	gauge("fleetgate_xds_streams", "Connected proxies.", func() float64 { return float64(stat().Streams) })
	counter("fleetgate_xds_responses_total", "Responses sent to proxies.", func() float64 { return float64(stat().Responses) })
	counter("fleetgate_xds_sent_bytes_total", "Bytes of responses, before TLS.", func() float64 { return float64(stat().Bytes) })
	counter("fleetgate_xds_acks_total", "Responses that proxies accepted.", func() float64 { return float64(stat().Acks) })
	counter("fleetgate_xds_nacks_total", "Responses that proxies rejected.", func() float64 { return float64(stat().Nacks) })
	counter("fleetgate_xds_gate_timeouts_total", "Resources sent before the ACK of a cluster that they use.", func() float64 { return float64(stat().GateTimeouts) })
}

// joined tells whether this replica takes part in the group.
func (r *replica) joined() bool {
	select {
	case <-r.ready:
		return true
	default:
		return false
	}
}

// admin answers on the admin port.
func (r *replica) admin() http.Handler {
	r.metrics.watch(r)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", r.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(r.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /v1/view", r.serveView)
	mux.HandleFunc("POST /v1/fleets", r.setFleet)
	mux.HandleFunc("GET /v1/hash", func(w http.ResponseWriter, _ *http.Request) {
		index, hash := r.db.StateHash()
		respond(w, map[string]any{"index": index, "hash": hash})
	})
	return mux
}

func respond(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// readyz answers 200 once this replica takes part in a group that has a leader.
func (r *replica) readyz(w http.ResponseWriter, _ *http.Request) {
	switch {
	case !r.joined():
		http.Error(w, "not in the group yet: waiting for the other replicas; proxies are served from this replica's disk", http.StatusServiceUnavailable)
	case r.leaderID() == "":
		http.Error(w, noLeader, http.StatusServiceUnavailable)
	default:
		_, _ = fmt.Fprintln(w, "ok")
	}
}

const noLeader = "no leader: fewer than half of the replicas are up and connected, so no change can be accepted; proxies keep their configuration and are served from this replica's disk. Start the missing replicas"

// serveView answers with the leader's view, so that every replica shows the same; where that is not to be had with what this one knows, and says so.
func (r *replica) serveView(w http.ResponseWriter, req *http.Request) {
	if r.joined() && !r.group.IsLeader() && r.leaderID() != "" {
		ctx, cancel := context.WithTimeout(req.Context(), 2*time.Second)
		defer cancel()
		body, err := r.group.CallLeader(ctx, "view", nil)
		if err == nil {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
			return
		}
		respond(w, r.view().withoutLeader(err, r.xds.Proxies()))
		return
	}
	respond(w, r.view())
}

// setFleet replaces which proxies count for a Gateway of a directory: dev tells so. Whoever reaches this port may ask, in a cluster every pod; so nobody can have a say in the fleets that
// the leader provisions, and no page in a browser in any: what is of the type JSON a browser asks about first, and gets no answer.
func (r *replica) setFleet(w http.ResponseWriter, req *http.Request) {
	if kind, _, err := mime.ParseMediaType(req.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		http.Error(w, "want Content-Type: application/json", http.StatusUnsupportedMediaType)
		return
	}
	var f fleetRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, 1<<20)).Decode(&f); err != nil || f.Name == "" {
		http.Error(w, `want {"name": "cluster/namespace/gateway", "proxies": ["..."]}`, http.StatusBadRequest)
		return
	}
	cluster, namespace, name := splitName(f.Name)
	if !slices.ContainsFunc(r.cfg.Clusters, func(c clusterConfig) bool { return c.Name == cluster && len(c.Dirs) > 0 }) {
		http.Error(w, fmt.Sprintf("%q is not a Gateway of a directory of manifests: which proxies count for another is known from its pods", f.Name), http.StatusForbidden)
		return
	}
	if !r.joined() {
		http.Error(w, "not in the group yet", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), 5*time.Second)
	defer cancel()
	if _, err := r.group.Propose(ctx, store.Command{Fleet: &store.Fleet{Name: f.Name, Proxies: f.Proxies}}); err != nil {
		http.Error(w, noLeader+" ("+err.Error()+")", http.StatusServiceUnavailable)
		return
	}
	r.touchFleet(cluster, namespace, name)
	w.WriteHeader(http.StatusNoContent)
}
