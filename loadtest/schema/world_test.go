package schema

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
)

const controller = "fleetgate.io/gatewayclass-controller"

// world is one member cluster: what is in it, compiled and assembled as it changes.
type world struct {
	compiler *translate.Compiler
	state    *assemble.State
	objects  map[string]translate.Object // by kind namespace/name
	index    uint64
}

func newWorld() *world {
	return &world{
		compiler: translate.New(translate.Config{
			Cluster:         "c1",
			ControllerNames: []string{controller},
			Owns:            func(string) bool { return true },
			Seal:            func(plain, _ []byte) ([]byte, error) { return plain, nil }, // so that Envoy can be shown what a replica would open
			Version:         record.Hash,
		}),
		state:   assemble.New(assemble.Config{ControllerNames: []string{controller}}),
		objects: map[string]translate.Object{},
	}
}

// event makes an event of an object; gone says that it is deleted.
func event(kind string, o translate.Object, gone bool) translate.Event {
	e := translate.Event{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
	if !gone {
		e.Object = o
	}
	return e
}

// apply compiles and assembles what changed. A panic comes back as an error, a quarantined object too: the compiler survives its own mistakes, but they are mistakes.
func (w *world) apply(events ...translate.Event) (delta assemble.Delta, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	for _, e := range events {
		id := e.Kind + " " + e.Namespace + "/" + e.Name
		delete(w.objects, id)
		if e.Object != nil {
			w.objects[id] = e.Object
		}
	}
	out := w.compiler.Apply(events)
	if len(out.Quarantined) > 0 {
		return delta, fmt.Errorf("the compiler panics: %v", out.Quarantined)
	}
	w.index++
	var changes []assemble.Change
	for _, p := range out.Puts {
		changes = append(changes, assemble.Change{Key: p.Key, Cur: &assemble.Content{Hash: record.Hash(p.Payload), Payload: p.Payload, Refs: p.Refs, Index: w.index}})
	}
	for _, k := range out.Deletes {
		changes = append(changes, assemble.Change{Key: k})
	}
	return w.state.Apply(changes), nil
}

// dump prints a world's objects for a person.
func (w *world) dump() string {
	var out strings.Builder
	for _, id := range slices.Sorted(maps.Keys(w.objects)) {
		fmt.Fprintf(&out, "--- # %s\n%s", id, toYAML(w.objects[id]))
	}
	return out.String()
}

func toYAML(v any) string {
	b, err := yaml.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// resources opens the types of resources. Secrets are plain here.
var resources = map[assemble.ResourceType]func() proto.Message{
	assemble.TypeCluster:   func() proto.Message { return &clusterv3.Cluster{} },
	assemble.TypeEndpoints: func() proto.Message { return &endpointv3.ClusterLoadAssignment{} },
	assemble.TypeListener:  func() proto.Message { return &listenerv3.Listener{} },
	assemble.TypeRoute:     func() proto.Message { return &routev3.RouteConfiguration{} },
	assemble.TypeSecret:    func() proto.Message { return &tlsv3.Secret{} },
}

func open(r assemble.Resource) (proto.Message, error) {
	m := resources[r.Type]()
	if err := proto.Unmarshal(slices.Concat(r.Bytes...), m); err != nil {
		return nil, fmt.Errorf("%T %s: %w", m, r.Name, err)
	}
	return m, nil
}

// check holds all resources of a delta against the protos' own rules.
func (o *outcome) check(delta assemble.Delta) error {
	for _, f := range delta.Fleets {
		for _, r := range f.Resources {
			if len(r.Bytes) == 0 {
				continue
			}
			o.resources++
			m, err := open(r)
			if err == nil {
				err = validate(m)
			}
			if err != nil {
				return fmt.Errorf("fleet %s: resource %s: %w", f.Fleet, r.Name, err)
			}
		}
	}
	return nil
}

// validate holds a message and all that is packed into it against their rules.
func validate(m proto.Message) error {
	if err := rules(m); err != nil {
		return err
	}
	return protorange.Range(m.ProtoReflect(), func(v protopath.Values) error {
		if last := v.Index(-1); last.Step.Kind() == protopath.AnyExpandStep {
			return rules(last.Value.Message().Interface())
		}
		return nil
	})
}

func rules(m proto.Message) error {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		return v.ValidateAll()
	}
	return nil
}

// certificate is a key with its certificate.
type certificate struct{ chain, key []byte }

// certificates are some that Envoy takes and some that it does not. An authority signs none of them.
var certificates = sync.OnceValue(func() map[string]certificate {
	curve, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // crypto/rand never fails
	large, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	small, _ := rsa.GenerateKey(rand.Reader, 2048)
	_, edwards, _ := ed25519.GenerateKey(rand.Reader)
	out := map[string]certificate{"ecdsa": signed(curve, "example.com"), "p384": signed(large, "*.example.com"), "rsa": signed(small, "a.example.com", "b.test"), "ed25519": signed(edwards, "x.test")}
	out["mixed"] = certificate{out["ecdsa"].chain, out["rsa"].key}
	out["chain"] = certificate{append(slices.Clone(out["ecdsa"].chain), out["rsa"].chain...), out["ecdsa"].key}
	out["junk"] = certificate{[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []byte("x")}
	return out
})

func signed(key crypto.Signer, names ...string) certificate {
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotAfter: time.Unix(1<<33, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		panic(err) // a mistake in this test
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err) // a mistake in this test
	}
	return certificate{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})}
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Generation: 1, CreationTimestamp: metav1.Unix(1_700_000_000, 0)}
}

