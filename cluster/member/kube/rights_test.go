package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
)

// manifest is one document of a file in deploy.
type manifest struct {
	APIVersion string
	Kind       string
	Metadata   struct{ Name string }
	Rules      []struct{ APIGroups, Resources, ResourceNames, Verbs []string }
	raw        []byte
}

func manifests(t *testing.T, name string) []manifest {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	var out []manifest
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(b), 4096); ; {
		var raw json.RawMessage
		err := d.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return out
		}
		m := manifest{raw: raw}
		if err == nil {
			err = json.Unmarshal(raw, &m)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out = append(out, m)
	}
}

// asked is what this package asks of an API server, as "group/resource verb".
func asked() []string {
	var out []string
	for _, k := range kinds {
		verbs := []string{"list", "watch"}
		if k.status || k.metadata || k.name == "Service" {
			verbs = append(verbs, "get") // before a write; to know the cluster and a CRD again; what a route names and nobody has heard of
		}
		for _, v := range verbs {
			out = append(out, k.group+"/"+k.resource+" "+v)
		}
		if k.status {
			out = append(out, k.group+"/"+k.resource+"/status update")
		}
	}
	out = append(out, gatewayGroup+"/gatewayclasses patch") // the finalizer
	out = append(out, "events.k8s.io/events create", "events.k8s.io/events patch")
	slices.Sort(out)
	return out
}

// TestRightsAreWhatIsAsked: deploy/rbac.yaml grants what the code asks, and nothing that it does not ask. A read that is granted in three verbs for the sake of a short file is
// one right: who may list an object may get it.
func TestRightsAreWhatIsAsked(t *testing.T) {
	var granted []string
	for _, m := range manifests(t, "rbac.yaml") {
		for _, r := range m.Rules {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, verb := range r.Verbs {
						granted = append(granted, group+"/"+resource+" "+verb)
					}
				}
			}
		}
	}
	for _, a := range asked() {
		if !slices.Contains(granted, a) {
			t.Errorf("not granted: %s", a)
		}
	}
	for _, g := range granted {
		list := strings.TrimSuffix(g, "get") + "list"
		if !slices.Contains(asked(), g) && !(strings.HasSuffix(g, " get") && slices.Contains(asked(), list)) {
			t.Errorf("granted, and never asked: %s", g)
		}
		if strings.Contains(g, "*") {
			t.Errorf("a wildcard: %s", g)
		}
	}
}

var plural = map[string]string{
	"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings", "FlowSchema": "flowschemas", "PriorityLevelConfiguration": "prioritylevelconfigurations",
}

// install applies those documents of a file that have no namespace, and returns when the rights in them are in force.
func (s *apiServer) install(t *testing.T, file string) {
	t.Helper()
	for _, m := range manifests(t, file) {
		if plural[m.Kind] != "" {
			s.apply("/apis/"+m.APIVersion+"/"+plural[m.Kind]+"/"+m.Metadata.Name, string(m.raw))
		}
	}
	s.inForce()
}

// inForce waits until the API server has heard of all roles and bindings that were written: it decides by what its watches of them have brought, and these bring everything in order.
// So a role that is written last, with a right of its own, and its binding say that those before them have come too.
func (s *apiServer) inForce() {
	s.t.Helper()
	name := fmt.Sprint("last-", lastRight.Add(1))
	s.apply(rbacPath+"clusterroles/"+name, fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":%[1]q},"rules":[{"nonResourceURLs":["/%[1]s"],"verbs":["get"]}]}`, name))
	s.apply(rbacPath+"clusterrolebindings/"+name, fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":%[1]q},
		"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":%[1]q},"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"somebody"}]}`, name))
	review := fmt.Sprintf(`{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":"somebody","nonResourceAttributes":{"path":"/%s","verb":"get"}}}`, name)
	s.waitFor("the rights that were written", func() bool {
		var answer []byte
		err := s.do("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "application/json", review, &answer)
		var got struct{ Status struct{ Allowed bool } }
		return err == nil && json.Unmarshal(answer, &got) == nil && got.Status.Allowed
	})
}

var lastRight atomic.Int32

// rightsSuffice: with the rights of deploy/rbac.yaml alone everything works; when they are taken away nothing that was delivered is deleted, and it is told.
func rightsSuffice(t *testing.T, s *apiServer) {
	s.install(t, "rbac.yaml")
	s.install(t, "flowschema.yaml")
	s.apply(gatewayPath("", "gatewayclasses", "fleetgate"), class)
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "a.example.com"))
	s.apply(secretPath("s"), secret("s"))
	src, v := follow(t, s.config(fleetgateToken))
	src.Want([]member.Ref{{Kind: "Secret", Namespace: "default", Name: "s"}})
	v.synced()
	v.until("the Secret", func() bool { return v.there("Secret default/s") })
	gc := v.object("GatewayClass /fleetgate")
	if _, err := src.WriteStatus(t.Context(), member.Status{Kind: "GatewayClass", Name: "fleetgate", ResourceVersion: gc.GetResourceVersion(),
		Status: []byte(`{"conditions":[],"supportedFeatures":[{"name":"Gateway"}]}`)}); err != nil {
		t.Error(err)
	}
	s.finalizer(t, src, v)
	if p := src.Problems(); len(p) > 0 {
		t.Errorf("problems with the rights of deploy/rbac.yaml: %v", p)
	}
	for _, m := range manifests(t, "rbac.yaml") {
		s.remove("/apis/" + m.APIVersion + "/" + plural[m.Kind] + "/" + m.Metadata.Name)
	}
	src.Want([]member.Ref{{Kind: "Secret", Namespace: "default", Name: "s"}, {Kind: "Secret", Namespace: "default", Name: "t"}})
	s.waitFor("a problem that names the Secret and the remedy", func() bool {
		p := fmt.Sprint(src.Problems())
		return strings.Contains(p, "Secret default/t") && strings.Contains(p, "deploy/rbac.yaml")
	})
	v.until("that the Secret may not be read", func() bool { e := v.last["Secret default/t"]; return e.Unknown && e.Denied })
	if !v.has("HTTPRoute default/r") {
		t.Error("what may not be read was taken for absent")
	}
}

// finalizer puts the finalizer on the class, and takes it away.
func (s *apiServer) finalizer(t *testing.T, src *Source, v *view) {
	t.Helper()
	for _, present := range []bool{true, false} {
		if err := src.Finalizer(t.Context(), "GatewayClass", "", "fleetgate", gatewayv1.GatewayClassFinalizerGatewaysExist, present); err != nil {
			t.Fatal(err)
		}
		v.until("the finalizer", func() bool {
			return slices.Contains(v.last["GatewayClass /fleetgate"].Object.GetFinalizers(), gatewayv1.GatewayClassFinalizerGatewaysExist) == present
		})
	}
}
