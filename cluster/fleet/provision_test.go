package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/cluster/keep"
)

// memory is a cluster that takes what is applied as it is, and a group that takes rows.
type memory struct {
	mu       sync.Mutex
	objects  map[string]Object
	writes   []string
	refuse   error
	denied   map[string]error // by the ClusterIP that is asked for
	rows     map[string]*Row
	gateways map[string]Gateway
	decision map[string]Decision
	changed  func(namespace, gateway string)
}

func (m *memory) Follow(_ context.Context, changed func(string, string)) (View, error) {
	m.changed = changed
	return m, nil
}

func (m *memory) Of(namespace, gateway string) []Object {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Object
	for _, o := range m.objects {
		if ns, name := o.GatewayOf(); ns == namespace && name == gateway {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b Object) int { return strings.Compare(a.id(), b.id()) })
	return out
}

func (m *memory) Gateways() [][2]string { return nil }

func (m *memory) Apply(_ context.Context, o Object, create bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	if _, there := m.objects[o.id()]; there == create {
		return errors.New("create is wrong")
	}
	m.writes = append(m.writes, "apply "+o.id())
	spec, _ := o["spec"].(map[string]any)
	if err := m.denied[text(spec["clusterIP"])]; err != nil {
		return err
	}
	m.put(o)
	return nil
}

func (m *memory) put(o Object) {
	raw, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var c Object
	if err := json.Unmarshal(raw, &c); err != nil {
		panic(err)
	}
	if old := m.objects[o.id()]; old["status"] != nil {
		c["status"] = old["status"]
	}
	m.objects[o.id()] = c
}

func (m *memory) Delete(_ context.Context, o Object) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes = append(m.writes, "delete "+o.id())
	delete(m.objects, o.id())
	return nil
}

// round runs the provisioner once over one Gateway, and gives what it wrote.
func (m *memory) round(p *Provisioner) []string {
	m.writes = nil
	p.keep(context.Background(), m, [2]string{"n", "g"})
	slices.Sort(m.writes)
	return m.writes
}

func newMemory() (*memory, *Provisioner) {
	m := &memory{objects: map[string]Object{}, rows: map[string]*Row{}, gateways: map[string]Gateway{}, decision: map[string]Decision{}}
	m.set(Gateway{Cluster: "c", Namespace: "n", Name: "g", UID: "u", Class: "envoy", Ports: []Port{{80, "TCP"}}})
	return m, NewProvisioner(Config{
		Cluster: m, Install: install, Log: slog.New(slog.DiscardHandler), All: func() [][2]string { return nil },
		Decide: func(ns, name string) (Gateway, Decision) { return m.gateways[ns+"/"+name], m.decision[ns+"/"+name] },
		Told:   func(ns, name string) *Row { return m.rows[ns+"/"+name] },
		Tell: func(_ context.Context, ns, name string, r *Row) error {
			m.writes = append(m.writes, "tell")
			m.rows[ns+"/"+name] = r
			return nil
		},
	})
}

func (m *memory) set(g Gateway) { m.gateways["n/g"], m.decision["n/g"] = g, Run }

// move gives the Gateway to another controller's class.
func (m *memory) move(class string) {
	g := m.gateways["n/g"]
	g.Class = class
	m.gateways["n/g"], m.decision["n/g"] = g, Remove
}

func (m *memory) status(id string, status map[string]any) { m.objects[id]["status"] = status }

func (m *memory) pod(uid, ready string, more map[string]any) {
	meta := map[string]any{"namespace": "n", "name": uid, "uid": uid, "annotations": map[string]any{AnnotationGateway: "g"}}
	for k, v := range more {
		meta[k] = v
	}
	m.objects["Pod/"+uid] = Object{"kind": "Pod", "metadata": meta, "status": map[string]any{"hostIP": "192.0.2.7", "conditions": []any{map[string]any{"type": "Ready", "status": ready}}}}
}

func TestAnUnchangedGatewayCausesNoWrite(t *testing.T) {
	m, p := newMemory()
	if got := m.round(p); len(got) != 6 { // five objects, one row
		t.Fatalf("first: %q", got)
	}
	if got := m.round(p); len(got) != 0 {
		t.Errorf("second: %q", got)
	}
}

