// Package fleet provisions the Envoys of Gateways in the clusters that the Gateways live in, after GEP-1762.
//
// What a Gateway's fleet consists of is a pure function of its record, its parameters and the installation (Render), and what has to be done about it
// a pure function of that and of what is there (plan). So an unchanged Gateway causes no write, a changed route cannot cause one, because no route
// is an input, and what a person or an autoscaler changed beside our fields stays.
//
// Four choices that are hard to see in the code:
//
// Envoys bind the listeners' own ports. A mapping (80 to 10080) would make listener bytes depend on where a fleet runs. For ports below 1024 the
// pod sets the sysctl net.ipv4.ip_unprivileged_port_start, which the restricted Pod Security Standard allows, and so needs neither root nor NET_BIND_SERVICE.
//
// The pod template holds nothing of the listeners. Their ports are in the Service alone: a new listener starts no new pod and breaks no connection.
//
// An asked-for ClusterIP has a Service of its own beside the fleet's. That field of a Service never changes, and the API server refuses a value that is taken or out of range: so another
// value is another Service, the fleet's own keeps its load balancer's address, and what cannot be had is told and keeps nothing else from being had (GEP-5093).
//
// A pod's own certificate is got by the pod (cluster/enroll): what is provisioned holds no secret.
package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
)

// Gateway is what decides a fleet.
type Gateway struct {
	Cluster, Namespace, Name, UID, Class string
	Labels, Annotations                  map[string]string // of spec.infrastructure
	Addresses                            []Address         // that are asked for
	Ports                                []Port
	Parameters                           v1alpha1.EnvoyFleetSpec // of the class and of the Gateway, merged and valid
}

// Address is an address that is asked for.
type Address struct {
	Type        string
	Value       string // "" = any
	Routability string // "Cluster" = a ClusterIP (GEP-5093)
	Refused     string // why it cannot be had, "" = it may be had
}

// Port is a port of a listener.
type Port struct {
	Number   int32
	Protocol string // TCP or UDP
}

// Install is what all fleets of an installation share.
type Install struct {
	Image        string // holds fleetgate and envoy
	XDS          string // host:port of the replicas' xDS
	Certificates string // host:port of their certificate port
	ServerName   string // that the replicas' certificates carry
	Authority    []byte // PEM: who signs the replicas' and the proxies' certificates
}

// Labels and annotations of what is provisioned.
const (
	LabelGateway   = "gateway.networking.k8s.io/gateway-name"
	LabelClass     = "gateway.networking.k8s.io/gateway-class-name"
	LabelManagedBy = "app.kubernetes.io/managed-by"
	LabelFleet     = "fleetgate.io/fleet" // name of the fleet's objects: what the workload's selector selects

	AnnotationGateway = "fleetgate.io/gateway" // the Gateway's whole name: a label holds 63 characters only
	AnnotationHash    = "fleetgate.io/hash"    // of what was applied
	AnnotationAddress = "fleetgate.io/address" // of a Service that is there for one address that is asked for: which, or the how-manieth of those without a value

	ManagedBy = "fleetgate" // the label's value, and the field manager
)

// Selector selects everything that is provisioned.
const Selector = LabelManagedBy + "=" + ManagedBy + "," + LabelGateway

// Kind is a kind of object that is provisioned.
type Kind struct {
	schema.GroupVersionKind
	Resource string
}

// Kinds are all that is provisioned, in the order in which it is applied: what pods need comes before them.
var Kinds = []Kind{
	{schema.GroupVersionKind{Version: "v1", Kind: "ServiceAccount"}, "serviceaccounts"},
	{schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, "configmaps"},
	{schema.GroupVersionKind{Version: "v1", Kind: "Service"}, "services"},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: v1alpha1.KindDeployment}, "deployments"},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: v1alpha1.KindDaemonSet}, "daemonsets"},
	{schema.GroupVersionKind{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget"}, "poddisruptionbudgets"},
	{schema.GroupVersionKind{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler"}, "horizontalpodautoscalers"},
}

// Object is an object as it is applied: the fields that we have an opinion on, and no others.
type Object map[string]any

func (o Object) metadata() map[string]any { m, _ := o["metadata"].(map[string]any); return m }

// Kind of the object.
func (o Object) Kind() string { return text(o["kind"]) }

// Name of the object.
func (o Object) Name() string { return text(o.metadata()["name"]) }

// Namespace of the object.
func (o Object) Namespace() string { return text(o.metadata()["namespace"]) }

func (o Object) uid() string { return text(o.metadata()["uid"]) }

func (o Object) annotation(name string) string {
	a, _ := o.metadata()["annotations"].(map[string]any)
	return text(a[name])
}

func (o Object) label(name string) string {
	l, _ := o.metadata()["labels"].(map[string]any)
	return text(l[name])
}

func text(v any) string { s, _ := v.(string); return s }

// GatewayOf names the Gateway that something provisioned belongs to.
func (o Object) GatewayOf() (namespace, name string) {
	return o.Namespace(), o.annotation(AnnotationGateway)
}

// applied turns a typed object into the fields that it sets, with their hash. What is not set (null, and the empty status that Go's types always have) is
// left out: to apply a field is to own it.
func applied(o runtime.Object, kind Kind, meta metav1.ObjectMeta) (Object, error) {
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("rendering %s %s/%s: %w", kind.Kind, meta.Namespace, meta.Name, err)
	}
	var out Object
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("rendering %s %s/%s: %w", kind.Kind, meta.Namespace, meta.Name, err)
	}
	delete(out, "status")
	out["apiVersion"], out["kind"] = kind.GroupVersion().String(), kind.Kind
	prune(out)
	if raw, err = json.Marshal(out); err != nil {
		return nil, fmt.Errorf("rendering %s %s/%s: %w", kind.Kind, meta.Namespace, meta.Name, err)
	}
	sum := sha256.Sum256(raw)
	out.metadata()["annotations"].(map[string]any)[AnnotationHash] = hex.EncodeToString(sum[:8])
	return out, nil
}

// prune drops nulls, and the empty strategy and resources that Go's types always have.
func prune(m map[string]any) {
	for k, v := range m {
		switch v := v.(type) {
		case nil:
			delete(m, k)
		case map[string]any:
			prune(v)
			if len(v) == 0 && (k == "strategy" || k == "updateStrategy" || k == "resources") {
				delete(m, k)
			}
		case []any:
			for _, item := range v {
				if one, ok := item.(map[string]any); ok {
					prune(one)
				}
			}
		}
	}
}
