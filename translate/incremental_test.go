package translate

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/translate/record"
)

var sequences = flag.Int("sequences", 1500, "random sequences of 20 edits in TestIncrementalEqualsFull; fewer do not reach every outcome that it wants to see")

// TestIncrementalEqualsFull edits a small world at random, in every kind and field that is read, and holds the incremental compiler against a new one
// that sees only the final state, and the sum of its outputs against what it says it has.
func TestIncrementalEqualsFull(t *testing.T) {
	n := *sequences
	if raced {
		n /= 5
	}
	seen := map[string]int{}
	for seed := range n {
		w := newWorld(t, uint64(seed))
		for range 20 {
			w.edit()
			if w.r.IntN(5) == 0 {
				w.compare(seed)
			}
		}
		w.compare(seed)
		if t.Failed() {
			return
		}
		note(t, seen, w.records)
	}
	for _, want := range reached {
		if seen[want] == 0 && n >= *sequences {
			t.Errorf("no sequence made %q: the edits do not reach what they should", want)
		}
	}
}

// reached is what random edits must have produced, each at least once; it is searched in the readable form of the records.
var reached = []string{
	"class ", "namespace ", "gateway ", "route ", "backend ", "endpoints ", "secret ", "Sealed:", "Missing: true", "Variants:", "refs:",
	"BackendNotFound", "RefNotPermitted", "InvalidKind", "UnsupportedValue", "IncompatibleFilters", "InvalidCertificateRef", "InvalidRouteKinds",
	"UnsupportedProtocol", "UnsupportedAddress", "InvalidParameters", "Pending",
	"pathSeparatedPrefix:", "path: /a", "safeRegex:", "queryParameters:", "regexRewrite:", "hostRewriteLiteral:", "redirect:", "portRedirect:", "requestMirrorPolicies:",
	"-preflight", "retryPolicy:", "retriableStatusCodes:", "grpc: {}", "weightedClusters:", "name: invalid", "directResponse:", "http2ProtocolOptions:", "httpProtocolOptions:",
	"requestHeadersToAdd:", "responseHeadersToAdd:", "requestHeadersToRemove:", "timeout: 10s", "portValue:", "Selector: ", "SectionName:", "Hostnames:",
	"sessionPersistence: ", "stateful_session", "ext_authz", "trust ", "policy ", "ServerName:", "NoValidCACertificate", "Conflicted", "TargetNotFound", "UnsupportedProtocol", "Stream:", "Passthrough: true", "/80/tcp", "/80/udp", "a second rule", "listenerset ", "InvalidCACertificateRef", "InvalidCACertificateKind", "InvalidClientCertificateRef", "ClientKey:", "AllowedListeners:",
	"InvalidListenerFilter\n", "InvalidListenerFilterRef", "filters.requests[1]", "Run:", "ExternalName", "filter ExternalAuth: ", "Scope: All", "is not valid: use a DNS name", "program", "missing closing",
	"/XBackend:v1/0/auto", "/XBackend:v1/0/tcp", "Named: true", "Own: true", "Client: c1/", "Pods:", "NoEndpoints", "needs endpoints", "needs a certificate", "is empty, and all pods", "a route of streams cannot see to", "protocol TCP", "STRICT_DNS", "is the proxy itself", "is not accepted", "has no spec.trustBundle", "Tracing:", "is no share", "attributeKey weather", "retryBudget:", "is no rate", "is no percentage", "of an XBackendTrafficPolicy is deprecated",
}

func note(t *testing.T, seen map[string]int, records map[record.Key]Put) {
	if len(seen) >= len(reached) {
		return
	}
	text := render(t, records, "records")
	for _, want := range reached {
		if strings.Contains(text, want) {
			seen[want]++
		}
	}
}

// world is the objects as they are, the compiler that saw every change, and the records that its outputs add up to.
type world struct {
	t          *testing.T
	r          *rand.Rand
	cfg        Config
	c          *Compiler
	objects    map[input]Object
	referenced []record.Key
	records    map[record.Key]Put
	version    int
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, r: rand.New(rand.NewPCG(seed, 1)), cfg: testConfig(), objects: map[input]Object{}, records: map[record.Key]Put{}}
	if seed%2 == 0 {
		w.cfg.Owns = func(ns string) bool { return ns != "b" }
	}
	w.c = New(w.cfg)
	for range 15 {
		w.edit()
	}
	return w
}

// edit changes one to three things at once.
func (w *world) edit() {
	if w.r.IntN(12) == 0 {
		w.refer()
		return
	}
	var events []Event
	for range 1 + w.r.IntN(3) {
		events = append(events, w.change())
	}
	w.take(w.c.Apply(events))
}