// TestWhatOthersChanged: an autoscaler's number, a defaulted field and somebody's annotation stay; what is ours is put right.
func TestWhatOthersChanged(t *testing.T) {
	m, p := newMemory()
	g := m.gateways["n/g"]
	g.Parameters.Autoscaling = &v1alpha1.Autoscaling{MaxReplicas: 5}
	m.set(g)
	m.round(p)
	spec := m.objects["Deployment/g-envoy"]["spec"].(map[string]any)
	spec["replicas"], spec["revisionHistoryLimit"] = float64(4), float64(10)
	m.objects["Service/g-envoy"].metadata()["annotations"].(map[string]any)["theirs"] = "x"
	if got := m.round(p); len(got) != 0 {
		t.Errorf("theirs was taken away: %q", got)
	}
	spec["selector"] = map[string]any{}
	if got := m.round(p); !slices.Equal(got, []string{"apply Deployment/g-envoy"}) {
		t.Errorf("ours was not put right: %q", got)
	}
}

func TestANewListenerTouchesTheServiceAlone(t *testing.T) {
	m, p := newMemory()
	m.round(p)
	g := m.gateways["n/g"]
	g.Ports = append(g.Ports, Port{443, "TCP"})
	m.set(g)
	if got := m.round(p); !slices.Equal(got, []string{"apply Service/g-envoy"}) {
		t.Errorf("%q", got)
	}
}

// TestAnotherKindServesBeforeTheOldOneGoes: Envoys must not all go before their successors are there.
func TestAnotherKindServesBeforeTheOldOneGoes(t *testing.T) {
	m, p := newMemory()
	m.round(p)
	g := m.gateways["n/g"]
	g.Parameters.Kind = new(v1alpha1.KindDaemonSet)
	m.set(g)
	if got := m.round(p); !slices.Equal(got, []string{"apply DaemonSet/g-envoy", "delete PodDisruptionBudget/g-envoy"}) {
		t.Errorf("at once: %q", got)
	}
	m.status("DaemonSet/g-envoy", map[string]any{"numberAvailable": float64(1)})
	if got := m.round(p); !slices.Equal(got, []string{"delete Deployment/g-envoy"}) {
		t.Errorf("once it serves: %q", got)
	}
}

// TestAnotherClassServesBeforeTheOldOneGoes: Envoys that nobody can reach serve nobody, so what leads to them stays as long as they do.
func TestAnotherClassServesBeforeTheOldOneGoes(t *testing.T) {
	m, p := newMemory()
	m.round(p)
	g := m.gateways["n/g"]
	g.Class = "other"
	m.set(g)
	if got := m.round(p); len(got) != 5 || m.objects["Deployment/g-other"] == nil || m.objects["Service/g-envoy"] == nil {
		t.Errorf("at once: %q", got)
	}
	m.status("Deployment/g-other", map[string]any{"availableReplicas": float64(1)})
	if got := m.round(p); len(got) != 5 || m.objects["Deployment/g-envoy"] != nil || m.objects["Service/g-envoy"] != nil {
		t.Errorf("once it serves: %q", got)
	}
}

// TestNoEnvoysAreWaitedForWhereNoneAreWished: a wish for none has no successor that could serve.
func TestNoEnvoysAreWaitedForWhereNoneAreWished(t *testing.T) {
	m, p := newMemory()
	g := m.gateways["n/g"]
	g.Parameters.Kind = new(v1alpha1.KindDaemonSet)
	m.set(g)
	m.round(p)
	m.status("DaemonSet/g-envoy", map[string]any{"numberAvailable": float64(3)})
	g.Parameters = v1alpha1.EnvoyFleetSpec{Replicas: new(int32(0))}
	m.set(g)
	m.round(p)
	if got := m.round(p); m.objects["DaemonSet/g-envoy"] != nil {
		t.Errorf("the Envoys of before serve on: %q", got)
	}
}

func TestTheRowFollowsPodsAndTheService(t *testing.T) {
	m, p := newMemory()
	m.round(p)
	m.pod("b", "True", nil)
	m.pod("a", "True", nil)
	m.pod("starting", "False", nil)
	m.pod("leaving", "True", map[string]any{"deletionTimestamp": "2026-01-01T00:00:00Z"})
	m.status("Service/g-envoy", map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"hostname": "lb.example"}, map[string]any{"ip": "192.0.2.1"}}}})
	m.round(p)
	row := m.rows["n/g"]
	if row == nil || !slices.Equal(row.Proxies, []string{"a", "b"}) || !slices.Equal(row.Addresses, []string{"192.0.2.1", "lb.example"}) || row.Problem != "" {
		t.Errorf("%+v", row)
	}
	if got := m.round(p); len(got) != 0 {
		t.Errorf("told again: %q", got)
	}
}

