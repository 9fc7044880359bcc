package member

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// advice are problems of good objects that nobody's status can tell: a Gateway of a class that does not exist is no controller's, so no controller
// writes to it; and weights that are all zero are legal. A directory is all there is of its cluster, so here both can be seen. Decode, which may be
// given a part of a cluster only, gives no advice.
func (v *inventory) advice() []Problem {
	var problems []Problem
	for key, e := range v.desired {
		if field, message := v.advise(e.object); message != "" {
			problems = append(problems, Problem{v.holder[key].path, e.document, e.line, key.String(), field, message})
		}
	}
	return problems
}

func (v *inventory) advise(o Object) (field, message string) {
	switch o := o.(type) {
	case *gatewayv1.Gateway:
		return v.adviseClass(string(o.Spec.GatewayClassName))
	case *gatewayv1.HTTPRoute:
		for i, rule := range o.Spec.Rules {
			if weightless(len(rule.BackendRefs), func(i int) *int32 { return rule.BackendRefs[i].Weight }) {
				return weightAdvice(i)
			}
		}
	case *gatewayv1.GRPCRoute:
		for i, rule := range o.Spec.Rules {
			if weightless(len(rule.BackendRefs), func(i int) *int32 { return rule.BackendRefs[i].Weight }) {
				return weightAdvice(i)
			}
		}
	}
	return "", ""
}

func (v *inventory) adviseClass(name string) (field, message string) {
	if _, there := v.desired[objectKey{kind: "GatewayClass", name: name}]; there {
		return "", ""
	}
	var classes []string
	for key := range maps.Keys(v.desired) {
		if key.kind == "GatewayClass" {
			classes = append(classes, key.name)
		}
	}
	remedy := "Create it"
	if len(classes) > 0 {
		slices.Sort(classes)
		remedy = "Create it, or name one that exists: " + strings.Join(classes, ", ")
	}
	return "spec.gatewayClassName", fmt.Sprintf("GatewayClass %q does not exist, so nobody serves this Gateway. %s", name, remedy)
}

// weightless tells whether there are backends, and none of them has a weight; none given means 1.
func weightless(backends int, weight func(int) *int32) bool {
	for i := range backends {
		if w := weight(i); w == nil || *w > 0 {
			return false
		}
	}
	return backends > 0
}

func weightAdvice(rule int) (field, message string) {
	return fmt.Sprintf("spec.rules[%d].backendRefs", rule), "all weights are 0, so every request of this rule answers 500. Give one of them a weight above 0, or take the rule out"
}