func tlsSecret(namespace, name, certificate string) *corev1.Secret {
	c := certificates()[certificate]
	return &corev1.Secret{ObjectMeta: meta(namespace, name), Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": c.chain, "tls.key": c.key}}
}

// furnish gives what every world starts with: namespaces, a class, Services with endpoints, certificates, and Gateways with a listener of each protocol.
func furnish() []translate.Event {
	out := []translate.Event{event("GatewayClass", &gatewayv1.GatewayClass{ObjectMeta: meta("", "ours"), Spec: gatewayv1.GatewayClassSpec{ControllerName: controller}}, false)}
	for i, ns := range namespaces {
		namespace := &corev1.Namespace{ObjectMeta: meta("", ns)}
		namespace.Labels = map[string]string{"kubernetes.io/metadata.name": ns, "team": namespaces[len(namespaces)-1-i]} // what selects one by the one label selects another by the other
		authority := &corev1.ConfigMap{ObjectMeta: meta(ns, "authority"), Data: map[string]string{"ca.crt": string(certificates()["ecdsa"].chain)}}
		out = append(out, event("Namespace", namespace, false), event("ConfigMap", authority, false),
			event("Secret", tlsSecret(ns, "ecdsa", "ecdsa"), false), event("Secret", tlsSecret(ns, "rsa", "rsa"), false), event("Secret", tlsSecret(ns, "other", "p384"), false))
		out = append(out, event("EnvoyFleet", &v1alpha1.EnvoyFleet{ObjectMeta: meta(ns, fleets[0])}, false),
			event("Gateway", gateway(ns, gateways[0]), false), event("Gateway", parametrized(gateway(ns, gateways[1])), false))
		for i, name := range []string{"web", "api", "grpc"} {
			service := &corev1.Service{ObjectMeta: meta(ns, name)}
			service.Spec.Ports = servicePorts()
			out = append(out, event("Service", service, false), event("EndpointSlice", slice(ns, name, fmt.Sprintf("10.0.0.%d", i+1)), false))
		}
	}
	return out
}

func gateway(namespace, name string) *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{ObjectMeta: meta(namespace, name)}
	g.Spec.GatewayClassName = "ours"
	for i, at := range []struct {
		protocol gatewayv1.ProtocolType
		port     gatewayv1.PortNumber
	}{{"HTTP", 80}, {"HTTPS", 443}, {"TLS", 8080}, {"TCP", 9000}, {"UDP", 53}} {
		l := gatewayv1.Listener{Name: gatewayv1.SectionName(listeners[i]), Port: at.port, Protocol: at.protocol}
		l.AllowedRoutes = &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: new(gatewayv1.NamespacesFromAll)}}
		mode := map[gatewayv1.ProtocolType]gatewayv1.TLSModeType{gatewayv1.HTTPSProtocolType: gatewayv1.TLSModeTerminate, gatewayv1.TLSProtocolType: gatewayv1.TLSModePassthrough}[at.protocol]
		if mode != "" { // with Passthrough the certificate is for the other mode, which the walk tries
			l.TLS = &gatewayv1.ListenerTLSConfig{Mode: &mode, CertificateRefs: []gatewayv1.SecretObjectReference{{Name: "ecdsa", Kind: new(gatewayv1.Kind("Secret")), Group: new(gatewayv1.Group(""))}}}
		}
		g.Spec.Listeners = append(g.Spec.Listeners, l)
	}
	g.Spec.AllowedListeners = &gatewayv1.AllowedListeners{Namespaces: &gatewayv1.ListenerNamespaces{From: new(gatewayv1.NamespacesFromAll)}}
	return g
}

