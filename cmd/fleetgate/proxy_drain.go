package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// proxyWatch answers for an Envoy, and drains it.
type proxyWatch struct {
	admin    *http.Client
	draining atomic.Bool
}

// handler is what the kubelet and Prometheus ask. That Envoy is not live yet, or starts again, is no reason to kill the pod: /live speaks for this process.
func (w *proxyWatch) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /live", func(out http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(out, "ok") })
	mux.HandleFunc("GET /ready", func(out http.ResponseWriter, r *http.Request) {
		if w.draining.Load() {
			http.Error(out, "draining", http.StatusServiceUnavailable)
			return
		}
		w.pass(out, r, "/ready")
	})
	mux.HandleFunc("GET /stats/prometheus", func(out http.ResponseWriter, r *http.Request) { w.pass(out, r, "/stats/prometheus") })
	return mux
}

// pass answers with Envoy's answer.
func (w *proxyWatch) pass(out http.ResponseWriter, r *http.Request, path string) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
		return
	}
	resp, err := w.admin.Do(req)
	if err != nil {
		http.Error(out, "Envoy does not answer: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	out.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	out.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(out, resp.Body)
}

// quiet is how long nothing may be under way before a drained Envoy ends: who has just been told to close a connection has closed it by then.
const quiet = time.Second

// drain takes Envoy out of service: unready but serving for delay, because load balancers learn of it late; then its listeners close, and what is under way
// has until timeout. Without a listener, as after its Gateway was deleted, there is nothing that a load balancer could lead to, and no delay.
//
// A connection without a request does not hold it up: Envoy tells a client to close when it answers the next request, and a client that asks for nothing, as every pool of
// HTTP/2 connections has some, would never hear of it.
func (w *proxyWatch) drain(delay, timeout time.Duration, log *slog.Logger) {
	w.draining.Store(true)
	w.say("/healthcheck/fail", log)
	for serving := time.Now().Add(delay); time.Now().Before(serving); time.Sleep(100 * time.Millisecond) {
		if n, err := w.listeners(); n == 0 && err == nil {
			break
		}
	}
	w.say("/drain_listeners?graceful&skip_exit", log)
	busy := time.Now()
	for deadline := busy.Add(timeout); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		n, err := w.underway()
		switch {
		case errors.Is(err, syscall.ECONNREFUSED) || err == nil && n == 0 && time.Since(busy) >= quiet:
			return
		case err != nil || n > 0: // one that is too busy to answer is busy
			busy = time.Now()
		}
	}
}

func (w *proxyWatch) say(path string, log *slog.Logger) {
	resp, err := w.admin.Post("http://envoy"+path, "", nil)
	if err != nil {
		log.Warn("Envoy was not told", "path", path, "err", err)
		return
	}
	_ = resp.Body.Close()
}

// listeners counts those that take connections, or would (Envoy: "Listener manager statistics").
func (w *proxyWatch) listeners() (int64, error) {
	stats, err := w.stats(`^listener_manager\.total_listeners_(active|warming)$`)
	var n int64
	for _, s := range stats {
		n += s.Value
	}
	return n, err
}

// underway counts what clients wait for: requests and upgraded connections, and connections that are not HTTP.
func (w *proxyWatch) underway() (int64, error) {
	stats, err := w.stats(underwayStats)
	return underway(stats), err
}

// stats asks Envoy for those whose names match.
func (w *proxyWatch) stats(names string) ([]stat, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy/stats?format=json&filter="+url.QueryEscape(names), nil)
	if err != nil {
		return nil, err
	}
	resp, err := w.admin.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var got struct{ Stats []stat }
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		return nil, fmt.Errorf("reading statistics of Envoy: %w", err)
	}
	return got.Stats, nil
}

type stat struct {
	Name  string
	Value int64
}

// underwayStats are the gauges of listeners, and of the HTTP connection managers behind them (Envoy: "Listener stats", "HTTP connection manager statistics").
const underwayStats = `^(listener\..*\.downstream_cx_active|http\..*\.downstream_(cx|rq)_active)$`

// underway counts requests, and the connections of listeners that are not also those of an HTTP connection manager. The admin interface is not counted, nor is what
// one worker has, since that is counted in the listener's.
func underway(stats []stat) int64 {
	var requests, connections int64
	for _, s := range stats {
		switch {
		case strings.HasPrefix(s.Name, "listener.admin.") || strings.HasPrefix(s.Name, "http.admin.") || strings.Contains(s.Name, ".worker_"):
		case strings.HasSuffix(s.Name, "_rq_active"):
			requests += s.Value
		case strings.HasPrefix(s.Name, "listener."):
			connections += s.Value
		default:
			connections -= s.Value
		}
	}
	return requests + max(0, connections)
}
