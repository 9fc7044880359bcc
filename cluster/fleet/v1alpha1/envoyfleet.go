// Package v1alpha1 is the API group fleetgate.io/v1alpha1: EnvoyFleet, how the Envoys of a Gateway are run.
//
// An EnvoyFleet holds wishes only. A field that is not set is decided by whoever asks next: the Gateway's EnvoyFleet, then its GatewayClass's,
// then Fleetgate's own defaults (Merge). So every field is optional, and "not set" is never the same as zero.
package v1alpha1

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group, Version, Kind and Resource of EnvoyFleet.
const (
	Group    = "fleetgate.io"
	Version  = "v1alpha1"
	Kind     = "EnvoyFleet"
	Resource = "envoyfleets"
)

// LabelXBackend is on the EndpointSlices, and on the Service, of an XBackend that selects pods. Its value is the XBackend's UID; in a directory, where somebody writes the slices
// and nobody knows a UID, it is the name.
const LabelXBackend = Group + "/xbackend"

// GroupVersion is the API group and version of this package.
var GroupVersion = schema.GroupVersion{Group: Group, Version: Version}

// AddToScheme makes a scheme know EnvoyFleet.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &EnvoyFleet{}, &EnvoyFleetList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// EnvoyFleet says how the Envoys of a Gateway are run. A GatewayClass names one in spec.parametersRef, a Gateway of the same namespace in
// spec.infrastructure.parametersRef.
type EnvoyFleet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec EnvoyFleetSpec `json:"spec,omitempty"`
}

// EnvoyFleetList is a list of them.
type EnvoyFleetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []EnvoyFleet `json:"items"`
}

// Kinds of workload.
const (
	KindDeployment = "Deployment"
	KindDaemonSet  = "DaemonSet"
)

// AdminOn and AdminOff are the values of Admin.
const (
	AdminOn  = "On"
	AdminOff = "Off"
)

// EnvoyFleetSpec is what can be wished for.
type EnvoyFleetSpec struct {
	// Kind of workload: Deployment (the default) or DaemonSet, one Envoy on each node.
	Kind *string `json:"kind,omitempty"`
	// Replicas of a Deployment; 2 where neither this nor autoscaling is set. Not with autoscaling.
	Replicas *int32 `json:"replicas,omitempty"`
	// Autoscaling leaves the number of replicas to a HorizontalPodAutoscaler. Not with replicas.
	Autoscaling *Autoscaling `json:"autoscaling,omitempty"`
	// Image holds fleetgate and envoy; the control plane's own where it is not set.
	Image *string `json:"image,omitempty"`
	// Resources of the container; requests of 100m CPU and 256Mi where they are not set.
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
	// Service in front of the Envoys.
	Service *Service `json:"service,omitempty"`
	// Placement on nodes.
	Placement *Placement `json:"placement,omitempty"`
	// Concurrency is the number of Envoy's worker threads; as many as the CPUs of the limit, else of the request, at least 1, and 2 where neither is set.
	Concurrency *int32 `json:"concurrency,omitempty"`
	// AccessLog of all HTTP listeners.
	AccessLog *AccessLog `json:"accessLog,omitempty"`
	// Drain says how an Envoy goes away.
	Drain *Drain `json:"drain,omitempty"`
	// Admin opens Envoy's admin interface on 127.0.0.1:19000 of the pod, for kubectl port-forward: On or Off (the default).
	Admin *string `json:"admin,omitempty"`

	// Unreadable is why the spec could not be read; nothing else is set then.
	Unreadable *string `json:"-"`
}

// UnmarshalJSON reads a spec. What the schema lets pass and these types cannot hold, such as an affinity that is none, is left for Validate to tell: an error
// here would hide all EnvoyFleets of a cluster behind the one.
func (s *EnvoyFleetSpec) UnmarshalJSON(b []byte) error {
	type plain EnvoyFleetSpec
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		*s = EnvoyFleetSpec{Unreadable: new(err.Error())}
		return nil
	}
	*s = EnvoyFleetSpec(p)
	return nil
}

// Autoscaling is a HorizontalPodAutoscaler on CPU.
type Autoscaling struct {
	// MinReplicas is 2 where it is not set.
	MinReplicas *int32 `json:"minReplicas,omitempty"`
	MaxReplicas int32  `json:"maxReplicas"`
	// TargetCPUUtilization is in percent of the requested CPU; 70 where it is not set.
	TargetCPUUtilization *int32 `json:"targetCPUUtilization,omitempty"`
}

// Service is the Service in front of the Envoys.
type Service struct {
	// Type is LoadBalancer (the default), NodePort or ClusterIP. A Gateway all of whose addresses have a routability gets a ClusterIP at most, whatever stands here.
	Type *corev1.ServiceType `json:"type,omitempty"`
	// Annotations of the Service, as the cloud's load balancers read them.
	Annotations map[string]string `json:"annotations,omitempty"`
	// LoadBalancerClass picks the load balancer.
	LoadBalancerClass *string `json:"loadBalancerClass,omitempty"`
	// ExternalTrafficPolicy is Cluster (the default) or Local, which keeps the client's address.
	ExternalTrafficPolicy *corev1.ServiceExternalTrafficPolicy `json:"externalTrafficPolicy,omitempty"`
}

// Placement is where pods may run. Without topologySpreadConstraints the pods of a fleet spread over nodes and zones where they can.
type Placement struct {
	NodeSelector              map[string]string                 `json:"nodeSelector,omitempty"`
	Tolerations               []corev1.Toleration               `json:"tolerations,omitempty"`
	Affinity                  *corev1.Affinity                  `json:"affinity,omitempty"`
	TopologySpreadConstraints []corev1.TopologySpreadConstraint `json:"topologySpreadConstraints,omitempty"`
	PriorityClassName         string                            `json:"priorityClassName,omitempty"`
}

// Types of access log.
const (
	AccessLogOff  = "Off"
	AccessLogText = "Text"
	AccessLogJSON = "JSON"
	AccessLogOTLP = "OTLP"
)

// AccessLog is one access log. Text and JSON go to the container's stdout.
type AccessLog struct {
	// Type is Text, JSON, OTLP or Off.
	Type string `json:"type"`
	// Format is the line of a Text log, in Envoy's command language; Fleetgate's own where it is not set.
	Format *string `json:"format,omitempty"`
	// Fields are those of a JSON log and the attributes of an OTLP log: name to Envoy command; Fleetgate's own where there are none.
	Fields map[string]string `json:"fields,omitempty"`
	// Collector is host:port of an OTLP/gRPC collector, for OTLP.
	Collector *string `json:"collector,omitempty"`
}

// Drain says how an Envoy that is told to stop goes away: first it is unready for Delay and serves on, so that load balancers can take it out; then its listeners
// drain for at most Timeout.
type Drain struct {
	// Delay is 5s where it is not set.
	Delay *metav1.Duration `json:"delay,omitempty"`
	// Timeout is 30s where it is not set.
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}