// TestTheRowFollowsPodsOfAFleetThatIsKept: wrong parameters change nothing, but pods come and go all the same, and a route must not wait for one that went.
func TestTheRowFollowsPodsOfAFleetThatIsKept(t *testing.T) {
	m, p := newMemory()
	m.pod("a", "True", nil)
	m.round(p)
	m.decision["n/g"] = Keep
	delete(m.objects, "Pod/a")
	m.pod("b", "True", nil)
	if got := m.round(p); !slices.Equal(got, []string{"tell"}) || !slices.Equal(m.rows["n/g"].Proxies, []string{"b"}) {
		t.Errorf("%q, row %+v", got, m.rows["n/g"])
	}
	if got := m.round(p); len(got) != 0 {
		t.Errorf("told again: %q", got)
	}
}

func TestAddressesOfServicesWithoutALoadBalancer(t *testing.T) {
	m, p := newMemory()
	for kind, want := range map[string][]string{"NodePort": {"192.0.2.7", "198.51.100.1"}, "ClusterIP": {"10.0.0.9", "198.51.100.1"}} {
		m.round(p)
		m.pod("a", "True", nil)
		s := m.objects["Service/g-envoy"]
		spec := s["spec"].(map[string]any)
		spec["type"], spec["clusterIP"], spec["externalIPs"] = kind, "10.0.0.9", []any{"198.51.100.1"}
		if got := addresses(s, m.Of("n", "g")); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", kind, got, want)
		}
	}
}

