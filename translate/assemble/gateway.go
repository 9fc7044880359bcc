package assemble

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// gateway is a Gateway of one of our classes with what its fleet is to run.
type gateway struct {
	key       record.Key
	fleet     string
	live      live
	record    *record.Gateway
	problems  []record.Problem // of the Gateway as a whole: those of its record and those found here
	class     *record.Class
	index     uint64 // highest of its record and its secrets
	listeners []*listener
	ports     []Resource         // Envoy listeners
	sets      []*listenerSet     // that name it, in order of precedence
	clients   map[int32]*clients // how clients are validated, by port
	collector *record.Key        // the backend that takes the spans of its requests, nil = there is none
	client    string             // SDS name of the certificate that backends see, "" = none
	secrets   []record.Key       // of served listeners, and of client; sorted
	trusts    []Resource         // authorities that clients are validated with
	configs   map[string]*config // by name
	streams   map[string]*stream // by name
	counts    []int32            // attached routes of each listener

	streamsDirty    bool                // the three below, and ports and trusts, must be made anew
	streamResources []Resource          // clusters and endpoints of the streams
	streamBackends  map[record.Key]bool // that these are made of
}

// newGateway makes a Gateway without routes. A listener that Envoy's own rules refuse is not served and says so; withheld says why none may be served, "" = they may.
func newGateway(k record.Key, l live, class *record.Class, withheld string, s *State) *gateway {
	r, _ := l.value.(*record.Gateway)
	g := &gateway{
		key:    k,
		fleet:  record.FleetName(k.Cluster, k.Namespace, k.Name),
		live:   l,
		record: r,

		problems: slices.Clone(r.Problems),
		class:    class,
		configs:  map[string]*config{},
		clients:  map[int32]*clients{},
		streams:  map[string]*stream{},
	}
	g.traceTo(s)
	g.sets = s.setsOf(k, r)
	g.buildListeners(s, withheld)
	g.counts = make([]int32, len(g.listeners))
	g.index = l.Index
	for _, set := range g.sets {
		g.index = max(g.index, set.live.Index)
	}
	for _, k := range g.secretKeys() {
		if e := s.entries[k]; e != nil && e.live.decoded != nil {
			g.index = max(g.index, e.live.Index)
		}
	}
	for _, l := range g.listeners {
		if l.served() && !l.http() {
			g.baseStream(l)
		}
	}
	g.buildPorts(s.config)
	maps.DeleteFunc(g.streams, func(_ string, st *stream) bool { return !st.listener.served() })
	for _, l := range g.listeners {
		if l.served() {
			if l.http() {
				l.config = g.configOf(l)
			}
			g.secrets = append(g.secrets, l.secretKeys()...)
		}
	}
	g.showToBackends(s)
	slices.SortFunc(g.secrets, record.Key.Compare)
	g.secrets = slices.Compact(g.secrets)
	return g
}

// buildListeners merges the Gateway's own listeners with those of its ListenerSets, and decides which of them can be served.
func (g *gateway) buildListeners(s *State, withheld string) {
	g.listeners = listenersOf(g, func(k record.Key) (*record.Secret, string) {
		e := s.entries[k]
		if e == nil {
			return nil, ""
		}
		return as[record.Secret](e), e.live.pending
	})
	for _, l := range g.listeners {
		if l.Protocol == protocolHTTPS && g.clients[l.Port] == nil {
			g.clients[l.Port] = s.clientsOf(g, l.Port)
		}
		l.validate(g.clients[l.Port])
		l.guarded(s)
	}
	if withheld != "" {
		refuse(g.of(nil), withheld)
	}
	for _, set := range g.sets {
		if set.withheld != "" {
			refuse(g.of(set), set.withheld)
		}
	}
}

// validate adds what is wrong with the validation of a listener's clients, if there is one.
func (l *listener) validate(c *clients) {
	if c == nil || l.Protocol != protocolHTTPS {
		return
	}
	l.notes = append(l.notes, filter(c.notes, func(p record.Problem) bool { return p.Condition == string(gatewayv1.ListenerConditionResolvedRefs) })...)
	if p := c.obstacle(); p != nil {
		l.problems = append(l.problems, *p)
		l.blocked = l.obstacle()
	}
}

