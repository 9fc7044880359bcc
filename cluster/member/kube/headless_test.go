package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/cluster/headless"
	"github.com/fleetgate/fleetgate/deploy"
)

// startControllers runs the controllers of Kubernetes that find the pods of a Service, and that remove what nobody owns any more.
func (s *apiServer) startControllers() {
	s.t.Helper()
	file := s.path("controllers.kubeconfig")
	raw, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "c", "user": "u"}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": adminToken}}},
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": s.host, "certificate-authority-data": s.ca}}}})
	if err == nil {
		err = os.WriteFile(file, raw, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.start(exec.Command(filepath.Join(binaries(s.t), "kube-controller-manager"), "--kubeconfig="+file, "--controllers=endpointslice-controller,garbage-collector-controller",
		"--leader-elect=false", "--secure-port=0", "--profiling=false"))
}

// installXBackends adds the kind XBackend of the experimental channel.
func (s *apiServer) installXBackends() {
	s.t.Helper()
	crd, err := deploy.CRDs.ReadFile("experimental/" + experimentalGroup + "_xbackends.yaml")
	if err != nil {
		s.t.Fatal(err)
	}
	s.apply("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/xbackends."+experimentalGroup, string(crd))
	s.waitFor("the kind XBackend", func() bool { return s.do("GET", xbackendPath(""), "", "", nil) == nil })
}

// xbackendPath is where an XBackend is, or, without a namespace, where all are.
func xbackendPath(namespace string, name ...string) string {
	path := "/apis/" + experimentalGroup + "/v1alpha1/"
	if namespace != "" {
		path += "namespaces/" + namespace + "/"
	}
	return path + strings.Join(append([]string{"xbackends"}, name...), "/")
}

func (s *apiServer) pod(name, labels, address string) {
	s.t.Helper()
	path := "/api/v1/namespaces/shop/pods/" + name
	s.apply(path, fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"namespace":"shop","labels":%s},"spec":{"nodeName":"n","containers":[{"name":"c","image":"i"}]}}`, name, labels))
	s.ready(name, address, "False")
}

func (s *apiServer) ready(pod, address, ready string) {
	s.t.Helper()
	status := fmt.Sprintf(`{"status":{"phase":"Running","podIP":%[1]q,"podIPs":[{"ip":%[1]q}],"conditions":[{"type":"Ready","status":%[2]q}]}}`, address, ready)
	if err := s.do("PATCH", "/api/v1/namespaces/shop/pods/"+pod+"/status", "application/merge-patch+json", status, nil); err != nil {
		s.t.Fatal(err)
	}
}

// services gives the names of the Services of XBackends.
func (s *apiServer) services() []string {
	s.t.Helper()
	var list struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(s.read("/api/v1/namespaces/shop/services?labelSelector="+v1alpha1.LabelXBackend)), &list); err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, i := range list.Items {
		out = append(out, i.Metadata.Name)
	}
	return out
}

// selected is what is wanted of XBackend pods, nil = nobody knows.
type selected struct {
	mu   sync.Mutex
	want *headless.Selection
	told []string
}

func (w *selected) set(s *headless.Selection) { w.mu.Lock(); w.want = s; w.mu.Unlock() }

// keeper runs what a leader runs, until the test ends.
func (w *selected) keeper(t *testing.T, s *apiServer) *headless.Keeper {
	t.Helper()
	i, err := NewInfrastructure(Config{Name: "c", Connect: s.config(fleetgateToken)})
	if err != nil {
		t.Fatal(err)
	}
	k := headless.NewKeeper(headless.Config{Cluster: i, Log: slog.New(slog.DiscardHandler),
		Wanted: func(string, string) (*headless.Selection, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.want, w.want != nil
		},
		All: func() [][2]string { return [][2]string{{"shop", "pods"}} },
		Tell: func(_ headless.Selection, problem string) {
			w.mu.Lock()
			w.told = append(w.told, problem)
			w.mu.Unlock()
		}})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return k
}

// kubernetesFindsThePodsOfXBackends: with the rights of deploy, and two leaders at once, there is one Service in the end; its EndpointSlices bear the XBackend's UID, hold the pods that are
// ready, follow labels and port, and go with the XBackend.
func kubernetesFindsThePodsOfXBackends(t *testing.T, s *apiServer) {
	s.startControllers()
	for _, file := range []string{"rbac.yaml", "fleets-rbac.yaml"} {
		s.install(t, file)
	}
	s.apply("/api/v1/namespaces/shop", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}`)
	s.apply("/api/v1/nodes/n", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}}`)
	s.pod("a", `{"app":"web"}`, "192.0.2.1")
	s.pod("b", `{"app":"web"}`, "192.0.2.2")
	s.pod("c", `{"app":"other"}`, "192.0.2.3")
	s.ready("a", "192.0.2.1", "True")
	s.ready("c", "192.0.2.3", "True")
	path := xbackendPath("shop", "pods")
	s.apply(path, `{"apiVersion":"gateway.networking.x-k8s.io/v1alpha1","kind":"XBackend","metadata":{"name":"pods","namespace":"shop"},"spec":{"type":"EndpointSelector","port":{"number":8080},"endpointSelector":{"matchLabels":{"app":"web"}}}}`)
	var made struct{ Metadata struct{ UID string } }
	if err := json.Unmarshal([]byte(s.read(path)), &made); err != nil {
		t.Fatal(err)
	}
	of := headless.Selection{Namespace: "shop", Name: "pods", UID: made.Metadata.UID, Labels: map[string]string{"app": "web"}, Port: 8080}
	w := &selected{}
	w.set(&of)
	_, v := follow(t, s.config(fleetgateToken))
	leader, old := w.keeper(t, s), w.keeper(t, s)
	finds := func(what string, port int32, addresses ...string) {
		t.Helper()
		v.until(what, func() bool { return slices.Equal(v.found(of.UID, port), addresses) })
	}
	finds("the pod that is ready", 8080, "192.0.2.1")
	s.ready("b", "192.0.2.2", "True")
	finds("two pods", 8080, "192.0.2.1", "192.0.2.2")
	s.waitFor("one Service", func() bool { return len(s.services()) == 1 })
	moved := of
	moved.Port, moved.Labels = 9090, map[string]string{"app": "other"}
	w.set(&moved)
	leader.Touch("shop", "pods")
	old.Touch("shop", "pods")
	finds("other labels and another port", 9090, "192.0.2.3")
	s.ready("c", "192.0.2.3", "False")
	finds("no pod that is ready", 9090)
	w.set(nil)
	s.remove(path)
	s.waitFor("no Service", func() bool { return len(s.services()) == 0 })
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.told) > 0 {
		t.Errorf("told: %q", w.told)
	}
}

// found gives the addresses of endpoints that are ready, of the slices of an XBackend with a port; until holds mu.
func (v *view) found(uid string, port int32) []string {
	var out []string
	for _, e := range v.last {
		s, ok := e.Object.(*discoveryv1.EndpointSlice)
		if !ok || s.Labels[v1alpha1.LabelXBackend] != uid || len(s.Ports) != 1 || *s.Ports[0].Port != port {
			continue
		}
		for _, endpoint := range s.Endpoints {
			if endpoint.Conditions.Ready != nil && *endpoint.Conditions.Ready {
				out = append(out, endpoint.Addresses...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
