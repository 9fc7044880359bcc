package group

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/hashicorp/raft"
)

// Application protocols of the peers' port.
const (
	protocolRaft = "fleetgate-raft"
	protocolRPC  = "h2"
)

// handshakeTimeout bounds everything before the first byte of Raft or of a call.
const handshakeTimeout = 10 * time.Second

// greeting is what a dialler says before a byte of Raft: who it is and whom it wants.
type greeting struct {
	Cluster string `json:"cluster"`
	From    string `json:"from"` // replica id
	To      string `json:"to"`   // address with incarnation
}

// endpoint is the peers' port: one listener, mutual TLS 1.3 by the peers' authority, Raft and calls told apart by ALPN.
type endpoint struct {
	id, addr string // addr is host:port#incarnation
	certs    *pki.Source
	log      *slog.Logger
	cluster  func() string // "" while no group is known

	listener net.Listener
	raft     *queue
	rpc      *queue

	mu     sync.Mutex
	conns  map[net.Conn]bool // accepted, open
	closed bool
	work   sync.WaitGroup
}

func listen(listen string) (net.Listener, error) {
	l, err := net.Listen("tcp", listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listening for peers on %s: %w: stop the process that has it, or choose another port", listen, ErrPortInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("listening for peers on %s: %w: choose an address of this machine", listen, err)
	}
	return l, nil
}

func newEndpoint(l net.Listener, id, addr string, certs *pki.Source, cluster func() string, log *slog.Logger) *endpoint {
	e := &endpoint{id: id, addr: addr, certs: certs, log: log, cluster: cluster, listener: l, conns: map[net.Conn]bool{}}
	e.raft, e.rpc = newQueue(addr), newQueue(addr)
	e.work.Go(e.accept)
	return e
}

func (e *endpoint) accept() {
	for {
		raw, err := e.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			e.log.Warn("accepting a peer", "err", err)
			time.Sleep(50 * time.Millisecond) // out of file descriptors, most likely: do not spin
			continue
		}
		c := &tracked{Conn: raw, gone: e.forget}
		if !e.remember(c) {
			_ = c.Close()
			return
		}
		e.work.Go(func() { e.admit(c) })
	}
}

func (e *endpoint) remember(c net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.conns[c] = true
	return true
}

func (e *endpoint) forget(c net.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
}

// admit takes a connection through TLS and, for Raft, through the greeting.
func (e *endpoint) admit(raw net.Conn) {
	c := tls.Server(raw, e.certs.ServerConfig(protocolRaft, protocolRPC))
	err := e.handshake(c)
	if err != nil {
		e.log.Warn("a peer was refused", "from", raw.RemoteAddr().String(), "err", err)
		_ = c.Close()
		return
	}
	to := e.rpc
	if c.ConnectionState().NegotiatedProtocol == protocolRaft {
		to = e.raft
	}
	if !to.put(c) {
		_ = c.Close()
	}
}

func (e *endpoint) handshake(c *tls.Conn) error {
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if err := c.Handshake(); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	if c.ConnectionState().NegotiatedProtocol == protocolRaft {
		var g greeting
		if err := readFrame(c, &g); err != nil {
			return fmt.Errorf("reading the greeting: %w", err)
		}
		reason := e.judge(g, c.ConnectionState().PeerCertificates[0])
		if err := writeFrame(c, reason); err != nil {
			return fmt.Errorf("answering the greeting: %w", err)
		}
		if reason != "" {
			return errors.New(reason)
		}
	}
	return c.SetDeadline(time.Time{})
}

// judge says why a greeting is refused, "" if it is not.
func (e *endpoint) judge(g greeting, cert *x509.Certificate) string {
	mine := e.cluster()
	switch {
	case mine == "":
		return fmt.Sprintf("%s is not a member of a group yet", e.id)
	case g.Cluster != mine:
		return fmt.Sprintf("%s belongs to group %s, %s to group %q", e.id, mine, g.From, g.Cluster)
	case g.To != e.addr:
		return fmt.Sprintf("%s was looked for, but here is %s: the disk was replaced", g.To, e.addr)
	}
	return mismatch(cert, g.From)
}

// mismatch says why a certificate does not speak for a replica. A certificate that names no replica speaks for any: the peers' authority
// signs for replicas only. One that names something else, such as a proxy, speaks for none.
func mismatch(cert *x509.Certificate, id string) string {
	for _, u := range cert.URIs {
		pod, isReplica := strings.CutPrefix(u.String(), pki.ReplicaURI(""))
		if u.Scheme != "spiffe" {
			continue
		}
		if !isReplica || id != "" && pod != podOf(id) {
			return fmt.Sprintf("the certificate is for %s, not for replica %s", u, id)
		}
	}
	return ""
}

