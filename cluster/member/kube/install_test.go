package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	rbacPath    = "/apis/rbac.authorization.k8s.io/v1/"
	accountPath = "/api/v1/namespaces/fleetgate-system/serviceaccounts/fleetgate"
	bindingPath = rbacPath + "clusterrolebindings/" + releaseName
	replicasAt  = "/apis/apps/v1/namespaces/fleetgate-system/statefulsets/fleetgate"
	controller  = "fleetgate.io/gatewayclass-controller"
)

func (s *apiServer) installed(t *testing.T) {
	t.Helper()
	s.apply("/api/v1/namespaces/fleetgate-system", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"fleetgate-system"}}`)
	s.apply(accountPath, `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"fleetgate","namespace":"fleetgate-system"}}`)
	for _, file := range []string{"rbac.yaml", "release-rbac.yaml"} {
		s.install(t, file)
	}
	s.scale(3)
	s.apply(gatewayPath("", "gatewayclasses", "fleetgate"), class)
}

func (s *apiServer) scale(replicas int) {
	s.t.Helper()
	s.apply(replicasAt, fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"fleetgate","namespace":"fleetgate-system"},"spec":{"replicas":%d,"serviceName":"fleetgate",
		"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`, replicas))
}

// installIsHeldNoLongerThanItsClasses: with the rights of deploy alone, and with those that are left of them while they are deleted.
func installIsHeldNoLongerThanItsClasses(t *testing.T, s *apiServer) {
	s.installed(t)
	home, err := NewHome(s.config(fleetgateToken), "fleetgate-0", "fleetgate-system")
	if err != nil {
		t.Fatal(err)
	}
	install := home.Install("fleetgate-0")
	src, err := New(Config{Name: "home", Connect: s.config(fleetgateToken), Replica: "fleetgate-0", Hold: install.Hold})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("what stays", func(t *testing.T) { s.stays(t, install) })
	t.Run("rights outlive the order to delete them", func(t *testing.T) { s.outlive(t, src, install) })
}

func (s *apiServer) stays(t *testing.T, install *Install) {
	want := func(what string, want bool) {
		t.Helper()
		if stays, err := install.Stays(t.Context()); stays != want || err != nil {
			t.Errorf("%s: stays is %t (%v), want %t", what, stays, err, want)
		}
	}
	want("all of it is there", true)
	s.scale(0)
	want("scaled to nothing", false)
	if may, err := install.Hold(t.Context()); may || err != nil {
		t.Errorf("scaled to nothing: holding is %t (%v)", may, err)
	}
	if strings.Contains(s.read(accountPath), releaseFinalizer) {
		t.Error("scaled to nothing, and held all the same")
	}
	s.remove(replicasAt)
	want("its StatefulSet is gone", false)
	s.scale(3)
	want("it is back", true)
	if _, err := (&Install{client: install.client, namespace: "fleetgate-system", workload: "other"}).Stays(t.Context()); err == nil {
		t.Error("what may not be read was taken for absent")
	}
}

func (s *apiServer) outlive(t *testing.T, src *Source, install *Install) {
	if may, err := install.Hold(t.Context()); !may || err != nil {
		t.Fatalf("holding is %t (%v)", may, err)
	}
	s.apply(gatewayPath("", "gatewayclasses", "fleetgate"), fmt.Sprintf(`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GatewayClass","metadata":{"name":"fleetgate","finalizers":[%q]},"spec":{"controllerName":%q}}`,
		gatewayv1.GatewayClassFinalizerGatewaysExist, controller))
	s.apply(gatewayPath("", "gatewayclasses", "theirs"), fmt.Sprintf(`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GatewayClass","metadata":{"name":"theirs","finalizers":[%q]},"spec":{"controllerName":"theirs.example/c"}}`,
		gatewayv1.GatewayClassFinalizerGatewaysExist))
	for _, file := range []string{"rbac.yaml", "release-rbac.yaml"} {
		for _, m := range manifests(t, file) {
			s.remove("/apis/" + m.APIVersion + "/" + plural[m.Kind] + "/" + m.Metadata.Name)
		}
	}
	s.remove(accountPath)
	s.waitFor("the other rights to be gone", func() bool { return install.grant(t.Context(), "u") != nil })
	if stays, err := install.Stays(t.Context()); stays || err != nil {
		t.Errorf("stays is %t (%v) although it is being deleted", stays, err)
	}
	if err := src.Release(t.Context(), []string{controller}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(s.read(gatewayPath("", "gatewayclasses", "fleetgate")), gatewayv1.GatewayClassFinalizerGatewaysExist) {
		t.Error("the class is held still")
	}
	if !strings.Contains(s.read(gatewayPath("", "gatewayclasses", "theirs")), gatewayv1.GatewayClassFinalizerGatewaysExist) {
		t.Error("another controller's class was let go")
	}
	if err := install.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{accountPath, bindingPath} {
		if s.do("GET", path, "", "", nil) == nil {
			t.Errorf("%s is there still", path)
		}
	}
}

// TestRightsOfLettingGo: deploy/release-rbac.yaml lets the leader make the role of the code, and nothing else.
func TestRightsOfLettingGo(t *testing.T) {
	want := append([]rule{{[]string{releaseRoles.Group}, []string{releaseRoles.Resource}, []string{releaseName}, []string{"create", "patch"}}},
		(&Install{namespace: "fleetgate-system", workload: "fleetgate"}).releaseRules()...)
	for _, m := range manifests(t, "release-rbac.yaml") {
		if m.Kind != "ClusterRole" {
			continue
		}
		var got []rule
		for _, r := range m.Rules {
			got = append(got, rule{r.APIGroups, r.Resources, r.ResourceNames, r.Verbs})
		}
		if !slices.EqualFunc(got, want, func(a, b rule) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
			t.Errorf("deploy grants\n%v\nthe code needs\n%v", got, want)
		}
	}
}