// TestClusterIPs: which of the fleet's addresses are ClusterIPs is told where somebody asks for one, and of those that are all that there is.
func TestClusterIPs(t *testing.T) {
	cluster, anyOf := Address{Type: "IPAddress", Routability: "Cluster"}, Address{Type: "IPAddress"}
	clusterIP := &v1alpha1.EnvoyFleetSpec{Service: &v1alpha1.Service{Type: new(corev1.ServiceTypeClusterIP)}}
	for _, c := range []struct {
		failure    string
		asked      []Address
		parameters *v1alpha1.EnvoyFleetSpec
		addresses  string
		clusterIPs string
	}{
		{"nobody asks for the load balancer's own ClusterIP", nil, nil, "192.0.2.1", ""},
		{"an unsupported routability is no wish for a ClusterIP", []Address{anyOf, {Type: "IPAddress", Routability: "a.example/b", Refused: "no"}}, nil, "192.0.2.1", ""},
		{"one of each", []Address{cluster, anyOf}, nil, "192.0.2.1", "10.0.0.1"},
		{"a fleet without a load balancer says so", nil, clusterIP, "10.0.0.1", "10.0.0.1"},
		{"who asks for nothing has its own, so there is another", []Address{anyOf, cluster}, clusterIP, "10.0.0.1", "10.0.0.1 10.0.0.2"},
		{"two", []Address{cluster, cluster}, nil, "10.0.0.1", "10.0.0.1 10.0.0.2"},
	} {
		m, p := newMemory()
		g := m.gateways["n/g"]
		g.Addresses = c.asked
		if c.parameters != nil {
			g.Parameters = *c.parameters
		}
		m.set(g)
		m.round(p)
		number := 0
		for _, o := range m.Of("n", "g") {
			if spec, _ := m.objects[o.id()]["spec"].(map[string]any); o.Kind() == kindService {
				number++
				spec["clusterIP"] = fmt.Sprintf("10.0.0.%d", number)
			}
		}
		m.status("Service/g-envoy", map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": "192.0.2.1"}}}})
		m.round(p)
		if row := m.rows["n/g"]; strings.Join(row.Addresses, " ") != c.addresses || strings.Join(row.ClusterIPs, " ") != c.clusterIPs || row.Refused != nil || row.Problem != "" {
			t.Errorf("%s: %+v", c.failure, row)
		}
	}
}

// TestARefusedAddressIsItsOwnMatter: the fleet is as it should be, what it lacks is told and tried again, and another value is another Service.
func TestARefusedAddressIsItsOwnMatter(t *testing.T) {
	m, p := newMemory()
	g := m.gateways["n/g"]
	g.Addresses = []Address{{Type: "IPAddress"}, {Type: "IPAddress", Value: "192.0.2.9", Routability: "Cluster"}}
	m.set(g)
	m.denied = map[string]error{"192.0.2.9": errors.New("not in the range")}
	m.round(p)
	row := m.rows["n/g"]
	if row.Problem != "" || !slices.Equal(row.Refused, []string{"192.0.2.9: not in the range"}) || m.objects["Service/g-envoy"] == nil || m.objects["Deployment/g-envoy"] == nil {
		t.Errorf("%+v", row)
	}
	if got := m.round(p); len(got) != 0 {
		t.Errorf("tried again without a pause: %q", got)
	}
	p.Touch("n", "g")
	if due := p.Due(); len(due) != 1 {
		t.Errorf("the fleet waits for the address: %v", due)
	}
	g.Addresses[1].Value = "10.0.0.9"
	m.set(g)
	got := m.round(p)
	if row := m.rows["n/g"]; len(got) != 2 || row.Refused != nil {
		t.Errorf("%q, row %+v", got, row)
	}
	m.round(p)
	if row := m.rows["n/g"]; !slices.Equal(row.ClusterIPs, []string{"10.0.0.9"}) {
		t.Errorf("%+v", row)
	}
	g.Addresses[1].Value = "10.0.0.10"
	m.set(g)
	if got := m.round(p); len(got) != 3 || !strings.HasPrefix(got[0], "apply Service/g-envoy-") || !strings.HasPrefix(got[1], "delete Service/g-envoy-") {
		t.Errorf("another value: %q", got)
	}
}

// TestAFailureIsToldOnceAndTriedAgain: in the row that decides the Gateway's status, where its author looks.
func TestAFailureIsToldOnceAndTriedAgain(t *testing.T) {
	m, p := newMemory()
	m.refuse = errors.New("exceeded quota: raise it")
	first, second := slices.Clone(m.round(p)), m.round(p)
	if !slices.Contains(first, "tell") || slices.Contains(second, "tell") || !strings.Contains(m.rows["n/g"].Problem, "exceeded quota") {
		t.Errorf("%q, then %q, row %+v", first, second, m.rows["n/g"])
	}
	p.Touch("n", "g")
	if due := p.Due(); len(due) != 0 {
		t.Errorf("tried again without a pause")
	}
	m.refuse = nil
	m.round(p)
	if r := m.rows["n/g"]; r.Problem != "" || len(m.objects) != 5 {
		t.Errorf("%+v, %d objects", r, len(m.objects))
	}
}

// TestTheFleetOfAnotherInstallStays: the controller that a Gateway went to may be a Fleetgate as well, of another group; what that has made looks like ours, and bears the class that the Gateway has now.
func TestTheFleetOfAnotherInstallStays(t *testing.T) {
	m, p := newMemory()
	m.round(p)
	m.move("theirs")
	theirs, err := Render(m.gateways["n/g"], install)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range theirs {
		m.put(o)
	}
	for range 2 {
		m.round(p)
		if len(m.objects) != len(theirs) || m.objects["Deployment/g-theirs"] == nil {
			t.Errorf("%d objects are left, want the %d of the other install", len(m.objects), len(theirs))
		}
	}
}

// TestWhatNobodyCanTellIsAskedAgain: a Gateway's record may go before this replica hears what has become of the Gateway, and nothing that it hears of afterwards concerns the fleet.
func TestWhatNobodyCanTellIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, p := newMemory()
		m.round(p)
		m.decision["n/g"] = Unknown
		if got := m.round(p); len(got) != 0 || len(p.Due()) != 0 {
			t.Errorf("at once: %q", got)
		}
		time.Sleep(keep.Longest)
		if due := p.Due(); len(due) != 1 {
			t.Errorf("not asked again: %v", due)
		}
		p.Touch("n", "g")
		if due := p.Due(); len(due) != 1 {
			t.Errorf("news wait for it: %v", due)
		}
		m.move("theirs")
		if got := m.round(p); len(got) != 6 {
			t.Errorf("once it is known: %q", got)
		}
		time.Sleep(2 * keep.Longest)
		if due := p.Due(); len(due) != 0 {
			t.Errorf("asked again although it is known: %v", due)
		}
	})
}

func TestUnknownIsNotAbsent(t *testing.T) {
	m, p := newMemory()
	m.round(p)
	for _, c := range []struct {
		decision Decision
		writes   int
		row      bool
	}{
		{Keep, 0, true}, {Unknown, 0, true}, {Forget, 1, false}, {Run, 1, true}, {Remove, 6, false},
	} {
		m.decision["n/g"] = c.decision
		if c.decision == Remove {
			m.move("theirs")
		}
		if got := m.round(p); len(got) != c.writes || (m.rows["n/g"] != nil) != c.row {
			t.Errorf("decision %d: %q, row %+v", c.decision, got, m.rows["n/g"])
		}
	}
	if len(m.objects) != 0 {
		t.Errorf("left of another controller's Gateway: %v", m.objects)
	}
}
