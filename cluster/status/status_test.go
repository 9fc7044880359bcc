package status

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
)

const ours = "fleetgate.io/gatewayclass-controller"

var key = record.Key{Cluster: "c", Namespace: "ns", Kind: record.KindRoute, Name: "HTTPRoute/r"}

// world is a member cluster with one route, and a fleet of two proxies.
type world struct {
	mu      sync.Mutex
	route   assemble.RouteStatus
	acked   int
	refused string // what a proxy says of the route
	asked   int    // how often the route was composed
	stored  string
	version int
	writes  int
	refuse  bool   // the API server takes no status
	reached func() // called whenever the fleet is asked for
	read    func() // called once, when the route has been read
	told    []member.Notice
}

func newWorld() *world {
	return &world{stored: "null", route: assemble.RouteStatus{Object: record.Object{Kind: "HTTPRoute", Namespace: "ns", Name: "r", Generation: 1}, Index: 7, Parents: []assemble.ParentStatus{{
		Ref: gatewayv1.ParentReference{Name: "gw"}, Controller: ours, Fleet: "c/ns/gw", Attached: true,
		Conditions: []metav1.Condition{{Type: "Accepted", Status: metav1.ConditionTrue, Reason: "Accepted", ObservedGeneration: 1}}}}}}
}

func (w *world) Gateway(record.Key) (assemble.GatewayStatus, bool) {
	return assemble.GatewayStatus{}, false
}
func (w *world) ListenerSet(record.Key) (assemble.ListenerSetStatus, bool) {
	return assemble.ListenerSetStatus{}, false
}
func (w *world) Policy(record.Key) (assemble.PolicyStatus, bool) {
	return assemble.PolicyStatus{}, false
}
func (w *world) Class(record.Key) (assemble.ClassStatus, bool) { return assemble.ClassStatus{}, false }
func (w *world) Reach(record.Key) Reach                        { return Reach{} }
func (w *world) Source(cluster string) member.Source {
	if cluster == "hangs" {
		return hangs{}
	}
	return source{world: w}
}

// hangs is a member cluster whose API server never answers.
type hangs struct{ member.Source }

func (hangs) ReadStatus(ctx context.Context, _, _, _ string) ([]byte, string, error) {
	<-ctx.Done()
	return nil, "", ctx.Err()
}

func (w *world) Route(record.Key) (assemble.RouteStatus, bool) {
	w.mu.Lock()
	w.asked++
	route, read := w.route, w.read
	w.read = nil
	w.mu.Unlock()
	if read != nil {
		read()
	}
	return route, true
}

func (w *world) Converged(string, uint64, record.Key) Convergence {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Convergence{Counted: 2, Acked: w.acked, Rejected: w.refused}
}

func (w *world) Reached(string) (uint64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reached != nil {
		w.reached()
	}
	if w.acked == 2 {
		return w.route.Index, w.refused != ""
	}
	return 0, w.refused != ""
}

type source struct {
	member.Source // the rest of it is not called
	*world
}

func (s source) ReadStatus(context.Context, string, string, string) ([]byte, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []byte(s.stored), strconv.Itoa(s.version), nil
}

func (s source) WriteStatus(_ context.Context, st member.Status) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse || st.ResourceVersion != strconv.Itoa(s.version) {
		return "", member.ErrConflict
	}
	s.stored, s.version, s.writes = string(st.Status), s.version+1, s.writes+1
	return strconv.Itoa(s.version), nil
}

func (s source) Tell(n member.Notice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, n)
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) programmed(t *testing.T) (metav1.Condition, int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var st gatewayv1.RouteStatus
	if err := json.Unmarshal([]byte(w.stored), &st); err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Parents {
		for _, c := range p.Conditions {
			if c.Type == ConditionRouteProgrammed {
				return c, w.writes
			}
		}
	}
	return metav1.Condition{}, w.writes
}

