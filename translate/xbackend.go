package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// kindXBackend is a backend that says itself how it is reached (GEP-4894). One of type ExternalHostname is looked up by the proxies. The pods of one of type EndpointSelector are found by
// Kubernetes, from a headless Service that the leader makes for it (cluster/headless), as the GEP suggests; its EndpointSlices bear the label LabelXBackend, for a Service's labels are
// copied to them. So nobody here watches Pods, which change ten times for each change of an endpoint, and what is ready, serving or terminating is decided by whoever decides it for Services.
const kindXBackend = "XBackend"

// xbackendPrefix stands before an XBackend's name where the name of a backend has that of a Service: no Service is called so. Its port is 0 there, for the XBackend says it.
const xbackendPrefix = kindXBackend + ":"

// resolveXBackend checks a reference to an XBackend. GEP-4894: it is used from its own namespace, and no ReferenceGrant widens that.
func resolveXBackend(v *view, from record.Object, ref gatewayv1.BackendObjectReference, consumer string) (record.Key, *record.Problem) {
	name := string(ref.Name)
	if ref.Namespace != nil && string(*ref.Namespace) != from.Namespace {
		p := unresolved("RefNotPermitted", fmt.Sprintf("XBackend %s of namespace %s is used from there alone, with or without a ReferenceGrant: create one in namespace %s", name, *ref.Namespace, from.Namespace))
		return record.Key{}, &p
	}
	f := fact[xbackendFact](v, kindXBackend, from.Namespace, name)
	if f == nil {
		p := unresolved("BackendNotFound", fmt.Sprintf("XBackend %s/%s does not exist: create it, or name another", from.Namespace, name))
		return record.Key{}, &p
	}
	if port := f.spec.Port.Number; ref.Port != nil && int32(*ref.Port) != int32(port) {
		p := unresolved("BackendNotFound", fmt.Sprintf("XBackend %s/%s has port %d, not %d: leave the port out", from.Namespace, name, port, *ref.Port))
		return record.Key{}, &p
	}
	return v.key(record.KindBackend, from.Namespace, backendName(xbackendPrefix+name, 0, consumer)), nil
}

// destination is what an XBackend says, as far as it can be done.
type destination struct {
	tls      *record.BackendTLS // nil = it is spoken to in the clear
	pods     *record.Pods       // nil = it selects none
	problems []record.Problem   // one of Accepted says that it cannot be used
}

func (x *destination) refused() bool {
	return slices.ContainsFunc(x.problems, func(p record.Problem) bool { return p.Condition == "Accepted" })
}

// compileXBackend makes the Envoy cluster of an XBackend, Missing where there is none, or where it cannot be reached as it says.
func compileXBackend(v *view, k record.Key, name string) compiled {
	out := record.Backend{Name: record.ClusterName(k)}
	_, _, consumer, _ := splitBackend(k.Name)
	f := fact[xbackendFact](v, kindXBackend, k.Namespace, name)
	if f == nil {
		out.Missing = true
		return compiled{value: out}
	}
	x := readXBackend(v, f)
	if x.refused() {
		p := unresolved(string(gatewayv1.RouteReasonUnsupportedValue), fmt.Sprintf("XBackend %s/%s is not accepted: see its conditions", k.Namespace, name))
		out.Missing, out.Problem = true, &p
		return compiled{value: out}
	}
	protocol, reason := f.protocol(consumer, x.tls != nil)
	if reason != "" {
		p := unresolved(string(gatewayv1.RouteReasonUnsupportedProtocol), fmt.Sprintf("XBackend %s/%s %s", k.Namespace, name, reason))
		out.Missing, out.Problem = true, &p
		return compiled{value: out}
	}
	out.TLS = x.tls
	if consumer == consumerTCP { // the cluster is the listener's
		out.Named = f.external()
		return compiled{value: out, refs: refsOfBackend(out)}
	}
	if x.tls != nil {
		x.tls.Protocols = alpn[protocol]
	}
	cluster, err := envoy.Cluster(out.Name, protocol)
	if f.external() {
		cluster, err = envoy.HostCluster(out.Name, f.host(), uint32(f.spec.Port.Number), protocol)
	}
	out.Bytes = mustBytes(limitRetries(v, k, cluster), err)
	return compiled{value: out, refs: refsOfBackend(out)}
}

// refsOfBackend are the records that a backend's needs.
func refsOfBackend(b record.Backend) []record.Key {
	if k := b.ClientKey(); k != nil {
		return []record.Key{*k}
	}
	return nil
}

