package loadtest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// sayWithin is how long an answer may take before its connection counts as broken.
const sayWithin = 30 * time.Second

// talk is one connection on which what is said comes back byte for byte. It is never dialled again: what breaks it once has broken it.
type talk interface {
	say(payload []byte) (answer []byte, err error)
	close()
}

// place is where a talk is held.
type place struct {
	address string
	host    string      // as HTTP names it
	tls     *tls.Config // nil = cleartext
}

func (p place) scheme(plain string) string {
	if p.tls != nil {
		return plain + "s"
	}
	return plain
}

// secure gives the TLS configuration with an ALPN protocol, nil where the place has none.
func (p place) secure(protocol string) *tls.Config {
	if p.tls == nil {
		return nil
	}
	c := p.tls.Clone()
	c.ServerName, c.NextProtos = p.host, []string{protocol}
	return c
}

// errRedial is what a client that loses its connection gets in place of another.
var errRedial = errors.New("the connection was lost, and is not made again")

// once dials an address one single time, whatever address is asked for.
func once(address string) func(context.Context, string, string) (net.Conn, error) {
	var dialled atomic.Bool
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		if dialled.Swap(true) {
			return nil, errRedial
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
}

// dialPlace connects, with TLS where the place has it, and speaks the ALPN protocol.
func dialPlace(p place, protocol string) (net.Conn, error) {
	d := net.Dialer{Timeout: sayWithin}
	if p.tls == nil {
		return d.Dial("tcp", p.address)
	}
	return tls.DialWithDialer(&d, "tcp", p.address, p.secure(protocol))
}

func (p place) request(ctx context.Context, payload []byte) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.scheme("http")+"://"+p.host+"/talk", bytes.NewReader(payload))
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	return r, nil
}

// bodyOf reads an answer that has to be a good one.
func bodyOf(resp *http.Response) ([]byte, error) {
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.200q", resp.StatusCode, answer)
	}
	return answer, err
}

// requestTalk is HTTP/1.1: each saying is a request. It is written and read by hand: net/http gives a connection up where it merely has no time to see that a request is written.
type requestTalk struct {
	net.Conn
	from *bufio.Reader
	at   place
}

func talkHTTP1(p place) (talk, error) {
	c, err := dialPlace(p, "http/1.1")
	if err != nil {
		return nil, err
	}
	return &requestTalk{Conn: c, from: bufio.NewReader(c), at: p}, nil
}

func (c *requestTalk) say(payload []byte) ([]byte, error) {
	r, err := c.at.request(context.Background(), payload)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(sayWithin)); err != nil {
		return nil, err
	}
	if err := r.Write(c); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(c.from, r)
	if err != nil {
		return nil, err
	}
	answer, err := bodyOf(resp)
	if err == nil && resp.Close {
		err = errors.New("the connection is to be closed, says the answer")
	}
	return answer, err
}

func (c *requestTalk) close() { _ = c.Close() }

// muxTalk is HTTP/2: each saying is a stream.
type muxTalk struct {
	conn *http.ClientConn
	at   place
}

func talkHTTP2(p place) (talk, error) {
	t := &http.Transport{DialContext: once(p.address), TLSClientConfig: p.secure("h2"), Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP2(true)
	t.Protocols.SetUnencryptedHTTP2(true)
	ctx, cancel := context.WithTimeout(context.Background(), sayWithin)
	defer cancel()
	conn, err := t.NewClientConn(ctx, p.scheme("http"), p.address)
	if err != nil {
		return nil, err
	}
	return &muxTalk{conn, p}, nil
}

func (m *muxTalk) say(payload []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sayWithin)
	defer cancel()
	r, err := m.at.request(ctx, payload)
	if err != nil {
		return nil, err
	}
	resp, err := m.conn.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	answer, err := bodyOf(resp)
	if err == nil && resp.ProtoMajor != 2 {
		err = fmt.Errorf("answered in %s", resp.Proto)
	}
	return answer, err
}

func (m *muxTalk) close() { _ = m.conn.Close() }

// socketTalk is a WebSocket: each saying is a message.
type socketTalk struct{ *websocket.Conn }

func talkWebSocket(p place) (talk, error) {
	d := websocket.Dialer{NetDialContext: once(p.address), TLSClientConfig: p.secure("http/1.1"), HandshakeTimeout: sayWithin}
	c, resp, err := d.Dial(p.scheme("ws")+"://"+p.host+"/socket", nil)
	if err != nil {
		if resp != nil {
			err = fmt.Errorf("status %d: %w", resp.StatusCode, err)
		}
		return nil, err
	}
	return socketTalk{c}, nil
}

func (s socketTalk) say(payload []byte) ([]byte, error) {
	if err := s.SetReadDeadline(time.Now().Add(sayWithin)); err != nil {
		return nil, err
	}
	if err := s.WriteMessage(websocket.BinaryMessage, payload); err != nil {
		return nil, err
	}
	_, answer, err := s.ReadMessage()
	return answer, err
}

func (s socketTalk) close() { _ = s.Close() }

// callTalk is gRPC: sayings are messages of one stream that is never ended, and now and then a call of its own on the same connection.
type callTalk struct {
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	end    context.CancelFunc
	said   int
}

