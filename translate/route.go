package translate

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// routeSpec is what HTTPRoutes and GRPCRoutes have in common: the latter is lowered to the former's shape before anything else looks at it.
type routeSpec struct {
	object    record.Object
	hostnames []gatewayv1.Hostname
	parents   []gatewayv1.ParentReference
	rules     []gatewayv1.HTTPRouteRule
	consumer  string // of its backends
	grpc      bool
}

func splitRoute(name string) (kind, route string) {
	kind, route, _ = strings.Cut(name, "/")
	return kind, route
}

// compileRoute makes the record of a route, once for all its parents.
func compileRoute(v *view, k record.Key) compiled {
	kind, name := splitRoute(k.Name)
	f := fact[routeFact](v, kind, k.Namespace, name)
	if s := streamOf(f); s != nil {
		return compileStream(v, f, s)
	}
	spec := lower(f)
	out := record.Route{Object: f.object, Created: f.created, Parents: parents(spec.object.Namespace, spec.parents)}
	out.Hostnames, out.Problems = hostnames(spec.hostnames)
	scope, problems := f.scope()
	out.Scope, out.Problems = scope, append(out.Problems, problems...)
	parents := append(slices.Clip(out.Parents), v.defaults(scope)...)
	for i := range spec.rules {
		rule := ruleCompiler{view: v, spec: spec, index: i, rule: &spec.rules[i], parents: parents}
		out.Rules = append(out.Rules, rule.compile())
		out.Problems = append(out.Problems, rule.problems...)
	}
	return compiled{value: out, refs: refsOfRoute(out)}
}

// lower gives the common shape of a route.
func lower(f *routeFact) *routeSpec {
	if f.http != nil {
		return &routeSpec{object: f.object, hostnames: f.http.Hostnames, parents: f.http.ParentRefs, rules: f.http.Rules, consumer: consumerAuto}
	}
	return lowerGRPC(f)
}

// refsOfRoute are the records that must exist before a route's bytes may be served: its backends, each with its endpoints.
func refsOfRoute(r record.Route) []record.Key {
	seen := map[record.Key]bool{}
	var out []record.Key
	use := func(b record.Key) {
		if !seen[b] {
			seen[b] = true
			out = append(out, withEndpoints(b)...)
		}
	}
	for _, rule := range r.Rules {
		for _, m := range rule.Matches {
			for _, b := range m.Backends {
				use(b)
			}
		}
		for _, s := range rule.Stream {
			if s.Backend != nil {
				use(*s.Backend)
			}
		}
	}
	return out
}

