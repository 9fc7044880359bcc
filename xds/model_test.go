package xds

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// pipe is an ADS stream in memory. It speaks our codec on one side where the server is ours, so that histories test the wire format too.
type pipe struct {
	ctx      context.Context
	cancel   context.CancelFunc
	toServer chan *discovery.DeltaDiscoveryRequest
	toClient chan *discovery.DeltaDiscoveryResponse
	ended    chan struct{}
}

func newPipe() *pipe {
	ctx, cancel := context.WithCancel(context.Background())
	return &pipe{ctx: ctx, cancel: cancel, toServer: make(chan *discovery.DeltaDiscoveryRequest, 1000), toClient: make(chan *discovery.DeltaDiscoveryResponse, 1000), ended: make(chan struct{})}
}

func (p *pipe) SetHeader(metadata.MD) error  { return nil }
func (p *pipe) SendHeader(metadata.MD) error { return nil }
func (p *pipe) SetTrailer(metadata.MD)       {}
func (p *pipe) Context() context.Context     { return p.ctx }

func (p *pipe) Send(r *discovery.DeltaDiscoveryResponse) error {
	select {
	case p.toClient <- proto.Clone(r).(*discovery.DeltaDiscoveryResponse):
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	select {
	case r := <-p.toServer:
		return r, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

func (p *pipe) SendMsg(m any) error {
	b, err := newCodec().Marshal(m)
	if err != nil {
		return err
	}
	r := &discovery.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(b.Materialize(), r); err != nil {
		return err
	}
	return p.Send(r)
}

func (p *pipe) RecvMsg(m any) error {
	r, err := p.Recv()
	if err != nil {
		return err
	}
	b, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	return newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, m)
}

// dialer starts a stream on some server.
type dialer func(p *pipe)

func ours(s *Server) dialer {
	return func(p *pipe) {
		go func() { defer close(p.ended); _ = ads{server: s}.DeltaAggregatedResources(p) }()
	}
}

// client is a strict model of Envoy: what it asks for follows from what it was sent, it ACKs clusters only when warm,
// applies the good part of what it rejects, and checks at every step that no route names a cluster that it lacks.
type client struct {
	dial   dialer
	strict bool // a changed cluster waits for endpoints sent after it

	mu        sync.Mutex
	changed   chan struct{}
	held      [NumTypes]map[string]string // name -> marker of the content
	versions  [NumTypes]map[string]string
	uses      map[string][]string // route configuration -> clusters
	rcOf      map[string]string   // listener -> route configuration
	warming   map[string]bool
	active    map[string]bool
	unacked   []*cdsAck
	extra     [NumTypes]map[string]bool // names asked for beside those that follow
	noWild    [NumTypes]bool
	wanted    [NumTypes]map[string]bool
	failures  []string
	responses int
	resources int
	nacks     int

	pipe  *pipe
	trace []string // what was said, shown when a wait fails
	ops   chan func()
	done  chan struct{}
}

type cdsAck struct {
	nonce string
	wait  map[string]bool
}

func newClient(dial dialer, strict bool) *client {
	c := &client{dial: dial, strict: strict, changed: make(chan struct{}, 1), uses: map[string][]string{}, rcOf: map[string]string{}, warming: map[string]bool{}, active: map[string]bool{}}
	for t := range c.held {
		c.held[t], c.versions[t], c.extra[t] = map[string]string{}, map[string]string{}, map[string]bool{}
	}
	c.connect()
	return c
}

// connect opens a stream and says what is held from the one before.
func (c *client) connect() {
	c.pipe, c.ops, c.done = newPipe(), make(chan func()), make(chan struct{})
	c.unacked = nil
	for name := range c.warming { // a cluster changed just before the stream broke: Envoy falls back on the endpoints that it has
		if c.held[Endpoints][name] != "" {
			c.warm(name)
		}
	}
	c.dial(c.pipe)
	for _, t := range []Type{Cluster, Listener, Endpoints, Route, Secret} {
		c.wanted[t] = c.names(t)
		var sub []string
		wild := (t == Cluster || t == Listener) && !c.noWild[t]
		if wild && len(c.wanted[t]) > 0 {
			sub = append(sub, "*")
		}
		sub = append(sub, slices.Sorted(maps.Keys(c.wanted[t]))...)
		for n := range maps.Clone(c.held[t]) {
			if !wild && !c.wanted[t][n] {
				c.forget(t, n)
			}
		}
		if !wild && len(sub) == 0 {
			continue
		}
		c.say(&discovery.DeltaDiscoveryRequest{TypeUrl: URLs[t], ResourceNamesSubscribe: sub, InitialResourceVersions: maps.Clone(c.versions[t])})
	}
	go c.loop(c.pipe, c.ops, c.done)
}

func (c *client) loop(p *pipe, ops chan func(), done chan struct{}) {
	defer close(done)
	for {
		select {
		case <-p.ctx.Done():
			return
		case op := <-ops:
			c.mu.Lock()
			op()
			c.mu.Unlock()
		case r := <-p.toClient:
			c.mu.Lock()
			c.take(r)
			c.mu.Unlock()
		}
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
}

// do runs an operation in the client's goroutine.
func (c *client) do(op func()) {
	ran := make(chan struct{})
	c.ops <- func() { op(); close(ran) }
	<-ran
}

func (c *client) close() {
	c.pipe.cancel()
	<-c.done
}

// names are the names that follow from what is held.
func (c *client) names(t Type) map[string]bool {
	out := maps.Clone(c.extra[t])
	switch t {
	case Endpoints:
		for n := range c.held[Cluster] {
			out[n] = true
		}
	case Route:
		for l := range c.held[Listener] {
			out[c.rcOf[l]] = true
		}
	}
	return out
}

// resubscribe sends the difference of what is wanted.
func (c *client) resubscribe(t Type) {
	now := c.names(t)
	r := &discovery.DeltaDiscoveryRequest{TypeUrl: URLs[t]}
	for n := range now {
		if !c.wanted[t][n] {
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, n)
		}
	}
	wild := (t == Cluster || t == Listener) && !c.noWild[t]
	for n := range c.wanted[t] {
		if !now[n] {
			r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, n)
			if !wild {
				c.forget(t, n)
			}
		}
	}
	c.wanted[t] = now
	if len(r.ResourceNamesSubscribe)+len(r.ResourceNamesUnsubscribe) > 0 {
		c.say(r)
	}
}

func (c *client) forget(t Type, name string) {
	delete(c.held[t], name)
	delete(c.versions[t], name)
	switch t {
	case Cluster:
		delete(c.active, name)
		delete(c.warming, name)
		for _, a := range c.unacked {
			delete(a.wait, name)
		}
	case Route:
		delete(c.uses, name)
	}
}

func (c *client) take(r *discovery.DeltaDiscoveryResponse) {
	t, ok := typeOf(r.TypeUrl)
	if !ok {
		c.fail("response of type %s", r.TypeUrl)
		return
	}
	c.responses++
	c.trace = append(c.trace, fmt.Sprintf("<- %d %s %v -%v", t, r.Nonce, r.Resources, r.RemovedResources))
	c.resources += len(r.Resources)
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
	waits := map[string]bool{}
	seen := map[string]bool{}
	for _, res := range r.Resources {
		if seen[res.Name] {
			c.fail("%s twice in one response", res.Name)
		}
		seen[res.Name] = true
		if err := c.accept(t, res, waits); err != nil {
			ack.ErrorDetail = &status.Status{Code: 13, Message: err.Error()}
		}
	}
	for _, n := range r.RemovedResources {
		c.remove(t, n)
	}
	c.resubscribe(Endpoints)
	c.resubscribe(Route)
	c.check()
	if ack.ErrorDetail != nil {
		c.nacks++
	}
	if t == Cluster && ack.ErrorDetail == nil {
		c.unacked = append(c.unacked, &cdsAck{r.Nonce, waits})
	} else {
		c.say(ack)
	}
	c.ackWarm()
}

// ackWarm sends the ACKs of cluster responses in order, each once everything in it is warm.
func (c *client) ackWarm() {
	for len(c.unacked) > 0 && len(c.unacked[0].wait) == 0 {
		c.say(&discovery.DeltaDiscoveryRequest{TypeUrl: URLs[Cluster], ResponseNonce: c.unacked[0].nonce})
		c.unacked = c.unacked[1:]
	}
}

func (c *client) accept(t Type, res *discovery.Resource, waits map[string]bool) error {
	if res.Resource.GetTypeUrl() != URLs[t] {
		return fmt.Errorf("type %s inside %s", res.Resource.GetTypeUrl(), URLs[t])
	}
	mark, follow, err := decode(t, res.Resource)
	if err != nil {
		return fmt.Errorf("%s: %w", res.Name, err)
	}
	wild := (t == Cluster || t == Listener) && !c.noWild[t]
	if !wild && !c.wanted[t][res.Name] {
		return nil // nobody watches it
	}
	c.held[t][res.Name], c.versions[t][res.Name] = mark, res.Version
	switch t {
	case Cluster:
		if c.strict {
			c.warming[res.Name], waits[res.Name] = true, true
		} else {
			c.active[res.Name] = true
		}
	case Endpoints:
		c.warm(res.Name)
	case Listener:
		c.rcOf[res.Name] = follow[0]
	case Route:
		c.uses[res.Name] = follow
	}
	return nil
}

func (c *client) warm(cluster string) {
	if c.warming[cluster] {
		delete(c.warming, cluster)
		c.active[cluster] = true
	}
	for _, a := range c.unacked {
		delete(a.wait, cluster)
	}
}

func (c *client) remove(t Type, name string) {
	switch t {
	case Endpoints: // in use it is ignored, but ends the wait
		c.warm(name)
		if c.held[Cluster][name] == "" {
			c.forget(t, name)
		} else {
			delete(c.versions[t], name)
			delete(c.held[t], name)
		}
	default:
		c.forget(t, name)
	}
}

// check is the property that make-before-break is for.
func (c *client) check() {
	for rc, clusters := range c.uses {
		for _, cl := range clusters {
			if !c.active[cl] {
				c.fail("route configuration %s is held while its cluster %s is not there", rc, cl)
			}
		}
	}
}

func (c *client) fail(format string, args ...any) {
	c.failures = append(c.failures, fmt.Sprintf(format, args...))
}

// decode gives the marker that tests put into a resource, and the names that it refers to. A marker that begins with "bad" is rejected.
func decode(t Type, a *anypb.Any) (mark string, follow []string, err error) {
	m, err := a.UnmarshalNew()
	if err != nil {
		return "", nil, err
	}
	switch m := m.(type) {
	case *clusterv3.Cluster:
		mark = m.AltStatName
	case *endpointv3.ClusterLoadAssignment:
		mark = fmt.Sprint(m.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress().GetPortValue())
	case *listenerv3.Listener:
		mark, follow = m.StatPrefix, []string{m.TrafficDirection.String()}
		follow[0] = m.Metadata.GetFilterMetadata()["rc"].GetFields()["name"].GetStringValue()
	case *routev3.RouteConfiguration:
		mark = m.VirtualHosts[0].Name
		for _, r := range m.VirtualHosts[0].Routes {
			follow = append(follow, r.GetRoute().GetCluster())
		}
	default:
		return "", nil, fmt.Errorf("unexpected %T", m)
	}
	if len(mark) > 2 && mark[:3] == "bad" {
		return "", nil, fmt.Errorf("rejected by the model")
	}
	return mark, follow, nil
}

// await waits until the client satisfies ok.
func (c *client) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		c.mu.Lock()
		yes := ok()
		c.mu.Unlock()
		if yes {
			return
		}
		select {
		case <-c.changed:
		case <-deadline:
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, l := range c.trace {
				t.Log(l)
			}
			t.Fatalf("waited for %s; the client holds %v, warming %v, wants %v without wildcard %v, failures %v", what, c.held, c.warming, c.wanted, c.noWild, c.failures)
		}
	}
}

