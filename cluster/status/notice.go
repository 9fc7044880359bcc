package status

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/translate/record"
)

// said is what the statuses of all kinds have in common: conditions, of the object and of its parts.
type said struct {
	Conditions []metav1.Condition `json:"conditions"`
	Listeners  []struct {
		Name       string             `json:"name"`
		Conditions []metav1.Condition `json:"conditions"`
	} `json:"listeners"`
	Parents []struct {
		Ref        gatewayv1.ParentReference   `json:"parentRef"`
		Controller gatewayv1.GatewayController `json:"controllerName"`
		Conditions []metav1.Condition          `json:"conditions"`
	} `json:"parents"`
	Ancestors []struct {
		Ref        gatewayv1.ParentReference   `json:"ancestorRef"`
		Controller gatewayv1.GatewayController `json:"controllerName"`
		Conditions []metav1.Condition          `json:"conditions"`
	} `json:"ancestors"`
}

// part is a place of a status with conditions of its own.
type part struct {
	path  string // as an event names a part of an object, "" = the object
	label string // for people, "" = the object
}

// parts gives the conditions of a status, but for those of other controllers.
func (s said) parts(ours func(gatewayv1.GatewayController) bool) map[part][]metav1.Condition {
	out := map[part][]metav1.Condition{{}: s.Conditions}
	for _, l := range s.Listeners {
		out[part{"spec.listeners{" + l.Name + "}", "listener " + l.Name + ": "}] = l.Conditions
	}
	for _, p := range s.Parents {
		if ours(p.Controller) {
			name := refName(p.Ref)
			out[part{"spec.parentRefs{" + name + "}", "parent " + name + ": "}] = p.Conditions
		}
	}
	for _, a := range s.Ancestors {
		if ours(a.Controller) {
			name := refName(a.Ref)
			out[part{"status.ancestors{" + name + "}", "ancestor " + name + ": "}] = a.Conditions
		}
	}
	return out
}

func refName(r gatewayv1.ParentReference) string {
	name := string(r.Name)
	if r.Namespace != nil {
		name = string(*r.Namespace) + "/" + name
	}
	if r.SectionName != nil {
		name += "/" + string(*r.SectionName)
	}
	if r.Port != nil {
		name += fmt.Sprintf(":%d", *r.Port)
	}
	return name
}

// notices are what a change of a status has to tell: each condition that has become bad, or bad for another reason, and each that is good again. What was never bad is no news: a
// healthy object has no events of ours. Neither is what is only unfinished.
func notices(o record.Object, before, after []byte, ours func(gatewayv1.GatewayController) bool) ([]member.Notice, error) {
	var was, is said
	for _, s := range []struct {
		raw  []byte
		into *said
	}{{before, &was}, {after, &is}} {
		if err := json.Unmarshal(s.raw, s.into); err != nil {
			return nil, fmt.Errorf("reading a status: %w", err)
		}
	}
	old := was.parts(ours)
	var out []member.Notice
	for at, conditions := range is.parts(ours) {
		for _, n := range turns(old[at], conditions) {
			n.Kind, n.Namespace, n.Name, n.UID, n.Part, n.Text = o.Kind, o.Namespace, o.Name, o.UID, at.path, at.label+n.Text
			out = append(out, n)
		}
	}
	return out, nil
}

// turns are the news of one part's conditions.
func turns(was, is []metav1.Condition) []member.Notice {
	var out []member.Notice
	for _, c := range is {
		if n, ok := turn(conditionOf(was, c.Type), c); ok && !foreign(c.Type) {
			out = append(out, n)
		}
	}
	for _, c := range was { // some conditions are there only while something is wrong
		if bad(c) && !foreign(c.Type) && conditionOf(is, c.Type).Type == "" {
			out = append(out, member.Notice{Reason: "Resolved", Text: c.Type + " is not the case any more"})
		}
	}
	return out
}

func conditionOf(conditions []metav1.Condition, kind string) metav1.Condition {
	for _, c := range conditions {
		if c.Type == kind {
			return c
		}
	}
	return metav1.Condition{}
}

// turn tells what has become of one condition, false where that is no news.
func turn(was, is metav1.Condition) (member.Notice, bool) {
	switch {
	case bad(is) && (!bad(was) || was.Reason != is.Reason):
		return member.Notice{Warning: true, Reason: is.Reason, Text: fmt.Sprintf("%s is %s: %s", is.Type, is.Status, is.Message)}, true
	case bad(was) && is.Status == health(is.Type):
		return member.Notice{Reason: is.Reason, Text: fmt.Sprintf("%s is %s again", is.Type, is.Status)}, true
	}
	return member.Notice{}, false
}

// bad tells whether a condition says that something is wrong; Pending says that it is not finished.
func bad(c metav1.Condition) bool {
	switch c.Status {
	case metav1.ConditionTrue, metav1.ConditionFalse:
		return c.Status != health(c.Type) && c.Reason != "Pending"
	}
	return false
}

// health is the status that a condition of a type has where all is well: the Gateway API has types of both polarities.
func health(kind string) metav1.ConditionStatus {
	switch kind {
	case "Conflicted", "PartiallyInvalid", "OverlappingTLSConfig":
		return metav1.ConditionFalse
	}
	return metav1.ConditionTrue
}
