package xds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// peerOf is a hand-driven client on a stream in memory.
type peerOf struct {
	t testing.TB
	*pipe
}

func openPipe(t testing.TB, s *Server) *peerOf {
	p := &peerOf{t, newPipe()}
	ours(s)(p.pipe)
	t.Cleanup(func() { p.cancel(); <-p.ended })
	return p
}

func (p *peerOf) ask(t Type, names ...string) {
	p.toServer <- subscribeTo(t, names, nil)
}

func (p *peerOf) next() *discovery.DeltaDiscoveryResponse {
	p.t.Helper()
	select {
	case r := <-p.toClient:
		return r
	case <-time.After(time.Minute):
		p.t.Fatal("no response")
		return nil
	}
}

func (p *peerOf) ack(r *discovery.DeltaDiscoveryResponse) {
	p.toServer <- &discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
}

func (p *peerOf) nack(r *discovery.DeltaDiscoveryResponse, message string) {
	p.toServer <- &discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, ErrorDetail: &rpcstatus.Status{Code: 13, Message: message}}
}

// expect takes the next response, which must hold exactly these names ("-" before a removed one), and ACKs it.
func (p *peerOf) expect(t Type, names ...string) *discovery.DeltaDiscoveryResponse {
	p.t.Helper()
	r := p.next()
	if got := said(r); r.TypeUrl != URLs[t] || !slices.Equal(got, names) {
		p.t.Fatalf("got %s %v, want %s %v", r.TypeUrl, got, URLs[t], names)
	}
	p.ack(r)
	return r
}

func said(r *discovery.DeltaDiscoveryResponse) (out []string) {
	for _, res := range r.Resources {
		out = append(out, res.Name)
	}
	for _, n := range r.RemovedResources {
		out = append(out, "-"+n)
	}
	slices.Sort(out)
	return out
}

// silent shows that nothing was sent before a question whose answer is known: the answers of one stream are in order.
func (p *peerOf) silent() {
	p.t.Helper()
	p.ask(Secret, "is-anything-before-this")
	p.expect(Secret, "-is-anything-before-this")
}

func plainServer(cfg Config) *Server {
	if cfg.Identify == nil {
		cfg.Identify = anybody
	}
	return New(cfg)
}

func put(s *Server, index uint64, resources ...Resource) {
	s.Apply([]Update{{Fleet: fleetName, Index: index, Resources: resources}})
}