// run starts a writer in a bubble of synctest's clock.
func run(t *testing.T, f func(w *world, wr *Writer)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		wr := NewWriter(w, []string{ours}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { wr.Run(ctx); close(done) }()
		f(w, wr)
		cancel()
		<-done
	})
}

func TestHealthyChangeIsOneWrite(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		wr.Touch([]record.Key{key})
		time.Sleep(20 * time.Millisecond)
		w.set(func() { w.acked = 1 })
		wr.Acked()
		time.Sleep(20 * time.Millisecond)
		w.set(func() { w.acked = 2 })
		wr.Acked()
		synctest.Wait()
		if c, writes := w.programmed(t); writes != 1 || c.Status != metav1.ConditionTrue {
			t.Errorf("%d writes, %+v", writes, c)
		}
		time.Sleep(time.Minute)
		if _, writes := w.programmed(t); writes != 1 {
			t.Errorf("%d writes after a quiet minute", writes)
		}
	})
}

// TestAChangeWhileTheStatusIsComposedIsTold: of 8,000 changed routes under load one was never told to be live.
func TestAChangeWhileTheStatusIsComposedIsTold(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		changed := false
		w.set(func() {
			w.acked = 2
			w.read = func() {
				w.set(func() {
					changed = true
					p := w.route.Parents[0]
					p.Conditions = slices.Clone(p.Conditions)
					p.Conditions[0].ObservedGeneration = 2
					w.route.Object.Generation, w.route.Parents = 2, []assemble.ParentStatus{p}
				})
				wr.Touch([]record.Key{key})
			}
		})
		wr.Touch([]record.Key{key})
		time.Sleep((burst + 1) * interval)
		synctest.Wait()
		if c, _ := w.programmed(t); !changed || c.ObservedGeneration != 2 {
			t.Errorf("what was composed before the change stays: %+v", c)
		}
	})
}

// TestFactsMayTouchObjectsWhileTheyAreAsked: who assembles holds a lock of its own when it touches objects, and takes the same lock when it is asked.
func TestFactsMayTouchObjectsWhileTheyAreAsked(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		asked := 0
		w.set(func() { w.reached = func() { asked++; wr.Touch([]record.Key{key}) } })
		wr.Touch([]record.Key{key})
		time.Sleep(patience + time.Millisecond)
		synctest.Wait() // it waits for the fleet
		w.set(func() { w.acked = 2 })
		wr.Acked()
		time.Sleep((burst + 1) * interval)
		synctest.Wait()
		w.set(func() {
			if asked == 0 {
				t.Error("the fleet was not asked for")
			}
		})
		if c, _ := w.programmed(t); c.Status != metav1.ConditionTrue {
			t.Errorf("%+v", c)
		}
	})
}

func TestLaggingProxyIsToldAfterAWhileAndACountAloneWritesNothing(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		wr.Touch([]record.Key{key})
		time.Sleep(patience + time.Millisecond)
		synctest.Wait()
		if c, writes := w.programmed(t); writes != 1 || c.Status != metav1.ConditionFalse || c.Message != "0 of 2 proxies" {
			t.Fatalf("%d writes, %+v", writes, c)
		}
		w.set(func() { w.acked = 1 })
		wr.Acked()
		time.Sleep(5 * time.Second)
		if _, writes := w.programmed(t); writes != 1 {
			t.Errorf("a changed count alone caused a write")
		}
		w.set(func() { w.acked = 2 })
		wr.Acked()
		synctest.Wait()
		if c, writes := w.programmed(t); writes != 2 || c.Status != metav1.ConditionTrue {
			t.Errorf("%d writes, %+v", writes, c)
		}
	})
}

func TestManyChangesAreOneWriteASecond(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		w.set(func() { w.acked = 2 })
		for i := range 100 {
			w.set(func() {
				w.route.Object.Generation = int64(i)
				p := w.route.Parents[0] // what was handed out is being read
				p.Conditions = slices.Clone(p.Conditions)
				p.Conditions[0].ObservedGeneration = int64(i)
				w.route.Parents = []assemble.ParentStatus{p}
			})
			wr.Touch([]record.Key{key})
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		if _, writes := w.programmed(t); writes <= burst || writes > burst+4 {
			t.Errorf("%d writes for 100 changes in 2 s, in 4 s", writes)
		}
		if c, _ := w.programmed(t); c.ObservedGeneration != 99 {
			t.Errorf("the last generation was not written: %+v", c)
		}
	})
}

