package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/fleetgate/fleetgate/cluster/enroll"
	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
)

// infrastructure: what fleets need of a cluster; each part has objects of its own.
func infrastructure(t *testing.T, s *apiServer) {
	i, err := NewInfrastructure(Config{Name: "home", Connect: s.config(adminToken)})
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{"edge", "taken", "home"} {
		s.apply("/api/v1/namespaces/"+ns, fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, ns))
	}
	t.Run("what is rendered is what an API server keeps", func(t *testing.T) { appliedOnce(t, i) })
	t.Run("an autoscaler begins with what is there", func(t *testing.T) { autoscalerBegins(t, s, i) })
	t.Run("what is not ours stays", func(t *testing.T) { notOurs(t, s, i) })
	t.Run("what may not be followed is told", func(t *testing.T) { toldOfRights(t, s) })
	t.Run("tokens", func(t *testing.T) { tokens(t, s, i) })
	t.Run("one replica wins", func(t *testing.T) { oneWins(t, s) })
}

// gatewaysOfCases are the Gateways of the rendering's own cases.
func gatewaysOfCases(t *testing.T) map[string]fleet.Gateway {
	t.Helper()
	files, err := filepath.Glob("../../fleet/testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	out := map[string]fleet.Gateway{}
	for n, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var g fleet.Gateway
		if err := yaml.UnmarshalStrict(a.Files[0].Data, &g); err != nil {
			t.Fatal(err)
		}
		if len(g.Name) < 200 {
			g.Name = fmt.Sprintf("%s-%d", g.Name, n)
		}
		g.Namespace, g.UID, g.Addresses = "edge", fmt.Sprintf("00000000-0000-0000-0000-%012d", n), nil
		out[g.Name] = g
	}
	return out
}