// TestProtocol holds the rules of the delta protocol, first of all those that go-control-plane does not keep (research/xds.md 1.5).
func TestProtocol(t *testing.T) {
	cases := []struct {
		name string
		play func(s *Server, p *peerOf)
	}{
		{"a name that does not exist is not answered", func(s *Server, p *peerOf) {
			p.ask(Endpoints, "none")
			p.expect(Endpoints, "-none")
			put(s, 5, endpointsOf("none", "1", 80))
			p.expect(Endpoints, "none")
		}},
		{"a known name asked for again is not answered", func(s *Server, p *peerOf) {
			put(s, 5, endpointsOf("a", "1", 80))
			p.ask(Endpoints, "a")
			p.expect(Endpoints, "a")
			p.ask(Endpoints, "a")
			p.expect(Endpoints, "a")
		}},
		{"a name of an unserved type is not answered", func(_ *Server, p *peerOf) {
			p.toServer <- &discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/x.Y", ResourceNamesSubscribe: []string{"a"}}
			if r := p.next(); r.TypeUrl != "type.googleapis.com/x.Y" || !slices.Equal(r.RemovedResources, []string{"a"}) {
				t.Fatalf("got %v", r)
			}
		}},
		{"an empty wildcard is not answered", func(s *Server, p *peerOf) {
			put(s, 5)
			p.ask(Cluster)
			p.expect(Cluster)
			p.silent()
		}},
		{"an unknown fleet is answered as empty", func(_ *Server, p *peerOf) {
			p.ask(Cluster)
			p.silent()
		}},
		{"the legacy wildcard survives an explicit name", func(s *Server, p *peerOf) {
			put(s, 5, clusterOf("a", "1"), clusterOf("b", "1"))
			p.ask(Cluster)
			p.expect(Cluster, "a", "b")
			p.ask(Cluster, "a")
			p.expect(Cluster, "a")
			put(s, 6, clusterOf("b", "2"))
			p.silent()
			put(s, 7, clusterOf("a", "2"))
			p.expect(Cluster, "a")
		}},
		{"a name given back that the wildcard covers is not answered", func(s *Server, p *peerOf) {
			put(s, 5, clusterOf("a", "1"))
			p.ask(Cluster, "*", "a")
			p.expect(Cluster, "a")
			p.toServer <- subscribeTo(Cluster, nil, []string{"a"})
			p.expect(Cluster, "a")
		}},
		{"an unsubscribed name is still sent", func(s *Server, p *peerOf) {
			put(s, 5, endpointsOf("a", "1", 80), endpointsOf("b", "1", 80))
			p.ask(Endpoints, "a", "b")
			p.expect(Endpoints, "a", "b")
			p.toServer <- subscribeTo(Endpoints, nil, []string{"a"})
			p.silent()
			put(s, 6, endpointsOf("a", "2", 81), endpointsOf("b", "2", 81))
			p.expect(Endpoints, "b")
		}},
		{"changed clusters are not followed by their endpoints", func(s *Server, p *peerOf) {
			put(s, 5, clusterOf("a", "1"), endpointsOf("a", "1", 80))
			p.ask(Cluster)
			p.expect(Cluster, "a")
			p.ask(Endpoints, "a")
			p.expect(Endpoints, "a")
			put(s, 6, clusterOf("a", "2"))
			p.expect(Cluster, "a")
			p.expect(Endpoints, "a")
		}},
		{"a stale nonce hides a subscription", func(s *Server, p *peerOf) {
			put(s, 5, endpointsOf("a", "1", 80))
			p.toServer <- &discovery.DeltaDiscoveryRequest{TypeUrl: URLs[Endpoints], ResourceNamesSubscribe: []string{"a"}, ResponseNonce: "from before"}
			p.expect(Endpoints, "a")
		}},
		{"changes do not coalesce while an answer is owed", func(s *Server, p *peerOf) {
			put(s, 5, clusterOf("a", "1"))
			p.ask(Cluster)
			r := p.next()
			for i := range 20 {
				put(s, uint64(6+i), clusterOf("a", fmt.Sprint(2+i)))
			}
			p.silent()
			p.ack(r)
			if r := p.expect(Cluster, "a"); r.Resources[0].Version != "21" {
				t.Fatalf("version %s", r.Resources[0].Version)
			}
			p.silent()
		}},
		{"a fleet that is gone leaves its resources behind", func(s *Server, p *peerOf) {
			put(s, 5, clusterOf("a", "1"))
			p.ask(Cluster)
			p.expect(Cluster, "a")
			p.ask(Listener)
			p.expect(Listener)
			s.Apply([]Update{{Fleet: fleetName, Index: 6, Gone: true}})
			p.expect(Cluster, "-a")
		}},
		{"endpoints ahead of the log are not served", func(s *Server, p *peerOf) {
			put(s, 5, endpointsOf("a", "1", 80))
			p.ask(Endpoints, "a")
			p.expect(Endpoints, "a")
			s.Endpoints(fleetName, []Resource{endpointsOf("a", "2", 81), clusterOf("not-endpoints", "1")})
			p.expect(Endpoints, "a")
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := plainServer(Config{Gate: true})
			c.play(s, openPipe(t, s))
		})
	}
}

func reconnect(t Type, versions map[string]string, names ...string) *discovery.DeltaDiscoveryRequest {
	r := subscribeTo(t, names, nil)
	r.InitialResourceVersions = versions
	return r
}

func full(s *Server) {
	put(s, 5, clusterOf("a", "1"), endpointsOf("a", "1", 80), listenerOf("l", "1", "rc", 80), routeOf("rc", "1", "a"))
}