func (w *world) change() Event {
	kind := pick(w.r, "EnvoyFleet", "GatewayClass", "Gateway", "Gateway", "HTTPRoute", "HTTPRoute", "HTTPRoute", "HTTPRoute", "HTTPRoute", "HTTPRoute", "HTTPRoute", "HTTPRoute", "HTTPRoute", "HTTPRoute", "HTTPRoute", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "Namespace", "ListenerSet", "ConfigMap", "ClusterTrustBundle", "BackendTLSPolicy", "XBackend", "XBackend", "XBackendTrafficPolicy", "XTelemetryPolicy", "Service", "Service", "EndpointSlice", "EndpointSlice", "Secret", "ReferenceGrant")
	o := w.make(kind)
	e := eventOf(kind, o)
	in := input{kind, e.Namespace, e.Name}
	old := w.objects[in]
	switch w.r.IntN(5) {
	case 0:
		e.Object = nil
		delete(w.objects, in)
		return e
	case 1: // the same again, but for what nobody reads
		if old != nil {
			w.version++
			same := old.DeepCopyObject().(Object)
			same.SetResourceVersion(fmt.Sprint(w.version))
			same.SetAnnotations(map[string]string{"seen": fmt.Sprint(w.version)})
			e.Object = same
		}
	}
	w.objects[in] = e.Object
	return e
}

func (w *world) refer() {
	w.referenced = nil
	for range w.r.IntN(4) {
		k := record.Key{Cluster: pick(w.r, "c1", "c1", "c2"), Namespace: pick(w.r, "a", "b"), Kind: record.KindSecret, Name: pick(w.r, "s1", "s2")}
		if w.r.IntN(2) == 0 {
			k.Kind = pick(w.r, record.KindBackend, record.KindEndpoints)
			k.Name = pick(w.r, "v1/80/auto", "v2/80/h2", "v1/90/auto", "v1/x/auto", "strange", "v1/80/tls", "v2/80/udp")
		}
		w.referenced = append(w.referenced, k)
	}
	w.take(w.c.Referenced(w.referenced))
}

// take adds an output to the records, and checks that it holds only what differs.
func (w *world) take(out Output) {
	for _, p := range out.Puts {
		if old, ok := w.records[p.Key]; ok && record.Equal(old.Payload, p.Payload) && slices.Equal(old.Refs, p.Refs) {
			w.t.Errorf("put of %v, which did not change", p.Key)
		}
		w.records[p.Key] = p
	}
	for _, k := range out.Deletes {
		if _, ok := w.records[k]; !ok {
			w.t.Errorf("delete of %v, which was not there", k)
		}
		delete(w.records, k)
	}
	if !slices.IsSortedFunc(out.Puts, func(a, b Put) int { return a.Key.Compare(b.Key) }) || len(out.Quarantined) > 0 {
		w.t.Errorf("unsorted, or quarantined %v", out.Quarantined)
	}
}

func (w *world) compare(seed int) {
	var events []Event
	for in, o := range w.objects {
		events = append(events, Event{Kind: in.kind, Namespace: in.namespace, Name: in.name, Object: o})
	}
	full := New(w.cfg)
	full.Referenced(w.referenced)
	full.Apply(events)
	got := w.c.Records()
	if want := full.Records(); !maps.EqualFunc(got, want, samePut) {
		w.t.Errorf("sequence %d: incremental differs from full (-full +incremental):\n%s", seed, cmp.Diff(want, got))
	}
	if !maps.EqualFunc(got, w.records, samePut) {
		w.t.Errorf("sequence %d: outputs do not add up (-outputs +records):\n%s", seed, cmp.Diff(w.records, got))
	}
	if a, b := full.size(), w.c.size(); a != b {
		w.t.Errorf("sequence %d: leak: incremental holds %v, full %v", seed, b, a)
	}
}

func samePut(a, b Put) bool {
	return a.Key == b.Key && record.Equal(a.Payload, b.Payload) && slices.Equal(a.Refs, b.Refs)
}

// size counts everything that a compiler holds.
func (c *Compiler) size() [7]int {
	readers, sets := 0, 0
	for _, r := range c.readers {
		readers += len(r)
	}
	for _, s := range c.sets {
		sets += len(s)
	}
	return [7]int{len(c.facts), sets, len(c.sliceService), len(c.results), readers, len(c.wanted), len(c.referenced)}
}

func pick[T any](r *rand.Rand, options ...T) T { return options[r.IntN(len(options))] }

func maybe[T any](r *rand.Rand, options ...T) *T {
	if r.IntN(2) == 0 {
		return nil
	}
	return new(pick(r, options...))
}

func some[T any](r *rand.Rand, most int, one func() T) []T {
	var out []T
	for range r.IntN(most + 1) {
		out = append(out, one())
	}
	return out
}

