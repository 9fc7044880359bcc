package assemble

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// stream is where the connections or datagrams of one chain go: of a whole TCP or UDP listener, or of one server name of a TLS listener. Its cluster is
// named after the chain, and the route that wins only decides about its endpoints (D17): so a new winner, new weights or new backends cut nothing.
type stream struct {
	name     string // of the cluster
	listener *listener
	domain   string // server name, "*" = any
	routes   map[record.Key]contender
}

// contender is a route that a stream could serve.
type contender struct {
	*served
	original string // the route's own hostname that gave the domain
}

// baseStream gives the stream that a listener always has, routes or not: what no route takes is closed there.
func (g *gateway) baseStream(l *listener) *stream { return g.stream(l, domain(l.hostname)) }

// streamName names the stream of a listener for a domain. No backend is called so, also none of a Service of the Gateway's name: what ends a name is no consumer.
func (g *gateway) streamName(l *listener, domain string) string {
	name := portName(g.fleet, l.Port)
	switch l.Protocol {
	case protocolUDP:
		return name + "/datagrams"
	case protocolTCP:
		return name + "/stream"
	}
	return name + "/" + l.id + "/" + domain
}

// stream gives the stream of a listener for a domain, a new one where there is none.
func (g *gateway) stream(l *listener, domain string) *stream {
	name := g.streamName(l, domain)
	st := g.streams[name]
	if st == nil {
		st = &stream{name: name, listener: l, domain: domain, routes: map[record.Key]contender{}}
		g.streams[name] = st
		g.streamsDirty = true
	}
	return st
}

// placeStreams puts a route into the streams that its bindings name, and takes it out of the others. It gives the backends whose use may have changed, and
// the routes of which another is served now.
func (g *gateway) placeStreams(k record.Key, s *served, bindings []binding) (touched, passed []record.Key) {
	before := map[*stream]record.Key{}
	for name, st := range g.streams {
		old, was := st.routes[k]
		if !was {
			continue
		}
		before[st] = st.serves()
		touched = append(touched, old.backends()...)
		delete(st.routes, k)
		g.streamsDirty = true
		if len(st.routes) == 0 && st.domain != domain(st.listener.hostname) {
			delete(g.streams, name)
		}
	}
	for _, b := range bindings {
		if s != nil && b.config == nil {
			st := g.stream(b.listener, b.domain)
			if _, known := before[st]; !known {
				before[st] = st.serves()
			}
			st.routes[k] = contender{s, b.original}
			g.streamsDirty = true
			touched = append(touched, s.backends()...)
		}
	}
	for st, was := range before {
		if st.serves() != was {
			passed = slices.AppendSeq(passed, maps.Keys(st.routes))
		}
	}
	return touched, passed
}

// serves is the record of the route that is served, the zero key where none is.
func (st *stream) serves() record.Key {
	if w := st.winner(); w != nil {
		return w.key
	}
	return record.Key{}
}

// tellOverruled is how many of the places where another route is served are named.
const tellOverruled = 5

// overruled says which route is served in place of one where it is bound, and whether that is so wherever it is bound.
func (g *gateway) overruled(k record.Key, bindings []binding) (by string, everywhere bool) {
	var told []string
	lost := 0
	for _, b := range bindings {
		w := g.overruler(k, b)
		if w == nil {
			continue
		}
		if lost++; lost <= tellOverruled {
			o := w.route.Object
			told = append(told, fmt.Sprintf("%s %s/%s at %s", o.Kind, o.Namespace, o.Name, b.place()))
		}
	}
	if lost == 0 {
		return "", false
	}
	if more := lost - len(told); more > 0 {
		told = append(told, fmt.Sprintf("others at %d more places", more))
	}
	return "another route comes before this one: " + strings.Join(told, ", ") + "; delete that route, or attach this one elsewhere", lost == len(bindings)
}

// overruler is the route that has the stream of a binding before another route, nil = none.
func (g *gateway) overruler(k record.Key, b binding) *served {
	if b.config != nil {
		return nil
	}
	if st := g.streams[g.streamName(b.listener, b.domain)]; st != nil {
		if w := st.winner(); w != nil && w.key != k {
			return w
		}
	}
	return nil
}

// place names where a binding is, for a person.
func (b binding) place() string {
	if b.listener.tls() && b.domain != "*" {
		return fmt.Sprintf("listener %q for server name %s", b.listener.Name, b.domain)
	}
	return fmt.Sprintf("listener %q", b.listener.Name)
}

