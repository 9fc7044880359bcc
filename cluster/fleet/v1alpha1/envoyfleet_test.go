package v1alpha1

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func spec(t *testing.T, text string) EnvoyFleetSpec {
	t.Helper()
	var s EnvoyFleetSpec
	if err := yaml.UnmarshalStrict([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMerge(t *testing.T) {
	for _, c := range []struct{ failure, base, over, want string }{
		{"class's wishes lost", `{replicas: 3, image: a}`, `{}`, `{replicas: 3, image: a}`},
		{"Gateway's wish not heard", `{replicas: 3, image: a}`, `{image: b}`, `{replicas: 3, image: b}`},
		{"replicas beside the class's autoscaling", `{autoscaling: {maxReplicas: 9}}`, `{replicas: 1}`, `{replicas: 1}`},
		{"autoscaling beside the class's replicas", `{replicas: 3}`, `{autoscaling: {maxReplicas: 9}}`, `{autoscaling: {maxReplicas: 9}}`},
		{"DaemonSet with the class's replicas", `{replicas: 3}`, `{kind: DaemonSet}`, `{kind: DaemonSet}`},
		{"zero taken for unset", `{replicas: 3}`, `{replicas: 0}`, `{replicas: 0}`},
		{"joined inside a field", `{service: {type: NodePort, annotations: {a: b}}}`, `{service: {type: ClusterIP}}`, `{service: {type: ClusterIP}}`},
	} {
		if diff := cmp.Diff(spec(t, c.want), Merge(spec(t, c.base), spec(t, c.over))); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.failure, diff)
		}
	}
}

// TestMergeKnowsEveryField: a field that Merge forgets would be a wish of a Gateway that nobody hears.
func TestMergeKnowsEveryField(t *testing.T) {
	fields := reflect.TypeFor[EnvoyFleetSpec]()
	for i := range fields.NumField() {
		var over EnvoyFleetSpec
		f := reflect.ValueOf(&over).Elem().Field(i)
		f.Set(reflect.New(f.Type().Elem()))
		if diff := cmp.Diff(over, Merge(EnvoyFleetSpec{}, over)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", fields.Field(i).Name, diff)
		}
	}
}

const everything = `
kind: Deployment
autoscaling: {minReplicas: 1, maxReplicas: 9, targetCPUUtilization: 50}
image: i
resources: {limits: {cpu: "1"}}
service: {type: NodePort, annotations: {a: b}, loadBalancerClass: c, externalTrafficPolicy: Local}
placement:
  nodeSelector: {a: b}
  tolerations: [{key: k}]
  affinity: {nodeAffinity: {}}
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: DoNotSchedule}]
  priorityClassName: p
concurrency: 3
accessLog: {type: JSON, fields: {a: "%PROTOCOL%"}}
drain: {delay: 1s, timeout: 2s}
admin: "On"
`

// TestDeepCopySharesNothing: whoever gets a copy may change it.
func TestDeepCopySharesNothing(t *testing.T) {
	f := &EnvoyFleet{Spec: spec(t, everything)}
	if err := f.Spec.Validate(); err != nil {
		t.Fatal(err)
	}
	c := f.DeepCopy()
	if diff := cmp.Diff(f, c); diff != "" {
		t.Fatal(diff)
	}
	*c.Spec.Kind, *c.Spec.Autoscaling.MinReplicas, *c.Spec.Autoscaling.TargetCPUUtilization, *c.Spec.Image = "", 7, 7, ""
	c.Spec.Service.Annotations["a"], *c.Spec.Service.Type, *c.Spec.Service.LoadBalancerClass, *c.Spec.Service.ExternalTrafficPolicy = "", "", "", ""
	c.Spec.Placement.NodeSelector["a"], c.Spec.Placement.Tolerations[0].Key, c.Spec.Placement.TopologySpreadConstraints[0].TopologyKey = "", "", ""
	c.Spec.Placement.Affinity.NodeAffinity = nil
	delete(c.Spec.Resources.Limits, "cpu")
	*c.Spec.Concurrency, c.Spec.AccessLog.Fields["a"], c.Spec.Drain.Delay.Duration, c.Spec.Drain.Timeout.Duration, *c.Spec.Admin = 1, "", 0, 0, ""
	if diff := cmp.Diff(spec(t, everything), f.Spec); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	for _, c := range []struct{ spec, want string }{
		{`{kind: StatefulSet}`, "write Deployment or DaemonSet"},
		{`{kind: DaemonSet, replicas: 2}`, "remove replicas"},
		{`{replicas: 1, autoscaling: {maxReplicas: 2}}`, "exclude each other"},
		{`{replicas: -1}`, "write 0 or more"},
		{`{concurrency: 0}`, "write 1 to 1024"},
		{`{admin: Yes please}`, "write On or Off"},
		{`{autoscaling: {minReplicas: 3, maxReplicas: 2}}`, "the larger one last"},
		{`{autoscaling: {maxReplicas: 2, targetCPUUtilization: 0}}`, "percentage above 0"},
		{`{service: {type: ExternalName}}`, "write LoadBalancer, NodePort or ClusterIP"},
		{`{accessLog: {type: Syslog}}`, "write Text, JSON, OTLP or Off"},
		{`{accessLog: {type: OTLP}}`, "write host:port"},
		{`{accessLog: {type: Text, collector: "a:1"}}`, "is for type OTLP"},
		{`{accessLog: {type: JSON, format: x}}`, "is for type Text"},
		{`{accessLog: {type: Text, fields: {a: b}}}`, "are for types JSON and OTLP"},
		{`{drain: {delay: -1s}}`, "write 0s to 24h"},
	} {
		if err := spec(t, c.spec).Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.spec, err, c.want)
		}
	}
}
