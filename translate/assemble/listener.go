package assemble

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/fleetgate/fleetgate/translate/record"
)

const (
	protocolHTTP  = "HTTP"
	protocolHTTPS = "HTTPS"
	protocolTLS   = "TLS"
	protocolTCP   = "TCP"
	protocolUDP   = "UDP"
)

var protocols = []string{protocolHTTP, protocolHTTPS, protocolTLS, protocolTCP, protocolUDP}

// udpSuffix tells a UDP port's listener from that of the TCP port of the same number.
const udpSuffix = "/udp"

// listener is a listener of a Gateway with what its neighbours mean to it.
type listener struct {
	*record.Listener
	index    int
	set      *listenerSet // nil = the Gateway's own
	id       string       // unique within the Gateway: the name, for a ListenerSet's behind namespace and name of that
	hostname string
	selector labels.Selector // of allowedRoutes, nil = selects nothing
	problems []record.Problem
	notes    []record.Problem // what is wrong and does not keep the listener from being served
	conflict *record.Problem  // nil = distinct
	overlaps bool             // an HTTPS listener of the port has a hostname that overlaps
	blocked  string           // why it is not served, "" = it is
	config   *config          // of the RouteConfiguration that it shares or has, nil where it is not served
	guard    *guard           // its filters, nil = it has none
}

func (l *listener) served() bool { return l.blocked == "" }

// answers tells whether requests get as far as a listener's routes.
func (l *listener) answers() bool { return l.served() && (l.guard == nil || !l.guard.closed) }

// http tells whether a listener's routes look inside.
func (l *listener) http() bool { return l.Protocol == protocolHTTP || l.Protocol == protocolHTTPS }

// tls tells whether clients speak TLS.
func (l *listener) tls() bool { return l.Protocol == protocolHTTPS || l.Protocol == protocolTLS }

// terminates tells whether TLS ends at the listener.
func (l *listener) terminates() bool { return l.tls() && !l.Passthrough }

// passes tells whether TLS goes through the listener as it came.
func (l *listener) passes() bool { return l.tls() && l.Passthrough }

// socket names the Envoy listener.
func (l *listener) socket(fleet string) string {
	if l.Protocol == protocolUDP {
		return portName(fleet, l.Port) + udpSuffix
	}
	return portName(fleet, l.Port)
}

// secretOf looks a certificate's record up: its live content or nil, and why that is not its newest one, "" = it is.
type secretOf func(record.Key) (live *record.Secret, pending string)

// listenersOf decides for each listener of a Gateway and of the ListenerSets that it takes whether it can be served and why not. It is pure.
func listenersOf(g *gateway, secret secretOf) []*listener {
	var out []*listener
	for i := range g.record.Listeners {
		out = append(out, newListener(nil, &g.record.Listeners[i], secret))
	}
	for _, set := range g.sets {
		for i := range set.record.Listeners {
			if set.refused == nil {
				out = append(out, newListener(set, &set.record.Listeners[i], secret))
			}
		}
	}
	for i, l := range out {
		l.index = i
	}
	findConflicts(out)
	findOverlaps(out)
	for _, l := range out {
		l.blocked = l.obstacle()
	}
	return out
}

func newListener(set *listenerSet, r *record.Listener, secret secretOf) *listener {
	l := &listener{Listener: r, set: set, id: r.Name, hostname: anyHost(r.Hostname), problems: slices.Clone(r.Problems)}
	if set != nil {
		l.id = record.Join(set.key.Namespace, set.key.Name, r.Name)
	}
	if r.Allowed.From == string(gatewayv1.NamespacesFromSelector) {
		l.selector = selectorOf(r.Allowed.Selector)
	}
	if !slices.Contains(protocols, r.Protocol) && !l.has(string(gatewayv1.ListenerConditionAccepted)) {
		l.problems = append(l.problems, unsupportedProtocol(r.Protocol))
	}
	l.problems = append(l.problems, certificateProblems(l, secret)...)
	return l
}

// selectorOf reads a selector in its canonical form; what cannot be read, and "", select nothing.
func selectorOf(s string) labels.Selector {
	if s == "" {
		return nil
	}
	out, err := labels.Parse(s)
	if err != nil {
		return nil
	}
	return out
}

