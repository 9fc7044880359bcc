package translate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// A consumer is the part of a backend's name that covers what the referring side decides (D6): today only the protocol that a route's kind forces.
// It is readable, not hashed, because the owner of the backend's namespace learns it from the name alone.
const (
	consumerAuto = "auto" // by the Service port's appProtocol
	consumerH2   = "h2"   // HTTP/2 with prior knowledge: gRPC
	consumerTCP  = "tcp"  // a stream of bytes: the cluster is the listener's, made at assembly
	consumerUDP  = "udp"  // datagrams, likewise
)

var consumers = []string{consumerAuto, consumerH2, consumerTCP, consumerUDP}

// InvalidCluster is the name of no cluster: what routes name for a backend that cannot be used, and Envoy answers with 500. No cluster has it, since
// every name of one has slashes.
const InvalidCluster = "invalid"

// tlsProtocols are the appProtocols that mean TLS.
var tlsProtocols = []string{"https", "kubernetes.io/https", "kubernetes.io/wss"}

// h2Protocols are the appProtocols that mean HTTP/2 with prior knowledge.
var h2Protocols = []string{"kubernetes.io/h2c", "grpc"}

// socketProtocols are the appProtocols that mean WebSocket, over which gRPC cannot be sent.
var socketProtocols = []string{"kubernetes.io/ws", "kubernetes.io/wss"}

func backendName(service string, port int32, consumer string) string {
	return record.Join(service, strconv.Itoa(int(port)), consumer)
}

// splitBackend reads backendName; ok is false where another version wrote the name.
func splitBackend(name string) (service string, port int32, consumer string, ok bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 3 {
		return "", 0, "", false
	}
	n, err := strconv.ParseUint(parts[1], 10, 16)
	return parts[0], int32(n), parts[2], err == nil && slices.Contains(consumers, parts[2])
}

// serviceOfKey is the Service of a backend, or what stands in its place.
func serviceOfKey(k record.Key) string {
	service, _, _, _ := splitBackend(k.Name)
	return service
}

// backendObject names the object that a backend is made of.
func backendObject(k record.Key) input {
	service := serviceOfKey(k)
	if name, ok := strings.CutPrefix(service, xbackendPrefix); ok {
		return input{kindXBackend, k.Namespace, name}
	}
	return input{"Service", k.Namespace, service}
}

// authority is what the server of a backend is called in requests that nobody but a proxy makes: the host that an XBackend names, else a name in the cluster. What stands for a host
// must be one, for a server may close the connection where it is none, as Envoy does.
func authority(v *view, k record.Key) string {
	in := backendObject(k)
	if in.kind == kindXBackend {
		if f := fact[xbackendFact](v, kindXBackend, in.namespace, in.name); f != nil && f.external() {
			return f.host()
		}
	}
	return in.name + "." + in.namespace
}

// withEndpoints gives a backend's key with that of its endpoints, whichever of the two it is.
func withEndpoints(k record.Key) []record.Key {
	backend, endpoints := k, k
	switch k.Kind {
	case record.KindBackend:
		endpoints.Kind = record.KindEndpoints
	case record.KindEndpoints:
		backend.Kind = record.KindBackend
	default:
		return []record.Key{k}
	}
	return []record.Key{backend, endpoints}
}

// findPort gives the port that a backend's name means.
func findPort(v *view, k record.Key) (port servicePort, consumer string, ok bool) {
	service, number, consumer, ok := splitBackend(k.Name)
	if !ok {
		return servicePort{}, "", false
	}
	f := fact[serviceFact](v, "Service", k.Namespace, service)
	port, reason := f.port(number, consumer)
	return port, consumer, reason == ""
}

// port finds a port of the protocol that a consumer speaks; reason says why it cannot be used.
func (f *serviceFact) port(number int32, consumer string) (port servicePort, reason string) {
	protocol := "TCP"
	if consumer == consumerUDP {
		protocol = "UDP"
	}
	switch {
	case f == nil:
		return servicePort{}, "does not exist: create it, or name another"
	case f.external:
		return servicePort{}, "is of type ExternalName, which is not supported: use a Service with endpoints"
	case f.made: // GEP-4894: nobody is to rely on it
		return servicePort{}, "is made for an XBackend: name that"
	}
	i := slices.IndexFunc(f.ports, func(p servicePort) bool { return p.port == number && p.protocol == protocol })
	if i < 0 {
		return servicePort{}, fmt.Sprintf("has no %s port %d: name one that it has", protocol, number)
	}
	return f.ports[i], ""
}

