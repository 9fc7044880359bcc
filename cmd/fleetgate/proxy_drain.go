package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
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

// drain takes Envoy out of service: unready but serving for delay, because load balancers learn of it late; then its listeners close, and connections
// that are in use have until timeout.
func (w *proxyWatch) drain(delay, timeout time.Duration, log *slog.Logger) {
	w.draining.Store(true)
	w.say("/healthcheck/fail", log)
	time.Sleep(delay)
	w.say("/drain_listeners?graceful&skip_exit", log)
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if n, err := w.connections(); err != nil || n == 0 {
			return
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

// connections counts those of clients.
func (w *proxyWatch) connections() (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy/stats?format=json&filter=^listener%5C..*%5C.downstream_cx_active$", nil)
	if err != nil {
		return 0, err
	}
	resp, err := w.admin.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	var got struct {
		Stats []struct {
			Name  string `json:"name"`
			Value uint64 `json:"value"`
		} `json:"stats"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		return 0, fmt.Errorf("reading Envoy's connections: %w", err)
	}
	var n uint64
	for _, s := range got.Stats {
		// Those of one worker are counted in the listener's.
		if !strings.HasPrefix(s.Name, "listener.admin.") && !strings.Contains(s.Name, ".worker_") {
			n += s.Value
		}
	}
	return n, nil
}
