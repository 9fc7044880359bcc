// Package headless has Kubernetes find the pods that XBackends select.
//
// An XBackend of type EndpointSelector (GEP-4894) names labels, and wants the addresses of the pods that have them. To watch the Pods of a cluster for that costs more than everything else
// that Fleetgate watches, a watch for each XBackend is ten thousand watches where there are ten thousand tenants, and either would decide anew what is ready, serving and terminating.
// Kubernetes' endpoint controller does it all for a Service. So the leader makes one for each XBackend that a route of ours leads to, as the GEP suggests until Kubernetes has EndpointSelectors of its
// own (KEP-6116): headless, for nobody needs its address; with a generated name, so that nobody comes to rely on one in DNS; owned by the XBackend, with which it goes. The EndpointSlices bear the
// Service's labels, and so whoever compiles finds them by the XBackend's UID, without this package. Two Services of one XBackend, of two leaders at once, say the same twice, and the younger goes.
package headless

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
)

// Selection is an XBackend that selects pods.
type Selection struct {
	Namespace, Name, UID string
	Labels               map[string]string // that the pods have, one at least
	Port                 int32             // of the pods, TCP
}

// OwnerKind and OwnerVersion are what a Service's owner is.
const (
	OwnerKind    = "XBackend"
	OwnerVersion = "gateway.networking.x-k8s.io/v1alpha1"
)

// OwnerOf gives the XBackend that a Service belongs to; zero where it belongs to none.
func OwnerOf(s *corev1.Service) metav1.OwnerReference {
	for _, o := range s.OwnerReferences {
		if o.Kind == OwnerKind && o.APIVersion == OwnerVersion {
			return o
		}
	}
	return metav1.OwnerReference{}
}

// render makes the Service of a selection.
func render(of Selection) *corev1.Service {
	return &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: of.Namespace, GenerateName: generateName(of.Name),
			Labels:          map[string]string{v1alpha1.LabelXBackend: of.UID, "app.kubernetes.io/managed-by": "fleetgate"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: OwnerVersion, Kind: OwnerKind, Name: of.Name, UID: types.UID(of.UID), Controller: new(true)}},
		},
		Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: of.Labels,
			Ports: []corev1.ServicePort{{Port: of.Port, TargetPort: intstr.FromInt32(of.Port), Protocol: corev1.ProtocolTCP}}},
	}
}

var notDNS = regexp.MustCompile(`[^-a-z0-9]`)

// generateName begins like the XBackend's own name, which may have dots and 253 characters: what an API server appends makes a DNS label of at most 63.
func generateName(name string) string {
	name = notDNS.ReplaceAllString(name, "-")
	return "xbackend-" + strings.Trim(name[:min(len(name), 40)], "-") + "-"
}

// says tells whether a Service has Kubernetes find what another would.
func says(have, want *corev1.Service) bool {
	return maps.Equal(have.Spec.Selector, want.Spec.Selector) && maps.Equal(have.Labels, labelled(have, want)) &&
		slices.EqualFunc(have.Spec.Ports, want.Spec.Ports, func(a, b corev1.ServicePort) bool {
			return a.Port == b.Port && a.TargetPort == b.TargetPort && a.Protocol == b.Protocol
		})
}

// labelled are the labels of a Service with those that it should have. Others that somebody put there stay: who puts them there again would be answered for ever.
func labelled(have, want *corev1.Service) map[string]string {
	out := map[string]string{}
	maps.Copy(out, have.Labels)
	maps.Copy(out, want.Labels)
	return out
}

// steps are what has to be done, in this order.
type steps struct {
	create, change *corev1.Service // nil = nothing
	remove         []*corev1.Service
}

// plan says how what is there becomes what is wanted, nil = nothing is. The Services of an XBackend of the same name that was deleted go with that one.
func plan(want *Selection, have []*corev1.Service) steps {
	var out steps
	have = slices.DeleteFunc(slices.Clone(have), func(s *corev1.Service) bool { return s.DeletionTimestamp != nil })
	if want == nil {
		return steps{remove: have}
	}
	have = slices.DeleteFunc(have, func(s *corev1.Service) bool { return string(OwnerOf(s).UID) != want.UID })
	if len(have) == 0 {
		return steps{create: render(*want)}
	}
	slices.SortFunc(have, func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	out.remove = have[1:]
	if rendered := render(*want); !says(have[0], rendered) {
		out.change = have[0].DeepCopy()
		out.change.Labels, out.change.Spec.Selector, out.change.Spec.Ports = labelled(have[0], rendered), rendered.Spec.Selector, rendered.Spec.Ports
	}
	return out
}