func subscribeTo(t Type, names, not []string) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{TypeUrl: URLs[t], ResourceNamesSubscribe: names, ResourceNamesUnsubscribe: not}
}

// toggle changes between the cluster wildcard and one name.
func (c *client) toggle(name string) *discovery.DeltaDiscoveryRequest {
	c.noWild[Cluster] = !c.noWild[Cluster]
	if !c.noWild[Cluster] {
		r := subscribeTo(Cluster, []string{"*"}, slices.Collect(maps.Keys(c.extra[Cluster])))
		clear(c.extra[Cluster])
		c.wanted[Cluster] = c.names(Cluster)
		return r
	}
	c.extra[Cluster][name] = true
	c.wanted[Cluster] = c.names(Cluster)
	for n := range maps.Clone(c.held[Cluster]) {
		if n != name {
			c.forget(Cluster, n)
		}
	}
	return subscribeTo(Cluster, []string{name}, []string{"*"})
}

// follow asks for what follows from what is held.
func (c *client) follow() {
	c.resubscribe(Endpoints)
	c.resubscribe(Route)
	c.ackWarm()
}

func (c *client) say(r *discovery.DeltaDiscoveryRequest) {
	c.trace = append(c.trace, fmt.Sprintf("-> %v", r))
	c.pipe.toServer <- r
}