// appliedOnce: every case is applied, and then looked at again without a write, although an API server fills in dozens of defaults.
func appliedOnce(t *testing.T, i *Infrastructure) {
	gateways := gatewaysOfCases(t)
	counted := &counting{Infrastructure: i, n: map[string]int{}}
	var mu sync.Mutex
	rows := map[string]*fleet.Row{}
	told := make(chan string, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := fleet.NewProvisioner(fleet.Config{
		Cluster: counted, Install: fleet.Install{Image: "fleetgate", XDS: "xds:1", Certificates: "xds:2", ServerName: "xds", Authority: []byte("PEM")},
		Log: slog.New(slog.DiscardHandler), All: func() (all [][2]string) {
			for name := range gateways {
				all = append(all, [2]string{"edge", name})
			}
			return all
		},
		Decide: func(_, name string) (fleet.Gateway, fleet.Decision) { return gateways[name], fleet.Run },
		Told:   func(_, name string) *fleet.Row { mu.Lock(); defer mu.Unlock(); return rows[name] },
		Tell: func(_ context.Context, _, name string, r *fleet.Row) error {
			mu.Lock()
			rows[name] = r
			mu.Unlock()
			told <- name
			return nil
		},
	})
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	seen := map[string]bool{}
	for len(seen) < len(gateways) {
		seen[<-told] = true
	}
	view, err := i.Follow(ctx, func(string, string) {})
	if err != nil {
		t.Fatal(err)
	}
	for name, g := range gateways {
		mu.Lock()
		r := rows[name]
		mu.Unlock()
		if r == nil || r.Problem != "" {
			t.Errorf("%.40s: %+v", name, r)
		}
		want, err := fleet.Render(g, p.Install)
		if err != nil {
			t.Fatal(err)
		}
		if have := view.Of("edge", name); len(have) != len(want) {
			t.Errorf("%.40s: %d objects, want %d", name, len(have), len(want))
		}
		p.Touch("edge", name)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	last := gateways["g-0"]
	last.Name, last.UID = "last", "00000000-0000-0000-0000-0000000000ff"
	gateways["last"] = last
	want, err := fleet.Render(last, p.Install)
	if err != nil {
		t.Fatal(err)
	}
	before := counted.writes()
	ctx, cancel = context.WithCancel(t.Context())
	leader := fleet.NewProvisioner(p.Config) // it looks at all fleets, and makes the new one
	go func() { ended <- leader.Run(ctx) }()
	for <-told != "last" {
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for of, n := range counted.writes() { // an object that was just made may be applied once more while the view of it lags: that changes nothing
		if n -= before[of]; of == "last" && n < len(want) || of != "last" && n != 0 {
			t.Errorf("a new leader wrote %d objects for Gateway %s; only the one named last is new, with %d objects", n, of, len(want))
		}
	}
}

// counting counts writes by the Gateway whose fleet an object is of.
type counting struct {
	*Infrastructure
	mu sync.Mutex
	n  map[string]int
}

func (c *counting) writes() map[string]int { c.mu.Lock(); defer c.mu.Unlock(); return maps.Clone(c.n) }

func (c *counting) Apply(ctx context.Context, o fleet.Object, create bool) error {
	c.mu.Lock()
	_, of := o.GatewayOf()
	c.n[of]++
	c.mu.Unlock()
	return c.Infrastructure.Apply(ctx, o, create)
}

// autoscalerBegins: a field that is not applied any more is reset by the API server unless somebody else has it, and a Deployment without a number of replicas has one.
func autoscalerBegins(t *testing.T, s *apiServer, i *Infrastructure) {
	const path = "/apis/apps/v1/namespaces/edge/deployments/scaled-envoy"
	g := fleet.Gateway{Cluster: "home", Namespace: "edge", Name: "scaled", UID: "00000000-0000-0000-0000-0000000000fe", Class: "envoy"}
	fixed, scaled := v1alpha1.EnvoyFleetSpec{Replicas: new(int32(5))}, v1alpha1.EnvoyFleetSpec{Autoscaling: &v1alpha1.Autoscaling{MaxReplicas: 9}}
	apply := func(p v1alpha1.EnvoyFleetSpec, create bool) {
		g.Parameters = p
		objects, err := fleet.Render(g, fleet.Install{Image: "fleetgate"})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			if o.Kind() == v1alpha1.KindDeployment {
				err = i.Apply(t.Context(), o, create)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	replicas := func(want int32, failure string) {
		var d struct{ Spec struct{ Replicas int32 } }
		if err := json.Unmarshal([]byte(s.read(path)), &d); err != nil {
			t.Fatal(err)
		}
		if d.Spec.Replicas != want {
			t.Errorf("%s: %d replicas, want %d", failure, d.Spec.Replicas, want)
		}
	}
	apply(fixed, true)
	apply(scaled, false)
	replicas(5, "Envoys went when an autoscaler was asked for")
	if err := s.do("PATCH", path+"/scale", "application/merge-patch+json", `{"spec":{"replicas":7}}`, nil); err != nil {
		t.Fatal(err)
	}
	apply(scaled, false)
	replicas(7, "the autoscaler's number was taken away")
	apply(fixed, false)
	replicas(5, "a number that is asked for again was not heard")
	apply(scaled, false)
	replicas(5, "Envoys went when an autoscaler was asked for again")
	s.remove(path)
}

func notOurs(t *testing.T, s *apiServer, i *Infrastructure) {
	const path = "/api/v1/namespaces/taken/serviceaccounts/g-envoy"
	s.apply(path, `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"g-envoy","namespace":"taken","labels":{"theirs":"yes"}}}`)
	before := s.read(path)
	objects, err := fleet.Render(fleet.Gateway{Cluster: "home", Namespace: "taken", Name: "g", UID: "u", Class: "envoy"}, fleet.Install{})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Apply(t.Context(), objects[0], true); !errors.Is(err, errNotByUs) {
		t.Errorf("%v, want %v", err, errNotByUs)
	}
	if s.read(path) != before {
		t.Error("it was changed")
	}
	var o fleet.Object
	if err := json.Unmarshal([]byte(before), &o); err != nil {
		t.Fatal(err)
	}
	o["metadata"].(map[string]any)["uid"] = "00000000-0000-0000-0000-000000000000" // what we saw was replaced meanwhile
	o["kind"] = "ServiceAccount"
	if err := i.Delete(t.Context(), o); err != nil {
		t.Error(err)
	}
	if s.read(path) != before {
		t.Error("another one of its name was deleted")
	}
}

// toldOfRights: without the rights for fleets a leader waits for them, and an operator has to hear of it.
func toldOfRights(t *testing.T, s *apiServer) {
	s.install(t, "rbac.yaml")
	said := make(lines, 100)
	i, err := NewInfrastructure(Config{Name: "c", Connect: s.config(fleetgateToken), Logger: slog.New(slog.NewTextHandler(said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan error)
	go func() { _, err := i.Follow(ctx, func(string, string) {}); followed <- err }()
	for told := ""; !strings.Contains(told, "resource=deployments"); {
		select {
		case told = <-said:
		case <-time.After(patience):
			t.Fatal("nobody says that Deployments may not be read")
		}
	}
	s.install(t, "fleets-rbac.yaml")
	if err := <-followed; err != nil {
		t.Error(err)
	}
	cancel()
}

// lines are what is logged, as far as somebody reads it.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}

func tokens(t *testing.T, s *apiServer, i *Infrastructure) {
	s.apply("/api/v1/namespaces/edge/serviceaccounts/proxy", `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"proxy","namespace":"edge"}}`)
	s.apply("/api/v1/namespaces/edge/pods/p", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"edge"},"spec":{"serviceAccountName":"proxy","containers":[{"name":"c","image":"i"}]}}`)
	var pod struct{ Metadata struct{ UID string } }
	if err := json.Unmarshal([]byte(s.read("/api/v1/namespaces/edge/pods/p")), &pod); err != nil {
		t.Fatal(err)
	}
	bound := fmt.Sprintf(`"boundObjectRef":{"kind":"Pod","apiVersion":"v1","name":"p","uid":%q}`, pod.Metadata.UID)
	good := token(t, s, `"audiences":["fleetgate/home"],`+bound)
	got, err := i.Review(t.Context(), good)
	if want := (enroll.Pod{Namespace: "edge", ServiceAccount: "proxy", UID: pod.Metadata.UID}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for failure, bad := range map[string]string{
		"forged":               good[:len(good)-4] + "AAAA",
		"of another cluster":   token(t, s, `"audiences":["fleetgate/other"],`+bound),
		"for the API server":   token(t, s, bound),
		"bound to no pod":      token(t, s, `"audiences":["fleetgate/home"]`),
		"no service account's": adminToken,
	} {
		if got, err := i.Review(t.Context(), bad); !errors.Is(err, enroll.ErrDenied) {
			t.Errorf("a token that is %s: %+v, %v", failure, got, err)
		}
	}
	s.remove("/api/v1/namespaces/edge/pods/p?gracePeriodSeconds=0")
	s.waitFor("the token of a deleted pod to be denied", func() bool {
		_, err := i.Review(t.Context(), good)
		return errors.Is(err, enroll.ErrDenied)
	})
	away, err := NewInfrastructure(Config{Name: "home", Connect: s.config("nobody's")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := away.Review(t.Context(), good); err == nil || errors.Is(err, enroll.ErrDenied) {
		t.Errorf("where the API server cannot be asked: %v; nothing may be denied by it", err)
	}
}

func token(t *testing.T, s *apiServer, spec string) string {
	t.Helper()
	var b []byte
	if err := s.do("POST", "/api/v1/namespaces/edge/serviceaccounts/proxy/token", "application/json",
		`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{`+spec+`}}`, &b); err != nil {
		t.Fatal(err)
	}
	var got struct{ Status struct{ Token string } }
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	return got.Status.Token
}

func oneWins(t *testing.T, s *apiServer) {
	type outcome struct {
		key, group string
		won        bool
	}
	results := make(chan outcome, 8)
	for n := range cap(results) {
		go func() {
			home, err := NewHome(s.config(adminToken), "r", "home")
			if err != nil {
				t.Error(err)
			}
			id := fmt.Sprint(n)
			keys, err := home.Secret(t.Context(), "keys", func() (map[string][]byte, error) { return map[string][]byte{"k": []byte(id)}, nil })
			if err != nil {
				t.Error(err)
			}
			won, group, err := Marker{Home: home, Name: "group"}.Create(t.Context(), id)
			if err != nil {
				t.Error(err)
			}
			results <- outcome{string(keys["k"]), group, won}
		}()
	}
	first := <-results
	winners := map[bool]int{first.won: 1}
	for range cap(results) - 1 {
		one := <-results
		winners[one.won]++
		if one.key != first.key || one.group != first.group {
			t.Errorf("%+v and %+v", first, one)
		}
	}
	if winners[true] != 1 {
		t.Errorf("%d won", winners[true])
	}
}
