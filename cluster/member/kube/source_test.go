package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/cluster/member"
)

const class = `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GatewayClass","metadata":{"name":"fleetgate"},"spec":{"controllerName":"fleetgate.io/gatewayclass-controller"}}`

func route(name, hostname string) string {
	return fmt.Sprintf(`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":%q,"namespace":"default","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}"}},
"spec":{"hostnames":[%q],"parentRefs":[{"name":"g"}],"rules":[{"backendRefs":[{"name":"b","port":80}]}]}}`, name, hostname)
}

func secret(name string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":%q,"namespace":"default"},"stringData":{"k":"v"}}`, name)
}

func secretPath(name string) string { return "/api/v1/namespaces/default/secrets/" + name }

// delivers: every kind arrives in the form that the compiler reads, changes and deletions follow, and a Secret only once it is wanted.
func delivers(t *testing.T, s *apiServer) {
	s.apply(gatewayPath("", "gatewayclasses", "fleetgate"), class)
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "a.example.com"))
	s.apply(secretPath("wanted"), secret("wanted"))
	s.apply(secretPath("other"), secret("other"))
	src, v := follow(t, s.config(adminToken))
	v.synced()
	if !v.has("GatewayClass /fleetgate") || !v.has("Namespace /default") || !v.has("CustomResourceDefinition /gateways."+gatewayGroup) {
		t.Fatal("not all was delivered before the view was called complete")
	}
	r, ok := v.object("HTTPRoute default/r").(*gatewayv1.HTTPRoute)
	if !ok || r.Kind != "HTTPRoute" || len(r.ManagedFields) > 0 || len(r.Annotations) > 0 || r.Spec.Hostnames[0] != "a.example.com" {
		t.Errorf("an HTTPRoute arrives as %+v", r)
	}
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "b.example.com"))
	v.until("the change", func() bool {
		r, ok := v.last["HTTPRoute default/r"].Object.(*gatewayv1.HTTPRoute)
		return ok && r.Spec.Hostnames[0] == "b.example.com"
	})
	s.remove(gatewayPath("default", "httproutes", "r"))
	v.until("the deletion", func() bool { return v.gone("HTTPRoute default/r") })

	src.Want([]member.Ref{{Kind: "Secret", Namespace: "default", Name: "wanted"}, {Kind: "Secret", Namespace: "default", Name: "none"}, {Kind: "ConfigMap", Namespace: "default", Name: "none"}})
	v.until("the answers", func() bool {
		return v.there("Secret default/wanted") && v.gone("Secret default/none") && v.gone("ConfigMap default/none")
	})
	s.apply(secretPath("none"), secret("none"))
	v.until("the Secret that was wanted before it was made", func() bool {
		o, ok := v.last["Secret default/none"].Object.(*corev1.Secret)
		return ok && string(o.Data["k"]) == "v"
	})
	s.remove(secretPath("wanted"))
	v.until("the Secret's deletion", func() bool { return v.gone("Secret default/wanted") })
	if v.has("Secret default/other") {
		t.Error("a Secret that nobody wants was read")
	}
	if p := src.Problems(); len(p) > 0 {
		t.Errorf("problems of a healthy cluster: %v", p)
	}
}