// make gives an object of a kind, all of its read fields at random.
func (w *world) make(kind string) Object {
	o := kinds[kind]()
	r := w.r
	o.SetName(pick(r, "x", "y"))
	o.SetNamespace(pick(r, "a", "b"))
	o.SetUID(types.UID(pick(r, "1", "2")))
	o.SetGeneration(int64(r.IntN(3)))
	o.SetCreationTimestamp(metav1.NewTime(time.Unix(int64(1_700_000_000+r.IntN(2)), 0)))
	switch o := o.(type) {
	case *gatewayv1.GatewayClass:
		o.Namespace = ""
		o.Spec.ControllerName = gatewayv1.GatewayController(pick(r, "fleetgate.io/gatewayclass-controller", "fleetgate.io/gatewayclass-controller", "example.com/other"))
		o.Spec.ParametersRef = maybe(r, gatewayv1.ParametersReference{}, gatewayv1.ParametersReference{Group: v1alpha1.Group, Kind: v1alpha1.Kind, Name: "x", Namespace: new(pick[gatewayv1.Namespace](r, "a", "b"))})
	case *v1alpha1.EnvoyFleet:
		o.Spec = v1alpha1.EnvoyFleetSpec{Replicas: maybe[int32](r, 1, 2), Kind: maybe(r, v1alpha1.KindDaemonSet), AccessLog: maybe(r, v1alpha1.AccessLog{Type: v1alpha1.AccessLogJSON})}
	case *corev1.Namespace:
		o.Name, o.Namespace = o.Namespace, ""
		o.Labels = map[string]string{"l": pick(r, "1", "2")}
	case *gatewayv1.Gateway:
		w.gateway(o)
	case *gatewayv1.ListenerSet:
		o.Spec.ParentRef = gatewayv1.ParentGatewayReference{Name: pick[gatewayv1.ObjectName](r, "x", "y"), Namespace: maybe[gatewayv1.Namespace](r, "a", "b"), Kind: maybe[gatewayv1.Kind](r, "Gateway", "Gateway", "Service")}
		o.Spec.Listeners = some(r, 2, func() gatewayv1.ListenerEntry { return gatewayv1.ListenerEntry(w.listener()) })
	case *gatewayv1.BackendTLSPolicy:
		o.Spec.TargetRefs = some(r, 2, func() gatewayv1.LocalPolicyTargetReferenceWithSectionName {
			return gatewayv1.LocalPolicyTargetReferenceWithSectionName{SectionName: maybe[gatewayv1.SectionName](r, "p"),
				LocalPolicyTargetReference: gatewayv1.LocalPolicyTargetReference{Kind: pick[gatewayv1.Kind](r, "Service", "Service", "Bucket"), Name: pick[gatewayv1.ObjectName](r, "v1", "v2")}}
		})
		o.Spec.Validation = gatewayv1.BackendTLSPolicyValidation{
			Hostname: pick[gatewayv1.PreciseHostname](r, "s.example", "s.example", "*"), WellKnownCACertificates: maybe(r, gatewayv1.WellKnownCACertificatesSystem, "Other"),
			CACertificateRefs: some(r, 2, func() gatewayv1.LocalObjectReference {
				name := pick[gatewayv1.ObjectName](r, "ca1", "ca2")
				return pick(r, gatewayv1.LocalObjectReference{Kind: "ConfigMap", Name: name}, gatewayv1.LocalObjectReference{Kind: "Secret", Name: name}, gatewayv1.LocalObjectReference{Group: "certificates.k8s.io", Kind: kindTrustBundle, Name: name})
			}),
			SubjectAltNames: some(r, 1, func() gatewayv1.SubjectAltName {
				return gatewayv1.SubjectAltName{Type: pick[gatewayv1.SubjectAltNameType](r, "Hostname", "URI", "IP"), Hostname: "x.example"}
			}),
		}
	case *gatewayxv1alpha1.XBackend:
		o.Name = pick(r, "v1", "v2")
		o.Spec = gatewayxv1alpha1.BackendSpec{Type: pick(r, gatewayxv1alpha1.BackendTypeExternalHostname, gatewayxv1alpha1.BackendTypeEndpointSelector), Protocol: maybe(r, gatewayxv1alpha1.BackendProtocolHTTP, gatewayxv1alpha1.BackendProtocolHTTP, gatewayxv1alpha1.BackendProtocolHTTP11, gatewayxv1alpha1.BackendProtocolGRPC, gatewayxv1alpha1.BackendProtocolTCP, gatewayxv1alpha1.BackendProtocolTCP),
			Port: gatewayxv1alpha1.BackendPort{Number: pick[gatewayxv1alpha1.PortNumber](r, 80, 443)}, ExternalHostname: &gatewayxv1alpha1.ExternalHostnameBackend{Hostname: pick[gatewayv1.PreciseHostname](r, "a.example", "a.example", "a.example", "a.localhost", "10.0.0.1")}}
		if r.IntN(2) == 0 {
			o.Spec.TLS = &gatewayxv1alpha1.BackendTLS{Mode: pick(r, gatewayxv1alpha1.BackendTLSModeServerOnly, gatewayxv1alpha1.BackendTLSModeServerOnly, gatewayxv1alpha1.BackendTLSModeClientAndServer),
				ClientCertificateRef: maybe(r, gatewayv1.SecretObjectReference{Name: pick[gatewayv1.ObjectName](r, "s1", "s2"), Namespace: maybe[gatewayv1.Namespace](r, "a", "b"), Kind: maybe[gatewayv1.Kind](r, "Secret", "Secret", "Bucket")}),
				Validation: pick(r, &gatewayv1.BackendTLSPolicyValidation{Hostname: "s.example", WellKnownCACertificates: new(gatewayv1.WellKnownCACertificatesSystem)},
					&gatewayv1.BackendTLSPolicyValidation{Hostname: "s.example", CACertificateRefs: []gatewayv1.LocalObjectReference{{Kind: "ConfigMap", Name: pick[gatewayv1.ObjectName](r, "ca1", "ca2")}}})}
		}
		if o.Spec.Type == gatewayxv1alpha1.BackendTypeEndpointSelector {
			o.Spec.ExternalHostname, o.Spec.EndpointSelector = nil, &gatewayxv1alpha1.EndpointSelectorBackend{}
			o.Spec.EndpointSelector.MatchLabels = pick(r, map[gatewayv1.LabelKey]gatewayv1.LabelValue{"app": "a"}, map[gatewayv1.LabelKey]gatewayv1.LabelValue{"app": "a"}, map[gatewayv1.LabelKey]gatewayv1.LabelValue{"app": "-"}, nil)
		}
		if r.IntN(4) == 0 {
			o.Spec.SessionPersistence = maybe(r, gatewayv1.SessionPersistence{Cookie: &gatewayv1.CookieConfig{Name: maybe[gatewayv1.CookieName](r, "sid")}}, gatewayv1.SessionPersistence{AbsoluteTimeout: new(gatewayv1.Duration("1h"))})
		}
	case *gatewayxv1alpha1.XBackendTrafficPolicy:
		w.traffic(o)
	case *gatewayxv1alpha1.XTelemetryPolicy:
		w.tracing(&o.Spec.Tracing)
		o.Spec.TargetRefs = some(r, 2, func() gatewayv1.LocalObjectReference {
			return gatewayv1.LocalObjectReference{Group: gatewayv1.GroupName, Kind: pick[gatewayv1.Kind](r, "Gateway", "Gateway", "Service"), Name: pick[gatewayv1.ObjectName](r, "x", "y")}
		})
	case *certificatesv1.ClusterTrustBundle:
		o.Name, o.Namespace = pick(r, "ca1", "ca2"), ""
		o.Spec.TrustBundle = pick(r, "", "none", string(certificates()["ecdsa"].cert))
	case *corev1.ConfigMap:
		o.Name = pick(r, "ca1", "ca2")
		o.Data = pick(r, nil, map[string]string{"ca.crt": "none"}, map[string]string{"ca.crt": string(certificates()["ecdsa"].cert)})
	case *gatewayv1.HTTPRoute:
		o.Spec = gatewayv1.HTTPRouteSpec{CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: some(r, 2, w.parent), UseDefaultGateways: w.scope()}, Hostnames: some(r, 2, w.hostname), Rules: some(r, 2, w.rule)}
	case *gatewayv1.GRPCRoute:
		o.Spec = gatewayv1.GRPCRouteSpec{CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: some(r, 2, w.parent), UseDefaultGateways: w.scope()}, Hostnames: some(r, 2, w.hostname), Rules: some(r, 2, w.grpcRule)}
	case *gatewayv1.TLSRoute:
		o.Spec = gatewayv1.TLSRouteSpec{CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: some(r, 2, w.parent), UseDefaultGateways: w.scope()}, Hostnames: some(r, 2, w.hostname), Rules: some(r, 2, func() gatewayv1.TLSRouteRule {
			return gatewayv1.TLSRouteRule{Name: maybe[gatewayv1.SectionName](r, "n"), BackendRefs: some(r, 2, w.backend)}
		})}
	case *gatewayv1.TCPRoute:
		o.Spec = gatewayv1.TCPRouteSpec{CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: some(r, 2, w.parent), UseDefaultGateways: w.scope()}, Rules: some(r, 2, func() gatewayv1.TCPRouteRule {
			return gatewayv1.TCPRouteRule{Name: maybe[gatewayv1.SectionName](r, "n"), BackendRefs: some(r, 2, w.backend)}
		})}
	case *gatewayv1.UDPRoute:
		o.Spec = gatewayv1.UDPRouteSpec{CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: some(r, 2, w.parent), UseDefaultGateways: w.scope()}, Rules: some(r, 2, func() gatewayv1.UDPRouteRule {
			return gatewayv1.UDPRouteRule{Name: maybe[gatewayv1.SectionName](r, "n"), BackendRefs: some(r, 2, w.backend)}
		})}
	case *corev1.Service:
		o.Name = pick(r, "v1", "v2")
		o.Spec.Type = pick(r, corev1.ServiceTypeClusterIP, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName)
		o.Spec.Ports = some(r, 2, func() corev1.ServicePort {
			return corev1.ServicePort{Name: pick(r, "p", "q"), Port: pick[int32](r, 80, 80, 90), Protocol: pick(r, "", corev1.ProtocolTCP, corev1.ProtocolUDP), AppProtocol: maybe(r, "kubernetes.io/h2c", "http", "https")}
		})
	case *discoveryv1.EndpointSlice:
		w.slice(o)
	case *corev1.Secret:
		w.secret(o)
	case *gatewayv1.ReferenceGrant:
		o.Spec.From = some(r, 2, func() gatewayv1.ReferenceGrantFrom {
			return gatewayv1.ReferenceGrantFrom{Group: pick[gatewayv1.Group](r, gatewayv1.GroupName, gatewayv1.GroupName, gatewayv1.GroupName, gatewayxv1alpha1.GroupName, "x"), Kind: pick[gatewayv1.Kind](r, "HTTPRoute", "GRPCRoute", "TLSRoute", "UDPRoute", "Gateway", "ListenerSet", kindTelemetry, kindXBackend), Namespace: pick[gatewayv1.Namespace](r, "a", "b")}
		})
		o.Spec.To = some(r, 2, func() gatewayv1.ReferenceGrantTo {
			return gatewayv1.ReferenceGrantTo{Group: pick[gatewayv1.Group](r, "", "", "x"), Kind: pick[gatewayv1.Kind](r, "Service", "Secret", "ConfigMap"), Name: maybe[gatewayv1.ObjectName](r, "v1", "s1")}
		})
	}
	return o
}

