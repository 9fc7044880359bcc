package fleet

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
)

// plan says what has to be applied and what has to go, so that what is there is what is wanted. What is there and fits is left alone: a hash tells that we have
// nothing else to say, and a comparison field by field that nobody has said otherwise meanwhile.
func plan(want, have []Object) (apply, remove []Object) {
	there := map[string]Object{}
	for _, o := range have {
		there[o.id()] = o
	}
	wanted := map[string]bool{}
	for _, o := range want {
		wanted[o.id()] = true
		if old := there[o.id()]; old == nil || old.annotation(AnnotationHash) != o.annotation(AnnotationHash) || !holds(map[string]any(old), map[string]any(o)) {
			apply = append(apply, o)
		}
	}
	serving := !slices.ContainsFunc(want, func(o Object) bool { return o.isWorkload() && !o.empty() && !available(there[o.id()]) })
	for _, o := range have {
		switch {
		case wanted[o.id()] || o.Kind() == kindPod || o.deleting():
		case !serving && (o.isWorkload() || o.label(LabelFleet) != want[0].label(LabelFleet)): // Envoys of another name or kind serve until those that replace them do, and are reached as before
		default:
			remove = append(remove, o)
		}
	}
	return apply, remove
}

const (
	kindPod     = "Pod"
	kindService = "Service"
)

func (o Object) id() string { return o.Kind() + "/" + o.Name() }

func (o Object) isWorkload() bool {
	return o.Kind() == v1alpha1.KindDeployment || o.Kind() == v1alpha1.KindDaemonSet
}

func (o Object) deleting() bool { return o.metadata()["deletionTimestamp"] != nil }

// empty tells whether a workload is to have no replica at all.
func (o Object) empty() bool {
	spec, _ := o["spec"].(map[string]any)
	return spec["replicas"] != nil && number(spec["replicas"]) == 0
}

// available tells whether a workload has a replica that serves.
func available(o Object) bool {
	status, _ := o["status"].(map[string]any)
	return number(status["availableReplicas"]) > 0 || number(status["numberAvailable"]) > 0
}

func number(v any) float64 {
	switch v := v.(type) {
	case int64:
		return float64(v)
	case float64:
		return v
	}
	return 0
}

// holds tells whether all that want says is so in have. Lists are compared item by item; what have says beyond that is somebody else's.
func holds(have, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		have, ok := have.(map[string]any)
		for k, v := range want {
			if !ok || !holds(have[k], v) {
				return false
			}
		}
		return true
	case []any:
		have, ok := have.([]any)
		if !ok || len(have) != len(want) {
			return len(want) == 0 && have == nil
		}
		for i, v := range want {
			if !holds(have[i], v) {
				return false
			}
		}
		return true
	case float64, int64:
		return number(have) == number(want)
	case string:
		return have == want || have == nil && want == "" // an empty value is not kept
	}
	return reflect.DeepEqual(have, want)
}

// Row is what the group has to know of a fleet.
type Row struct {
	Proxies    []string // uids of pods that are Ready
	Addresses  []string
	ClusterIPs []string // those that are asked for, and those among Addresses
	Refused    []string // addresses that the cluster refused, with its reason
	Problem    string
}

// proxies are the pods that count. One that is going away does not: nobody waits for it.
func proxies(have []Object) []string {
	var out []string
	for _, o := range have {
		if o.Kind() == kindPod && ready(o) && !o.deleting() {
			out = append(out, o.uid())
		}
	}
	slices.Sort(out)
	return out
}

// rowOf reads a fleet's row from what is there.
func rowOf(g Gateway, want, have []Object) Row {
	r := Row{Proxies: proxies(have)}
	there := map[string]Object{}
	for _, o := range have {
		there[o.id()] = o
	}
	first := there[kindService+"/"+Name(g.Name, g.Class)]
	r.Addresses = addresses(first, have)
	asked := slices.ContainsFunc(g.Addresses, Address.cluster)
	for _, o := range want {
		ip := clusterIP(there[o.id()])
		if o.Kind() == kindService && ip != "" && (asked || slices.Contains(r.Addresses, ip)) {
			r.ClusterIPs = append(r.ClusterIPs, ip)
		}
	}
	slices.SortFunc(r.ClusterIPs, compareAddresses)
	return r
}

// clusterIP of a Service, "" = it has none.
func clusterIP(service Object) string {
	spec, _ := service["spec"].(map[string]any)
	if ip := text(spec["clusterIP"]); ip != corev1.ClusterIPNone {
		return ip
	}
	return ""
}

func ready(pod Object) bool {
	status, _ := pod["status"].(map[string]any)
	conditions, _ := status["conditions"].([]any)
	return slices.ContainsFunc(conditions, func(c any) bool {
		one, _ := c.(map[string]any)
		return one["type"] == "Ready" && one["status"] == "True"
	})
}

// addresses at which a Service is reached: those that its load balancer was given, else those of its nodes, else its own; and those that were asked for of
// the network.
func addresses(service Object, have []Object) []string {
	spec, _ := service["spec"].(map[string]any)
	var out []string
	switch text(spec["type"]) {
	case "LoadBalancer":
		out = ingress(service)
		if len(out) == 0 {
			return nil // what is asked of the network works no sooner
		}
	case "NodePort":
		for _, o := range have {
			status, _ := o["status"].(map[string]any)
			if ip := text(status["hostIP"]); o.Kind() == kindPod && ip != "" && ready(o) {
				out = append(out, ip)
			}
		}
	default:
		if ip := clusterIP(service); ip != "" {
			out = append(out, ip)
		}
	}
	external, _ := spec["externalIPs"].([]any)
	for _, a := range external {
		out = append(out, text(a))
	}
	slices.SortFunc(out, compareAddresses)
	return slices.Compact(out)
}

func ingress(service Object) []string {
	status, _ := service["status"].(map[string]any)
	balancer, _ := status["loadBalancer"].(map[string]any)
	list, _ := balancer["ingress"].([]any)
	var out []string
	for _, one := range list {
		i, _ := one.(map[string]any)
		if a := cmp.Or(text(i["ip"]), text(i["hostname"])); a != "" {
			out = append(out, a)
		}
	}
	return out
}

// compareAddresses puts IPv4 before IPv6 before names.
func compareAddresses(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	switch {
	case errX != nil && errY != nil:
		return strings.Compare(a, b)
	case errX != nil:
		return 1
	case errY != nil:
		return -1
	}
	return x.Compare(y)
}

func (o Object) String() string { return fmt.Sprintf("%s %s/%s", o.Kind(), o.Namespace(), o.Name()) }