// statusOfOthersSurvives: entries of other controllers, and fields that our types do not know, are in the cluster after our write as they were before.
func statusOfOthersSurvives(t *testing.T, s *apiServer) {
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "a.example.com"))
	foreign := `{"parentRef":{"name":"theirs"},"controllerName":"example.com/theirs","conditions":[{"type":"Odd","status":"Unknown","reason":"Because","message":"kept","lastTransitionTime":"2020-01-01T00:00:00Z"}]}`
	object := s.read(gatewayPath("default", "httproutes", "r"))
	s.mustPutStatus("r", object, `{"parents":[`+foreign+`]}`)
	before := parents(t, s.read(gatewayPath("default", "httproutes", "r")))
	src, v := follow(t, s.config(adminToken))
	v.synced()
	present, version, err := src.ReadStatus(t.Context(), "HTTPRoute", "default", "r")
	if err != nil {
		t.Fatal(err)
	}
	var status gatewayv1.RouteStatus
	if err := json.Unmarshal(present, &status); err != nil {
		t.Fatal(err)
	}
	status.Parents = append(status.Parents, gatewayv1.RouteParentStatus{ParentRef: gatewayv1.ParentReference{Name: "g"}, ControllerName: "fleetgate.io/gatewayclass-controller"})
	status.Parents[1].Conditions = status.Parents[0].Conditions
	want, _ := json.Marshal(status)
	next, err := src.WriteStatus(t.Context(), member.Status{Kind: "HTTPRoute", Namespace: "default", Name: "r", ResourceVersion: version, Status: want})
	if err != nil || next == version {
		t.Fatalf("WriteStatus: %q, %v", next, err)
	}
	if _, now, err := src.ReadStatus(t.Context(), "HTTPRoute", "default", "r"); err != nil || now != next {
		t.Errorf("what was just written is not known: resourceVersion %s, want %s (%v)", now, next, err)
	}
	after := parents(t, s.read(gatewayPath("default", "httproutes", "r")))
	if len(after) != 2 || after[0] != before[0] {
		t.Errorf("the other controller's entry became\n%q, it was\n%q", after, before)
	}
	_, err = src.WriteStatus(t.Context(), member.Status{Kind: "HTTPRoute", Namespace: "default", Name: "r", ResourceVersion: version, Status: want})
	if !errors.Is(err, member.ErrConflict) {
		t.Errorf("a write on an old resourceVersion: %v, want a conflict", err)
	}
	_, err = src.WriteStatus(t.Context(), member.Status{Kind: "HTTPRoute", Namespace: "default", Name: "r", UID: "another", Status: want})
	if !errors.Is(err, member.ErrNotFound) {
		t.Errorf("a write for an earlier object of that name: %v, want not found", err)
	}
	_, err = src.WriteStatus(t.Context(), member.Status{Kind: "HTTPRoute", Namespace: "default", Name: "none", Status: want})
	if !errors.Is(err, member.ErrNotFound) {
		t.Errorf("a write for no object: %v, want not found", err)
	}
}

// mustPutStatus writes a status as another controller does.
func (s *apiServer) mustPutStatus(name, object, status string) {
	s.t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(object), &o); err != nil {
		s.t.Fatal(err)
	}
	o["status"] = json.RawMessage(status)
	b, _ := json.Marshal(o)
	if err := s.do("PUT", gatewayPath("default", "httproutes", name)+"/status", "application/json", string(b), nil); err != nil {
		s.t.Fatal(err)
	}
}

// parents gives the entries of a route's status, byte for byte.
func parents(t *testing.T, object string) []string {
	t.Helper()
	var o struct {
		Status struct{ Parents []json.RawMessage }
	}
	if err := json.Unmarshal([]byte(object), &o); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range o.Status.Parents {
		out = append(out, string(p))
	}
	return out
}

