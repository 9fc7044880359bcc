package loadtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// quiet is the log of servers whose clients are meant to fail.
var quiet = log.New(io.Discard, "", 0)

// drainTime is how long the Envoys of this test leave connections to what they drain; the default of ten minutes would hide what is to be found.
const drainTime = 2 * time.Second

// drainSoon has `fleetgate dev` run Envoys that cut what they drain after drainTime.
func drainSoon(t *testing.T) {
	t.Helper()
	real := os.Getenv("FLEETGATE_ENVOY")
	if real == "" {
		t.Fatal("FLEETGATE_ENVOY does not name an Envoy; run the tests with make")
	}
	file := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(file, fmt.Appendf(nil, "#!/bin/sh\nexec '%s' --drain-time-s %d \"$@\"\n", real, int(drainTime.Seconds())), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FLEETGATE_ENVOY", file)
}

// TestMeasureKeptConnections: changes of every kind, of what is in use and of what is beside it, while connections of every protocol are held and others are made: none
// breaks, and every byte comes back. The Envoys cut what they drain soon, and the connections talk until nothing is being drained any more. That this would be seen is shown
// last: a listener that is removed takes a connection with it.
func TestMeasureKeptConnections(t *testing.T) {
	long(t)
	drainSoon(t)
	c := newChurn(t)
	c.sees("the route in use", "/talk", "X-Turn", "t0")
	c.shows(c.securePort, webHost, 1)
	lines := c.lines()
	talks := newTalks(200 * time.Millisecond)
	each := times(50)
	for _, l := range lines {
		if err := talks.hold(l, each); err != nil {
			t.Fatal(err)
		}
		talks.visit(l)
	}
	changes, begin := times(1000), time.Now()
	for i := range changes {
		kinds[i%len(kinds)].do(c, i/len(kinds)+1)
	}
	took := time.Since(begin)
	c.drained()
	talks.end()
	for _, l := range lines {
		row(t, "kept through changes: "+l.name, "%d changes in %v, %d of %d connections broken after %d exchanges, %d of %d new ones failed", changes, took.Round(time.Millisecond),
			talks.broken[l.name], talks.held[l.name], talks.said[l.name], talks.missed[l.name], talks.visits[l.name])
		if talks.held[l.name] != each || talks.visits[l.name] == 0 {
			t.Errorf("%s: %d connections were held, want %d; %d new ones were made", l.name, talks.held[l.name], each, talks.visits[l.name])
		}
	}
	if len(talks.why) > 0 {
		t.Errorf("%d connections or exchanges failed, the first:\n%s", len(talks.why), strings.Join(talks.why[:min(20, len(talks.why))], "\n"))
	}
	c.cuts(lines[len(lines)-1])
}

// cuts removes the listener of a line, and waits until a connection to it is broken.
func (c *churn) cuts(l line) {
	c.t.Helper()
	talks := newTalks(50 * time.Millisecond)
	defer talks.end()
	if err := talks.hold(l, 1); err != nil {
		c.t.Fatal(err)
	}
	c.put("gateway.yaml", strings.Replace(c.gatewayText(fmt.Sprint(c.port)), fmt.Sprintf("- {name: tcp, protocol: TCP, port: %d}", c.streamPort), "", 1))
	c.until("a connection of a removed listener is broken", soon, func() bool {
		talks.mu.Lock()
		defer talks.mu.Unlock()
		return talks.broken[l.name] == 1
	})
}

// lines are what is kept: every protocol, in cleartext and behind TLS.
func (c *churn) lines() []line {
	plain := func(host string) place { return place{address: fmt.Sprintf("127.0.0.1:%d", c.port), host: host} }
	secure := func(host string) place {
		return place{address: fmt.Sprintf("127.0.0.1:%d", c.securePort), host: host, tls: c.ca.trust()}
	}
	return []line{
		{"HTTP/1.1", talkHTTP1, plain(webHost)}, {"HTTP/1.1 over TLS", talkHTTP1, secure(webHost)},
		{"HTTP/2", talkHTTP2, plain(webHost)}, {"HTTP/2 over TLS", talkHTTP2, secure(webHost)},
		{"gRPC", talkGRPC, plain(callHost)}, {"gRPC over TLS", talkGRPC, secure(callHost)},
		{"WebSocket", talkWebSocket, plain(webHost)}, {"WebSocket over TLS", talkWebSocket, secure(webHost)},
		{"TCP", talkTCP, place{address: fmt.Sprintf("127.0.0.1:%d", c.streamPort)}},
	}
}

// drained waits until both Envoys have removed listeners and exchanged chains, and drain nothing any more.
func (c *churn) drained() {
	c.t.Helper()
	for _, proxy := range []string{"gw-1", "gw-2"} {
		c.until(proxy+" has drained what changed", soon, func() bool {
			s := c.envoyStats(proxy, "^listener_manager\\.")
			return s["listener_manager.listener_removed"] > 0 && s["listener_manager.listener_in_place_updated"] > 0 &&
				s["listener_manager.total_listeners_draining"] == 0 && s["listener_manager.total_filter_chains_draining"] == 0
		})
	}
}

// envoyStats reads the numbers of an Envoy whose names match; empty where it does not answer.
func (r *rig) envoyStats(proxy, filter string) map[string]int64 {
	socket := filepath.Join(r.state, "proxy", "dev.default."+proxy, "admin.sock")
	admin := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	out := map[string]int64{}
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://envoy/stats", nil)
	if err != nil {
		return out
	}
	request.URL.RawQuery = "filter=" + filter
	resp, err := admin.Do(request)
	if err != nil {
		return out
	}
	defer func() { _ = resp.Body.Close() }()
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ": "); ok {
			if n, err := strconv.ParseInt(value, 10, 64); err == nil {
				out[name] = n
			}
		}
	}
	return out
}