func (w *world) scope() gatewayv1.GatewayDefaultScope {
	return pick(w.r, "", "", "", gatewayv1.GatewayDefaultScopeNone, gatewayv1.GatewayDefaultScopeAll, gatewayv1.GatewayDefaultScopeAll, "Other")
}

func (w *world) tracing(o *gatewayxv1alpha1.TracingConfig) {
	r := w.r
	o.Mode = pick(r, gatewayxv1alpha1.TracingModeEnabled, gatewayxv1alpha1.TracingModeEnabled, gatewayxv1alpha1.TracingModeEnabled, gatewayxv1alpha1.TracingModeDisabled)
	o.Provider.BackendRef = w.backend().BackendObjectReference
	o.SamplingRate = maybe(r, gatewayv1.Fraction{Numerator: 1}, gatewayv1.Fraction{Numerator: 1, Denominator: new(int32(3))}, gatewayv1.Fraction{Numerator: 200})
	o.ParentBasedSampling.Mode = pick(r, "", gatewayxv1alpha1.ParentBasedSamplingModeDisabled)
	o.Attributes = some(r, 1, func() gatewayxv1alpha1.Attribute {
		return gatewayxv1alpha1.Attribute{Name: "a", SourceType: gatewayxv1alpha1.AttributeSourceAttribute, AttributeKey: pick(r, "url.path", "url.path", "weather")}
	})
}