// parametrized gives a Gateway parameters.
func parametrized(g *gatewayv1.Gateway) *gatewayv1.Gateway {
	g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{Group: v1alpha1.Group, Kind: v1alpha1.Kind, Name: fleets[0]}}
	return g
}

func servicePorts() []corev1.ServicePort {
	var out []corev1.ServicePort
	for _, port := range ports[:4] {
		p := corev1.ServicePort{Name: fmt.Sprint("p", port), Port: int32(port), Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(9000)}
		if port == 53 {
			p.Protocol = corev1.ProtocolUDP
		}
		out = append(out, p)
	}
	return out
}

func slice(namespace, service, address string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta(namespace, service+"-1"), AddressType: discoveryv1.AddressTypeIPv4}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	for _, port := range ports[:4] {
		p := discoveryv1.EndpointPort{Name: new(fmt.Sprint("p", port)), Port: new(int32(9000)), Protocol: new(corev1.ProtocolTCP)}
		if port == 53 {
			p.Protocol = new(corev1.ProtocolUDP)
		}
		s.Ports = append(s.Ports, p)
	}
	s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{address}}}
	return s
}

// kindShares says how often a kind is generated.
var kindShares = map[string]int{"HTTPRoute": 30, "GRPCRoute": 10, "Gateway": 15, "ListenerSet": 8, "TLSRoute": 6, "TCPRoute": 4, "UDPRoute": 4, "BackendTLSPolicy": 6, "XBackend": 3, "XBackendTrafficPolicy": 3, "XTelemetryPolicy": 2, "ReferenceGrant": 5, "EnvoyFleet": 3,
	"GatewayClass": 1, "Service": 4, "EndpointSlice": 4, "Secret": 3, "ConfigMap": 2, "Namespace": 1}

var kindDraw = sync.OnceValue(func() (out []string) {
	for _, k := range slices.Sorted(maps.Keys(kindShares)) {
		out = append(out, slices.Repeat([]string{k}, kindShares[k])...)
	}
	return out
})

// names are those that objects of a kind may have: few, so that objects meet each other, and replace what was there.
var names = map[string][]string{"Gateway": gateways, "ListenerSet": listenerSets, "GatewayClass": {"theirs", "second"}, "Service": services, "EndpointSlice": services, "Secret": secrets, "ConfigMap": configMaps, "EnvoyFleet": fleets, "XBackend": {"api", "pods", "inside"}}

// next gives the next valid object, of any kind.
func (g generator) next(c channel, all map[string][]map[string]any, n tallies) translate.Event {
	for {
		kind := pick(g, kindDraw())
		d := c[kind]
		if d == nil && typed[kind] != nil {
			continue // not of this channel
		}
		if d == nil {
			return event(kind, g.plain(kind), g.chance(3))
		}
		t := n.of(kind)
		t.tried++
		o, spec, err := g.candidate(d, all[kind])
		if bad := (unreadable{}); errors.As(err, &bad) && t.unreadable == nil {
			t.unreadable = fmt.Errorf("an API server takes this %s, and it cannot be read: %w\n%s", kind, err, toYAML(spec))
		}
		if err != nil {
			continue
		}
		schema := d.structural.Properties["spec"]
		t.note(&schema, spec)
		gone := g.chance(3)
		if !gone {
			t.applied++
		}
		return event(kind, o, gone)
	}
}

