package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// kindXBackend is a backend that says itself how it is reached (GEP-4894).
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

// compileXBackend makes the Envoy cluster of an XBackend, Missing where there is none, or where it cannot be reached as it says.
func compileXBackend(v *view, k record.Key, name string) compiled {
	out := record.Backend{Name: record.ClusterName(k)}
	_, _, consumer, _ := splitBackend(k.Name)
	f := fact[xbackendFact](v, kindXBackend, k.Namespace, name)
	if f == nil {
		out.Missing = true
		return compiled{value: out}
	}
	tls, problems := readXBackend(v, f)
	if slices.ContainsFunc(problems, func(p record.Problem) bool { return p.Condition == "Accepted" }) {
		p := unresolved(string(gatewayv1.RouteReasonUnsupportedValue), fmt.Sprintf("XBackend %s/%s is not accepted: see its conditions", k.Namespace, name))
		out.Missing, out.Problem = true, &p
		return compiled{value: out}
	}
	protocol, reason := f.protocol(consumer, tls != nil)
	if reason != "" {
		p := unresolved(string(gatewayv1.RouteReasonUnsupportedProtocol), fmt.Sprintf("XBackend %s/%s %s", k.Namespace, name, reason))
		out.Missing, out.Problem = true, &p
		return compiled{value: out}
	}
	if out.TLS = tls; tls != nil {
		tls.Protocols = alpn[protocol]
	}
	cluster, err := envoy.HostCluster(out.Name, f.host(), uint32(f.spec.Port.Number), protocol)
	out.Bytes = mustBytes(limitRetries(v, k, cluster), err)
	return compiled{value: out}
}

var alpn = map[envoy.Protocol][]string{envoy.HTTP1: {"http/1.1"}, envoy.HTTP2: {"h2"}, envoy.Negotiated: {"h2", "http/1.1"}}

// protocol is the version of HTTP that an XBackend is spoken to in, for what refers to it; reason says why it cannot be.
func (f *xbackendFact) protocol(consumer string, tls bool) (protocol envoy.Protocol, reason string) {
	said := value(f.spec.Protocol)
	switch {
	case consumer == consumerTCP || consumer == consumerUDP:
		return 0, "is reached by HTTP alone: name it in an HTTPRoute or a GRPCRoute"
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

func (f *xbackendFact) host() string {
	if f.spec.ExternalHostname == nil {
		return ""
	}
	return strings.ToLower(string(f.spec.ExternalHostname.Hostname))
}

// readXBackend reads how to speak TLS with an XBackend, nil = not at all, and what is wrong with it: a problem of Accepted says that it cannot be used.
func readXBackend(v *view, f *xbackendFact) (*record.BackendTLS, []record.Problem) {
	refuse := func(format string, args ...any) []record.Problem {
		return []record.Problem{accepted("Invalid", fmt.Sprintf(format, args...))}
	}
	if f.spec.Type != gatewayxv1alpha1.BackendTypeExternalHostname {
		return nil, refuse("type %s, and with it sessionPersistence, is not supported: use type ExternalHostname, or name a Service in routes", f.spec.Type)
	}
	if reason := checkExternalHost(f.host()); reason != "" {
		return nil, refuse("externalHostname.hostname %q %s", f.host(), reason)
	}
	if n := f.spec.Port.Number; n < 1 || n > 65535 {
		return nil, refuse("port.number %d is no port: write 1 to 65535", n)
	}
	if said := value(f.spec.Protocol); said == gatewayxv1alpha1.BackendProtocolTCP {
		return nil, refuse("protocol %s is not supported: external hostnames are reached by HTTP", said)
	}
	tls := value(f.spec.TLS)
	switch tls.Mode {
	case "", gatewayxv1alpha1.BackendTLSModeNone:
		return nil, nil
	case gatewayxv1alpha1.BackendTLSModeServerOnly:
		validation := value(tls.Validation)
		return readValidation(v, f.object.Namespace, &validation)
	}
	return nil, refuse("tls.mode %s, and with it clientCertificateRef, is not supported: use ServerOnly, and spec.tls.backend of the Gateway for the certificate", tls.Mode)
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

// compileXBackendPolicy makes the record of what an XBackend's status says.
func compileXBackendPolicy(v *view, namespace, name string) record.Policy {
	f := fact[xbackendFact](v, kindXBackend, namespace, name)
	out := record.Policy{Object: f.object, Services: []string{xbackendPrefix + name}}
	_, out.Problems = readXBackend(v, f)
	return out
}
