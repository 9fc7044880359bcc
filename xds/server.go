// Package xds serves resources to fleets of Envoys over delta ADS. It knows neither Kubernetes nor Raft: it takes named bytes.
//
// The idea is that a change costs one marshalling, whatever the number of proxies. Names are interned once for each fleet; a stream
// holds, for each type, a few bits for each name and the sequence number up to which it has looked; a response is the shared bytes of its
// resources followed by a small tail of the stream's own. What is sent is decided at the moment of sending, so a slow proxy gets
// the newest version of everything and never a queue.
//
// The endpoints of a changed cluster follow it unasked; those of a new one wait to be asked for. The protocol has a subscription answered whatever was sent before, and a client may drop
// what it has not subscribed to, so sending them ahead would send them twice to every proxy, for one round trip.
//
// Three accidents are prevented. A route never reaches a proxy before the clusters that it uses are warm there, and a cluster is removed only
// after nothing that the proxy acknowledged refers to it (plan.go). A rejection is narrowed to the one resource that caused it, while
// everything else goes on (ack.go). A replica that may be behind what a proxy has already seen adds, but takes nothing away (Config.Hold).
package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Config is what a Server must know besides resources. Zero values are replaced by defaults, but for Gate.
type Config struct {
	Replica string // shown to proxies as control_plane.identifier
	Logger  *slog.Logger
	// Report is called for every change of what is known of a proxy, from the goroutine of its stream: it must not block.
	Report func(Report)
	// Gate holds routes back until their clusters are ACKed, and removals until nothing uses them (D6). Only a test switches it off.
	Gate bool
	// GateTimeout is how long at most a client may take to ACK a cluster that it has got: 2 s. One that has not answered anything which was sent after the cluster is slow, and
	// would take a route no sooner: for it the time begins later, but the gate is never closed for more than gatePatience times this.
	GateTimeout time.Duration
	// CoalesceWindow delays the sending of changes so that more of them ride together; 0 = send at once (the default).
	CoalesceWindow time.Duration
	// Identify tells who a proxy is from its TLS connection; the default is ParseIdentity of the verified certificate.
	Identify func(*tls.ConnectionState) (Identity, error)
	// Hold is called once for a stream whose client reports a version that this replica does not know. It returns nil once this replica has all that the
	// leader has committed; an error means that nobody can tell, and it is asked again after HoldRetry (1 s). nil = always up to date.
	Hold      func(ctx context.Context, fleet string) error
	HoldRetry time.Duration
	// Trial makes what a rejected resource would be if some of its parts were pinned; nil = rejections are not narrowed to parts.
	Trial TrialFunc
	// SystemVersion makes system_version_info of a store index.
	SystemVersion func(index uint64) string
	MaxNames      int // names of one type on one stream; 100,000
}

// TrialFunc gives a resource of a fleet as it would be without these forms of its parts (part id -> hash, as in Resource.Parts); false where there would be none.
// It is called from the goroutines of streams and may take its time.
type TrialFunc func(fleet string, t Type, name string, refuse map[string]string) (Resource, bool)

const gatePatience = 15

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Report == nil {
		c.Report = func(Report) {}
	}
	if c.GateTimeout == 0 {
		c.GateTimeout = 2 * time.Second
	}
	if c.HoldRetry == 0 {
		c.HoldRetry = time.Second
	}
	if c.Identify == nil {
		c.Identify = identifyVerified
	}
	if c.MaxNames == 0 {
		c.MaxNames = 100_000
	}
	return c
}

// Server holds the resources of all fleets and serves their streams.
type Server struct {
	cfg   Config
	stats counters

	writing sync.Mutex // taken before mu
	mu      sync.Mutex
	fleets  map[string]*fleet
	proxies map[proxyKey]*stream // the newest stream of each proxy
	grpc    *grpc.Server         // set by Serve

	draining chan struct{}
	drain    sync.Once
	running  sync.WaitGroup // goroutines that outlive a handler for a moment
}

type proxyKey struct{ fleet, proxy string }

// New makes a Server without resources.
func New(c Config) *Server {
	return &Server{cfg: c.withDefaults(), fleets: map[string]*fleet{}, proxies: map[proxyKey]*stream{}, draining: make(chan struct{})}
}