// TestReconnectResendsNothing: versions are content hashes, so what the client has, it has.
func TestReconnectResendsNothing(t *testing.T) {
	s := plainServer(Config{Gate: true, Hold: func(context.Context, string) error { t.Error("held without reason"); return nil }})
	full(s)
	p := openPipe(t, s)
	p.toServer <- reconnect(Cluster, map[string]string{"a": "1"})
	p.toServer <- reconnect(Endpoints, map[string]string{"a": "1"}, "a")
	p.toServer <- reconnect(Listener, map[string]string{"l": "1"})
	p.toServer <- reconnect(Route, map[string]string{"rc": "1"}, "rc")
	p.silent()
	put(s, 6, clusterOf("a", "2"))
	p.expect(Cluster, "a")
}

// TestReconnectRemovesWhatVanished only after the routes that the client still runs are replaced.
func TestReconnectRemovesWhatVanished(t *testing.T) {
	s := plainServer(Config{Gate: true})
	full(s)
	p := openPipe(t, s)
	p.toServer <- reconnect(Cluster, map[string]string{"a": "1", "vanished": "1"})
	p.toServer <- reconnect(Listener, map[string]string{"l": "1"})
	p.silent()
	p.toServer <- reconnect(Route, map[string]string{"rc": "old"}, "rc")
	p.expect(Route, "rc")
	p.expect(Cluster, "-vanished")
}

