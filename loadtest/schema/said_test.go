package schema

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// said writes what committed records say of objects, by "kind namespace/name": one line for each object, parent and listener.
func (w *world) said(messages bool) map[string]string {
	out := map[string]string{}
	tell := func(o record.Object, format string, args ...any) {
		id := o.Kind + " " + o.Namespace + "/" + o.Name
		out[id] += "  " + fmt.Sprintf(format, args...) + "\n"
	}
	show := func(conditions []metav1.Condition) string { return shown(conditions, messages) }
	for _, k := range w.compiled(record.KindClass) {
		if s, ok := w.state.ClassStatus(k); ok {
			tell(s.Object, "%s", show(s.Conditions))
		}
	}
	for _, k := range w.state.Gateways() {
		if s, ok := w.state.GatewayStatus(k); ok {
			tell(s.Object, "%s", show(s.Conditions))
			for _, l := range s.Listeners {
				tell(s.Object, "listener %s, %d attached, kinds %s: %s", l.Name, l.AttachedRoutes, kindsOf(l.SupportedKinds), show(l.Conditions))
			}
		}
	}
	for _, k := range w.state.ListenerSets() {
		if s, ok := w.state.ListenerSetStatus(k); ok {
			tell(s.Object, "%s", show(s.Conditions))
			for _, l := range s.Listeners {
				tell(s.Object, "listener %s, %d attached, kinds %s: %s", l.Name, l.AttachedRoutes, kindsOf(l.SupportedKinds), show(l.Conditions))
			}
		}
	}
	for _, k := range w.state.Routes() {
		if s, ok := w.state.RouteStatus(k); ok {
			for _, p := range s.Parents {
				tell(s.Object, "parent %s: %s", parent(p.Ref), show(p.Conditions))
			}
			for _, p := range s.MissingParents {
				tell(s.Object, "parent %s is not there", p)
			}
		}
	}
	for _, k := range w.state.Policies() {
		if s, ok := w.state.PolicyStatus(k); ok {
			tell(s.Object, "%d ancestors: %s", len(s.Ancestors), show(s.Conditions))
		}
	}
	return out
}

func (w *world) compiled(kind record.Kind) (out []record.Key) {
	for k := range w.compiler.Records() {
		if k.Kind == kind {
			out = append(out, k)
		}
	}
	return out
}

func shown(conditions []metav1.Condition, messages bool) string {
	var out []string
	for _, c := range conditions {
		text := fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason)
		if messages {
			text += "(" + c.Message + ")"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func kindsOf(in []gatewayv1.RouteGroupKind) string {
	var out []string
	for _, k := range in {
		out = append(out, string(k.Kind))
	}
	return strings.Join(out, ",")
}

func parent(p gatewayv1.ParentReference) string {
	out := string(p.Name)
	if p.Namespace != nil {
		out = string(*p.Namespace) + "/" + out
	}
	if p.SectionName != nil {
		out += "#" + string(*p.SectionName)
	}
	if p.Port != nil {
		out += fmt.Sprintf(":%d", *p.Port)
	}
	if p.Kind != nil && *p.Kind != "Gateway" {
		out = string(*p.Kind) + " " + out
	}
	return out
}
