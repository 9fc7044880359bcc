// SPDX-License-Identifier: Apache-2.0

package netplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
)

const (
	zone = "cluster.local."
	// ttl is short, as that of a cluster's name server is.
	ttl = 5
	// plainSize is how long an answer over UDP may be unless the question says otherwise.
	plainSize  = 512
	tcpIdle    = 10 * time.Second
	maxMessage = 65535
)

// nameServer answers for the zone cluster.local after the specification of Kubernetes' DNS, version 1.1.0, without reverse lookups. It knows nothing else and asks nobody: every
// other name does not exist, which resolvers take at once where a refusal would have them try again.
type nameServer struct {
	objects objects
	udp     net.PacketConn
	tcp     net.Listener
	o       Options
}

func newNameServer(o Options, objects objects) (*nameServer, error) {
	at := netip.AddrPortFrom(o.DNS, 53).String()
	udp, err := net.ListenPacket("udp4", at)
	if err != nil {
		return nil, fmt.Errorf("opening the name server of cluster %s: %w", o.Cluster, err)
	}
	tcp, err := net.Listen("tcp4", at)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the name server of cluster %s: %w", o.Cluster, err), udp.Close())
	}
	return &nameServer{objects: objects, udp: udp, tcp: tcp, o: o}, nil
}

func (s *nameServer) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(s.udp.Close(), s.tcp.Close()) })
	defer stop()
	g.Go(func() error { return ended(ctx, s.serveUDP()) })
	g.Go(func() error { return ended(ctx, s.serveTCP(ctx, g)) })
	return g.Wait()
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("the cluster's name server has ended: %w", err)
}

func (s *nameServer) serveUDP() error {
	buffer := make([]byte, maxMessage)
	for {
		n, from, err := s.udp.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error of an answer that nobody took
		}
		if answer, ok := s.answer(buffer[:n], plainSize); ok {
			_, _ = s.udp.WriteTo(answer, from) // who gets none asks again
		}
	}
}

func (s *nameServer) serveTCP(ctx context.Context, g *errgroup.Group) error {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return err
		}
		g.Go(func() error {
			defer func() { _ = c.Close() }()
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			s.converse(c)
			return nil
		})
	}
}

// converse answers questions on one connection until it is silent for a while or closed.
func (s *nameServer) converse(c net.Conn) {
	for {
		_ = c.SetDeadline(time.Now().Add(tcpIdle)) // fails only on a closed connection, and so does the read
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, question); err != nil {
			return
		}
		answer, ok := s.answer(question, maxMessage)
		if !ok {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answer is the answer to a message, not longer than size unless the message allows more; false for what is no question.
func (s *nameServer) answer(message []byte, size int) ([]byte, bool) {
	var parser dnsmessage.Parser
	header, err := parser.Start(message)
	if err != nil || header.Response {
		return nil, false
	}
	question, err := parser.Question()
	if err != nil {
		return nil, false
	}
	edns := largest(&parser)
	found := result{code: dnsmessage.RCodeNotImplemented}
	if header.OpCode == 0 && question.Class == dnsmessage.ClassINET {
		found = resolve(s.objects, strings.ToLower(question.Name.String()), question.Type)
	}
	response := dnsmessage.Header{ID: header.ID, Response: true, OpCode: header.OpCode, Authoritative: true, RecursionDesired: header.RecursionDesired, RCode: found.code}
	out, err := pack(response, question, found, edns > 0)
	if err == nil && len(out) > max(size, edns) {
		response.Truncated = true
		out, err = pack(response, question, result{}, edns > 0)
	}
	return out, err == nil
}

// largest is how long an answer over UDP the question allows, by EDNS; 0 without.
func largest(p *dnsmessage.Parser) int {
	if p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return 0
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return 0
		}
		if h.Type == dnsmessage.TypeOPT {
			return max(plainSize, int(h.Class))
		}
		if p.SkipAdditional() != nil {
			return 0
		}
	}
}

// result is what is known of a name.
type result struct {
	code    dnsmessage.RCode
	answers []record
}

// record is one answer; its name is the question's unless it says another.
type record struct {
	addr   netip.Addr
	alias  string // of an ExternalName Service
	target string // of a SRV record
	port   uint16
}