// podOf takes the incarnation off a replica id.
func podOf(id string) string {
	if i := strings.LastIndexByte(id, '-'); i >= 0 {
		return id[:i]
	}
	return id
}

// place takes the incarnation off an address.
func place(address string) string {
	hostport, _, _ := strings.Cut(address, "#")
	return hostport
}

// dial opens a TLS connection to a replica's port.
func (e *endpoint) dial(ctx context.Context, hostport, protocol string) (*tls.Conn, error) {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", hostport, err)
	}
	d := tls.Dialer{Config: e.certs.ClientConfig(host, protocol)}
	c, err := d.DialContext(ctx, "tcp", hostport)
	if err != nil {
		return nil, err
	}
	conn := c.(*tls.Conn)
	if got := conn.ConnectionState().NegotiatedProtocol; got != protocol {
		return nil, errors.Join(fmt.Errorf("%s does not speak %s (but %q): it is not a replica's peer port", hostport, protocol, got), conn.Close())
	}
	return conn, nil
}

func (e *endpoint) dialRaft(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := e.dial(ctx, place(address), protocolRaft)
	if err != nil {
		return nil, err
	}
	if err := e.greet(c, address, timeout); err != nil {
		return nil, errors.Join(fmt.Errorf("greeting %s: %w", address, err), c.Close())
	}
	return c, nil
}

func (e *endpoint) greet(c *tls.Conn, address string, timeout time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if err := writeFrame(c, greeting{Cluster: e.cluster(), From: e.id, To: address}); err != nil {
		return err
	}
	var reason string
	if err := readFrame(c, &reason); err != nil {
		return err
	}
	if reason != "" {
		return errors.New(reason)
	}
	return c.SetDeadline(time.Time{})
}

// close stops listening and cuts every accepted connection.
func (e *endpoint) close() error {
	err := e.listener.Close()
	e.mu.Lock()
	e.closed = true
	var open []net.Conn
	for c := range e.conns {
		open = append(open, c)
	}
	e.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
	_ = e.raft.Close()
	_ = e.rpc.Close()
	e.work.Wait()
	return err
}

// tracked is an accepted connection that says when it is gone.
type tracked struct {
	net.Conn
	once sync.Once
	gone func(net.Conn)
}

func (t *tracked) Close() error {
	t.once.Do(func() { t.gone(t) })
	return t.Conn.Close()
}

// queue is a net.Listener of admitted connections.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  named
}

func newQueue(addr string) *queue {
	return &queue{conns: make(chan net.Conn), done: make(chan struct{}), addr: named(addr)}
}

func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return q.addr }

// named is an address that stays a name: an IP would outlive its pod in the log.
type named string

func (named) Network() string  { return "tcp" }
func (n named) String() string { return string(n) }

// stream is the endpoint as Raft's stream layer.
type stream struct {
	*queue
	e *endpoint
}

// Dial implements raft.StreamLayer.
func (s stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.e.dialRaft(string(address), timeout)
}

// guard is Raft's transport, which answers no vote while this replica has no member's memory. A wiped voter that grants votes lost an
// acknowledged write in ten trials of ten.
type guard struct {
	*raft.NetworkTransport
	out    chan raft.RPC
	done   chan struct{}
	once   sync.Once
	member atomic.Bool // set: votes are answered
}

func newGuard(t *raft.NetworkTransport) *guard {
	g := &guard{NetworkTransport: t, out: make(chan raft.RPC), done: make(chan struct{})}
	go g.pass()
	return g
}

// errNoMember must not contain "unexpected command": Raft counts an answer with these words as a granted pre-vote.
var errNoMember = errors.New("no vote: this replica has not been let into the group yet")

func (g *guard) pass() {
	for {
		select {
		case rpc := <-g.NetworkTransport.Consumer():
			if !g.member.Load() && isVote(rpc.Command) {
				rpc.Respond(nil, errNoMember)
				continue
			}
			select {
			case g.out <- rpc:
			case <-g.done:
				return
			}
		case <-g.done:
			return
		}
	}
}

func isVote(command any) bool {
	switch command.(type) {
	case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest:
		return true
	}
	return false
}

// Consumer implements raft.Transport.
func (g *guard) Consumer() <-chan raft.RPC { return g.out }

// Close implements raft.WithClose.
func (g *guard) Close() error {
	g.once.Do(func() { close(g.done) })
	return g.NetworkTransport.Close()
}

// maxFrame bounds what is read before anybody is trusted.
const maxFrame = 4 << 10

func writeFrame(w io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...))
	return err
}

func readFrame(r io.Reader, v any) error {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint16(n[:])
	if size > maxFrame {
		return fmt.Errorf("greeting of %d bytes: the limit is %d", size, maxFrame)
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(r, raw); err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}