// Apply takes updates; each is one step that its fleet's proxies see as a whole. It does not wait for any proxy.
func (s *Server) Apply(updates []Update) {
	for _, u := range updates {
		u.Resources = slices.DeleteFunc(slices.Clone(u.Resources), func(r Resource) bool { return r.Type >= NumTypes })
		items := prepare(u.Resources)
		s.write(u.Fleet, func(f *fleet) { f.apply(u, items) })
		if u.Gone {
			s.forget(u.Fleet)
		}
	}
}

// write changes a fleet; one writer at a time, since a fleet may be replaced by a renumbered one.
func (s *Server) write(name string, change func(*fleet)) {
	s.writing.Lock()
	defer s.writing.Unlock()
	f := s.fleet(name)
	change(f)
	if f.sparse() {
		s.mu.Lock()
		s.fleets[name] = f.renumbered()
		s.mu.Unlock()
	}
}

// Endpoints takes endpoints that run ahead of the store (D18): they are served at once, and no convergence depends on them.
// Whoever calls it and Apply decides which is newer: the last call wins.
func (s *Server) Endpoints(fleetName string, resources []Resource) {
	resources = slices.DeleteFunc(slices.Clone(resources), func(r Resource) bool { return r.Type != Endpoints })
	items := prepare(resources)
	s.write(fleetName, func(f *fleet) { f.ahead(items) })
}

// prepare frames resources, outside of any lock.
func prepare(resources []Resource) []*item {
	out := make([]*item, len(resources))
	for i, r := range resources {
		it := &item{name: r.Name, index: r.Index, parts: r.Parts}
		if len(r.Bytes) > 0 {
			it.version, it.entry = r.Version, frameEntry(r.Type, r)
		}
		out[i] = it
	}
	return out
}

func (s *Server) fleet(name string) *fleet {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fleets[name]
	if f == nil {
		f = newFleet(name)
		s.fleets[name] = f
	}
	return f
}

// forget drops a fleet that is gone, or was never there, and has no streams.
func (s *Server) forget(name string) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fleets[name]
	if f == nil {
		return
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if len(f.streams) == 0 && (f.gone || f.seq == 0) {
		delete(s.fleets, name)
	}
}

// join adds a stream to its fleet.
func (s *Server) join(id Identity, g grpc.ServerStream) *stream {
	name := id.Fleet()
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fleets[name]
	if f == nil {
		f = newFleet(name)
		s.fleets[name] = f
	}
	st := newStream(s, f, id, g)
	s.proxies[proxyKey{name, id.Proxy}] = st
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams[st] = struct{}{}
	return st
}

// leave takes a stream out of its fleet, and tells about it unless the proxy is back already.
func (s *Server) leave(st *stream) {
	key := proxyKey{st.fleet.name, st.id.Proxy}
	s.mu.Lock()
	newest := s.proxies[key] == st
	if newest {
		delete(s.proxies, key)
	}
	st.fleet.mu.Lock()
	delete(st.fleet.streams, st)
	st.fleet.mu.Unlock()
	s.mu.Unlock()
	s.forget(st.fleet.name)
	if newest {
		s.report(Report{Fleet: key.fleet, Proxy: key.proxy, Replica: s.cfg.Replica, Acked: st.acked, Rejected: st.rejections(), SinceUnix: time.Now().Unix()})
	}
}

func (s *Server) report(r Report) {
	s.stats.reports.Add(1)
	s.cfg.Report(r)
}

// Proxies tells what is known of every connected proxy, ordered by fleet and proxy.
func (s *Server) Proxies() []Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Report, 0, len(s.proxies))
	for key, st := range s.proxies {
		if r := st.last.Load(); r != nil {
			out = append(out, *r)
		} else {
			out = append(out, Report{Fleet: key.fleet, Proxy: key.proxy, Replica: s.cfg.Replica, Connected: true, SinceUnix: st.reporter.start.Unix()})
		}
	}
	slices.SortFunc(out, func(a, b Report) int { return compareNames(a.Fleet, a.Proxy, b.Fleet, b.Proxy) })
	return out
}

func (s *Server) systemVersion(index uint64) string {
	if s.cfg.SystemVersion == nil {
		return ""
	}
	return s.cfg.SystemVersion(index)
}

// counters are what Stats shows.
type counters struct {
	responses, resources, bytes, acks, nacks, rejected, gated, gateTimeouts, holds, reports, refused atomic.Uint64
}