func pack(h dnsmessage.Header, q dnsmessage.Question, r result, edns bool) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, h)
	b.EnableCompression()
	err := errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers())
	for _, a := range r.answers {
		err = errors.Join(err, addRecord(&b, q.Name, a))
	}
	if len(r.answers) == 0 && !h.Truncated {
		err = errors.Join(err, b.StartAuthorities(), addSOA(&b))
	}
	if edns {
		var header dnsmessage.ResourceHeader
		err = errors.Join(err, b.StartAdditionals(), header.SetEDNS0(1232, h.RCode, false), b.OPTResource(header, dnsmessage.OPTResource{}))
	}
	if err != nil {
		return nil, err
	}
	return b.Finish()
}

func addRecord(b *dnsmessage.Builder, name dnsmessage.Name, r record) error {
	header := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}
	switch {
	case r.alias != "":
		alias, err := dnsmessage.NewName(r.alias)
		if err != nil {
			return err
		}
		return b.CNAMEResource(header, dnsmessage.CNAMEResource{CNAME: alias})
	case r.target != "":
		target, err := dnsmessage.NewName(r.target)
		if err != nil {
			return err
		}
		return b.SRVResource(header, dnsmessage.SRVResource{Weight: 100, Port: r.port, Target: target})
	}
	return b.AResource(header, dnsmessage.AResource{A: r.addr.As4()})
}

func addSOA(b *dnsmessage.Builder) error {
	name := dnsmessage.MustNewName(zone)
	return b.SOAResource(dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}, dnsmessage.SOAResource{
		NS: dnsmessage.MustNewName("ns.dns." + zone), MBox: dnsmessage.MustNewName("hostmaster." + zone), Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, MinTTL: ttl,
	})
}

// resolve looks a name up.
func resolve(o objects, name string, kind dnsmessage.Type) result {
	rest, ok := strings.CutSuffix(name, "."+zone)
	if !ok {
		if name == zone {
			return result{}
		}
		return result{code: dnsmessage.RCodeNameError}
	}
	parts := strings.Split(rest, ".")
	n := len(parts)
	switch {
	case parts[n-1] == "svc" && n >= 3 && n <= 5:
		return resolveService(o, parts[:n-3], parts[n-3], parts[n-2], kind)
	case parts[n-1] == "pod" && n == 3:
		return resolvePod(parts[0], kind)
	case n == 1 && (parts[0] == "svc" || parts[0] == "pod"):
		return result{} // it exists, as there are names below it
	}
	return result{code: dnsmessage.RCodeNameError}
}

// resolvePod is the address that a name such as 10-244-0-7.default.pod.cluster.local spells.
func resolvePod(dashed string, kind dnsmessage.Type) result {
	a, err := netip.ParseAddr(strings.ReplaceAll(dashed, "-", "."))
	if err != nil {
		return result{code: dnsmessage.RCodeNameError}
	}
	return only(kind, dnsmessage.TypeA, []record{{addr: a}})
}

// only is the records where they are of the kind that was asked for: the name exists even if it has none of that kind.
func only(asked, have dnsmessage.Type, records []record) result {
	if asked == have || asked == dnsmessage.TypeALL {
		return result{answers: records}
	}
	return result{}
}