// refreshStreams notes that a route was written again as it was.
func (g *gateway) refreshStreams(k record.Key, index uint64) {
	for _, st := range g.streams {
		if c, there := st.routes[k]; there {
			again := *c.served
			again.index = index
			st.routes[k] = contender{&again, c.original}
			g.streamsDirty = true
		}
	}
}

// streamsOf are the streams of a listener by domain.
func (g *gateway) streamsOf(l *listener) []*stream {
	var out []*stream
	for _, st := range g.streams {
		if st.listener == l {
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(a, b *stream) int { return strings.Compare(a.domain, b.domain) })
	return out
}

// winner is the one route that is served: of the most specific hostname, then the oldest, then the first by name. nil = none.
func (st *stream) winner() *served {
	var best *contender
	for _, c := range st.routes {
		if best == nil || cmp.Or(compareSpecificity(c.original, best.original), compareRoute(c.served, best.served)) < 0 {
			best = &c
		}
	}
	if best == nil {
		return nil
	}
	return best.served
}

// touchStreams tells whether what streams send to is among backends that changed.
func (g *gateway) touchStreams(backends map[record.Key]bool) {
	for k := range backends {
		g.streamsDirty = g.streamsDirty || g.streamBackends[k]
	}
}

// flushStreams makes the clusters and endpoints of all streams anew, and the ports, whose chains are those of the streams.
func (g *gateway) flushStreams(s *State) {
	g.streamsDirty = false
	g.ports, g.trusts, g.streamResources, g.streamBackends = nil, nil, nil, map[record.Key]bool{}
	g.buildPorts(s.config)
	for _, name := range slices.Sorted(maps.Keys(g.streams)) {
		st := g.streams[name]
		for _, b := range st.backends() {
			g.streamBackends[b] = true
		}
		if made, err := st.resources(g, s); err == nil { // what could fail was checked when the policy was compiled
			g.streamResources = append(g.streamResources, made...)
		}
	}
}

// streamsTo gives the endpoints of the streams that send to a backend, read in another way than from the log. Those that are a part of a cluster, beside names in DNS, wait for the log.
func (g *gateway) streamsTo(backend record.Key, s *State, of endpointsOf) (out []Resource) {
	for _, name := range slices.Sorted(maps.Keys(g.streams)) {
		if st := g.streams[name]; slices.Contains(st.backends(), backend) && !st.named(s) {
			out = append(out, st.endpoints(g, s, of))
		}
	}
	return out
}

// parts are the backends that the stream sends to, once each, in the order of the route.
func (st *stream) parts() (out []record.Key) {
	if winner := st.winner(); winner != nil {
		for _, share := range winner.shares() {
			if share.Backend != nil && !slices.Contains(out, *share.Backend) {
				out = append(out, *share.Backend)
			}
		}
	}
	return out
}

// backends are those that the stream sends to.
func (st *stream) backends() []record.Key {
	if winner := st.winner(); winner != nil {
		return winner.backends()
	}
	return nil
}

// endpoints is the endpointsOf of the log.
func (s *State) endpoints(k record.Key) (*record.Endpoints, string) { return committed(s.entries[k]) }

// resources are the stream's cluster and its endpoints; those are a part of the cluster where proxies look some of them up.
func (st *stream) resources(g *gateway, s *State) ([]Resource, error) {
	out, c, err := st.cluster(g, s)
	if err != nil {
		return nil, err
	}
	endpoints := st.endpoints(g, s, s.endpoints)
	if st.named(s) {
		b, err := envoy.LookUpStream(c, slices.Concat(endpoints.Bytes...))
		out.Bytes, out.Version, out.Index = [][]byte{b}, record.Hash(b), max(out.Index, endpoints.Index)
		maps.Copy(out.Parts[0], endpoints.Parts[0])
		return []Resource{out}, err
	}
	b, err := envoy.Marshal(c)
	out.Bytes, out.Version = [][]byte{b}, record.Hash(b)
	return []Resource{out, endpoints}, err
}

// named tells whether some of the winner's endpoints are names in DNS.
func (st *stream) named(s *State) bool {
	return slices.ContainsFunc(st.backends(), func(k record.Key) bool {
		b := as[record.Backend](s.entries[k])
		return b != nil && b.Named && st.sends(s, k)
	})
}

// cluster is the stream's. It speaks TLS with those of the winner's backends whose policies say so, if TLS ended at the listener, and with those that say so themselves.
func (st *stream) cluster(g *gateway, s *State) (Resource, *clusterv3.Cluster, error) {
	out := Resource{Type: TypeCluster, Name: st.name, Index: g.live.Index, Parts: []map[string]string{{PartID(g.key): g.live.form}}}
	c := envoy.StreamCluster(st.name)
	for _, k := range st.parts() {
		e := s.entries[k]
		b := as[record.Backend](e)
		if !st.sends(s, k) || b.TLS == nil || !b.TLS.Own && !st.listener.terminates() {
			continue
		}
		if err := envoy.StreamTLS(c, record.ClusterName(k), upstream(b.TLS, g)); err != nil {
			return out, c, err
		}
		out.Index = max(out.Index, e.live.Index)
		out.Parts[0][PartID(e.key)] = e.live.form
		if client := g.shows(b.TLS); client != "" && !slices.Contains(out.Uses, client) {
			out.Uses = append(out.Uses, client)
		}
	}
	return out, c, nil
}

// endpoints are those of the winner's backends, each a locality with its weight.
func (st *stream) endpoints(g *gateway, s *State, of endpointsOf) Resource {
	out := Resource{Type: TypeEndpoints, Name: st.name, Index: g.live.Index, Parts: []map[string]string{{PartID(g.key): g.live.form}}}
	var parts []envoy.StreamPart
	if winner := st.winner(); winner != nil {
		out.Index = max(out.Index, winner.index)
		out.Parts[0][winner.part] = winner.live.form
		for _, share := range winner.shares() {
			parts = addPart(parts, st.part(s, share, of, &out))
		}
	}
	b := envoy.StreamAssignment(st.name, parts)
	out.Bytes, out.Version = [][]byte{b}, record.Hash(b)
	return out
}

// shares are where the route sends its streams.
func (s *served) shares() []record.Share {
	var out []record.Share
	for _, r := range s.route.Rules {
		if !s.live.degraded {
			out = append(out, r.Stream...)
		}
	}
	return out
}

// part gives a share's endpoints, and notes in the resource what they were made of.
func (st *stream) part(s *State, share record.Share, of endpointsOf, out *Resource) envoy.StreamPart {
	if share.Backend == nil {
		return envoy.StreamPart{Name: "refused", Weight: share.Weight}
	}
	part := envoy.StreamPart{Name: record.ClusterName(*share.Backend), Weight: share.Weight}
	k := endpointsKey(*share.Backend)
	v, hash := of(k)
	if !st.sends(s, *share.Backend) || v == nil {
		return part
	}
	part.Assignment = v.Bytes
	if e := s.entries[k]; e != nil {
		out.Index = max(out.Index, e.live.Index)
	}
	out.Parts[0][PartID(k)] = hash
	return part
}

// sends tells whether the stream goes to a backend: not to one that is not served, nor to one that would be spoken TLS with within the client's own TLS, which is passed through.
func (st *stream) sends(s *State, backend record.Key) bool {
	_, there := s.cluster(backend)
	b := as[record.Backend](s.entries[backend])
	return there && !(b.TLS != nil && b.TLS.Own && st.listener.passes())
}

// addPart adds a part; to Envoy two of one name would be one of them.
func addPart(parts []envoy.StreamPart, p envoy.StreamPart) []envoy.StreamPart {
	for i := range parts {
		if parts[i].Name == p.Name {
			parts[i].Weight += p.Weight
			return parts
		}
	}
	return append(parts, p)
}

// streamChains makes the chains of a TLS or TCP listener, and notes in the port's resource what they were made of.
func (g *gateway) streamChains(c Config, l *listener, out *Resource) ([]*listenerv3.FilterChain, error) {
	var chains []*listenerv3.FilterChain
	for _, st := range g.streamsOf(l) {
		var names []string
		if st.domain != "*" {
			names = []string{st.domain}
		}
		var tls *tlsv3.DownstreamTlsContext
		if l.terminates() {
			tls = envoy.DownstreamTLS(l.Secrets, nil)
		}
		chain, err := envoy.StreamChain(l.id+"/"+st.domain, names, tls, st.name, g.accessLog(c))
		if err != nil {
			return nil, err
		}
		chains = append(chains, chain)
		out.Uses = append(out.Uses, st.name)
		if st.domain == domain(l.hostname) {
			continue // there without a route too
		}
		for _, r := range st.routes {
			out.Index = max(out.Index, r.index)
			out.Parts[0][r.part] = r.live.form
		}
	}
	return chains, nil
}