// TestDefinitionsComeAndGo: CRDs may be missing, appear, and vanish with all their objects, and nothing has to be restarted; objects that a CRD takes with it are kept.
func TestDefinitionsComeAndGo(t *testing.T) {
	t.Parallel()
	s := startAPIServer(t)
	src, v := follow(t, s.config(adminToken))
	v.synced()
	if p := src.Problems(); len(p) != 1 || !strings.Contains(p[0].Message, "does not serve the Gateway API") {
		t.Errorf("without CRDs the problems are %v", p)
	}
	v.until("unknown routes", func() bool { return v.last["HTTPRoute /"].Unknown })
	s.installCRDs()
	v.until("routes that are known to be none", func() bool { return !v.last["HTTPRoute /"].Unknown })
	for i := range 3 {
		s.apply(gatewayPath("default", "httproutes", fmt.Sprint("r", i)), route(fmt.Sprint("r", i), "a.example.com"))
	}
	v.until("routes of a CRD that appeared", func() bool { return v.there("HTTPRoute default/r0") && v.there("HTTPRoute default/r2") })
	s.remove(gatewayPath("default", "httproutes", "r0"))
	v.until("a deletion that is meant", func() bool { return v.gone("HTTPRoute default/r0") })

	s.remove(crdPath("httproutes"))
	s.waitFor("the kind to vanish", func() bool { return s.do("GET", gatewayPath("", "httproutes"), "", "", nil) != nil })
	s.waitFor("a problem that tells it", func() bool { return strings.Contains(fmt.Sprint(src.Problems()), "Install the CRD again") })
	if !v.has("HTTPRoute default/r1") || !v.has("HTTPRoute default/r2") {
		t.Error("routes were deleted because their CRD was")
	}
	s.installCRDs()
	s.apply(gatewayPath("default", "httproutes", "r1"), route("r1", "c.example.com"))
	s.apply(gatewayPath("default", "httproutes", "r3"), route("r3", "c.example.com"))
	v.until("routes of a CRD that is back", func() bool {
		r, ok := v.last["HTTPRoute default/r1"].Object.(*gatewayv1.HTTPRoute)
		return ok && r.Spec.Hostnames[0] == "c.example.com" && v.there("HTTPRoute default/r3")
	})
}

// TestOlderDefinitions: a cluster whose CRDs serve a kind only in an older version is read in the one model, and its status is written in that version.
func TestOlderDefinitions(t *testing.T) {
	t.Parallel()
	s := startAPIServer(t)
	s.installCRDs()
	s.serveOnly("httproutes", "v1beta1")
	old := strings.Replace(route("r", "a.example.com"), "k8s.io/v1", "k8s.io/v1beta1", 1)
	path := strings.Replace(gatewayPath("default", "httproutes", "r"), "/v1/", "/v1beta1/", 1)
	s.waitFor("v1beta1 alone", func() bool { return s.do("GET", gatewayPath("default", "httproutes"), "", "", nil) != nil })
	s.apply(path, old)
	src, v := follow(t, s.config(adminToken))
	v.synced()
	r, ok := v.object("HTTPRoute default/r").(*gatewayv1.HTTPRoute)
	if !ok || r.APIVersion != gatewayGroup+"/v1" || r.Spec.Hostnames[0] != "a.example.com" {
		t.Fatalf("the route arrives as %+v", r)
	}
	if _, err := src.WriteStatus(t.Context(), member.Status{Kind: "HTTPRoute", Namespace: "default", Name: "r", ResourceVersion: r.ResourceVersion, Status: []byte(`{"parents":[]}`)}); err != nil {
		t.Error(err)
	}
	s.serveOnly("httproutes", "v1", "v1beta1")
	s.apply(path, strings.Replace(old, "a.example", "b.example", 1))
	v.until("the change after an upgrade of the CRDs", func() bool {
		r, ok := v.last["HTTPRoute default/r"].Object.(*gatewayv1.HTTPRoute)
		return ok && r.Spec.Hostnames[0] == "b.example.com"
	})
}

// serveOnly has a CRD serve some of its versions.
func (s *apiServer) serveOnly(resource string, versions ...string) {
	s.t.Helper()
	var crd map[string]any
	if err := json.Unmarshal([]byte(s.read(crdPath(resource))), &crd); err != nil {
		s.t.Fatal(err)
	}
	for _, v := range crd["spec"].(map[string]any)["versions"].([]any) {
		version := v.(map[string]any)
		version["served"] = strings.Contains(" "+strings.Join(versions, " ")+" ", " "+version["name"].(string)+" ")
	}
	b, _ := json.Marshal(crd)
	if err := s.do("PUT", crdPath(resource), "application/json", string(b), nil); err != nil {
		s.t.Fatal(err)
	}
}

