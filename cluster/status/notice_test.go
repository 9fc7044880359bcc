package status

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/translate/record"
)

// conditionsOf reads "Type=Status/Reason ...".
func conditionsOf(text string) []metav1.Condition {
	var out []metav1.Condition
	for _, word := range strings.Fields(text) {
		kind, rest, _ := strings.Cut(word, "=")
		status, reason, _ := strings.Cut(rest, "/")
		out = append(out, metav1.Condition{Type: kind, Status: metav1.ConditionStatus(status), Reason: reason, Message: "m"})
	}
	return out
}

func TestNoticesAreOfTurns(t *testing.T) {
	for _, c := range []struct{ failure, before, after, want string }{
		{"a healthy object has events", "", "Accepted=True/Accepted Programmed=True/Programmed Conflicted=False/NoConflicts", ""},
		{"a new object that is wrong has none", "", "ResolvedRefs=False/InvalidCertificateRef", "Warning InvalidCertificateRef ResolvedRefs is False: m"},
		{"a turn for the worse is not told", "ResolvedRefs=True/ResolvedRefs", "ResolvedRefs=False/RefNotPermitted", "Warning RefNotPermitted ResolvedRefs is False: m"},
		{"what stays wrong is told again", "ResolvedRefs=False/RefNotPermitted", "ResolvedRefs=False/RefNotPermitted", ""},
		{"wrong for another reason is not told", "ResolvedRefs=False/RefNotPermitted", "ResolvedRefs=False/BackendNotFound", "Warning BackendNotFound ResolvedRefs is False: m"},
		{"the recovery is not told", "Accepted=False/NotAllowedByListeners", "Accepted=True/Accepted", "Normal Accepted Accepted is True again"},
		{"a condition of negative polarity is misread", "Conflicted=False/NoConflicts", "Conflicted=True/HostnameConflict", "Warning HostnameConflict Conflicted is True: m"},
		{"its recovery is misread", "Conflicted=True/HostnameConflict", "Conflicted=False/NoConflicts", "Normal NoConflicts Conflicted is False again"},
		{"a condition that goes when all is well is not told", "OverlappingTLSConfig=True/OverlappingHostnames", "Accepted=True/Accepted", "Normal Resolved OverlappingTLSConfig is not the case any more"},
		{"what is unfinished is told as wrong", "Programmed=True/Programmed", "Programmed=False/Pending", ""},
		{"a condition of somebody else is told", "theirs.example/Fine=True/Fine", "theirs.example/Fine=False/Broken", ""},
	} {
		before, _ := json.Marshal(gatewayv1.GatewayStatus{Conditions: conditionsOf(c.before)})
		after, _ := json.Marshal(gatewayv1.GatewayStatus{Conditions: conditionsOf(c.after)})
		got, err := notices(record.Object{Kind: "Gateway"}, before, after, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s := words(got); s != c.want {
			t.Errorf("%s: %q, want %q", c.failure, s, c.want)
		}
	}
}

// words tells notices in a line, sorted.
func words(notices []member.Notice) string {
	var out []string
	for _, n := range notices {
		kind := "Normal"
		if n.Warning {
			kind = "Warning"
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", kind, n.Reason, n.Part, n.Text)))
	}
	slices.Sort(out)
	return strings.ReplaceAll(strings.Join(out, "; "), "  ", " ")
}

func TestNoticesNameThePart(t *testing.T) {
	mine := func(c gatewayv1.GatewayController) bool { return c == ours }
	port, section := gatewayv1.PortNumber(80), gatewayv1.SectionName("s")
	for want, after := range map[string]any{
		"Warning X spec.listeners{a} listener a: Accepted is False: m": gatewayv1.GatewayStatus{Listeners: []gatewayv1.ListenerStatus{
			{Name: "a", Conditions: conditionsOf("Accepted=False/X")}, {Name: "b", Conditions: conditionsOf("Accepted=True/X")}}},
		"Warning X spec.parentRefs{gw/s:80} parent gw/s:80: Accepted is False: m": gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{
			{ParentRef: gatewayv1.ParentReference{Name: "gw", SectionName: &section, Port: &port}, ControllerName: ours, Conditions: conditionsOf("Accepted=False/X")},
			{ParentRef: gatewayv1.ParentReference{Name: "gw"}, ControllerName: "theirs", Conditions: conditionsOf("Accepted=False/X")}}},
		"Warning X status.ancestors{gw} ancestor gw: Accepted is False: m": gatewayv1.PolicyStatus{Ancestors: []gatewayv1.PolicyAncestorStatus{
			{AncestorRef: gatewayv1.ParentReference{Name: "gw"}, ControllerName: ours, Conditions: conditionsOf("Accepted=False/X")}}},
	} {
		raw, _ := json.Marshal(after)
		got, err := notices(record.Object{}, []byte("null"), raw, mine)
		if err != nil || words(got) != want {
			t.Errorf("%q (%v), want %q", words(got), err, want)
		}
	}
}

func TestATurnIsToldOnceAndNotBeforeItIsWritten(t *testing.T) {
	run(t, func(w *world, wr *Writer) {
		turn := func(c metav1.Condition) {
			w.set(func() {
				w.acked = 2
				p := w.route.Parents[0]
				p.Conditions = []metav1.Condition{c}
				w.route.Parents = append(w.route.Parents[:0:0], p)
			})
			wr.Touch([]record.Key{key})
			synctest.Wait()
		}
		turn(metav1.Condition{Type: "Accepted", Status: metav1.ConditionTrue, Reason: "Accepted"})
		w.set(func() { w.refuse = true })
		turn(metav1.Condition{Type: "Accepted", Status: metav1.ConditionFalse, Reason: "NoMatchingParent", Message: "m"})
		w.set(func() {
			if len(w.told) != 0 {
				t.Errorf("told before it was written, or of a healthy route: %q", words(w.told))
			}
			w.refuse = false
		})
		time.Sleep(3 * time.Second)
		wr.Touch([]record.Key{key})
		time.Sleep(3 * time.Second)
		w.set(func() {
			if got := words(w.told); got != "Warning NoMatchingParent spec.parentRefs{gw} parent gw: Accepted is False: m" {
				t.Errorf("told %q", got)
			}
		})
	})
}