// showToBackends takes up the certificate that backends see, or says why it cannot.
func (g *gateway) showToBackends(s *State) {
	k := g.record.ClientKey
	if k == nil {
		return
	}
	secret := as[record.Secret](s.entries[*k])
	if secret != nil && secret.Problem == nil {
		g.client = g.record.Client
		g.secrets = append(g.secrets, *k)
		return
	}
	message := fmt.Sprintf("Secret %s/%s is not there; create it", k.Namespace, k.Name)
	if secret != nil {
		message = secret.Problem.Message
	}
	g.problems = append(g.problems, record.Problem{
		Condition: string(gatewayv1.GatewayConditionResolvedRefs), Reason: string(gatewayv1.GatewayReasonInvalidClientCertificateRef), Rule: -1,
		Message: "tls.backend.clientCertificateRef: " + message,
	})
}

func (g *gateway) secretKeys() []record.Key {
	var out []record.Key
	if g.record.ClientKey != nil {
		out = append(out, *g.record.ClientKey)
	}
	for _, l := range g.listeners {
		out = append(out, l.secretKeys()...)
	}
	return out
}

// secretKeys are the certificates of a listener that terminates TLS.
func (l *listener) secretKeys() []record.Key {
	if !l.terminates() {
		return nil
	}
	return l.SecretKeys
}

func (g *gateway) configOf(l *listener) *config {
	name := configName(g.fleet, l)
	c := g.configs[name]
	if c == nil {
		c = newConfig(name, variantKey(l))
		c.own(PartID(g.key), g.live)
		c.protect(l, g.listeners)
		c.answer(statuses(g.listeners, l))
		g.configs[name] = c
	}
	return c
}

// sameShape tells whether what routes attach to is the same.
func (g *gateway) sameShape(h *gateway) bool {
	return g.live.same(h.live) && slices.EqualFunc(g.sets, h.sets, (*listenerSet).same) && slices.EqualFunc(g.listeners, h.listeners, func(a, b *listener) bool {
		return a.served() == b.served() && a.answers() == b.answers()
	})
}

// renew takes over what may differ in a Gateway of the same shape.
func (g *gateway) renew(h *gateway) {
	g.live, g.class, g.index, g.ports, g.secrets = h.live, h.class, h.index, h.ports, h.secrets
	g.problems, g.clients, g.client, g.trusts, g.collector = h.problems, h.clients, h.client, h.trusts, h.collector
	g.streamsDirty = len(g.streams) > 0
	for i, set := range g.sets { // listeners point to them
		*set = *h.sets[i]
	}
	for i, l := range g.listeners {
		l.problems, l.notes, l.blocked = h.listeners[i].problems, h.listeners[i].notes, h.listeners[i].blocked
	}
}

// buildPorts makes an Envoy listener for each port that has a listener to serve.
func (g *gateway) buildPorts(c Config) {
	byPort := map[string][]*listener{}
	for _, l := range g.listeners {
		if l.served() {
			byPort[l.socket(g.fleet)] = append(byPort[l.socket(g.fleet)], l)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byPort)) {
		r, err := g.buildPort(c, name, byPort[name])
		if err != nil {
			refuse(byPort[name], fmt.Sprintf("Envoy would reject it (%v); change the listener", err))
			continue
		}
		g.ports = append(g.ports, r)
		if slices.ContainsFunc(byPort[name], func(l *listener) bool { return l.Protocol == protocolHTTPS }) {
			g.trust(byPort[name][0].Port)
		}
	}
}

// trust serves the authorities of a port that validates its clients.
func (g *gateway) trust(port int32) {
	c := g.clients[port]
	if c == nil {
		return
	}
	r, err := c.resource(g.index)
	if err != nil {
		return // the chains that name it were made of the same
	}
	g.trusts = append(g.trusts, r)
}

// refuse keeps listeners from being served.
func refuse(listeners []*listener, message string) {
	for _, l := range listeners {
		l.problems = append(l.problems, record.Problem{
			Condition: string(gatewayv1.ListenerConditionAccepted),
			Reason:    string(gatewayv1.ListenerReasonUnsupportedValue),
			Message:   message,
			Rule:      -1,
		})
		l.blocked = l.obstacle()
	}
}

