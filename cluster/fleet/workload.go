package fleet

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
)

// What a fleet is where nobody wishes for anything else.
const (
	defaultReplicas = int32(2)
	defaultDelay    = 5 * time.Second
	defaultTimeout  = 30 * time.Second
)

// Where things are in the pod.
const (
	StateDir     = "/var/lib/fleetgate"           // the pod's certificate, bootstrap and admin socket: outlives a container, not the pod
	IdentityDir  = "/var/run/fleetgate"           // the pod's token and the authority
	TokenFile    = IdentityDir + "/token"         // for the control plane alone
	AuthorityPEM = IdentityDir + "/authority.pem" // who signs the control plane's certificates
)

// HealthPort answers /ready and /live for the kubelet, and /stats/prometheus.
const HealthPort = 19003

// user is who Envoy runs as: nobody in particular, and not root.
const user = int64(65532)

// Audience is the audience of the tokens that pods of a member cluster show. It names the cluster, so that a token of one cluster is worth nothing in another even
// where both sign with the same key, as a restored copy does.
func Audience(cluster string) string { return "fleetgate/" + cluster }

func uid(s string) types.UID { return types.UID(s) }

// deployment leaves the number of replicas out where an autoscaler has it: to apply it would be to fight over it.
func deployment(g Gateway, in Install, name string) *appsv1.Deployment {
	replicas := new(value(g.Parameters.Replicas, defaultReplicas))
	if g.Parameters.Autoscaling != nil {
		replicas = nil
	}
	none, one := intstr.FromInt32(0), intstr.FromInt32(1)
	return &appsv1.Deployment{ObjectMeta: g.meta(name), Spec: appsv1.DeploymentSpec{
		Replicas: replicas,
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{LabelFleet: name}},
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &none, MaxSurge: &one}},
		Template: template(g, in, name),
	}}
}

func daemonSet(g Gateway, in Install, name string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{ObjectMeta: g.meta(name), Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{LabelFleet: name}},
		Template: template(g, in, name),
	}}
}

func template(g Gateway, in Install, name string) corev1.PodTemplateSpec {
	labels, annotations := g.marks(name)
	delay, timeout := g.drain()
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations},
		Spec: placed(corev1.PodSpec{
			ServiceAccountName:            name,
			AutomountServiceAccountToken:  new(false),
			EnableServiceLinks:            new(false),
			TerminationGracePeriodSeconds: new(int64((delay+timeout)/time.Second) + 10),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), RunAsUser: new(user), RunAsGroup: new(user), FSGroup: new(user),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				Sysctls:        []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "0"}},
			},
			Containers: []corev1.Container{container(g, in)},
			Volumes: []corev1.Volume{
				{Name: "state", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				identityVolume(g.Cluster, name),
			},
		}, name, g.Parameters.Placement),
	}
}

// identityVolume holds what a pod needs to get its certificate: a token that is worth nothing elsewhere, and whom to trust.
func identityVolume(cluster, name string) corev1.Volume {
	return corev1.Volume{Name: "identity", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: Audience(cluster), ExpirationSeconds: new(int64(3600))}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: name},
			Items: []corev1.KeyToPath{{Key: authorityKey, Path: "authority.pem"}}}},
	}}}}
}

func container(g Gateway, in Install) corev1.Container {
	p := g.Parameters
	return corev1.Container{
		Name: "proxy", Image: value(p.Image, in.Image), Args: arguments(g, in), Resources: value(p.Resources, defaultResources()),
		Env: []corev1.EnvVar{fieldEnv("POD_NAME", "metadata.name"), fieldEnv("POD_UID", "metadata.uid")},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: "state", MountPath: StateDir}, {Name: "identity", MountPath: IdentityDir, ReadOnly: true}},
		// A proxy is given 10 minutes for its first configuration, and is never restarted for want of a control plane.
		StartupProbe:   probe("/live", 1, 600),
		ReadinessProbe: probe("/ready", 1, 1),
		LivenessProbe:  probe("/live", 10, 3),
	}
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
}

func probe(path string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{PeriodSeconds: period, TimeoutSeconds: 5, FailureThreshold: failures,
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(HealthPort), Scheme: corev1.URISchemeHTTP}}}
}

// arguments are those of `fleetgate proxy run`. The Gateway's name is told for people who read logs: who the pod is, its certificate says.
func arguments(g Gateway, in Install) []string {
	delay, timeout := g.drain()
	out := []string{
		"proxy", "run", "--cluster=" + g.Cluster, "--namespace=" + g.Namespace, "--gateway=" + g.Name, "--xds=" + in.XDS, "--certificates=" + in.Certificates,
		"--server-name=" + in.ServerName, fmt.Sprintf("--concurrency=%d", concurrency(g.Parameters)), fmt.Sprintf("--drain-delay=%s", delay), fmt.Sprintf("--drain-timeout=%s", timeout),
	}
	if value(g.Parameters.Admin, v1alpha1.AdminOff) == v1alpha1.AdminOn {
		out = append(out, "--admin")
	}
	if l := g.Parameters.AccessLog; l != nil && l.Type == v1alpha1.AccessLogOTLP {
		out = append(out, "--access-log-collector="+value(l.Collector, ""))
	}
	return out
}

func (g Gateway) drain() (delay, timeout time.Duration) {
	d := value(g.Parameters.Drain, v1alpha1.Drain{})
	return value(d.Delay, metav1.Duration{Duration: defaultDelay}).Duration, value(d.Timeout, metav1.Duration{Duration: defaultTimeout}).Duration
}

// defaultResources are requests only: a limit of CPU makes latency, a limit of memory kills a proxy that grew with its routes.
func defaultResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("256Mi"),
	}}
}

// concurrency is the number of worker threads. Envoy's own default, one for each CPU of the node, wastes memory and fan-out on big nodes.
func concurrency(p v1alpha1.EnvoyFleetSpec) int32 {
	if p.Concurrency != nil {
		return *p.Concurrency
	}
	r := value(p.Resources, corev1.ResourceRequirements{})
	for _, list := range []corev1.ResourceList{r.Limits, r.Requests} {
		if cpu, ok := list[corev1.ResourceCPU]; ok && !cpu.IsZero() {
			return int32(min(1024, cpu.Value())) // rounded up to whole CPUs
		}
	}
	return 2
}

// placed puts a pod where it is wished; else the pods of a fleet spread over zones and nodes.
func placed(spec corev1.PodSpec, name string, p *v1alpha1.Placement) corev1.PodSpec {
	wish := value(p, v1alpha1.Placement{})
	spec.NodeSelector, spec.Tolerations, spec.Affinity, spec.PriorityClassName = wish.NodeSelector, wish.Tolerations, wish.Affinity, wish.PriorityClassName
	spec.TopologySpreadConstraints = wish.TopologySpreadConstraints
	if spec.TopologySpreadConstraints != nil {
		return spec
	}
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelHostname} {
		spec.TopologySpreadConstraints = append(spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.ScheduleAnyway,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{LabelFleet: name}},
		})
	}
	return spec
}
