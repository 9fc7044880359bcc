package group

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Handler answers a call of another replica; from is that replica's id. A handler must bear being run twice for one call.
type Handler func(ctx context.Context, from string, body []byte) ([]byte, error)

// Headers of a call. Cluster and To play the greeting's part.
const (
	headerCluster = "Fleetgate-Cluster"
	headerFrom    = "Fleetgate-From"
	headerTo      = "Fleetgate-To" // replica id, "" = whoever is there
	headerKind    = "Fleetgate-Error"
)

// maxBody bounds the body of a call, maxAnswer that of its answer: what the leader knows of a hundred thousand routes is one.
const (
	maxBody   = 16 << 20
	maxAnswer = 256 << 20
)

// calls of strangers: a replica that is not a member yet needs these.
const (
	callHello = "group/hello"
	callJoin  = "group/join"
)

// kinds are the errors that keep their identity across a call.
var kinds = map[string]error{"no-leader": ErrNoLeader, "too-large": ErrTooLarge, "closed": ErrClosed}

// caller makes calls to other replicas and answers theirs, over HTTP/2 on the peers' port.
type caller struct {
	e        *endpoint
	log      *slog.Logger
	server   *http.Server
	client   *http.Transport
	work     sync.WaitGroup
	mu       sync.RWMutex
	handlers map[string]Handler
}

func newCaller(e *endpoint, log *slog.Logger) *caller {
	c := &caller{e: e, log: log, handlers: map[string]Handler{}}
	ping := &http.HTTP2Config{SendPingTimeout: 2 * time.Second, PingTimeout: 2 * time.Second}
	c.server = &http.Server{Handler: c, HTTP2: ping, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	c.client = &http.Transport{ForceAttemptHTTP2: true, HTTP2: ping, IdleConnTimeout: time.Minute,
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return e.dial(ctx, addr, protocolRPC) }}
	c.work.Go(func() { _ = c.server.Serve(e.rpc) }) // ends with the endpoint
	return c
}

func (c *caller) handle(name string, h Handler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers[name] = h
}

// ServeHTTP answers a call.
func (c *caller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/"))
	if err != nil {
		http.Error(w, "no such call", http.StatusNotFound)
		return
	}
	if reason := c.judge(r, name); reason != "" {
		c.log.Warn("a call was refused", "call", name, "from", r.Header.Get(headerFrom), "at", r.RemoteAddr, "reason", reason)
		http.Error(w, reason, http.StatusForbidden)
		return
	}
	c.mu.RLock()
	h := c.handlers[name]
	c.mu.RUnlock()
	if h == nil {
		http.Error(w, fmt.Sprintf("%s knows no call %q: run the same version on all replicas", c.e.id, name), http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out, err := h(r.Context(), r.Header.Get(headerFrom), body)
	if err != nil {
		writeError(w, err)
		return
	}
	_, _ = w.Write(out) // a caller that left hears nothing
}

func writeError(w http.ResponseWriter, err error) {
	for kind, sentinel := range kinds {
		if errors.Is(err, sentinel) {
			w.Header().Set(headerKind, kind)
		}
	}
	http.Error(w, err.Error(), http.StatusUnprocessableEntity)
}

// judge says why a call is refused before its body is read, "" if it is not.
func (c *caller) judge(r *http.Request, name string) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "no certificate"
	}
	from, to := r.Header.Get(headerFrom), r.Header.Get(headerTo)
	if to != "" && to != c.e.id {
		return fmt.Sprintf("%s was looked for, but here is %s", to, c.e.id)
	}
	theirs, mine := r.Header.Get(headerCluster), c.e.cluster()
	stranger := theirs == "" || mine == ""
	switch {
	case !stranger && theirs != mine && name != callHello: // who is misplaced has to hear it
		return fmt.Sprintf("%s belongs to group %s, %s to group %s", c.e.id, mine, from, theirs)
	case stranger && name != callHello && name != callJoin:
		return "replicas that are in no group can only ask to be let in"
	}
	return mismatch(r.TLS.PeerCertificates[0], from)
}

// call asks the replica at hostport, which must have the id to unless that is "".
func (c *caller) call(ctx context.Context, hostport, to, name string, body []byte) ([]byte, error) {
	target := url.URL{Scheme: "https", Host: hostport, Path: "/" + name}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("call %s of %s: %w", name, hostport, err)
	}
	r.Header.Set(headerCluster, c.e.cluster())
	r.Header.Set(headerFrom, c.e.id)
	r.Header.Set(headerTo, to)
	resp, err := c.client.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("call %s of %s: %w: %w", name, hostport, ErrNotReached, err)
	}
	defer func() { _ = resp.Body.Close() }()
	out, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("call %s of %s: %w: %w", name, hostport, ErrNotReached, err)
	}
	if len(out) > maxAnswer {
		return nil, fmt.Errorf("call %s of %s: the answer is above %d bytes: ask for less", name, hostport, maxAnswer)
	}
	if resp.StatusCode == http.StatusOK {
		return out, nil
	}
	return nil, remoteError(resp, name, hostport, string(bytes.TrimSpace(out)))
}

func remoteError(resp *http.Response, name, hostport, message string) error {
	if sentinel := kinds[resp.Header.Get(headerKind)]; sentinel != nil {
		return fmt.Errorf("call %s of %s: %w", name, hostport, sentinel)
	}
	if resp.StatusCode == http.StatusForbidden {
		return fmt.Errorf("call %s of %s: %w: refused: %s", name, hostport, ErrNotReached, message)
	}
	return fmt.Errorf("call %s of %s: %s", name, hostport, message)
}

// close ends open calls of both directions. The endpoint is closed first.
func (c *caller) close() error {
	err := c.server.Close()
	c.client.CloseIdleConnections()
	c.work.Wait()
	return err
}