// buildPort makes the Envoy listener of a port, whose bytes are constant but for the chains of TLS (D17).
func (g *gateway) buildPort(c Config, name string, listeners []*listener) (Resource, error) {
	out := Resource{Type: TypeListener, Name: name, Index: g.index, Parts: []map[string]string{{PartID(g.key): g.live.form}}}
	listeners = slices.SortedFunc(slices.Values(listeners), func(a, b *listener) int { return cmp.Compare(a.id, b.id) })
	var chains []*listenerv3.FilterChain
	for _, l := range listeners {
		if l.set != nil {
			out.Parts[0][PartID(l.set.key)] = l.set.live.form
		}
		made, err := g.chains(c, l, len(chains) == 0, &out)
		if err != nil {
			return out, err
		}
		chains = append(chains, made...)
	}
	slices.Sort(out.Uses)
	out.Uses = slices.Compact(out.Uses)
	first := listeners[0]
	m, err := envoy.Listener(out.Name, c.ListenAddress, first.Port, first.tls(), chains, nil)
	if first.Protocol == protocolUDP {
		m, err = envoy.DatagramListener(out.Name, c.ListenAddress, first.Port, g.baseStream(first).name)
	}
	if err != nil {
		return out, err
	}
	b, err := envoy.Marshal(m)
	out.Bytes, out.Version = [][]byte{b}, record.Hash(b)
	return out, err
}

// chains makes the chains of a listener, and notes what they use; plaintext listeners share that of the first.
func (g *gateway) chains(c Config, l *listener, first bool, out *Resource) ([]*listenerv3.FilterChain, error) {
	out.Uses = append(out.Uses, l.secretNames()...)
	switch {
	case l.Protocol == protocolUDP:
		out.Uses = append(out.Uses, g.baseStream(l).name)
		return nil, nil
	case !l.http():
		return g.streamChains(c, l, out)
	}
	out.Uses = append(out.Uses, configName(g.fleet, l))
	if g.collector != nil {
		out.Uses = append(out.Uses, record.ClusterName(*g.collector))
	}
	if v := g.clients[l.Port]; v != nil && l.Protocol == protocolHTTPS {
		out.Uses = append(out.Uses, v.name)
	}
	if l.Protocol == protocolHTTP && !first {
		return nil, nil
	}
	chain, err := g.chain(c, l)
	return []*listenerv3.FilterChain{chain}, err
}

func (l *listener) secretNames() []string {
	if !l.terminates() {
		return nil
	}
	return l.Secrets
}

func (g *gateway) chain(c Config, l *listener) (*listenerv3.FilterChain, error) {
	hcm, err := envoy.HTTPConnectionManager(fmt.Sprintf("%s_%d", l.Protocol, l.Port), configName(g.fleet, l), g.accessLog(c), g.tracing())
	if err != nil {
		return nil, err
	}
	if l.Protocol != protocolHTTPS {
		return envoy.HTTPChain("http", hcm)
	}
	var names []string
	if l.hostname != "" {
		names = []string{l.hostname}
	}
	return envoy.HTTPSChain(l.id, names, l.Secrets, g.clients[l.Port].downstream(), hcm)
}

// place puts a route into the configurations that its bindings name and takes it out of the others. It gives the backends whose use by the Gateway changed,
// and the routes of which another is served now.
func (g *gateway) place(k record.Key, s *served, bindings []binding) (touched, passed []record.Key) {
	touched, passed = g.placeStreams(k, s, bindings)
	by := map[*config][]binding{}
	for _, b := range bindings {
		by[b.config] = append(by[b.config], b)
	}
	for _, c := range g.configs {
		var use *served
		if len(by[c]) > 0 {
			use = s
		}
		touched = append(touched, c.set(k, use, by[c])...)
	}
	return touched, passed
}

// shownSecrets are the certificates that backends of the Gateway are shown which ask for one of their own.
func (g *gateway) shownSecrets(s *State) []record.Key {
	var out []record.Key
	for _, k := range g.reached() {
		if shown := as[record.Backend](s.entries[k]).ClientKey(); shown != nil {
			out = append(out, *shown)
		}
	}
	return out
}

// holds tells whether a certificate is one of the Gateway itself.
func (g *gateway) holds(secret string) bool {
	return slices.ContainsFunc(g.secrets, func(k record.Key) bool { return record.Join(k.Cluster, k.Namespace, k.Name) == secret })
}

// uses tells whether something of the Gateway is made of a backend.
func (g *gateway) uses(backend record.Key) bool {
	return g.routesTo(backend) || g.streamBackends[backend]
}

// routesTo tells whether some configuration, or the tracer, names the cluster of a backend.
func (g *gateway) routesTo(backend record.Key) bool {
	if g.collector != nil && *g.collector == backend {
		return true
	}
	for _, c := range g.configs {
		if c.backends[backend] > 0 {
			return true
		}
	}
	return false
}