func TestRejectionIsToldAtOnce(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		w.set(func() { w.route.Pending, w.route.Rejected = "proxies rejected it: regex too complex", true })
		wr.Touch([]record.Key{key})
		synctest.Wait()
		if c, writes := w.programmed(t); writes != 1 || c.Reason != "Rejected" || !strings.Contains(c.Message, "regex") {
			t.Errorf("%d writes, %+v", writes, c)
		}
	})
}

func TestSlowClusterDelaysNobodyElsesStatus(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		slow := key
		slow.Cluster = "hangs"
		w.set(func() { w.acked = 2 })
		wr.Touch([]record.Key{slow})
		synctest.Wait()
		wr.Touch([]record.Key{key})
		synctest.Wait()
		if c, writes := w.programmed(t); writes != 1 || c.Status != metav1.ConditionTrue {
			t.Errorf("%d writes, %+v", writes, c)
		}
	})
}

func TestWaitingObjectIsNotComposedAtEveryACK(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		wr.Touch([]record.Key{key})
		time.Sleep(2 * time.Second)
		before := 0
		w.set(func() { before = w.asked })
		for range 100 {
			wr.Acked()
			synctest.Wait()
		}
		w.set(func() {
			if w.asked != before {
				t.Errorf("composed %d times while its fleet had not reached it", w.asked-before)
			}
		})
	})
}

func TestRefusalByOneProxyOfAWaitingRouteIsTold(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		wr.Touch([]record.Key{key})
		time.Sleep(2 * time.Second)
		w.set(func() { w.refused = "proxy p rejected it: regex too complex" })
		wr.Acked()
		synctest.Wait()
		if c, writes := w.programmed(t); writes != 2 || c.Reason != "Rejected" {
			t.Errorf("%d writes, %+v", writes, c)
		}
		wr.Acked()
		time.Sleep(3 * time.Second)
		if _, writes := w.programmed(t); writes != 2 {
			t.Errorf("%d writes of the same refusal", writes)
		}
	})
}

func TestMarksOfQuietObjectsAreForgotten(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		w.set(func() { w.acked = 2 })
		wr.Touch([]record.Key{key})
		time.Sleep(2 * interval)
		wr.Acked()
		synctest.Wait()
		wr.mu.Lock()
		defer wr.mu.Unlock()
		if n := len(wr.lanes["c"].dirty); n != 0 {
			t.Errorf("%d marks are kept for ever", n)
		}
	})
}

func TestForeignEntriesSurvive(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		foreign := gatewayv1.RouteParentStatus{ControllerName: "other.example/c", ParentRef: gatewayv1.ParentReference{Name: "gw"}, Conditions: []metav1.Condition{{Type: "Accepted", Status: "True", Reason: "X"}}}
		b, _ := json.Marshal(gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{foreign}})
		w.set(func() { w.stored, w.acked = string(b), 2 })
		wr.Touch([]record.Key{key})
		synctest.Wait()
		var st gatewayv1.RouteStatus
		w.set(func() { _ = json.Unmarshal([]byte(w.stored), &st) })
		if len(st.Parents) != 2 || asJSON(st.Parents[1]) != asJSON(foreign) {
			t.Errorf("parents: %s", asJSON(st.Parents))
		}
	})
}

func TestRouteWithoutParentsHasAListThatAnAPIServerTakes(t *testing.T) {
	ours := func(gatewayv1.GatewayController) bool { return true }
	present := gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{{ControllerName: "ours"}}}
	if got := asJSON(Route(assemble.RouteStatus{}, nil, metav1.Now(), present, ours)); got != `{"parents":[]}` {
		t.Errorf("after its last Gateway is gone: %s", got)
	}
}