func (l *listener) has(condition string) bool {
	return slices.ContainsFunc(l.problems, func(p record.Problem) bool { return p.Condition == condition })
}

func unsupportedProtocol(protocol string) record.Problem {
	return record.Problem{
		Condition: string(gatewayv1.ListenerConditionAccepted),
		Reason:    string(gatewayv1.ListenerReasonUnsupportedProtocol),
		Message:   fmt.Sprintf("protocol %q is not served; use one of %s", protocol, strings.Join(protocols, ", ")),
		Rule:      -1,
	}
}

// certificateProblems checks the certificates of a listener that terminates TLS and that nothing else keeps from being served: all of them must be there. One whose previous
// version is served is noted.
func certificateProblems(l *listener, secret secretOf) []record.Problem {
	if !l.terminates() || l.obstacle() != "" {
		return nil
	}
	invalid := func(message string) record.Problem {
		return record.Problem{
			Condition: string(gatewayv1.ListenerConditionResolvedRefs),
			Reason:    string(gatewayv1.ListenerReasonInvalidCertificateRef),
			Message:   message,
			Rule:      -1,
		}
	}
	if len(l.SecretKeys) == 0 {
		return []record.Problem{invalid("the listener names no certificate; add tls.certificateRefs")}
	}
	var out []record.Problem
	for _, k := range l.SecretKeys {
		s, pending := secret(k)
		switch {
		case s == nil && pending != "":
			out = append(out, invalid(fmt.Sprintf("Secret %s/%s: %s", k.Namespace, k.Name, pending)))
		case s == nil:
			out = append(out, invalid(fmt.Sprintf("Secret %s/%s is not there; create it", k.Namespace, k.Name)))
		case s.Problem != nil:
			p := invalid(s.Problem.Message)
			if s.Problem.Reason != "" {
				p.Reason = s.Problem.Reason
			}
			out = append(out, p)
		case pending != "":
			l.notes = append(l.notes, invalid(fmt.Sprintf("Secret %s/%s: %s", k.Namespace, k.Name, pending)))
		}
	}
	return out
}

// findConflicts marks listeners that are not distinct. Gateway API v1.7: of one Gateway or ListenerSet no conflicting listener wins, none of them is accepted;
// between them the Gateway's come first, then the older ListenerSet's, as they are ordered here. A listener that has lost to an earlier one is out, and does not
// take others of its own ListenerSet with it. Listeners of protocols that are not served take no part.
func findConflicts(all []*listener) {
	for start, end := 0, 0; start < len(all); start = end {
		for end = start; end < len(all) && all[end].set == all[start].set; end++ {
			all[end].conflict = worstConflict(all[end], all[:start])
		}
		own := all[start:end]
		among := make([]*record.Problem, len(own))
		for i, a := range own {
			among[i] = worstConflict(a, own)
		}
		for i, a := range own {
			if a.conflict == nil {
				a.conflict = among[i]
			}
		}
	}
}

// worstConflict is what a conflicts with among those that are still in, another protocol before the same hostname; nil = nothing.
func worstConflict(a *listener, others []*listener) *record.Problem {
	var worst *record.Problem
	out := func(l *listener) bool { return l.conflict != nil || l.has(string(gatewayv1.ListenerConditionAccepted)) }
	for _, b := range others {
		if a == b || a.Port != b.Port || out(a) || out(b) {
			continue
		}
		if p := conflict(a, b); p != nil && (worst == nil || p.Reason == string(gatewayv1.ListenerReasonProtocolConflict)) {
			worst = p
		}
	}
	return worst
}

func conflict(a, b *listener) *record.Problem {
	p := &record.Problem{Condition: string(gatewayv1.ListenerConditionConflicted), Rule: -1}
	switch {
	case (a.Protocol == protocolUDP) != (b.Protocol == protocolUDP):
		return nil // two different ports
	case a.tls() && b.tls() && a.hostname != b.hostname:
		return nil // told apart by the server name
	case a.Protocol != b.Protocol:
		p.Reason = string(gatewayv1.ListenerReasonProtocolConflict)
		p.Message = fmt.Sprintf("listener %q has protocol %s on the same port %d; give one of them another port", b.Name, b.Protocol, a.Port)
	case a.hostname == b.hostname:
		p.Reason = string(gatewayv1.ListenerReasonHostnameConflict)
		p.Message = fmt.Sprintf("listener %q has the same port %d and hostname %q; change one of them", b.Name, a.Port, domain(a.hostname))
	default:
		return nil
	}
	return p
}