// TestUnreachable: while an API server is down nothing changes; what happened meanwhile is seen when it is back, but not that nearly everything is gone.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	s := startAPIServer(t)
	s.installCRDs()
	for i := range 6 {
		s.apply(gatewayPath("default", "httproutes", fmt.Sprint("r", i)), route(fmt.Sprint("r", i), "a.example.com"))
	}
	src, v := follow(t, s.config(adminToken))
	v.synced()
	s.down()
	s.waitFor("a problem that tells it", func() bool { return strings.Contains(fmt.Sprint(src.Problems()), "can be reached") })
	for i := range 6 {
		if !v.has(fmt.Sprint("HTTPRoute default/r", i)) {
			t.Fatalf("r%d was deleted because the API server was down", i)
		}
	}
	s.up()
	s.apply(gatewayPath("default", "httproutes", "r0"), route("r0", "b.example.com"))
	s.remove(gatewayPath("default", "httproutes", "r1"))
	v.until("what changed after the restart", func() bool {
		r, ok := v.last["HTTPRoute default/r0"].Object.(*gatewayv1.HTTPRoute)
		return ok && r.Spec.Hostnames[0] == "b.example.com" && v.gone("HTTPRoute default/r1")
	})
	s.waitFor("no problem", func() bool { return len(src.Problems()) == 0 })
}

// TestAnotherCluster: behind the address of a cluster there may be another one, as after it was made anew. Nothing of that is taken for the one that is known, although its watches fail nowhere: it is younger than
// what they ask for.
func TestAnotherCluster(t *testing.T) {
	t.Parallel()
	s := startAPIServer(t)
	known, another := s.etcd, s.startEtcd("another")
	s.installCRDs()
	infra, err := NewInfrastructure(Config{Name: "c", Connect: s.config(adminToken)})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := fleet.Render(fleet.Gateway{Cluster: "c", Namespace: "default", Name: "g", UID: "u", Class: "envoy"}, fleet.Install{Image: "fleetgate"})
	if err != nil {
		t.Fatal(err)
	}
	if err := infra.Apply(t.Context(), objects[0], true); err != nil {
		t.Fatal(err)
	}
	if _, err := infra.Follow(t.Context(), func(string, string) {}); err != nil {
		t.Fatal(err)
	}
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "a.example.com"))
	src, v := follow(t, s.config(adminToken))
	v.synced()
	s.become(another)
	s.waitFor("a problem that tells it", func() bool { return strings.Contains(fmt.Sprint(src.Problems()), "another cluster answers") })
	provisioned := make(chan []fleet.Object, 1)
	go func() { // as who leads from now on
		if view, err := infra.Follow(t.Context(), func(string, string) {}); err == nil {
			provisioned <- view.Of("default", "g")
		}
	}()
	s.installCRDs()
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "another.example.com"))
	s.apply(gatewayPath("", "gatewayclasses", "another"), strings.Replace(class, "fleetgate", "another", 1))
	if !v.has("HTTPRoute default/r") {
		t.Error("a route was deleted because another cluster has none")
	}
	s.become(known)
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "b.example.com"))
	v.until("what changed in the cluster that is known", func() bool {
		r, ok := v.last["HTTPRoute default/r"].Object.(*gatewayv1.HTTPRoute)
		return ok && r.Spec.Hostnames[0] == "b.example.com"
	})
	s.waitFor("no problem", func() bool { return len(src.Problems()) == 0 })
	if seen := <-provisioned; len(seen) != 1 {
		t.Error("a fleet of the known cluster would be made in another one, which has none")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.all {
		if r, ok := e.Object.(*gatewayv1.HTTPRoute); ok && r.Spec.Hostnames[0] == "another.example.com" || e.Name == "another" {
			t.Errorf("%s %s/%s of another cluster was delivered", e.Kind, e.Namespace, e.Name)
		}
	}
}