// compileBackend makes the Envoy cluster of a (service, port, consumer), Missing where there is no such port.
func compileBackend(v *view, k record.Key) compiled {
	if in := backendObject(k); in.kind == kindXBackend {
		return compileXBackend(v, k, in.name)
	}
	out := record.Backend{Name: record.ClusterName(k)}
	port, consumer, ok := findPort(v, k)
	if !ok {
		out.Missing = true
		return compiled{value: out}
	}
	http2 := consumer == consumerH2 || slices.Contains(h2Protocols, port.app)
	if consumer != consumerUDP {
		out.TLS, out.Missing = backendTLS(v, k.Namespace, serviceOfKey(k), port)
	}
	refuse := func(why string) compiled {
		p := unresolved(string(gatewayv1.RouteReasonUnsupportedProtocol), fmt.Sprintf("port %d of Service %s/%s is said to speak %s, %s", port.port, k.Namespace, serviceOfKey(k), port.app, why))
		out.Missing, out.Problem = true, &p
		return compiled{value: out}
	}
	switch {
	case out.Missing || consumer == consumerUDP:
		return compiled{value: out}
	case consumer == consumerTCP:
		return compiled{value: out} // the cluster is the listener's
	case consumer == consumerH2 && slices.Contains(socketProtocols, port.app):
		return refuse("over which gRPC cannot be sent: correct its appProtocol, or name another port")
	case out.TLS == nil && slices.Contains(tlsProtocols, port.app):
		return refuse("and no BackendTLSPolicy says whom to trust: create one")
	case out.TLS != nil && http2:
		out.TLS.Protocols = []string{"h2"}
	case out.TLS != nil:
		out.TLS.Protocols = []string{"http/1.1"}
	}
	protocol := envoy.HTTP1
	if http2 {
		protocol = envoy.HTTP2
	}
	cluster, err := envoy.Cluster(out.Name, protocol)
	out.Bytes = mustBytes(limitRetries(v, k, cluster), err)
	return compiled{value: out}
}

// compileEndpoints makes the load assignment of a backend: empty where nothing is ready, and cut where it would not fit into a record. There is no record while the slices
// of the Service are still to come; one that is there already stays, since the store deletes nothing that a route names.
func compileEndpoints(v *view, k record.Key) compiled {
	if in := backendObject(k); in.kind == kindXBackend {
		return compileXEndpoints(v, k, in.name)
	}
	var endpoints []envoy.Endpoint
	if port, _, ok := findPort(v, k); ok {
		found := v.slices(k.Namespace, serviceOfKey(k))
		if len(found) == 0 && v.slicesFollow(k.Namespace, serviceOfKey(k)) {
			return compiled{}
		}
		for _, s := range found {
			endpoints = append(endpoints, s.endpoints(port)...)
		}
	}
	return compiled{value: endpointsRecord(k, endpoints)}
}

// endpointsRecord is the record of endpoints, of which those are left out that do not fit.
func endpointsRecord(k record.Key, endpoints []envoy.Endpoint) record.Endpoints {
	out := record.Endpoints{Name: record.ClusterName(k)}
	out.Bytes = mustBytes(envoy.LoadAssignment(out.Name, endpoints), nil)
	for all := len(endpoints); len(out.Bytes) > MaxPayload-4096; {
		endpoints = endpoints[:len(endpoints)*9/10]
		out.Bytes = mustBytes(envoy.LoadAssignment(out.Name, endpoints), nil)
		out.Problem = &record.Problem{
			Condition: "ResolvedRefs", Reason: "UnsupportedValue", Rule: -1,
			Message: fmt.Sprintf("only %d of %d endpoints fit into a record of %d bytes: split the Service", len(endpoints), all, MaxPayload),
		}
	}
	return out
}

// endpoints are those of a slice for a port of its Service: the two have the port's name in common, and the slice knows the target's number.
func (s *sliceFact) endpoints(port servicePort) []envoy.Endpoint {
	var out []envoy.Endpoint
	for _, p := range s.ports {
		if p.name != port.name || p.protocol != port.protocol {
			continue
		}
		for _, a := range s.addresses {
			out = append(out, envoy.Endpoint{Address: a, Port: uint32(p.port)})
		}
	}
	return out
}

// mustBytes marshals a message that no user's value can make invalid; if one does, the panic guard quarantines the object.
func mustBytes(m proto.Message, err error) []byte {
	if err == nil {
		var b []byte
		if b, err = envoy.Marshal(m); err == nil {
			return b
		}
	}
	panic(err)
}

// resolveBackend checks a reference to a backend. The order matters: a reference that is not permitted tells nothing about what is there.
func resolveBackend(v *view, from record.Object, ref gatewayv1.BackendObjectReference, consumer string) (record.Key, *record.Problem) {
	if value(ref.Group) == gatewayxv1alpha1.GroupName && value(ref.Kind) == kindXBackend {
		return resolveXBackend(v, from, ref, consumer)
	}
	if (ref.Group != nil && *ref.Group != "") || (ref.Kind != nil && *ref.Kind != "Service") {
		p := unresolved("InvalidKind", fmt.Sprintf("backend %s is no core Service and no XBackend: only these are supported", ref.Name))
		return record.Key{}, &p
	}
	namespace := from.Namespace
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	name := string(ref.Name)
	if !v.granted(from.Kind, from.Namespace, "Service", namespace, name) {
		p := unresolved("RefNotPermitted", fmt.Sprintf("no ReferenceGrant in namespace %s allows %ss of %s to use Service %s: create one", namespace, from.Kind, from.Namespace, name))
		return record.Key{}, &p
	}
	var number int32
	if ref.Port != nil {
		number = int32(*ref.Port)
	}
	if _, reason := fact[serviceFact](v, "Service", namespace, name).port(number, consumer); reason != "" {
		p := unresolved("BackendNotFound", fmt.Sprintf("Service %s/%s %s", namespace, name, reason))
		return record.Key{}, &p
	}
	return v.key(record.KindBackend, namespace, backendName(name, number, consumer)), nil
}