// compileXEndpoints makes the load assignment of an XBackend: of the pods that it selects, or of its hostname where the cluster is a listener's; the cluster of a host has its own.
func compileXEndpoints(v *view, k record.Key, name string) compiled {
	_, _, consumer, _ := splitBackend(k.Name)
	f := fact[xbackendFact](v, kindXBackend, k.Namespace, name)
	switch {
	case f == nil || f.external() && consumer != consumerTCP:
		return compiled{value: record.Endpoints{Name: record.ClusterName(k)}}
	case f.external() && checkExternalHost(f.host()) == "" && f.hasPort():
		return compiled{value: endpointsRecord(k, []envoy.Endpoint{envoy.HostEndpoint(f.host(), uint32(f.spec.Port.Number))})}
	}
	var endpoints []envoy.Endpoint
	if pods, _ := f.pods(); pods != nil {
		found := v.podsOf(f)
		if len(found) == 0 && v.c.cfg.SlicesFollow {
			return compiled{}
		}
		for _, s := range found {
			endpoints = append(endpoints, s.endpoints(servicePort{protocol: "TCP"})...)
		}
	}
	return compiled{value: endpointsRecord(k, endpoints)}
}

// podsOf gives the EndpointSlices of the pods that an XBackend selects. Where Kubernetes makes them they say for the XBackend of which UID: one that was deleted leaves some for a moment.
func (v *view) podsOf(f *xbackendFact) []*sliceFact {
	of := f.object.Name
	if v.c.cfg.SlicesFollow {
		of = f.object.UID
	}
	return v.slices(f.object.Namespace, xbackendPrefix+of)
}

var alpn = map[envoy.Protocol][]string{envoy.HTTP1: {"http/1.1"}, envoy.HTTP2: {"h2"}, envoy.Negotiated: {"h2", "http/1.1"}}

// protocol is the version of HTTP that an XBackend is spoken to in, for what refers to it; reason says why it cannot be. A route of streams chooses no protocol: it forwards what comes.
func (f *xbackendFact) protocol(consumer string, tls bool) (protocol envoy.Protocol, reason string) {
	said := value(f.spec.Protocol)
	switch {
	case consumer == consumerUDP:
		return 0, "is reached by TCP alone: name it in another route"
	case consumer == consumerTCP && said != "" && said != gatewayxv1alpha1.BackendProtocolTCP:
		return 0, fmt.Sprintf("has protocol %s, which a route of streams cannot see to: use TCP, or leave it out", said)
	case consumer == consumerTCP && f.spec.SessionPersistence != nil:
		return 0, "has sessionPersistence, for which a stream has no place: name it in an HTTPRoute or a GRPCRoute, or remove that"
	case consumer == consumerTCP:
		return 0, ""
	case said == gatewayxv1alpha1.BackendProtocolTCP:
		return 0, "has protocol TCP, which is not HTTP: name it in a TCPRoute or a TLSRoute, or use HTTP"
	case slices.Contains([]gatewayxv1alpha1.BackendProtocol{gatewayxv1alpha1.BackendProtocolHTTP2, gatewayxv1alpha1.BackendProtocolH2C, gatewayxv1alpha1.BackendProtocolGRPC}, said):
		return envoy.HTTP2, ""
	case consumer == consumerH2 && said != "" && said != gatewayxv1alpha1.BackendProtocolHTTP:
		return 0, fmt.Sprintf("has protocol %s, which carries no gRPC: use GRPC, HTTP2 or H2C", said)
	case consumer == consumerH2:
		return envoy.HTTP2, ""
	case tls && slices.Contains([]gatewayxv1alpha1.BackendProtocol{gatewayxv1alpha1.BackendProtocolHTTP, gatewayxv1alpha1.BackendProtocolMCP}, said):
		return envoy.Negotiated, ""
	}
	return envoy.HTTP1, ""
}

func (f *xbackendFact) external() bool {
	return f.spec.Type == gatewayxv1alpha1.BackendTypeExternalHostname
}

func (f *xbackendFact) hasPort() bool { return f.spec.Port.Number >= 1 && f.spec.Port.Number <= 65535 }

func (f *xbackendFact) host() string {
	if f.spec.ExternalHostname == nil {
		return ""
	}
	return strings.ToLower(string(f.spec.ExternalHostname.Hostname))
}

// readXBackend reads an XBackend, with what is wrong with it.
func readXBackend(v *view, f *xbackendFact) *destination {
	out := &destination{}
	refuse := func(format string, args ...any) {
		out.problems = append(out.problems, accepted("Invalid", fmt.Sprintf(format, args...)))
	}
	var reason string
	switch {
	case f.spec.Type == gatewayxv1alpha1.BackendTypeEndpointSelector:
		out.pods, reason = f.pods()
	case !f.external():
		reason = fmt.Sprintf("type %s is not supported: use ExternalHostname or EndpointSelector", f.spec.Type)
	case f.spec.SessionPersistence != nil:
		reason = "sessionPersistence needs endpoints: use type EndpointSelector, or remove it"
	default:
		if reason = checkExternalHost(f.host()); reason != "" {
			reason = fmt.Sprintf("externalHostname.hostname %q %s", f.host(), reason)
		}
	}
	if reason != "" {
		refuse("%s", reason)
	}
	if !f.hasPort() {
		refuse("port.number %d is no port: write 1 to 65535", f.spec.Port.Number)
	}
	if f.spec.SessionPersistence != nil {
		if _, err := f.session(); err != nil {
			refuse("sessionPersistence: %v", err)
		}
	}
	out.readTLS(v, f)
	return out
}