const grpcMethod = "/loadtest.Echo/Talk"

func talkGRPC(p place) (talk, error) {
	creds := insecure.NewCredentials()
	if c := p.secure("h2"); c != nil {
		creds = credentials.NewTLS(c)
	}
	dial := once(p.address)
	conn, err := grpc.NewClient("passthrough:///"+p.host, grpc.WithTransportCredentials(creds), grpc.WithAuthority(p.host), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return dial(ctx, "tcp", a) }))
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(context.Background())
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, grpcMethod)
	if err != nil {
		end()
		return nil, errors.Join(err, conn.Close())
	}
	return &callTalk{conn: conn, stream: stream, end: end}, nil
}

func (c *callTalk) say(payload []byte) ([]byte, error) {
	var answer wrapperspb.BytesValue
	if c.said++; c.said%4 == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), sayWithin)
		defer cancel()
		err := c.conn.Invoke(ctx, grpcMethod, wrapperspb.Bytes(payload), &answer)
		return answer.Value, err
	}
	late := time.AfterFunc(sayWithin, c.end)
	defer late.Stop()
	if err := c.stream.SendMsg(wrapperspb.Bytes(payload)); err != nil {
		return nil, errors.Join(err, c.stream.RecvMsg(&answer)) // why a stream has ended is told to those who receive
	}
	err := c.stream.RecvMsg(&answer)
	return answer.Value, err
}

func (c *callTalk) close() {
	c.end()
	_ = c.conn.Close()
}

// streamTalk is TCP.
type streamTalk struct{ net.Conn }

func talkTCP(p place) (talk, error) {
	c, err := net.DialTimeout("tcp", p.address, sayWithin)
	if err != nil {
		return nil, err
	}
	return streamTalk{c}, nil
}

func (s streamTalk) say(payload []byte) ([]byte, error) {
	if err := s.SetDeadline(time.Now().Add(sayWithin)); err != nil {
		return nil, err
	}
	if _, err := s.Write(payload); err != nil {
		return nil, err
	}
	answer := make([]byte, len(payload))
	_, err := io.ReadFull(s, answer)
	return answer, err
}

func (s streamTalk) close() { _ = s.Close() }

// line is what is said in one protocol at one place.
type line struct {
	name string
	dial func(place) (talk, error)
	at   place
}

// talks keeps connections talking, and counts what went wrong.
type talks struct {
	every time.Duration // between two sayings of a connection
	stop  chan struct{}
	work  sync.WaitGroup

	mu     sync.Mutex
	held   map[string]int // connections that were made, by protocol
	broken map[string]int
	said   map[string]int
	visits map[string]int // connections that were made anew, for one saying each
	missed map[string]int
	why    []string
}

func newTalks(every time.Duration) *talks {
	return &talks{every: every, stop: make(chan struct{}), held: map[string]int{}, broken: map[string]int{}, said: map[string]int{}, visits: map[string]int{}, missed: map[string]int{}}
}

// hold makes n connections and keeps them talking until end, on which each says a last word.
func (t *talks) hold(l line, n int) error {
	for i := range n {
		c, err := l.dial(l.at)
		if err != nil {
			return fmt.Errorf("connection %d of %s to %s: %w", i+1, l.name, l.at.address, err)
		}
		t.held[l.name]++
		t.work.Go(func() { t.keep(l.name, c) })
	}
	return nil
}

func (t *talks) keep(name string, c talk) {
	defer c.close()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for last := false; ; {
		select {
		case <-t.stop:
			last = true
		case <-pause.C:
		}
		err := exchange(c)
		t.mu.Lock()
		t.said[name]++
		if err != nil {
			t.broken[name]++
			t.why = append(t.why, fmt.Sprintf("%s, a connection that was held: %v", name, err))
		}
		t.mu.Unlock()
		if err != nil || last {
			return
		}
		pause.Reset(t.every/2 + rand.N(t.every))
	}
}

// visit makes a new connection again and again, says one thing and hangs up.
func (t *talks) visit(l line) {
	t.work.Go(func() {
		tick := time.NewTicker(t.every / 4)
		defer tick.Stop()
		for {
			select {
			case <-t.stop:
				return
			case <-tick.C:
			}
			c, err := l.dial(l.at)
			if err == nil {
				err = exchange(c)
				c.close()
			}
			t.mu.Lock()
			t.visits[l.name]++
			if err != nil {
				t.missed[l.name]++
				t.why = append(t.why, fmt.Sprintf("%s, a new connection: %v", l.name, err))
			}
			t.mu.Unlock()
		}
	})
}

// exchange says something that nobody has said before.
func exchange(c talk) error {
	payload := make([]byte, 1+rand.IntN(2000))
	for i := range payload {
		payload[i] = byte(rand.Uint32())
	}
	answer, err := c.say(payload)
	if err == nil && !bytes.Equal(answer, payload) {
		err = fmt.Errorf("%d bytes came back for %d, and not the same", len(answer), len(payload))
	}
	return err
}

// end has every connection say its last word, and waits until that is answered.
func (t *talks) end() {
	close(t.stop)
	t.work.Wait()
}