// Stats are counts since the start, and the number of streams now.
type Stats struct {
	Streams      int
	Fleets       int
	Responses    uint64 // sent
	Resources    uint64 // in them
	Bytes        uint64 // of them, before TLS
	Acks         uint64
	Nacks        uint64 // responses rejected
	Rejected     uint64 // resources found to be the culprit
	Gated        uint64 // resources held back for a cluster's ACK
	GateTimeouts uint64 // of those, sent without it
	Holds        uint64 // streams whose client reported unknown versions
	Reports      uint64
	Refused      uint64 // streams without a valid identity
}

// Stats gives the counts.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	streams, fleets := len(s.proxies), len(s.fleets)
	s.mu.Unlock()
	c := &s.stats
	return Stats{Streams: streams, Fleets: fleets, Responses: c.responses.Load(), Resources: c.resources.Load(), Bytes: c.bytes.Load(),
		Acks: c.acks.Load(), Nacks: c.nacks.Load(), Rejected: c.rejected.Load(), Gated: c.gated.Load(), GateTimeouts: c.gateTimeouts.Load(),
		Holds: c.holds.Load(), Reports: c.reports.Load(), Refused: c.refused.Load()}
}

// identify takes the identity from the connection's certificate; it looks at nothing else (D15).
func (s *Server) identify(ctx context.Context) (Identity, error) {
	p, _ := peer.FromContext(ctx)
	var info credentials.TLSInfo
	if p != nil {
		info, _ = p.AuthInfo.(credentials.TLSInfo)
	}
	id, err := s.cfg.Identify(&info.State)
	if err != nil {
		s.stats.refused.Add(1)
		return Identity{}, status.Errorf(codes.Unauthenticated, "who are you? %v", err)
	}
	return id, nil
}

// ads is the registered service.
type ads struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	server *Server
}

// DeltaAggregatedResources serves one proxy.
func (a ads) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s := a.server
	id, err := s.identify(g.Context())
	if err != nil {
		return err
	}
	st := s.join(id, g)
	defer s.leave(st)
	st.log.Info("a proxy connected")
	err = st.run()
	st.log.Info("a proxy left", "error", err)
	return err
}

// StreamAggregatedResources refuses the state-of-the-world protocol.
func (a ads) StreamAggregatedResources(g discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	if _, err := a.server.identify(g.Context()); err != nil {
		return err
	}
	return status.Error(codes.Unimplemented, "only delta xDS is served: set ads_config.api_type to DELTA_GRPC in the proxy's bootstrap")
}

// Register adds the aggregated discovery service to a gRPC server, which must have been made with ServerOptions.
func (s *Server) Register(g *grpc.Server) {
	discovery.RegisterAggregatedDiscoveryServiceServer(g, ads{server: s})
}

// ServerOptions are what the service needs of its gRPC server: the codec that shares bytes, static windows, keepalive, sizes.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(64 << 20), // a reconnecting proxy lists name and version of everything
		grpc.MaxSendMsgSize(1 << 30),
		grpc.StaticStreamWindowSize(1 << 20),
		grpc.StaticConnWindowSize(1 << 20),
		grpc.MaxConcurrentStreams(16),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// Serve serves proxies on a listener until ctx ends or Drain was called. tlsConfig must demand and verify client certificates,
// unless Config.Identify asks for none.
func (s *Server) Serve(ctx context.Context, lis net.Listener, tlsConfig *tls.Config) error {
	opts := s.ServerOptions()
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	g := grpc.NewServer(opts...)
	s.Register(g)
	s.mu.Lock()
	s.grpc = g
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	err := g.Serve(lis)
	g.Stop()
	s.running.Wait()
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve xDS on %s: %w", lis.Addr(), err)
	}
	return nil
}

// Listen is Serve on an address.
func (s *Server) Listen(ctx context.Context, address string, tlsConfig *tls.Config) error {
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for proxies: %w; free the port or choose another", err)
	}
	return s.Serve(ctx, lis, tlsConfig)
}

// Drain ends all streams, so that proxies connect elsewhere, and then the server. When ctx ends first, connections are cut.
func (s *Server) Drain(ctx context.Context) error {
	s.drain.Do(func() { close(s.draining) })
	s.mu.Lock()
	g := s.grpc
	s.mu.Unlock()
	if g == nil {
		return nil
	}
	done := make(chan struct{})
	go func() { g.GracefulStop(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		g.Stop()
		<-done
		return fmt.Errorf("drain xDS streams: %w", ctx.Err())
	}
}