// TestHold: a client that may be ahead of this replica is sent only what it lacks, and loses nothing, until a leader has spoken.
func TestHold(t *testing.T) {
	answer := make(chan error)
	s := plainServer(Config{Gate: true, HoldRetry: time.Nanosecond, Hold: func(ctx context.Context, _ string) error {
		select {
		case err := <-answer:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	full(s)
	p := openPipe(t, s)
	p.toServer <- reconnect(Cluster, map[string]string{"b": "newer", "a": "newer"})
	p.silent()
	put(s, 6, clusterOf("c", "1"))
	p.expect(Cluster, "c")
	answer <- errors.New("no leader")
	p.silent()
	p.ask(Listener)
	p.expect(Listener, "l")
	answer <- nil
	p.expect(Cluster, "a")
	p.expect(Cluster, "-b")
}

// TestHoldEndsWithWhatTheClientHolds: what was unheard of when the client came, and came to this replica meanwhile, is not taken away from the client.
func TestHoldEndsWithWhatTheClientHolds(t *testing.T) {
	caughtUp := make(chan struct{})
	s := plainServer(Config{Gate: true, Hold: func(ctx context.Context, _ string) error {
		select {
		case <-caughtUp:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	full(s)
	p := openPipe(t, s)
	p.toServer <- reconnect(Cluster, map[string]string{"a": "1", "b": "1", "vanished": "1"})
	p.toServer <- reconnect(Listener, map[string]string{"l": "1"})
	p.toServer <- reconnect(Route, map[string]string{"rc": "2"}, "rc")
	p.silent()
	put(s, 6, clusterOf("b", "1"), routeOf("rc", "2", "b"))
	p.silent()
	close(caughtUp)
	p.expect(Cluster, "b")
	p.expect(Route, "rc")
	p.expect(Cluster, "-vanished")
	put(s, 7, gone(Cluster, "b"), routeOf("rc", "3", "a"))
	p.expect(Route, "rc")
	p.expect(Cluster, "-b")
}

// TestGate: a route waits for the ACK of its cluster, but not for ever, and removals wait for the ACK of routes.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // on a slow machine the time would run out before it is to
		s := plainServer(Config{Gate: true, GateTimeout: 300 * time.Millisecond})
		full(s)
		p := openPipe(t, s)
		p.ask(Cluster)
		p.ask(Listener)
		p.ask(Route, "rc")
		clusters := p.next()
		p.expect(Listener, "l")
		p.silent() // no route before the cluster's ACK
		p.ack(clusters)
		p.expect(Route, "rc")
		time.Sleep(time.Millisecond) // here time goes only where a test sleeps, and what is sent later has to have a later time
		put(s, 6, clusterOf("b", "1"), routeOf("rc", "2", "b"), gone(Cluster, "a"))
		unanswered := p.next()
		time.Sleep(400 * time.Millisecond)
		p.silent() // a client that says nothing is slow: the time does not run
		p.ask(Endpoints, "b")
		p.ack(p.next())
		p.silent()    // it has got the cluster
		r := p.next() // and the gate timed out: the route goes
		if got := said(r); r.TypeUrl != URLs[Route] || !slices.Equal(got, []string{"rc"}) {
			t.Fatalf("got %s %v", r.TypeUrl, got)
		}
		if n := s.Stats().GateTimeouts; n != 1 {
			t.Errorf("%d gate timeouts", n)
		}
		p.silent() // a is in use until the route is ACKed
		p.ack(unanswered)
		p.silent()
		p.ack(r)
		p.expect(Cluster, "-a")
	})
}

// TestNothingIsLiveBeforeListeners: a proxy that has not asked for listeners yet serves nothing, however long its clusters take to warm, or it to speak.
func TestNothingIsLiveBeforeListeners(t *testing.T) {
	for name, begin := range map[string]func(p *peerOf){
		"a proxy that says nothing yet is told of as being live":       func(*peerOf) {},
		"a proxy that waits for its clusters is told of as being live": func(p *peerOf) { p.ask(Cluster); p.expect(Cluster, "a") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reports := make(chan Report, 1000)
				s := plainServer(Config{Gate: true, Report: func(r Report) { reports <- r }})
				full(s)
				p := openPipe(t, s)
				begin(p)
				time.Sleep(time.Minute)
				for len(reports) > 0 {
					if r := <-reports; r.Acked != 0 {
						t.Fatalf("before it asked for listeners: %+v", r)
					}
				}
				p.ask(Listener)
				p.expect(Listener, "l")
				p.ask(Route, "rc")
				p.expect(Route, "rc")
				awaitReport(t, reports, func(r Report) bool { return r.Acked == 5 })
			})
		})
	}
}

// TestNothingWaitsForWhatIsGone: a listener that is deleted while it is held back does not keep its proxy behind for ever, nor is its gate used up when it comes again.
func TestNothingWaitsForWhatIsGone(t *testing.T) {
	reports := make(chan Report, 1000)
	s := plainServer(Config{Gate: true, Report: func(r Report) { reports <- r }})
	held := listenerOf("tcp", "1", "rc", 81)
	held.Uses = []string{"b"}
	full(s)
	p := openPipe(t, s)
	p.ask(Cluster)
	p.expect(Cluster, "a")
	p.ask(Listener)
	p.expect(Listener, "l")
	p.ask(Route, "rc")
	p.expect(Route, "rc")
	put(s, 6, clusterOf("b", "1"), held)
	unanswered := p.next()
	awaitReport(t, reports, func(r Report) bool { return len(r.Waiting) == 1 && r.Waiting[0].Name == "tcp" })
	put(s, 7, gone(Listener, "tcp"))
	p.ack(unanswered)
	awaitReport(t, reports, func(r Report) bool { return len(r.Waiting) == 0 && r.Acked == 7 })
	p.silent()
}

// TestClusterThatARouteOnlyNamesGoes: a route that names a cluster but may not use it any more (its backend's policy came later, and cannot be followed) is the same as before,
// so nothing of it is sent; the cluster goes all the same, and Envoy answers 500.
func TestClusterThatARouteOnlyNamesGoes(t *testing.T) {
	s := plainServer(Config{Gate: true})
	full(s)
	p := openPipe(t, s)
	p.ask(Cluster)
	p.expect(Cluster, "a")
	p.ask(Listener)
	p.expect(Listener, "l")
	p.ask(Route, "rc")
	p.expect(Route, "rc")
	put(s, 6, routeOf("rc", "1"), gone(Cluster, "a"))
	p.expect(Cluster, "-a")
	put(s, 7, routeOf("rc", "1", "a"), clusterOf("a", "2"))
	p.expect(Cluster, "a")
	p.silent()
}

// TestNackIsNarrowedToTheCulprit and the rest is ACKed on its own.
func TestNackIsNarrowedToTheCulprit(t *testing.T) {
	reports := make(chan Report, 1000)
	s := plainServer(Config{Gate: true, Report: func(r Report) { reports <- r }})
	var all []Resource
	for i := range 16 {
		all = append(all, clusterOf(fmt.Sprintf("c%02d", i), "1"))
	}
	put(s, 5, all...)
	p := openPipe(t, s)
	p.ask(Listener)
	p.expect(Listener)
	p.ask(Cluster)
	good := map[string]bool{}
	alone := false
	for len(good) < 15 || !alone {
		r := p.next()
		if slices.Contains(said(r), "c11") {
			alone = len(r.Resources) == 1
			p.nack(r, "c11 is no good")
			continue
		}
		for _, n := range said(r) {
			good[n] = true
		}
		p.ack(r)
	}
	for {
		select {
		case r := <-reports:
			if len(r.Rejected) == 1 && r.Acked == 5 {
				if got := r.Rejected[0]; got.Name != "c11" || got.Parts["c11"] != "1" || got.Message != "c11 is no good" {
					t.Fatalf("rejected %+v", got)
				}
				return
			}
		case <-time.After(time.Minute):
			t.Fatal("the rejection was not reported")
		}
	}
}

// TestSuspects: the parts that are reported explain the rejection without accusing the innocent.
func TestSuspects(t *testing.T) {
	of := func(parts ...string) *item {
		m := map[string]string{}
		for _, p := range parts {
			id, hash, _ := strings.Cut(p, "=")
			m[id] = hash
		}
		return &item{parts: Parts{m}}
	}
	cases := []struct {
		name      string
		good, bad *item
		want      string
	}{
		{"everybody is accused though one part changed", of("a=1", "b=1"), of("a=2", "b=1"), "map[a:2]"},
		{"a new part is not accused", of("a=1"), of("a=1", "n=1"), "map[n:1]"},
		{"of two changed parts one is overlooked", of("a=1", "b=1", "c=1"), of("a=2", "b=2", "c=1"), "map[a:2 b:2]"},
		{"without a good version nobody is accused", nil, of("a=1", "b=1"), "map[a:1 b:1]"},
		{"though nothing changed nobody is accused", of("a=1"), of("a=1"), "map[a:1]"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := fmt.Sprint(suspects(c.good, c.bad)); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestIdentity comes from the certificate, and from nothing else.
func TestIdentity(t *testing.T) {
	id := Identity{Cluster: "eu/1", Namespace: "n%s", Gateway: "g", Proxy: "uid-1"}
	got, err := ParseIdentity(&x509.Certificate{URIs: []*url.URL{id.URI()}})
	if err != nil || got != id {
		t.Fatalf("round trip of %v: %v, %v", id, got, err)
	}
	if id.Fleet() != "eu%2F1/n%25s/g" {
		t.Errorf("fleet %s", id.Fleet())
	}
	for name, uri := range map[string]string{
		"another trust domain": "spiffe://other/proxy/c/n/g/p",
		"a peer's certificate": "spiffe://fleetgate/peer/c/n/g/p",
		"an empty part":        "spiffe://fleetgate/proxy/c//g/p",
		"a missing part":       "spiffe://fleetgate/proxy/c/n/g",
		"a part too many":      "spiffe://fleetgate/proxy/c/n/g/p/q",
		"another scheme":       "https://fleetgate/proxy/c/n/g/p",
		"a query":              "spiffe://fleetgate/proxy/c/n/g/p?x",
		"a user":               "spiffe://u@fleetgate/proxy/c/n/g/p",
	} {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseIdentity(&x509.Certificate{URIs: []*url.URL{u}}); err == nil {
			t.Errorf("%s is taken for %v", name, got)
		}
	}
	if _, err := ParseIdentity(&x509.Certificate{URIs: []*url.URL{id.URI(), id.URI()}}); err == nil {
		t.Error("two identities are taken for one")
	}
}

// TestStrangersAreRefused on every RPC, over the real transport.
func TestStrangersAreRefused(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	w := newWorld(t, Config{Gate: true}, a.serverTLS())
	id := Identity{Cluster: "c", Namespace: "ns", Gateway: "gw", Proxy: "p"}
	creds := func(cert tls.Certificate) credentials.TransportCredentials {
		return credentials.NewTLS(&tls.Config{RootCAs: a.pool, ServerName: "xds.fleetgate", Certificates: []tls.Certificate{cert}})
	}
	for name, c := range map[string]credentials.TransportCredentials{
		"plain text":              insecure.NewCredentials(),
		"a certificate of no one": creds(a.issue("nobody", []string{"nobody"})),
		"another authority":       creds(other.issue("proxy", nil, id.URI())),
	} {
		stream, done, err := w.dial(c)
		if err == nil {
			_ = stream.Send(subscribeTo(Cluster, nil, nil))
			_, err = stream.Recv()
		}
		if status.Code(err) == codes.OK {
			t.Errorf("%s is served", name)
		}
		done()
	}
	// A node that lies changes nothing.
	w.apply(5, clusterOf("a", "1"))
	w.srv.Apply([]Update{{Fleet: "c/other/gw", Index: 5, Resources: []Resource{clusterOf("secret", "1")}}})
	stream, done, err := w.dial(creds(a.issue("proxy", nil, id.URI())))
	defer done()
	if err != nil {
		t.Fatal(err)
	}
	r := subscribeTo(Cluster, nil, nil)
	r.Node = adsNode("c/other/gw")
	if err := stream.Send(r); err != nil {
		t.Fatal(err)
	}
	got, err := stream.Recv()
	if err != nil || !slices.Equal(said(got), []string{"a"}) || got.ControlPlane.GetIdentifier() != "replica-0" {
		t.Fatalf("got %v, %v", got, err)
	}
}

// TestEndpointsThatVanishWhileTheirClusterWarms are answered, or the client would wait for them, and the removal of the cluster for the client.
func TestEndpointsThatVanishWhileTheirClusterWarms(t *testing.T) {
	s := plainServer(Config{Gate: true, GateTimeout: time.Hour})
	put(s, 1, clusterOf("a", "1"), endpointsOf("a", "1", 1), clusterOf("b", "1"))
	p := openPipe(t, s)
	p.ask(Cluster)
	p.expect(Cluster, "a", "b")
	p.ask(Endpoints, "a")
	p.expect(Endpoints, "a")
	put(s, 2, clusterOf("a", "2"))
	changed := p.next()
	p.expect(Endpoints, "a")
	put(s, 3, gone(Cluster, "a"), gone(Endpoints, "a"))
	p.ask(Endpoints, "a") // as one who waits for them
	p.expect(Endpoints, "-a")
	p.ack(changed)
	p.ask(Listener)
	p.ask(Route, "none")
	for range 2 {
		if r := p.next(); r.TypeUrl == URLs[Cluster] && slices.Equal(said(r), []string{"-a"}) {
			return
		} else {
			p.ack(r)
		}
	}
	p.expect(Cluster, "-a")
}

// TestVanishedSecretGoesLast: what a proxy holds and nobody knows any more may still be used by its listeners, until they are replaced.
func TestVanishedSecretGoesLast(t *testing.T) {
	s := plainServer(Config{Gate: true})
	full(s)
	p := openPipe(t, s)
	p.toServer <- reconnect(Listener, map[string]string{"l": "old"})
	p.toServer <- reconnect(Secret, map[string]string{"vanished": "1"}, "vanished")
	r := p.next()
	if got := said(r); r.TypeUrl != URLs[Listener] || !slices.Equal(got, []string{"l"}) {
		t.Fatalf("first comes %s %v", r.TypeUrl, got)
	}
	p.ask(Endpoints, "none")
	p.expect(Endpoints, "-none")
	p.ack(r)
	p.expect(Secret, "-vanished")
}