func TestNothingIsWrittenWhereNothingIsSaid(t *testing.T) {
	for _, c := range []struct {
		present, want string
		same          bool
	}{
		{`null`, `{"parents":[]}`, true}, {`{"parents":null}`, `{"parents":[]}`, true}, {`{}`, `null`, true},
		{`{"parents":[{"a":1}]}`, `{"parents":[]}`, false}, {`{"parents":[{"a":1,"b":[]}]}`, `{"parents":[{"b":null,"a":1}]}`, true}, {`{"n":0}`, `{}`, false},
	} {
		if sameJSON([]byte(c.present), []byte(c.want)) != c.same {
			t.Errorf("%s and %s: same is %t, want %t", c.present, c.want, !c.same, c.same)
		}
	}
}

func TestPolicyOfOthersIsKept(t *testing.T) {
	mine := func(c gatewayv1.GatewayController) bool { return c == "ours" }
	foreign := gatewayv1.PolicyAncestorStatus{ControllerName: "theirs", AncestorRef: gatewayv1.ParentReference{Name: "x"}}
	stale := gatewayv1.PolicyAncestorStatus{ControllerName: "ours", AncestorRef: gatewayv1.ParentReference{Name: "gone"}}
	s := assemble.PolicyStatus{Conditions: []metav1.Condition{{Type: "Accepted", Status: "True"}}}
	for i := range 20 {
		s.Ancestors = append(s.Ancestors, assemble.PolicyAncestor{Gateway: record.Key{Namespace: "a", Name: fmt.Sprint(i)}, Controller: "ours"})
	}
	got := Policy(s, metav1.Now(), gatewayv1.PolicyStatus{Ancestors: []gatewayv1.PolicyAncestorStatus{foreign, stale}}, mine)
	if n := len(got.Ancestors); n != maxAncestors("BackendTLSPolicy") || asJSON(got.Ancestors[n-1]) != asJSON(foreign) {
		t.Errorf("%d ancestors, the last is %s", n, asJSON(got.Ancestors[n-1]))
	}
	s.Ancestors[1].Conditions = []metav1.Condition{{Type: "Accepted", Status: "False"}}
	got = Policy(s, metav1.Now(), got, mine)
	if one, two := got.Ancestors[0].Conditions, got.Ancestors[1].Conditions; len(one) != 1 || one[0].Status != "True" || len(two) != 1 || two[0].Status != "False" {
		t.Errorf("a policy that is overruled on its second Gateway alone: %s and %s", asJSON(one), asJSON(two))
	}
}

func TestTransitionTimeStaysWhileTheStatusDoes(t *testing.T) {
	old, now := metav1.NewTime(time.Unix(100, 0)), metav1.NewTime(time.Unix(200, 0))
	present := []metav1.Condition{{Type: "Accepted", Status: "True", LastTransitionTime: old}, {Type: "theirs.example/Seen", Status: "True"}}
	got := merge(present, []metav1.Condition{{Type: "Accepted", Status: "True", Reason: "New"}, {Type: "Programmed", Status: "False"}}, now)
	if len(got) != 3 || got[0].LastTransitionTime != old || got[0].Reason != "New" || got[1].LastTransitionTime != now || got[2].Type != "theirs.example/Seen" {
		t.Errorf("%+v", got)
	}
}

// TestConditionsAreTakenBack: what a Gateway does not have any more (insecure fallback, a default scope), its status must not go on saying.
func TestConditionsAreTakenBack(t *testing.T) {
	present := []metav1.Condition{{Type: "InsecureFrontendValidationMode", Status: "True"}, {Type: "DefaultGateway", Status: "True"}, {Type: "theirs.example/Seen", Status: "True"}}
	got := Gateway(assemble.GatewayStatus{}, Reach{}, Convergence{}, metav1.Now(), gatewayv1.GatewayStatus{Conditions: present}).Conditions
	var types []string
	for _, c := range got {
		types = append(types, c.Type)
	}
	if want := []string{"Programmed", "theirs.example/Seen"}; !slices.Equal(types, want) {
		t.Errorf("conditions %v, want %v", types, want)
	}
}

