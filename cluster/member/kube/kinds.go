package kube

import (
	"reflect"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/cluster/member"
)

// Groups of kinds that a CRD defines.
const (
	gatewayGroup      = gatewayv1.GroupName
	experimentalGroup = "gateway.networking.x-k8s.io"
	crdGroup          = "apiextensions.k8s.io"
)

// kindCRD is the kind of the events that tell which CRDs of ours there are, with their annotations.
const kindCRD = "CustomResourceDefinition"

// FleetSelector picks the Pods that this watches: those of fleets that Fleetgate runs.
const FleetSelector = "app.kubernetes.io/managed-by=fleetgate,gateway.networking.k8s.io/gateway-name"

// kind is a kind of object that is followed.
type kind struct {
	name, resource, group string
	versions              []string // that can be read, best first; objects are handed out as the first
	namespaced            bool
	optional              bool   // built into some releases of Kubernetes only, and told of like a CRD where it is served
	custom                bool   // defined by a CRD: it may be missing, older, or vanish
	byName                bool   // only objects that somebody wants are read, each by its name
	metadata              bool   // metadata is enough
	guarded               bool   // written by people: losing many at once is suspicious
	status                bool   // we write its status
	selector              string // of labels
	object                func() member.Object
	list                  func() runtime.Object
	trim                  func(member.Object) // drops what nobody reads
}

// kinds are in the order in which events of one batch are delivered: what others refer to comes first.
var kinds = []*kind{
	{name: kindCRD, resource: "customresourcedefinitions", group: crdGroup, versions: []string{"v1"}, metadata: true, trim: trimDefinition},
	{name: "Namespace", resource: "namespaces", versions: []string{"v1"}, metadata: true, guarded: true},
	envoyFleet(),
	custom("GatewayClass", "gatewayclasses", &gatewayv1.GatewayClass{}, &gatewayv1.GatewayClassList{}, "v1beta1").clusterScoped().withStatus(),
	custom("ReferenceGrant", "referencegrants", &gatewayv1.ReferenceGrant{}, &gatewayv1.ReferenceGrantList{}, "v1beta1"),
	core("ConfigMap", "configmaps", &corev1.ConfigMap{}, &corev1.ConfigMapList{}).read(),
	{name: "ClusterTrustBundle", resource: "clustertrustbundles", group: certificatesv1.GroupName, versions: []string{"v1", "v1beta1"}, optional: true, byName: true,
		object: maker(&certificatesv1.ClusterTrustBundle{}), list: lister(&certificatesv1.ClusterTrustBundleList{})},
	core("Secret", "secrets", &corev1.Secret{}, &corev1.SecretList{}).read(),
	core("Service", "services", &corev1.Service{}, &corev1.ServiceList{}).guard(),
	{name: "EndpointSlice", resource: "endpointslices", group: discoveryv1.GroupName, versions: []string{"v1"}, namespaced: true,
		object: maker(&discoveryv1.EndpointSlice{}), list: lister(&discoveryv1.EndpointSliceList{}), trim: trimSlice},
	custom("BackendTLSPolicy", "backendtlspolicies", &gatewayv1.BackendTLSPolicy{}, &gatewayv1.BackendTLSPolicyList{}, "v1alpha3").withStatus(),
	experimental("XBackend", "xbackends", &gatewayxv1alpha1.XBackend{}, &gatewayxv1alpha1.XBackendList{}),
	experimental("XBackendTrafficPolicy", "xbackendtrafficpolicies", &gatewayxv1alpha1.XBackendTrafficPolicy{}, &gatewayxv1alpha1.XBackendTrafficPolicyList{}),
	experimental("XTelemetryPolicy", "xtelemetrypolicies", &gatewayxv1alpha1.XTelemetryPolicy{}, &gatewayxv1alpha1.XTelemetryPolicyList{}),
	custom("Gateway", "gateways", &gatewayv1.Gateway{}, &gatewayv1.GatewayList{}, "v1beta1").withStatus(),
	custom("ListenerSet", "listenersets", &gatewayv1.ListenerSet{}, &gatewayv1.ListenerSetList{}).withStatus(),
	custom("HTTPRoute", "httproutes", &gatewayv1.HTTPRoute{}, &gatewayv1.HTTPRouteList{}, "v1beta1").withStatus(),
	custom("GRPCRoute", "grpcroutes", &gatewayv1.GRPCRoute{}, &gatewayv1.GRPCRouteList{}, "v1alpha2").withStatus(),
	custom("TLSRoute", "tlsroutes", &gatewayv1.TLSRoute{}, &gatewayv1.TLSRouteList{}, "v1alpha3", "v1alpha2").withStatus(),
	custom("TCPRoute", "tcproutes", &gatewayv1.TCPRoute{}, &gatewayv1.TCPRouteList{}, "v1alpha2").withStatus(),
	custom("UDPRoute", "udproutes", &gatewayv1.UDPRoute{}, &gatewayv1.UDPRouteList{}, "v1alpha2").withStatus(),
	{name: "Pod", resource: "pods", versions: []string{"v1"}, namespaced: true, selector: FleetSelector,
		object: maker(&corev1.Pod{}), list: lister(&corev1.PodList{}), trim: trimPod},
}

