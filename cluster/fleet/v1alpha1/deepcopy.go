package v1alpha1

import (
	"maps"

	"k8s.io/apimachinery/pkg/runtime"
)

// DeepCopyObject implements runtime.Object.
func (f *EnvoyFleet) DeepCopyObject() runtime.Object {
	if f == nil {
		return nil
	}
	return f.DeepCopy()
}

// DeepCopy copies everything.
func (f *EnvoyFleet) DeepCopy() *EnvoyFleet {
	if f == nil {
		return nil
	}
	out := &EnvoyFleet{TypeMeta: f.TypeMeta, Spec: f.Spec.DeepCopy()}
	f.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

// DeepCopyObject implements runtime.Object.
func (l *EnvoyFleetList) DeepCopyObject() runtime.Object {
	if l == nil {
		return nil
	}
	out := &EnvoyFleetList{TypeMeta: l.TypeMeta}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopy())
	}
	return out
}

// DeepCopy copies everything.
func (s EnvoyFleetSpec) DeepCopy() EnvoyFleetSpec {
	out := s
	out.Kind, out.Replicas, out.Image = clone(s.Kind), clone(s.Replicas), clone(s.Image)
	out.Concurrency, out.Admin, out.Unreadable = clone(s.Concurrency), clone(s.Admin), clone(s.Unreadable)
	out.Resources = s.Resources.DeepCopy()
	if out.Autoscaling = clone(s.Autoscaling); out.Autoscaling != nil {
		out.Autoscaling.MinReplicas = clone(s.Autoscaling.MinReplicas)
		out.Autoscaling.TargetCPUUtilization = clone(s.Autoscaling.TargetCPUUtilization)
	}
	if out.Service = clone(s.Service); out.Service != nil {
		out.Service.Type, out.Service.Annotations = clone(s.Service.Type), maps.Clone(s.Service.Annotations)
		out.Service.LoadBalancerClass = clone(s.Service.LoadBalancerClass)
		out.Service.ExternalTrafficPolicy = clone(s.Service.ExternalTrafficPolicy)
	}
	if out.AccessLog = clone(s.AccessLog); out.AccessLog != nil {
		out.AccessLog.Format, out.AccessLog.Collector = clone(s.AccessLog.Format), clone(s.AccessLog.Collector)
		out.AccessLog.Fields = maps.Clone(s.AccessLog.Fields)
	}
	if out.Drain = clone(s.Drain); out.Drain != nil {
		out.Drain.Delay, out.Drain.Timeout = clone(s.Drain.Delay), clone(s.Drain.Timeout)
	}
	out.Placement = s.Placement.deepCopy()
	return out
}

func (p *Placement) deepCopy() *Placement {
	if p == nil {
		return nil
	}
	out := &Placement{NodeSelector: maps.Clone(p.NodeSelector), Affinity: p.Affinity.DeepCopy(), PriorityClassName: p.PriorityClassName}
	for i := range p.Tolerations {
		out.Tolerations = append(out.Tolerations, *p.Tolerations[i].DeepCopy())
	}
	for i := range p.TopologySpreadConstraints {
		out.TopologySpreadConstraints = append(out.TopologySpreadConstraints, *p.TopologySpreadConstraints[i].DeepCopy())
	}
	return out
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}