func TestGatewayWithoutAServableListenerIsInvalidWhateverProxiesSay(t *testing.T) {
	s := assemble.GatewayStatus{Object: record.Object{Generation: 3}, Listeners: []gatewayv1.ListenerStatus{{Name: "a", Conditions: []metav1.Condition{{Type: "Accepted", Status: "False"}, {Type: "Programmed", Status: "False", Reason: "Invalid"}}}}}
	got := Gateway(s, Reach{Addresses: []string{"127.0.0.1"}}, Convergence{Counted: 1, Acked: 1}, metav1.Now(), gatewayv1.GatewayStatus{})
	if c := got.Conditions[0]; c.Status != "False" || c.Reason != "Invalid" || c.ObservedGeneration != 3 {
		t.Errorf("%+v", c)
	}
	if c := got.Listeners[0].Conditions[1]; c.Type != "Programmed" || c.Status != "False" || c.Reason != "Invalid" {
		t.Errorf("%+v", c)
	}
}

// TestOverruledIsNotProgrammed: a route that is accepted and that no proxy runs, because another route is served in its place, says so whatever proxies ACKed.
func TestOverruledIsNotProgrammed(t *testing.T) {
	all := func(string) Convergence { return Convergence{Counted: 2, Acked: 2} }
	ours := func(gatewayv1.GatewayController) bool { return true }
	for _, c := range []struct {
		name            string
		parent          assemble.ParentStatus
		pending         string
		status          metav1.ConditionStatus
		reason, message string
	}{
		{"everywhere", assemble.ParentStatus{Overruled: "r is served"}, "", "False", "Overruled", "r is served"},
		{"in one of two places", assemble.ParentStatus{Fleet: "f", Attached: true, Overruled: "r is served"}, "", "True", "Programmed", "2 of 2 proxies; r is served"},
		{"while its newest content is not live", assemble.ParentStatus{Overruled: "r is served"}, "a backend is not there", "False", "Pending", "a backend is not there"},
	} {
		s := assemble.RouteStatus{Object: record.Object{Generation: 4}, Pending: c.pending, Parents: []assemble.ParentStatus{c.parent}}
		conditions := Route(s, all, metav1.Now(), gatewayv1.RouteStatus{}, ours).Parents[0].Conditions
		if len(conditions) != 1 {
			t.Fatalf("%s: %d conditions", c.name, len(conditions))
		}
		if got := conditions[0]; got.Type != ConditionRouteProgrammed || got.Status != c.status || got.Reason != c.reason || got.Message != c.message || got.ObservedGeneration != 4 {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// TestDefaultGatewaysFindRoomInTheStatus: more default Gateways than a status has room for cost neither an entry of another controller nor the whole write.
func TestDefaultGatewaysFindRoomInTheStatus(t *testing.T) {
	entry := func(name string) gatewayv1.RouteParentStatus {
		return gatewayv1.RouteParentStatus{ControllerName: "other.example/controller", ParentRef: gatewayv1.ParentReference{Name: gatewayv1.ObjectName(name)}}
	}
	present := gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{entry("a"), entry("b")}}
	var s assemble.RouteStatus
	for i := range 40 {
		s.Parents = append(s.Parents, assemble.ParentStatus{Controller: "ours", Ref: gatewayv1.ParentReference{Name: gatewayv1.ObjectName(fmt.Sprintf("g%02d", i))}})
	}
	got := Route(s, nil, metav1.Now(), present, func(c gatewayv1.GatewayController) bool { return c == "ours" }).Parents
	if len(got) != maxParents || got[0].ParentRef.Name != "g00" || got[29].ParentRef.Name != "g29" || asJSON(got[30:]) != asJSON(present.Parents) {
		t.Errorf("%d entries:\n%s", len(got), asJSON(got))
	}
}
