package translate

import (
	"net/netip"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/translate/record"
)

// Facts are the parts of objects that decide anything. An event that leaves an object's fact as it was is no event: so a changed
// resourceVersion, status, annotation or managed field compiles nothing.

// identity is what every object carries into its record.
type identity struct {
	object  record.Object
	created time.Time // seconds, UTC
}

type classFact struct {
	identity
	controller string
	parameters *parametersRef
}

type namespaceFact struct{ labels map[string]string }

type gatewayFact struct {
	identity
	spec *gatewayv1.GatewaySpec
}

type listenerSetFact struct {
	identity
	spec *gatewayv1.ListenerSetSpec
}

// routeFact holds one of these; what they have in common is made when it is compiled, under the panic guard.
type routeFact struct {
	identity
	http *gatewayv1.HTTPRouteSpec
	grpc *gatewayv1.GRPCRouteSpec
	tls  *gatewayv1.TLSRouteSpec
	tcp  *gatewayv1.TCPRouteSpec
	udp  *gatewayv1.UDPRouteSpec
}

type serviceFact struct {
	external bool // type ExternalName
	selects  bool // pods, by a selector
	made     bool // for an XBackend, by Fleetgate
	ports    []servicePort
}

type servicePort struct {
	name     string
	port     int32
	protocol string // TCP, UDP, SCTP
	app      string // appProtocol
}

type sliceFact struct {
	service   string // or what stands in its place: xbackendPrefix and the value of LabelXBackend
	ports     []slicePort
	addresses []string // of usable endpoints
}

type slicePort struct {
	name     string
	port     int32
	protocol string
}

type grantFact struct {
	from []gatewayv1.ReferenceGrantFrom
	to   []gatewayv1.ReferenceGrantTo
}

type policyFact struct {
	identity
	spec *gatewayv1.BackendTLSPolicySpec
}

type trafficFact struct {
	identity
	spec *gatewayxv1alpha1.BackendTrafficPolicySpec
}

type xbackendFact struct {
	identity
	spec *gatewayxv1alpha1.BackendSpec
}

type telemetryFact struct {
	identity
	spec *gatewayxv1alpha1.TelemetryPolicySpec
}

// authoritiesFact is a ConfigMap or a ClusterTrustBundle.
type authoritiesFact struct{ pem string }

type secretFact struct {
	kind             string // the Secret's type
	certificate, key []byte
}

// factOf reads an object; nil where it is of no kind that we read.
func factOf(kind string, o Object) any {
	switch o := o.(type) {
	case *gatewayv1.GatewayClass:
		return &classFact{identityOf(kind, o), string(o.Spec.ControllerName), classParameters(o)}
	case *v1alpha1.EnvoyFleet:
		return &fleetFact{o.Spec}
	case *metav1.PartialObjectMetadata:
		return definitionOf(o)
	case *corev1.Namespace:
		return &namespaceFact{o.Labels}
	case *gatewayv1.Gateway:
		return &gatewayFact{identityOf(kind, o), &o.Spec}
	case *gatewayv1.ListenerSet:
		return &listenerSetFact{identityOf(kind, o), &o.Spec}
	case *gatewayv1.HTTPRoute:
		return &routeFact{identity: identityOf(kind, o), http: &o.Spec}
	case *gatewayv1.GRPCRoute:
		return &routeFact{identity: identityOf(kind, o), grpc: &o.Spec}
	case *gatewayv1.TLSRoute:
		return &routeFact{identity: identityOf(kind, o), tls: &o.Spec}
	case *gatewayv1.TCPRoute:
		return &routeFact{identity: identityOf(kind, o), tcp: &o.Spec}
	case *gatewayv1.UDPRoute:
		return &routeFact{identity: identityOf(kind, o), udp: &o.Spec}
	case *corev1.Service:
		return serviceOf(o)
	case *discoveryv1.EndpointSlice:
		return sliceOf(o)
	case *gatewayv1.BackendTLSPolicy:
		return &policyFact{identityOf(kind, o), &o.Spec}
	case *gatewayxv1alpha1.XBackendTrafficPolicy:
		return &trafficFact{identityOf(kind, o), &o.Spec}
	case *gatewayxv1alpha1.XBackend:
		return &xbackendFact{identityOf(kind, o), &o.Spec}
	case *gatewayxv1alpha1.XTelemetryPolicy:
		return &telemetryFact{identityOf(kind, o), &o.Spec}
	case *corev1.ConfigMap:
		return &authoritiesFact{o.Data["ca.crt"]}
	case *certificatesv1.ClusterTrustBundle:
		return &authoritiesFact{o.Spec.TrustBundle}
	case *corev1.Secret:
		return &secretFact{string(o.Type), o.Data[corev1.TLSCertKey], o.Data[corev1.TLSPrivateKeyKey]}
	case *gatewayv1.ReferenceGrant:
		return &grantFact{o.Spec.From, o.Spec.To}
	case *gatewayv1beta1.ReferenceGrant:
		return &grantFact{o.Spec.From, o.Spec.To}
	}
	return nil
}

func identityOf(kind string, o Object) identity {
	return identity{
		object: record.Object{
			Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), UID: string(o.GetUID()), Generation: o.GetGeneration(),
		},
		created: o.GetCreationTimestamp().UTC().Truncate(time.Second),
	}
}

func serviceOf(s *corev1.Service) *serviceFact {
	f := &serviceFact{external: s.Spec.Type == corev1.ServiceTypeExternalName, selects: len(s.Spec.Selector) > 0, made: s.Labels[v1alpha1.LabelXBackend] != ""}
	for _, p := range s.Spec.Ports {
		port := servicePort{name: p.Name, port: p.Port, protocol: protocolOf(&p.Protocol)}
		if p.AppProtocol != nil {
			port.app = *p.AppProtocol
		}
		f.ports = append(f.ports, port)
	}
	return f
}

// sliceOf keeps the addresses that are ready and serving; unset means yes. What is no IP address or port is left out: one such would make Envoy
// reject the whole response, with the endpoints of others in it.
func sliceOf(s *discoveryv1.EndpointSlice) *sliceFact {
	f := &sliceFact{service: s.Labels[discoveryv1.LabelServiceName]}
	if of := s.Labels[v1alpha1.LabelXBackend]; of != "" {
		f.service = xbackendPrefix + of
	}
	for _, p := range s.Ports {
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			continue
		}
		port := slicePort{port: *p.Port, protocol: protocolOf(p.Protocol)}
		if p.Name != nil {
			port.name = *p.Name
		}
		f.ports = append(f.ports, port)
	}
	for _, e := range s.Endpoints {
		if !yes(e.Conditions.Ready) || !yes(e.Conditions.Serving) {
			continue
		}
		for _, a := range e.Addresses {
			if ip, err := netip.ParseAddr(a); err == nil && ip.Zone() == "" {
				f.addresses = append(f.addresses, a)
			}
		}
	}
	slices.Sort(f.addresses)
	return f
}

func protocolOf(p *corev1.Protocol) string {
	if p == nil || *p == "" {
		return string(corev1.ProtocolTCP)
	}
	return string(*p)
}

func yes(b *bool) bool { return b == nil || *b }