func (w *world) traffic(o *gatewayxv1alpha1.XBackendTrafficPolicy) {
	r := w.r
	o.Spec.TargetRefs = some(r, 2, func() gatewayv1.LocalPolicyTargetReference {
		return gatewayv1.LocalPolicyTargetReference{Kind: pick[gatewayv1.Kind](r, "Service", "Service", "Bucket"), Name: pick[gatewayv1.ObjectName](r, "v1", "v2")}
	})
	if r.IntN(4) > 0 {
		o.Spec.RetryConstraint = &gatewayxv1alpha1.RetryConstraint{
			Budget:       maybe(r, gatewayxv1alpha1.BudgetDetails{Percent: maybe(r, 0, 50, 101), Interval: maybe[gatewayv1.Duration](r, "5s", "soon")}),
			MinRetryRate: maybe(r, gatewayxv1alpha1.RequestRate{Count: maybe(r, 7, 100), Interval: maybe[gatewayv1.Duration](r, "2s", "0s")}),
		}
	}
	if r.IntN(6) == 0 {
		o.Spec.SessionPersistence = &gatewayv1.SessionPersistence{}
	}
}

func (w *world) gateway(o *gatewayv1.Gateway) {
	r := w.r
	o.Spec.GatewayClassName = pick[gatewayv1.ObjectName](r, "x", "y", "none")
	o.Spec.Addresses = some(r, 1, func() gatewayv1.GatewaySpecAddress {
		return gatewayv1.GatewaySpecAddress{Type: maybe(r, gatewayv1.IPAddressType, gatewayv1.NamedAddressType), Value: pick(r, "", "192.0.2.1")}
	})
	if r.IntN(4) == 0 {
		o.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: maybe(r, gatewayv1.LocalParametersReference{}, gatewayv1.LocalParametersReference{Group: v1alpha1.Group, Kind: v1alpha1.Kind, Name: "x"})}
		o.Spec.AllowedListeners = maybe(r, gatewayv1.AllowedListeners{Namespaces: maybe(r, gatewayv1.ListenerNamespaces{From: maybe(r, gatewayv1.NamespacesFromAll, gatewayv1.NamespacesFromSelector)})})
		o.Spec.TLS = &gatewayv1.GatewayTLSConfig{Backend: maybe(r, gatewayv1.GatewayBackendTLS{ClientCertificateRef: maybe(r, w.certificate())}), Frontend: maybe(r, gatewayv1.FrontendTLSConfig{
			Default: gatewayv1.TLSConfig{Validation: maybe(r, w.validation())},
			PerPort: some(r, 1, func() gatewayv1.TLSPortConfig {
				return gatewayv1.TLSPortConfig{Port: 443, TLS: gatewayv1.TLSConfig{Validation: maybe(r, w.validation())}}
			}),
		})}
	}
	o.Spec.DefaultScope = w.scope()
	o.Spec.Listeners = some(r, 3, w.listener)
}