// TestRestoredFromBackup: a cluster whose etcd was restored is the same one, but its revisions begin again at those of the backup. A watch from a later one fails nowhere: it says nothing until as much has been
// written again.
func TestRestoredFromBackup(t *testing.T) {
	t.Parallel()
	s := startAPIServer(t)
	s.installCRDs()
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "a.example.com"))
	s.backUp("backup")
	infra, err := NewInfrastructure(Config{Name: "c", Connect: s.config(adminToken)})
	if err != nil {
		t.Fatal(err)
	}
	view, err := infra.Follow(t.Context(), func(string, string) {})
	if err != nil {
		t.Fatal(err)
	}
	_, v := follow(t, s.config(adminToken))
	v.synced()
	objects, err := fleet.Render(fleet.Gateway{Cluster: "c", Namespace: "default", Name: "g", UID: "u", Class: "envoy"}, fleet.Install{Image: "fleetgate"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 { // more than is written by itself while a test waits
		s.apply(gatewayPath("default", "httproutes", "r"), route("r", fmt.Sprintf("b%d.example.com", i)))
	}
	s.apply(gatewayPath("default", "httproutes", "later"), route("later", "a.example.com"))
	if err := infra.Apply(t.Context(), objects[0], true); err != nil {
		t.Fatal(err)
	}
	s.remove(crdPath("udproutes")) // discovery tells of it, so it has asked how far the cluster has come
	v.until("what the backup lacks", func() bool { return v.there("HTTPRoute default/later") && v.last["UDPRoute /"].Unknown })
	s.waitFor("what the backup lacks of a fleet", func() bool { return len(view.Of("default", "g")) == 1 })

	s.become(s.startEtcd("backup"))
	s.apply(gatewayPath("default", "httproutes", "r"), route("r", "c.example.com"))
	v.until("what changed in the cluster that was restored", func() bool {
		r, ok := v.last["HTTPRoute default/r"].Object.(*gatewayv1.HTTPRoute)
		return ok && r.Spec.Hostnames[0] == "c.example.com" && v.gone("HTTPRoute default/later")
	})
	s.waitFor("that the fleet has to be made again", func() bool { return len(view.Of("default", "g")) == 0 })
}

// tells: what is told of an object shows where kubectl looks for it, with the rights of deploy/rbac.yaml; what is told again within minutes is one event.
func tells(t *testing.T, s *apiServer) {
	s.install(t, "rbac.yaml")
	src, v := follow(t, s.config(fleetgateToken))
	v.synced()
	events := func() (out []corev1.Event) {
		var list corev1.EventList
		if err := json.Unmarshal([]byte(s.read("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name=g,involvedObject.kind=Gateway,involvedObject.uid=u")), &list); err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	n := member.Notice{Kind: "Gateway", Namespace: "default", Name: "g", UID: "u", Part: "spec.listeners{a}", Warning: true, Reason: "InvalidCertificateRef", Text: strings.Repeat("ü", 2000)}
	src.Tell(n)
	s.waitFor("the event", func() bool { return len(events()) == 1 })
	if e := events()[0]; e.Type != "Warning" || e.Reason != n.Reason || len(e.Message) > noteSize || !strings.HasPrefix(e.Message, "üü") || e.ReportingController != reporter {
		t.Errorf("%+v", e)
	}
	src.Tell(n)
	s.waitFor("the series", func() bool { e := events(); return len(e) == 1 && e[0].Series != nil && e[0].Series.Count == 2 })
	n.Text = "another Secret is missing"
	src.Tell(n)
	s.waitFor("the event of another text", func() bool {
		return slices.ContainsFunc(events(), func(e corev1.Event) bool { return e.Message == n.Text })
	})
	n.Part, n.Warning = "spec.listeners{b}", false
	src.Tell(n)
	s.waitFor("the event of another part", func() bool { return len(events()) == 3 })
	src.Tell(member.Notice{Kind: "GatewayClass", Name: "c", UID: "u", Reason: "Accepted", Text: "t"})
	s.waitFor("the event of what has no namespace", func() bool {
		return strings.Contains(s.read("/api/v1/namespaces/default/events"), `"kind":"GatewayClass"`)
	})
}
