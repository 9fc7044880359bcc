package member

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
)

// GatewayGroup is the API group of the Gateway API.
const GatewayGroup = gatewayv1.GroupName

// kind is a kind of object that a directory may hold.
type kind struct {
	name       string
	group      string // "" is the core group
	version    string // of the Go type that is handed out
	namespaced bool
	crd        string // file in deploy; "" = a kind that is built into API servers
	make       func() Object
	nameRule   validation.ValidateNameFunc
	// complete sets defaults, and check finds what an API server would refuse; both only for built-in kinds, CRDs say it themselves.
	complete func(Object)
	check    func(Object) []fault
}

func (k *kind) apiVersion() string {
	if k.group == "" {
		return k.version
	}
	return k.group + "/" + k.version
}

// kinds are in the order in which events of one scan are delivered: what others refer to comes first.
var kinds = []*kind{
	builtin("Namespace", "", "v1", func() Object { return &corev1.Namespace{} }).named(validation.NameIsDNSLabel).clusterScoped(),
	envoyFleet(),
	crd("GatewayClass", "gatewayclasses", func() Object { return &gatewayv1.GatewayClass{} }).clusterScoped(),
	crd("ReferenceGrant", "referencegrants", func() Object { return &gatewayv1.ReferenceGrant{} }),
	builtin("ConfigMap", "", "v1", func() Object { return &corev1.ConfigMap{} }).checked(checkConfigMap),
	builtin("ClusterTrustBundle", certificatesv1.GroupName, "v1", func() Object { return &certificatesv1.ClusterTrustBundle{} }).named(path.ValidatePathSegmentName).clusterScoped(),
	builtin("Secret", "", "v1", func() Object { return &corev1.Secret{} }).completed(completeSecret).checked(checkSecret),
	builtin("Service", "", "v1", func() Object { return &corev1.Service{} }).named(validation.NameIsDNS1035Label).
		completed(completeService).checked(checkService),
	builtin("EndpointSlice", discoveryv1.GroupName, "v1", func() Object { return &discoveryv1.EndpointSlice{} }).
		completed(completeEndpointSlice).checked(checkEndpointSlice),
	crd("BackendTLSPolicy", "backendtlspolicies", func() Object { return &gatewayv1.BackendTLSPolicy{} }),
	experimental("XBackend", "xbackends", func() Object { return &gatewayxv1alpha1.XBackend{} }),
	experimental("XBackendTrafficPolicy", "xbackendtrafficpolicies", func() Object { return &gatewayxv1alpha1.XBackendTrafficPolicy{} }),
	experimental("XTelemetryPolicy", "xtelemetrypolicies", func() Object { return &gatewayxv1alpha1.XTelemetryPolicy{} }),
	crd("Gateway", "gateways", func() Object { return &gatewayv1.Gateway{} }),
	crd("ListenerSet", "listenersets", func() Object { return &gatewayv1.ListenerSet{} }),
	crd("HTTPRoute", "httproutes", func() Object { return &gatewayv1.HTTPRoute{} }),
	crd("GRPCRoute", "grpcroutes", func() Object { return &gatewayv1.GRPCRoute{} }),
	crd("TLSRoute", "tlsroutes", func() Object { return &gatewayv1.TLSRoute{} }),
	crd("TCPRoute", "tcproutes", func() Object { return &gatewayv1.TCPRoute{} }),
	crd("UDPRoute", "udproutes", func() Object { return &gatewayv1.UDPRoute{} }),
	builtin("Deployment", appsv1.GroupName, "v1", func() Object { return &appsv1.Deployment{} }).
		completed(completeDeployment).checked(checkDeployment),
	builtin("Pod", "", "v1", func() Object { return &corev1.Pod{} }).checked(checkPod),
}

// kindRank is the place of a kind in the order of delivery.
var kindRank = func() map[string]int {
	rank := make(map[string]int, len(kinds))
	for i, k := range kinds {
		rank[k.name] = i
	}
	return rank
}()

func builtin(name, group, version string, new func() Object) *kind {
	return &kind{name: name, group: group, version: version, namespaced: true, make: new, nameRule: validation.NameIsDNSSubdomain}
}

func crd(name, file string, new func() Object) *kind {
	k := builtin(name, GatewayGroup, "v1", new)
	k.crd = "crds/" + GatewayGroup + "_" + file + ".yaml"
	return k
}

// experimental is a kind that only the Gateway API's experimental channel has.
func experimental(name, file string, new func() Object) *kind {
	k := builtin(name, gatewayxv1alpha1.GroupName, "v1alpha1", new)
	k.crd = "experimental/" + gatewayxv1alpha1.GroupName + "_" + file + ".yaml"
	return k
}

// envoyFleet is the one kind of our own.
func envoyFleet() *kind {
	k := builtin(v1alpha1.Kind, v1alpha1.Group, v1alpha1.Version, func() Object { return &v1alpha1.EnvoyFleet{} })
	k.crd = "crds/" + v1alpha1.Group + "_" + v1alpha1.Resource + ".yaml"
	return k
}

func (k *kind) clusterScoped() *kind                         { k.namespaced = false; return k }
func (k *kind) named(rule validation.ValidateNameFunc) *kind { k.nameRule = rule; return k }
func (k *kind) completed(complete func(Object)) *kind        { k.complete = complete; return k }
func (k *kind) checked(check func(Object) []fault) *kind     { k.check = check; return k }
func (k *kind) fits(group, name string) bool                 { return k.group == group && k.name == name }
func kindByName(name string) *kind                           { return kinds[kindRank[name]] }
func groupVersion(apiVersion string) (group, version string) {
	if i := strings.IndexByte(apiVersion, '/'); i >= 0 {
		return apiVersion[:i], apiVersion[i+1:]
	}
	return "", apiVersion
}

// findKind finds the kind of an object by apiVersion and kind, or says why it cannot be taken.
func findKind(apiVersion, name string) (*kind, *fault) {
	group, version := groupVersion(apiVersion)
	for _, k := range kinds {
		if !k.fits(group, name) {
			continue
		}
		versions := []string{k.version}
		if k.crd != "" {
			served, err := servedVersions(k)
			if err != nil {
				return nil, &fault{field: "apiVersion", message: err.Error()}
			}
			versions = served
		}
		if !slices.Contains(versions, version) {
			return nil, &fault{field: "apiVersion", message: fmt.Sprintf("%s is not served in version %q. Write apiVersion: %s", name, version, k.apiVersion())}
		}
		return k, nil
	}
	return nil, unknownKind(apiVersion, name)
}

func unknownKind(apiVersion, name string) *fault {
	var names []string
	for _, k := range kinds {
		if k.name == name {
			return &fault{field: "apiVersion", message: fmt.Sprintf("kind %s is not in %q. Write apiVersion: %s", name, apiVersion, k.apiVersion())}
		}
		names = append(names, k.name)
	}
	remedy := "Move it out of this directory"
	if guess := nearest(name, names); guess != "" {
		remedy = fmt.Sprintf("Did you mean %q?", guess)
	}
	return &fault{field: "kind", message: fmt.Sprintf("kind %s of %s is not supported; supported are %s. %s",
		name, apiVersion, strings.Join(names, ", "), remedy)}
}