func (w *world) listener() gatewayv1.Listener {
	r := w.r
	l := gatewayv1.Listener{
		Name:     pick[gatewayv1.SectionName](r, "l1", "l2", "l3"),
		Hostname: maybe[gatewayv1.Hostname](r, "A.example", "*.example", "*.example", "*", ""),
		Port:     pick[int32](r, 80, 443, 8080),
		Protocol: pick(r, gatewayv1.HTTPProtocolType, gatewayv1.HTTPSProtocolType, gatewayv1.HTTPSProtocolType, gatewayv1.TLSProtocolType, gatewayv1.UDPProtocolType, "SCTP"),
	}
	if r.IntN(8) == 0 {
		l.Filters = &gatewayv1.ListenerFilters{Requests: some(r, 2, w.listenerFilter)}
	}
	if r.IntN(4) > 0 {
		l.TLS = &gatewayv1.ListenerTLSConfig{Mode: maybe(r, gatewayv1.TLSModeTerminate, gatewayv1.TLSModeTerminate, gatewayv1.TLSModePassthrough), CertificateRefs: some(r, 2, w.certificate)}
	}
	if r.IntN(3) > 0 {
		l.AllowedRoutes = &gatewayv1.AllowedRoutes{
			Kinds: some(r, 2, func() gatewayv1.RouteGroupKind {
				return gatewayv1.RouteGroupKind{Group: maybe[gatewayv1.Group](r, gatewayv1.GroupName, "g"), Kind: pick[gatewayv1.Kind](r, "HTTPRoute", "GRPCRoute", "TCPRoute")}
			}),
			Namespaces: maybe(r, gatewayv1.RouteNamespaces{
				From: maybe(r, gatewayv1.NamespacesFromAll, gatewayv1.NamespacesFromSelector, gatewayv1.NamespacesFromSelector, gatewayv1.NamespacesFromSame),
				Selector: maybe(r, metav1.LabelSelector{}, metav1.LabelSelector{MatchLabels: map[string]string{"l": "1", "m": "2"}},
					metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "l", Operator: pick(r, metav1.LabelSelectorOpExists, "Like")}}}),
			}),
		}
	}
	return l
}

func (w *world) certificate() gatewayv1.SecretObjectReference {
	r := w.r
	return gatewayv1.SecretObjectReference{Group: maybe[gatewayv1.Group](r, "", "", "g"), Kind: maybe[gatewayv1.Kind](r, "Secret", "Secret", "ConfigMap"), Namespace: maybe[gatewayv1.Namespace](r, "a", "b"), Name: pick[gatewayv1.ObjectName](r, "s1", "s2")}
}

func (w *world) validation() gatewayv1.FrontendTLSValidation {
	r := w.r
	return gatewayv1.FrontendTLSValidation{Mode: pick(r, "", gatewayv1.AllowValidOnly, gatewayv1.AllowInsecureFallback), CACertificateRefs: some(r, 2, func() gatewayv1.ObjectReference {
		return gatewayv1.ObjectReference{Kind: pick[gatewayv1.Kind](r, "ConfigMap", "ConfigMap", "Service"), Namespace: maybe[gatewayv1.Namespace](r, "a", "b"), Name: pick[gatewayv1.ObjectName](r, "ca1", "ca2")}
	})}
}

func (w *world) parent() gatewayv1.ParentReference {
	r := w.r
	return gatewayv1.ParentReference{
		Group: maybe[gatewayv1.Group](r, gatewayv1.GroupName, ""), Kind: maybe[gatewayv1.Kind](r, "Gateway", "ListenerSet", "Service"), Namespace: maybe[gatewayv1.Namespace](r, "a", "b"),
		Name: pick[gatewayv1.ObjectName](r, "x", "y"), SectionName: maybe[gatewayv1.SectionName](r, "l1"), Port: maybe[int32](r, 80),
	}
}

func (w *world) hostname() gatewayv1.Hostname {
	return pick[gatewayv1.Hostname](w.r, "a.example", "a.example", "A.Example", "*.b.example", "a b")
}

func (w *world) rule() gatewayv1.HTTPRouteRule {
	r := w.r
	out := gatewayv1.HTTPRouteRule{Name: maybe[gatewayv1.SectionName](r, "n"), Matches: some(r, 2, w.match), Filters: some(r, 2, w.filter)}
	out.BackendRefs = some(r, 3, func() gatewayv1.HTTPBackendRef {
		if r.IntN(4) > 0 {
			return gatewayv1.HTTPBackendRef{BackendRef: w.backend()}
		}
		return gatewayv1.HTTPBackendRef{BackendRef: w.backend(), Filters: some(r, 1, w.filter)}
	})
	if r.IntN(4) == 0 {
		out.Timeouts = &gatewayv1.HTTPRouteTimeouts{Request: maybe[gatewayv1.Duration](r, "0s", "10s", "10s", "10s", "soon"), BackendRequest: maybe[gatewayv1.Duration](r, "1s", "1s", "1s", "-1s")}
		out.Retry = maybe(r, gatewayv1.HTTPRouteRetry{Attempts: maybe(r, 0, 3, 3), Backoff: maybe[gatewayv1.Duration](r, "10ms", "10ms", "10ms", "x"), Codes: []gatewayv1.HTTPRouteRetryStatusCode{503}})
	}
	if r.IntN(20) == 0 {
		out.SessionPersistence = &gatewayv1.SessionPersistence{
			AbsoluteTimeout: maybe[gatewayv1.Duration](r, "1h"), Type: maybe(r, gatewayv1.CookieBasedSessionPersistence, gatewayv1.HeaderBasedSessionPersistence),
			Cookie: maybe(r, gatewayv1.CookieConfig{LifetimeType: maybe(r, gatewayv1.PermanentCookieLifetimeType)}), Header: maybe(r, gatewayv1.HeaderConfig{Name: "x-session"}),
		}
	}
	return out
}