// resolveService answers for a Service, and for what stands before its name: an endpoint, or _port._protocol.
func resolveService(o objects, before []string, name, namespace string, kind dnsmessage.Type) result {
	missing := result{code: dnsmessage.RCodeNameError}
	service, err := o.services.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return missing
	}
	if err != nil {
		return result{code: dnsmessage.RCodeServerFailure}
	}
	full := name + "." + namespace + ".svc." + zone
	endpoints, err := o.endpoints(service)
	if err != nil {
		return result{code: dnsmessage.RCodeServerFailure}
	}
	headless := service.Spec.ClusterIP == v1.ClusterIPNone
	switch {
	case service.Spec.Type == v1.ServiceTypeExternalName && len(before) == 0:
		return result{answers: []record{{alias: strings.TrimSuffix(service.Spec.ExternalName, ".") + "."}}}
	case len(before) == 0 && kind == dnsmessage.TypeSRV:
		return result{answers: portRecords(service, endpoints, full, func(endpointPort) bool { return true })}
	case len(before) == 0 && headless:
		return named(kind, endpoints, func(endpointPort) bool { return true })
	case len(before) == 0:
		a, err := netip.ParseAddr(service.Spec.ClusterIP)
		if err != nil || !a.Is4() {
			return result{}
		}
		return only(kind, dnsmessage.TypeA, []record{{addr: a}})
	case len(before) == 1 && headless:
		return named(kind, endpoints, func(e endpointPort) bool { return e.host() == before[0] })
	case len(before) == 2 && strings.HasPrefix(before[0], "_") && strings.HasPrefix(before[1], "_"):
		records := portRecords(service, endpoints, full, func(e endpointPort) bool {
			return "_"+e.port == before[0] && "_"+strings.ToLower(string(e.protocol)) == before[1]
		})
		if len(records) == 0 {
			return missing
		}
		return only(kind, dnsmessage.TypeSRV, records)
	}
	return missing
}

// named are the addresses of those endpoints that f takes; a name without any does not exist.
func named(kind dnsmessage.Type, endpoints []endpointPort, f func(endpointPort) bool) result {
	var records []record
	seen := map[netip.Addr]bool{}
	for _, e := range endpoints {
		if f(e) && !seen[e.addr] {
			seen[e.addr] = true
			records = append(records, record{addr: e.addr})
		}
	}
	if len(records) == 0 {
		return result{code: dnsmessage.RCodeNameError}
	}
	return only(kind, dnsmessage.TypeA, records)
}

// portRecords are SRV records: of each endpoint for a headless Service, else of the Service itself.
func portRecords(service *v1.Service, endpoints []endpointPort, full string, f func(endpointPort) bool) []record {
	var records []record
	if service.Spec.ClusterIP != v1.ClusterIPNone {
		for _, p := range service.Spec.Ports {
			if f(endpointPort{port: p.Name, protocol: p.Protocol}) {
				records = append(records, record{target: full, port: uint16(p.Port)})
			}
		}
		return records
	}
	for _, e := range endpoints {
		if f(e) {
			records = append(records, record{target: e.host() + "." + full, port: e.number})
		}
	}
	return records
}

// endpointPort is one port of one ready endpoint; an endpoint without ports has one with number 0.
type endpointPort struct {
	addr           netip.Addr
	hostname, port string
	protocol       v1.Protocol
	number         uint16
}

// host is the endpoint's name below its Service's.
func (e endpointPort) host() string {
	if e.hostname != "" {
		return e.hostname
	}
	return strings.ReplaceAll(e.addr.String(), ".", "-")
}

// endpoints are the ready endpoints of a Service, in order of address.
func (o objects) endpoints(s *v1.Service) ([]endpointPort, error) {
	all, err := o.slices.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: s.Name}))
	if err != nil {
		return nil, fmt.Errorf("listing endpoints: %w", err)
	}
	var out []endpointPort
	for _, slice := range all {
		for _, e := range slice.Endpoints {
			if is(e.Conditions.Ready, true) {
				out = append(out, endpointPorts(slice, e)...)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b endpointPort) int { return a.addr.Compare(b.addr) })
	return out, nil
}

func endpointPorts(slice *discoveryv1.EndpointSlice, e discoveryv1.Endpoint) []endpointPort {
	var out []endpointPort
	for _, text := range e.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil || !a.Is4() {
			continue
		}
		one := endpointPort{addr: a}
		if e.Hostname != nil {
			one.hostname = strings.ToLower(*e.Hostname)
		}
		if len(slice.Ports) == 0 {
			out = append(out, one)
		}
		for _, p := range slice.Ports {
			if p.Port == nil {
				continue
			}
			each := one
			each.number, each.protocol = uint16(*p.Port), v1.ProtocolTCP
			if p.Name != nil {
				each.port = *p.Name
			}
			if p.Protocol != nil {
				each.protocol = *p.Protocol
			}
			out = append(out, each)
		}
	}
	return out
}