// candidate makes one object of a kind with a CRD, with the spec as it was before defaults were set; an error where the API server would refuse it.
func (g generator) candidate(d *definition, seeds []map[string]any) (translate.Object, map[string]any, error) {
	name := pick(g, []string{"r0", "r1", "r2", "r3"})
	if from := names[d.kind]; from != nil {
		name = pick(g, from)
	}
	metadata := map[string]any{"name": name}
	if d.kind != "GatewayClass" {
		metadata["namespace"] = pick(g, namespaces)
	}
	spec := g.spec(d, seeds)
	o, err := pick(g, d.versions).admit(map[string]any{"metadata": metadata, "spec": runtime.DeepCopyJSON(spec)})
	if err != nil {
		return nil, spec, err
	}
	o.SetGeneration(1)
	o.SetCreationTimestamp(metav1.Unix(1_700_000_000+g.Int64N(3), 0))
	return o, spec, nil
}

// plain makes an object of a built-in kind.
func (g generator) plain(kind string) translate.Object {
	ns := pick(g, namespaces)
	switch kind {
	case "Service":
		return g.service(ns)
	case "EndpointSlice":
		return g.slice(ns)
	case "Secret":
		s := tlsSecret(ns, pick(g, secrets), pick(g, slices.Sorted(maps.Keys(certificates()))))
		s.Type = pick(g, []corev1.SecretType{corev1.SecretTypeTLS, corev1.SecretTypeTLS, corev1.SecretTypeOpaque})
		return s
	case "ConfigMap":
		m := &corev1.ConfigMap{ObjectMeta: meta(ns, pick(g, configMaps)), Data: map[string]string{}}
		for range g.IntN(3) {
			m.Data["ca.crt"] += string(certificates()[pick(g, slices.Sorted(maps.Keys(certificates())))].chain)
		}
		return m
	}
	n := &corev1.Namespace{ObjectMeta: meta("", ns)}
	n.Labels = map[string]string{"kubernetes.io/metadata.name": ns, "team": pick(g, namespaces)}
	return n
}

func (g generator) service(ns string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: meta(ns, pick(g, services))}
	s.Spec.Type = corev1.ServiceTypeClusterIP
	if g.chance(20) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, pick(g, []string{"example.com", "10.0.0.1", "web.example.com", "a_b.example", strings.Repeat("a", 63) + ".test"})
	}
	s.Spec.Ports = servicePorts()
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if g.chance(10) {
			p.Port, p.Protocol = int32(pick(g, ports)), pick(g, []corev1.Protocol{"TCP", "UDP", "SCTP"})
		}
		if g.chance(50) {
			p.AppProtocol = new(pick(g, []string{"http", "https", "kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss", "grpc", "tcp", "tls", "example.org/odd", ""}))
		}
	}
	return s
}

func (g generator) slice(ns string) *discoveryv1.EndpointSlice {
	service := pick(g, services)
	s := slice(ns, service, "10.0.0.9")
	s.Name += pick(g, []string{"", "-b", "-c"})
	if g.chance(20) {
		s.Labels[v1alpha1.LabelXBackend] = pick(g, names["XBackend"])
	}
	s.AddressType = pick(g, []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN})
	address := map[discoveryv1.AddressType][]string{
		discoveryv1.AddressTypeIPv4: {"10.0.0.1", "10.0.0.2", "192.168.1.255", "100.64.0.1"}, discoveryv1.AddressTypeIPv6: {"2001:db8::1", "fd00::2", "::ffff:10.0.0.1"}, discoveryv1.AddressTypeFQDN: {"example.com", "a.example.com"},
	}[s.AddressType]
	s.Endpoints = nil
	for range g.IntN(4) {
		e := discoveryv1.Endpoint{Addresses: []string{pick(g, address)}}
		if g.chance(30) {
			e.Conditions.Ready = new(g.chance(50))
			e.Conditions.Serving, e.Conditions.Terminating = new(g.chance(50)), new(g.chance(50))
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	for i := range s.Ports {
		switch g.IntN(8) {
		case 0:
			s.Ports[i].Port = nil
		case 1:
			s.Ports[i].Name = new("")
		case 2:
			s.Ports[i].Name = new(fmt.Sprint("n", i))
		}
	}
	return s
}

func generatorOf(seed, stream uint64) generator {
	return generator{Rand: mathrand.New(mathrand.NewPCG(seed, stream))}
}