func (w *world) match() gatewayv1.HTTPRouteMatch {
	r := w.r
	return gatewayv1.HTTPRouteMatch{
		Path: maybe(r, gatewayv1.HTTPPathMatch{
			Type:  maybe(r, gatewayv1.PathMatchExact, gatewayv1.PathMatchPathPrefix, gatewayv1.PathMatchPathPrefix, gatewayv1.PathMatchRegularExpression, "Glob"),
			Value: maybe(r, "/", "/a", "/a/", "a", "/(", "/é", "/[0-9]+", `/(\pL{100}){9}`),
		}),
		Method: maybe(r, gatewayv1.HTTPMethodGet, gatewayv1.HTTPMethodPost, gatewayv1.HTTPMethodOptions),
		Headers: some(r, 2, func() gatewayv1.HTTPHeaderMatch {
			return gatewayv1.HTTPHeaderMatch{Type: maybe(r, gatewayv1.HeaderMatchExact, gatewayv1.HeaderMatchRegularExpression, "Like"), Name: pick[gatewayv1.HTTPHeaderName](r, "h", "h", "h", "H", "H", "i", "bad name", ":path"), Value: pick(r, "v", "v", "v.*", "(", "")}
		}),
		QueryParams: some(r, 2, func() gatewayv1.HTTPQueryParamMatch {
			return gatewayv1.HTTPQueryParamMatch{Type: maybe(r, gatewayv1.QueryParamMatchExact, gatewayv1.QueryParamMatchRegularExpression), Name: pick[gatewayv1.HTTPHeaderName](r, "q", "Q"), Value: pick(r, "v", "(")}
		}),
	}
}

func (w *world) listenerFilter() gatewayv1.ListenerFilter {
	f := w.filter()
	return gatewayv1.ListenerFilter{Type: pick(w.r, gatewayv1.ListenerFilterExternalAuth, gatewayv1.ListenerFilterExternalAuth, gatewayv1.ListenerFilterExternalAuth, gatewayv1.ListenerFilterExtensionRef, "Other"), ExternalAuth: f.ExternalAuth, ExtensionRef: f.ExtensionRef}
}

func (w *world) filter() gatewayv1.HTTPRouteFilter {
	r := w.r
	f := gatewayv1.HTTPRouteFilter{Type: pick(r,
		gatewayv1.HTTPRouteFilterRequestHeaderModifier, gatewayv1.HTTPRouteFilterResponseHeaderModifier, gatewayv1.HTTPRouteFilterRequestRedirect, gatewayv1.HTTPRouteFilterRequestRedirect,
		gatewayv1.HTTPRouteFilterURLRewrite, gatewayv1.HTTPRouteFilterURLRewrite, gatewayv1.HTTPRouteFilterURLRewrite, gatewayv1.HTTPRouteFilterRequestMirror, gatewayv1.HTTPRouteFilterRequestMirror, gatewayv1.HTTPRouteFilterCORS)}
	if r.IntN(10) == 0 {
		f.Type = pick(r, gatewayv1.HTTPRouteFilterExtensionRef, gatewayv1.HTTPRouteFilterExternalAuth, gatewayv1.HTTPRouteFilterExternalAuth)
	}
	f.RequestHeaderModifier = maybe(r, w.headers())
	f.ResponseHeaderModifier = maybe(r, w.headers())
	f.RequestRedirect = maybe(r, gatewayv1.HTTPRequestRedirectFilter{
		Scheme: maybe(r, "http", "https"), Hostname: maybe[gatewayv1.PreciseHostname](r, "to.example"), Port: maybe[int32](r, 80, 8443), StatusCode: maybe(r, 301, 302, 303, 307, 308, 418), Path: w.modifier(),
	})
	f.URLRewrite = maybe(r, gatewayv1.HTTPURLRewriteFilter{Hostname: maybe[gatewayv1.PreciseHostname](r, "in.example"), Path: w.modifier()})
	f.RequestMirror = maybe(r, gatewayv1.HTTPRequestMirrorFilter{
		BackendRef: w.backend().BackendObjectReference, Percent: maybe[int32](r, 0, 10, 25, 100, 200), Fraction: maybe(r, gatewayv1.Fraction{Numerator: 1, Denominator: maybe[int32](r, 3, 3, 0)}),
	})
	f.CORS = maybe(r, gatewayv1.HTTPCORSFilter{AllowOrigins: some(r, 2, func() gatewayv1.CORSOrigin { return pick[gatewayv1.CORSOrigin](r, "*", "https://a", "https://*.a") }), AllowCredentials: maybe(r, true), AllowMethods: []gatewayv1.HTTPMethodWithWildcard{"*"}, MaxAge: int32(r.IntN(2))})
	f.ExternalAuth = maybe(r, gatewayv1.HTTPExternalAuthFilter{ExternalAuthProtocol: pick(r, gatewayv1.HTTPRouteExternalAuthHTTPProtocol, gatewayv1.HTTPRouteExternalAuthGRPCProtocol), BackendRef: w.backend().BackendObjectReference})
	f.ExtensionRef = maybe(r, gatewayv1.LocalObjectReference{Name: "e"})
	return f
}