// hostname is what the API takes for one. Envoy would reject a whole configuration for one that is none, so they are checked here too.
var hostname = regexp.MustCompile(`^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// hostnames gives the valid ones; one that is not refuses the whole route, since leaving it out could widen what the route takes.
func hostnames(in []gatewayv1.Hostname) (out []string, problems []record.Problem) {
	for _, h := range in {
		lower := strings.ToLower(string(h))
		switch {
		case !hostname.MatchString(lower):
			problems = append(problems, accepted("UnsupportedValue", fmt.Sprintf("hostname %q is not valid: use a DNS name, or one behind \"*.\"", h)))
		case !slices.Contains(out, lower):
			out = append(out, lower)
		}
	}
	return out, problems
}

// parents gives the parentRefs of a route in a namespace with their defaults.
func parents(namespace string, refs []gatewayv1.ParentReference) []record.Parent {
	var out []record.Parent
	for _, p := range refs {
		parent := record.Parent{Group: gatewayv1.GroupName, Kind: "Gateway", Namespace: namespace, Name: string(p.Name)}
		if p.Group != nil {
			parent.Group = string(*p.Group)
		}
		if p.Kind != nil {
			parent.Kind = string(*p.Kind)
		}
		if parent.Local = p.Namespace == nil; !parent.Local {
			parent.Namespace = string(*p.Namespace)
		}
		if p.SectionName != nil {
			parent.SectionName = string(*p.SectionName)
		}
		if p.Port != nil {
			parent.Port = int32(*p.Port)
		}
		out = append(out, parent)
	}
	return out
}

// ruleCompiler compiles one rule: what it does is decided once, and then made into an Envoy route for each match.
type ruleCompiler struct {
	view    *view
	spec    *routeSpec
	index   int
	rule    *gatewayv1.HTTPRouteRule
	parents []record.Parent

	problems []record.Problem
	backends []record.Key
}

// refuse notes why the rule as a whole cannot be served: it then answers 500 (D16).
func (r *ruleCompiler) refuse(reason, message string) {
	p := accepted(reason, message)
	if ofReferences(reason) {
		p.Condition = "ResolvedRefs"
	}
	r.note(&p)
}

// ofReferences tells whether a reason belongs to the condition ResolvedRefs.
func ofReferences(reason string) bool {
	return slices.Contains([]string{string(gatewayv1.RouteReasonInvalidKind), string(gatewayv1.RouteReasonRefNotPermitted), string(gatewayv1.RouteReasonBackendNotFound)}, reason)
}

// note adds a problem to this rule's.
func (r *ruleCompiler) note(p *record.Problem) {
	q := *p
	q.Rule = r.index
	if !slices.Contains(r.problems, q) {
		r.problems = append(r.problems, q)
	}
}

// compile makes the rule. If anything in it is not valid, all of its matches that Envoy can express answer 500.
func (r *ruleCompiler) compile() record.Rule {
	out := record.Rule{}
	if r.rule.Name != nil {
		out.Name = string(*r.rule.Name)
	}
	matches := r.rule.Matches
	if len(matches) == 0 {
		matches = []gatewayv1.HTTPRouteMatch{{}}
	}
	valid := make([]bool, len(matches))
	ok := true
	for i := range matches {
		if err := checkMatch(&matches[i]); err != nil {
			r.refuse("UnsupportedValue", fmt.Sprintf("match %d: %v", i, err))
			ok = false
			continue
		}
		valid[i] = true
	}
	does := r.decide()
	for i := range matches {
		if valid[i] {
			out.Matches = append(out.Matches, r.compileMatch(i, &matches[i], does, ok)...)
		}
	}
	return out
}

// compileMatch makes the Envoy routes of one match: for each branch one, and before it one for preflights that the match would keep out.
func (r *ruleCompiler) compileMatch(i int, m *gatewayv1.HTTPRouteMatch, does *action, ok bool) []record.Match {
	if !ok || does == nil {
		return r.bytes(r.base(m, strconv.Itoa(i)), routeMatch(m, r.spec.grpc), nil, m)
	}
	var out []record.Match
	branches := does.branches()
	for _, b := range branches {
		if b.cors != nil && hidesPreflights(m) {
			base := r.base(m, strconv.Itoa(i)+b.name+"-preflight")
			out = append(out, r.bytes(base, b.narrow(preflightMatch(m)), b.action, m)...)
		}
	}
	for _, b := range branches {
		base := r.base(m, strconv.Itoa(i)+b.name)
		out = append(out, r.bytes(base, b.narrow(routeMatch(m, r.spec.grpc)), b.action, m)...)
	}
	return out
}

func (r *ruleCompiler) base(m *gatewayv1.HTTPRouteMatch, name string) record.Match {
	return record.Match{Sort: sortKey(m, r.spec.grpc), Name: r.name(name)}
}

// narrow restricts a match to a branch's part of the requests.
func (b branch) narrow(m *routev3.RouteMatch) *routev3.RouteMatch {
	if b.part != nil {
		m.RuntimeFraction = envoy.PerMillion(*b.part)
	}
	return m
}

// bytes fills in a match's Envoy route and its variants. What validation rejects answers 500; a match that even so is rejected is left out.
func (r *ruleCompiler) bytes(base record.Match, match *routev3.RouteMatch, does *action, m *gatewayv1.HTTPRouteMatch) []record.Match {
	if does != nil {
		out, err := r.encode(base, match, does, m)
		if err == nil {
			return []record.Match{out}
		}
		r.refuse("UnsupportedValue", fmt.Sprintf("%v: correct the value", err))
	}
	b, err := envoy.Marshal(&routev3.Route{Name: base.Name, Match: match, Action: envoy.DirectResponse(500)})
	if err != nil {
		r.refuse("UnsupportedValue", fmt.Sprintf("%v: correct the match", err))
		return nil
	}
	base.Bytes = b
	return []record.Match{base}
}

func (r *ruleCompiler) encode(base record.Match, match *routev3.RouteMatch, does *action, m *gatewayv1.HTTPRouteMatch) (record.Match, error) {
	var err error
	if base.Bytes, err = envoy.Marshal(does.route(base.Name, match, m, schemePort{})); err != nil {
		return base, err
	}
	base.Backends = r.backends
	if !does.listens() {
		return base, nil
	}
	variants := map[string][]byte{}
	for _, at := range r.ports() {
		b, err := envoy.Marshal(does.route(base.Name, match, m, at))
		if err != nil {
			return base, err
		}
		if !record.Equal(b, base.Bytes) {
			variants[at.scheme+"/"+strconv.Itoa(int(at.port))] = b
		}
	}
	if len(variants) > 0 {
		base.Variants = variants
	}
	return base, nil
}

// ports are where the Gateways and ListenerSets listen that the route names as parents.
func (r *ruleCompiler) ports() []schemePort {
	var out []schemePort
	for _, p := range r.parents {
		if p.Group != gatewayv1.GroupName {
			continue
		}
		for _, at := range r.view.ports(p.Kind, p.Namespace, p.Name) {
			if !slices.Contains(out, at) {
				out = append(out, at)
			}
		}
	}
	return out
}

// name is the Envoy route's name, injective (D14).
func (r *ruleCompiler) name(match string) string {
	o := r.spec.object
	return record.Join(o.Kind, o.Namespace, o.Name, strconv.Itoa(r.index), match)
}