// rank is a kind's place in the order of delivery.
var rank = func() map[string]int {
	out := make(map[string]int, len(kinds))
	for i, k := range kinds {
		out[k.name] = i
	}
	return out
}()

func kindOf(name string) *kind {
	if i, ok := rank[name]; ok {
		return kinds[i]
	}
	return nil
}

func core(name, resource string, object member.Object, list runtime.Object) *kind {
	return &kind{name: name, resource: resource, versions: []string{"v1"}, namespaced: true, object: maker(object), list: lister(list)}
}

func custom(name, resource string, object member.Object, list runtime.Object, older ...string) *kind {
	k := core(name, resource, object, list)
	k.group, k.custom, k.guarded = gatewayGroup, true, true
	k.versions = append(k.versions, older...)
	return k
}

// envoyFleet is the one kind of our own.
func envoyFleet() *kind {
	k := custom(v1alpha1.Kind, v1alpha1.Resource, &v1alpha1.EnvoyFleet{}, &v1alpha1.EnvoyFleetList{})
	k.group, k.versions = v1alpha1.Group, []string{v1alpha1.Version}
	return k
}

func experimental(name, resource string, object member.Object, list runtime.Object) *kind {
	k := custom(name, resource, object, list).withStatus()
	k.group, k.versions = experimentalGroup, []string{"v1alpha1"}
	return k
}

func (k *kind) clusterScoped() *kind { k.namespaced = false; return k }
func (k *kind) withStatus() *kind    { k.status = true; return k }
func (k *kind) read() *kind          { k.byName = true; return k }
func (k *kind) guard() *kind         { k.guarded = true; return k }

// definition is the name of the CRD that defines a kind.
func (k *kind) definition() string { return k.resource + "." + k.group }

func (k *kind) gvk(version string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.group, Version: version, Kind: k.name}
}

// maker makes empty objects of the given one's type.
func maker(of member.Object) func() member.Object {
	t := reflect.TypeOf(of).Elem()
	return func() member.Object { return reflect.New(t).Interface().(member.Object) }
}

func lister(of runtime.Object) func() runtime.Object {
	t := reflect.TypeOf(of).Elem()
	return func() runtime.Object { return reflect.New(t).Interface().(runtime.Object) }
}

// scheme decodes every version of a kind that can be read into the one type that is handed out.
var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, k := range kinds {
		if k.metadata {
			continue
		}
		for _, v := range k.versions {
			s.AddKnownTypeWithName(k.gvk(v), k.object())
			s.AddKnownTypeWithName(k.gvk(v).GroupVersion().WithKind(k.name+"List"), k.list())
			metav1.AddToGroupVersion(s, schema.GroupVersion{Group: k.group, Version: v})
		}
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"}) // Status and the options of requests
	return s
}()

// shape turns what the API server sent into what is handed out. It may be called again on its own result.
func (k *kind) shape(in any) (member.Object, bool) {
	o, ok := in.(member.Object)
	if !ok {
		return nil, false
	}
	if meta, ok := o.(*metav1.PartialObjectMetadata); ok && k.name == "Namespace" {
		o = &corev1.Namespace{ObjectMeta: meta.ObjectMeta}
	}
	o.GetObjectKind().SetGroupVersionKind(k.gvk(k.versions[0]))
	o.SetManagedFields(nil)
	annotations := o.GetAnnotations()
	if _, has := annotations[corev1.LastAppliedConfigAnnotation]; has {
		delete(annotations, corev1.LastAppliedConfigAnnotation)
		o.SetAnnotations(annotations)
	}
	if k.trim != nil {
		k.trim(o)
	}
	return o, true
}

// trimDefinition keeps of a CRD's metadata its name and what says which Gateway API it is of.
func trimDefinition(o member.Object) {
	o.SetLabels(nil)
	o.SetOwnerReferences(nil)
}

func trimSlice(o member.Object) {
	s := o.(*discoveryv1.EndpointSlice)
	s.Annotations = nil
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.TargetRef, e.NodeName, e.DeprecatedTopology = nil, nil, nil
	}
}

// trimPod keeps what tells which proxy it is, where, and whether it is ready.
func trimPod(o member.Object) {
	p := o.(*corev1.Pod)
	p.Annotations = nil
	p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, Conditions: p.Status.Conditions, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs, HostIP: p.Status.HostIP, StartTime: p.Status.StartTime}
}

// discovered are the kinds that a server may not serve.
var discovered = func() (out []*kind) {
	for _, k := range kinds {
		if k.custom || k.optional {
			out = append(out, k)
		}
	}
	return out
}()

// definitions are the names of the CRDs that are looked for.
var definitions = func() []string {
	var out []string
	for _, k := range kinds {
		if k.custom {
			out = append(out, k.definition())
		}
	}
	slices.Sort(out)
	return out
}()