func (w *world) headers() gatewayv1.HTTPHeaderFilter {
	r := w.r
	one := func() gatewayv1.HTTPHeader {
		return gatewayv1.HTTPHeader{Name: pick[gatewayv1.HTTPHeaderName](r, "x", "x", "x", "host"), Value: pick(r, "", "100%", "a\nb")}
	}
	return gatewayv1.HTTPHeaderFilter{Set: some(r, 1, one), Add: some(r, 1, one), Remove: some(r, 1, func() string { return pick(r, "z", "z", ":path") })}
}

func (w *world) modifier() *gatewayv1.HTTPPathModifier {
	r := w.r
	return maybe(r, gatewayv1.HTTPPathModifier{Type: pick(r, gatewayv1.FullPathHTTPPathModifier, gatewayv1.PrefixMatchHTTPPathModifier, gatewayv1.PrefixMatchHTTPPathModifier, "Other"), ReplaceFullPath: maybe(r, "/full"), ReplacePrefixMatch: maybe(r, "/", "/p/")})
}

func (w *world) backend() gatewayv1.BackendRef {
	r := w.r
	if r.IntN(8) == 0 {
		return gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{
			Group: new(gatewayv1.Group(gatewayxv1alpha1.GroupName)), Kind: new(gatewayv1.Kind(kindXBackend)), Namespace: maybe[gatewayv1.Namespace](r, "a", "b"), Name: pick[gatewayv1.ObjectName](r, "v1", "v2"), Port: maybe[int32](r, 80)}}
	}
	return gatewayv1.BackendRef{
		BackendObjectReference: gatewayv1.BackendObjectReference{
			Group: maybe[gatewayv1.Group](r, "", "", "", "", "", "g"), Kind: maybe[gatewayv1.Kind](r, "Service", "Service", "Service", "Service", "Service", "Bucket"), Namespace: maybe[gatewayv1.Namespace](r, "a", "b"),
			Name: pick[gatewayv1.ObjectName](r, "v1", "v2"), Port: new(pick[int32](r, 80, 80, 90)),
		},
		Weight: maybe[int32](r, 0, 1, 9),
	}
}

func (w *world) grpcRule() gatewayv1.GRPCRouteRule {
	r := w.r
	return gatewayv1.GRPCRouteRule{
		Name: maybe[gatewayv1.SectionName](r, "n"),
		Matches: some(r, 2, func() gatewayv1.GRPCRouteMatch {
			return gatewayv1.GRPCRouteMatch{
				Method: maybe(r, gatewayv1.GRPCMethodMatch{Type: maybe(r, gatewayv1.GRPCMethodMatchExact, gatewayv1.GRPCMethodMatchRegularExpression), Service: maybe(r, "s", "t"), Method: maybe(r, "m")}),
				Headers: some(r, 1, func() gatewayv1.GRPCHeaderMatch {
					return gatewayv1.GRPCHeaderMatch{Type: maybe(r, gatewayv1.GRPCHeaderMatchRegularExpression), Name: "h", Value: "v"}
				}),
			}
		}),
		Filters: some(r, 1, w.grpcFilter),
		BackendRefs: some(r, 2, func() gatewayv1.GRPCBackendRef {
			return gatewayv1.GRPCBackendRef{BackendRef: w.backend(), Filters: some(r, 1, w.grpcFilter)}
		}),
	}
}

func (w *world) grpcFilter() gatewayv1.GRPCRouteFilter {
	f := w.filter()
	return gatewayv1.GRPCRouteFilter{
		Type:                  pick(w.r, gatewayv1.GRPCRouteFilterRequestHeaderModifier, gatewayv1.GRPCRouteFilterResponseHeaderModifier, gatewayv1.GRPCRouteFilterRequestMirror, gatewayv1.GRPCRouteFilterExtensionRef),
		RequestHeaderModifier: f.RequestHeaderModifier, ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
	}
}

func (w *world) slice(o *discoveryv1.EndpointSlice) {
	r := w.r
	o.Labels = map[string]string{discoveryv1.LabelServiceName: pick(r, "v1", "v1", "v2", "")}
	if r.IntN(4) == 0 {
		o.Labels[v1alpha1.LabelXBackend] = pick(r, "v1", "v2")
	}
	o.AddressType = pick(r, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeFQDN)
	o.Ports = some(r, 2, func() discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: maybe(r, "p", "q"), Port: maybe[int32](r, 8080, 9090), Protocol: maybe(r, corev1.ProtocolTCP, corev1.ProtocolUDP)}
	})
	o.Endpoints = some(r, 2, func() discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{pick(r, "10.0.0.1", "10.0.0.2")}, Conditions: discoveryv1.EndpointConditions{Ready: maybe(r, true, false), Serving: maybe(r, true, false)}}
	})
}

func (w *world) secret(o *corev1.Secret) {
	r := w.r
	o.Name = pick(r, "s1", "s2")
	o.Type = pick(r, corev1.SecretTypeTLS, corev1.SecretTypeTLS, corev1.SecretTypeOpaque)
	names := slices.Sorted(maps.Keys(certificates()))
	cert, key := pick(r, names...), pick(r, names...)
	if r.IntN(4) > 0 {
		key = cert
	}
	o.Data = map[string][]byte{corev1.TLSCertKey: certificates()[cert].cert, corev1.TLSPrivateKeyKey: certificates()[key].key}
}