// readTLS reads how to speak TLS with an XBackend.
func (x *destination) readTLS(v *view, f *xbackendFact) {
	tls := value(f.spec.TLS)
	switch tls.Mode {
	case "", gatewayxv1alpha1.BackendTLSModeNone:
		return
	case gatewayxv1alpha1.BackendTLSModeServerOnly, gatewayxv1alpha1.BackendTLSModeClientAndServer:
	default:
		x.problems = append(x.problems, accepted("Invalid", fmt.Sprintf("tls.mode %s is not supported: use None, ServerOnly or ClientAndServer", tls.Mode)))
		return
	}
	validation := value(tls.Validation)
	out, problems := readValidation(v, f.object.Namespace, &validation)
	out.Own = true
	x.tls, x.problems = out, append(x.problems, problems...)
	if tls.Mode == gatewayxv1alpha1.BackendTLSModeClientAndServer {
		x.show(v, f, tls.ClientCertificateRef)
	}
}

// show reads which certificate is shown to an XBackend. Whether it is there and well formed is its own record's matter; one that may not be referred to takes the XBackend with it.
func (x *destination) show(v *view, f *xbackendFact, ref *gatewayv1.SecretObjectReference) {
	if ref == nil {
		x.problems = append(x.problems, accepted("Invalid", "tls.mode ClientAndServer needs a certificate: name a Secret in tls.clientCertificateRef"))
		return
	}
	key, problem := resolveCertificate(v, f.object, *ref)
	if problem != nil {
		problem.Condition, problem.Message = "Accepted", "tls.clientCertificateRef: "+problem.Message
		x.problems = append(x.problems, *problem)
		return
	}
	x.tls.Client, x.tls.ClientKey = secretName(key), &key
}

// session is the session persistence of an XBackend that has some. A cookie without a name is called after it.
func (f *xbackendFact) session() (envoy.Session, error) {
	return readSession(f.spec.SessionPersistence, "fleetgate-"+record.Hash([]byte(record.Join(kindXBackend, f.object.Namespace, f.object.Name))))
}

// pods are those that an XBackend selects, nil = none; reason says why it can select none.
func (f *xbackendFact) pods() (pods *record.Pods, reason string) {
	if f.spec.EndpointSelector == nil || len(f.spec.EndpointSelector.MatchLabels) == 0 {
		return nil, "endpointSelector.matchLabels is empty, and all pods is nobody's wish: name a label"
	}
	if !f.hasPort() {
		return nil, ""
	}
	out := &record.Pods{Labels: map[string]string{}, Port: int32(f.spec.Port.Number)}
	for name, is := range f.spec.EndpointSelector.MatchLabels {
		out.Labels[string(name)] = string(is)
	}
	if _, err := labels.ValidatedSelectorFromSet(out.Labels); err != nil {
		return nil, fmt.Sprintf("endpointSelector.matchLabels is not valid (%v): correct it", err)
	}
	for _, consumer := range consumers {
		out.Backends = append(out.Backends, backendName(xbackendPrefix+f.object.Name, 0, consumer))
	}
	return out, ""
}

// checkExternalHost says why a name is none to send to from a proxy. What a name resolves to is not looked at: GEP-4894 trusts DNS, and asks for network policies.
func checkExternalHost(host string) (reason string) {
	if _, err := netip.ParseAddr(host); err == nil {
		return "is an IP address: name a host"
	}
	switch {
	case !preciseHostname(host):
		return "is no DNS name: correct it"
	case host == "cluster.local" || strings.HasSuffix(host, ".cluster.local"):
		return "is a name of this cluster: name a Service in routes"
	case host == "localhost" || strings.HasSuffix(host, ".localhost"):
		return "is the proxy itself, whose own ports are nobody's backend: name a host"
	}
	return ""
}

// compileXBackendPolicy makes the record of what an XBackend's status says, and of the pods that the leader has Kubernetes find for it.
func compileXBackendPolicy(v *view, namespace, name string) record.Policy {
	f := fact[xbackendFact](v, kindXBackend, namespace, name)
	out := record.Policy{Object: f.object, Services: []string{xbackendPrefix + name}}
	x := readXBackend(v, f)
	out.Problems, out.Pods = x.problems, x.pods
	if x.tls != nil {
		out.Secret = x.tls.ClientKey
	}
	if x.pods != nil && !v.c.cfg.SlicesFollow && len(v.podsOf(f)) == 0 {
		out.Problems = append(out.Problems, unresolved("NoEndpoints", fmt.Sprintf("nobody finds the pods of XBackend %s: a directory has no controller that does. Write an EndpointSlice with the label %s: %s, "+
			"or, for `fleetgate dev`, a Deployment whose pods have the labels of matchLabels; its name must fit into a label (63 characters)", name, v1alpha1.LabelXBackend, name)))
	}
	return out
}
