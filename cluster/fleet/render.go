package fleet

import (
	"maps"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
)

// authorityKey is the key of the ConfigMap that holds the authority.
const authorityKey = "ca.crt"

// Render gives everything that a Gateway's fleet consists of, in the order of Kinds.
func Render(g Gateway, in Install) ([]Object, error) {
	name := Name(g.Name, g.Class)
	made := map[string][]runtime.Object{
		"ServiceAccount": {&corev1.ServiceAccount{ObjectMeta: g.meta(name), AutomountServiceAccountToken: new(false)}},
		// The authority is a file of its own, not part of the pod template: a new authority must start no new pod.
		"ConfigMap": {&corev1.ConfigMap{ObjectMeta: g.meta(name), Data: map[string]string{authorityKey: string(in.Authority)}}},
	}
	if len(g.Ports) > 0 {
		for _, s := range services(g, name) {
			made["Service"] = append(made["Service"], s)
		}
	}
	if value(g.Parameters.Kind, v1alpha1.KindDeployment) == v1alpha1.KindDaemonSet {
		made[v1alpha1.KindDaemonSet] = []runtime.Object{daemonSet(g, in, name)}
	} else {
		made[v1alpha1.KindDeployment] = []runtime.Object{deployment(g, in, name)}
		made["PodDisruptionBudget"] = []runtime.Object{disruptionBudget(g, name)}
		if a := g.Parameters.Autoscaling; a != nil {
			made["HorizontalPodAutoscaler"] = []runtime.Object{autoscaler(g, name, *a)}
		}
	}
	var out []Object
	for _, k := range Kinds {
		for _, o := range made[k.Kind] {
			one, err := applied(o, k, g.meta(name))
			if err != nil {
				return nil, err
			}
			out = append(out, one)
		}
	}
	return out, nil
}

// meta is the metadata that all objects of a fleet have. What spec.infrastructure asks for cannot take our own labels away.
func (g Gateway) meta(name string) metav1.ObjectMeta {
	labels, annotations := g.marks(name)
	return metav1.ObjectMeta{
		Namespace: g.Namespace, Name: name, Labels: labels, Annotations: annotations,
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", Name: g.Name, UID: uid(g.UID), Controller: new(true),
		}},
	}
}

// marks are the labels and annotations of all objects, and of the pods.
func (g Gateway) marks(name string) (labels, annotations map[string]string) {
	labels, annotations = maps.Clone(g.Labels), maps.Clone(g.Annotations)
	if labels == nil {
		labels = map[string]string{}
	}
	if annotations == nil {
		annotations = map[string]string{}
	}
	delete(annotations, AnnotationHash)
	delete(annotations, AnnotationAddress)
	labels[LabelGateway], labels[LabelClass] = labelValue(g.Name), labelValue(g.Class)
	labels[LabelManagedBy], labels[LabelFleet] = ManagedBy, name
	annotations[AnnotationGateway] = g.Name
	return labels, annotations
}

// disruptionBudget lets a node be drained, one Envoy at a time; Envoys that do not work hold nobody up.
func disruptionBudget(g Gateway, name string) *policyv1.PodDisruptionBudget {
	one := intstr.FromInt32(1)
	return &policyv1.PodDisruptionBudget{ObjectMeta: g.meta(name), Spec: policyv1.PodDisruptionBudgetSpec{
		MaxUnavailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{LabelFleet: name}},
		UnhealthyPodEvictionPolicy: new(policyv1.AlwaysAllow),
	}}
}

func autoscaler(g Gateway, name string, a v1alpha1.Autoscaling) *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: g.meta(name), Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: v1alpha1.KindDeployment, Name: name},
		MinReplicas:    new(min(value(a.MinReplicas, defaultReplicas), a.MaxReplicas)),
		MaxReplicas:    a.MaxReplicas,
		Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name:   corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: new(value(a.TargetCPUUtilization, 70))},
		}}},
	}}
}

func value[T any](p *T, fallback T) T {
	if p == nil {
		return fallback
	}
	return *p
}