// findOverlaps marks HTTPS listeners of one port whose hostnames overlap: a client may then reuse a connection for a host of the other (421).
func findOverlaps(all []*listener) {
	for _, a := range all {
		for _, b := range all {
			if a != b && a.Port == b.Port && a.Protocol == protocolHTTPS && b.Protocol == protocolHTTPS {
				_, both := intersect(a.hostname, b.hostname)
				a.overlaps = a.overlaps || both
			}
		}
	}
}

// obstacle says why a listener is not served. Kinds that cannot be routed do not matter: the rest is served.
func (l *listener) obstacle() string {
	if l.conflict != nil {
		return l.conflict.Message
	}
	for _, p := range l.problems {
		switch p.Condition {
		case string(gatewayv1.ListenerConditionAccepted):
			return p.Message
		case string(gatewayv1.ListenerConditionResolvedRefs):
			if p.Reason != string(gatewayv1.ListenerReasonInvalidRouteKinds) {
				return p.Message
			}
		}
	}
	return ""
}

// accepted tells whether a listener is as the spec wants one.
func (l *listener) accepted() bool {
	_, _, noted := summary(l.notes, string(gatewayv1.ListenerConditionAccepted))
	return l.conflict == nil && !noted && !l.has(string(gatewayv1.ListenerConditionAccepted))
}

// ownedByOther tells whether a more specific listener of the same port and protocol takes hostname h, which was attached to l (listener isolation).
// Listeners without a certificate count, conflicted ones do not.
func ownedByOther(all []*listener, l *listener, h string) bool {
	return slices.ContainsFunc(all, func(m *listener) bool {
		return (neighbours(l, m) || shareNames(l, m)) && moreSpecific(m.hostname, l.hostname) && covers(m.hostname, h)
	})
}

// neighbours tells whether two listeners share a port.
func neighbours(a, b *listener) bool {
	return a != b && a.Port == b.Port && a.Protocol == b.Protocol && b.conflict == nil && !b.has(string(gatewayv1.ListenerConditionAccepted))
}

// shareNames tells whether a TLS listener shares a port with another that takes connections by server name.
func shareNames(a, b *listener) bool {
	return a != b && a.Protocol == protocolTLS && b.tls() && a.Port == b.Port && b.conflict == nil && !b.has(string(gatewayv1.ListenerConditionAccepted))
}

// statuses are the hosts of a listener's RouteConfiguration that no route is needed for: its own hostname answers 404 where no route matches, or it
// would fall to a wider host; "*" closes the configuration. Of HTTPS, hosts of the port's other listeners answer 421
// (GatewayHTTPSListenerDetectMisdirectedRequests): Envoy's precedence of domains is the spec's of listeners.
func statuses(all []*listener, l *listener) map[string]uint32 {
	out := map[string]uint32{"*": 404}
	if l.Protocol == protocolHTTPS {
		for _, m := range all {
			if neighbours(l, m) {
				out[domain(m.hostname)] = 421
			}
		}
		out[domain(l.hostname)] = 404
		return out
	}
	for _, m := range all {
		if m == l || neighbours(l, m) {
			out[domain(m.hostname)] = 404
		}
	}
	return out
}

// configName names the RouteConfiguration of a listener: plaintext listeners of a port share one, each TLS chain has its own.
func configName(fleet string, l *listener) string {
	name := portName(fleet, l.Port)
	if l.Protocol == protocolHTTPS {
		name += "/" + l.id
	}
	return name
}

// portName names the Envoy listener of a port; it is injective since the fleet's name has a fixed number of parts.
func portName(fleet string, port int32) string { return fleet + "/" + strconv.Itoa(int(port)) }

// variantKey is the key of record.Match.Variants that fits a listener.
func variantKey(l *listener) string {
	return strings.ToLower(l.Protocol) + "/" + strconv.Itoa(int(l.Port))
}
