package translate

import (
	"fmt"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// share is one backend's part of a rule's requests.
type share struct {
	cluster string // InvalidCluster: its part answers 500
	weight  uint32
	own     *action       // what the backend's own filters do, nil = it has none
	pin     *pin          // nil = requests go to any endpoint
	backend *xbackendFact // nil = it is no XBackend
}

// maxWeight is the API's own limit: Envoy rejects weights whose sum overflows.
const maxWeight = 1_000_000

// weight reads a backendRef's weight, 1 by default.
func weight(w *int32) uint32 {
	if w == nil {
		return 1
	}
	return uint32(min(max(*w, 0), maxWeight))
}

// forward gives the shares, with the invalid cluster in place of what cannot be used; nothing where no valid one has weight.
func (r *ruleCompiler) forward() []share {
	var out []share
	valid := uint32(0)
	for i := range r.rule.BackendRefs {
		s := r.share(&r.rule.BackendRefs[i])
		if s.cluster != InvalidCluster {
			valid += s.weight
		}
		out = append(out, s)
	}
	if valid == 0 {
		return nil
	}
	return out
}

func (r *ruleCompiler) share(ref *gatewayv1.HTTPBackendRef) share {
	out := share{cluster: InvalidCluster, weight: weight(ref.Weight)}
	key, problem := resolveBackend(r.view, r.spec.object, ref.BackendObjectReference, r.spec.consumer)
	if problem != nil {
		r.note(problem)
	}
	own := &action{} // is read even where the backend is not there: what is wrong with its filters should not come out only later
	understood := r.filters(ref.Filters, own, func(reason, message string) { r.refuseShare(ref, reason, message) })
	if problem != nil || !understood {
		return out
	}
	if len(ref.Filters) > 0 {
		out.own = own
	}
	r.use(key)
	out.cluster = record.ClusterName(key)
	if in := backendObject(key); in.kind == kindXBackend {
		out.backend = fact[xbackendFact](r.view, kindXBackend, in.namespace, in.name)
	}
	return out
}

// refuseShare notes why one backend's part answers 500.
func (r *ruleCompiler) refuseShare(ref *gatewayv1.HTTPBackendRef, reason, message string) {
	p := record.Problem{Condition: "PartiallyInvalid", Reason: reason, Message: fmt.Sprintf("backend %s: %s", ref.Name, message)}
	if ofReferences(reason) {
		p.Condition = "ResolvedRefs"
	}
	r.note(&p)
}

// onlyHeaders tells whether an action changes nothing but headers: that much fits into a weighted cluster of Envoy.
func (a *action) onlyHeaders() bool {
	return a.redirect == nil && a.rewrite == nil && a.cors == nil && len(a.mirrors)+len(a.auths) == 0
}

// weighted gives the clusters, for a listener with a scheme, with what of the header changes stays with the route. Where a backend has changes of its own the rule's are moved into
// every share: to Envoy a route's changes come after a share's (and most_specific_header_mutations_wins does not change that), to the Gateway API
// the rule comes first.
func (a *action) weighted(scheme string) (clusters []*routev3.WeightedCluster_ClusterWeight, request, response headerOps) {
	own := slices.ContainsFunc(a.shares, func(s share) bool { return s.own != nil })
	for _, s := range a.shares {
		c := envoy.Weighted(s.cluster, s.weight)
		if s.pin != nil {
			c.TypedPerFilterConfig = map[string]*anypb.Any{envoy.SessionFilter: s.pin.at(scheme)}
		}
		if own {
			request, response := a.request, a.response
			if s.own != nil {
				request, response = request.then(s.own.request), response.then(s.own.response)
			}
			c.RequestHeadersToAdd, c.RequestHeadersToRemove = request.add, request.remove
			c.ResponseHeadersToAdd, c.ResponseHeadersToRemove = response.add, response.remove
		}
		clusters = append(clusters, c)
	}
	if own {
		return clusters, headerOps{}, headerOps{}
	}
	return clusters, a.request, a.response
}

// branch is what a rule does with a part of its requests.
type branch struct {
	*action
	name string  // "" where it is all of them
	part *uint32 // Envoy draws one number below a million for each request; this branch takes those below it. nil = whatever comes here
}

// branches splits a rule where a backend has filters that do not fit into a weighted cluster (URLRewrite, RequestMirror, ...): then every backend
// gets a route of its own. The number is drawn once for each request, so the parts add up from route to route.
func (a *action) branches() []branch {
	if !slices.ContainsFunc(a.shares, func(s share) bool { return s.own != nil && !s.own.onlyHeaders() }) {
		return []branch{{action: a}}
	}
	total, sum := uint64(0), uint64(0)
	for _, s := range a.shares {
		total += uint64(s.weight)
	}
	var out []branch
	for i, s := range a.shares {
		if s.weight == 0 {
			continue
		}
		sum += uint64(s.weight)
		b := branch{action: a.only(s), name: fmt.Sprintf("-backend-%d", i)}
		if sum < total {
			part := uint32(sum * 1_000_000 / total)
			b.part = &part
		}
		out = append(out, b)
	}
	return out
}

// only is the action for the requests of one backend: the rule's, then the backend's. Of two rewrites of one thing the backend's counts.
func (a *action) only(s share) *action {
	out := *a
	out.shares = []share{{cluster: s.cluster, weight: 1, pin: s.pin}}
	if s.cluster == InvalidCluster {
		out.shares = nil
	}
	if s.own == nil {
		return &out
	}
	out.request, out.response = a.request.then(s.own.request), a.response.then(s.own.response)
	out.mirrors = append(slices.Clip(a.mirrors), s.own.mirrors...)
	out.auths = append(slices.Clip(a.auths), s.own.auths...)
	if s.own.cors != nil {
		out.cors = s.own.cors
	}
	out.redirect = s.own.redirect
	out.rewrite = thenRewrite(a.rewrite, s.own.rewrite)
	return &out
}

func thenRewrite(first, then *gatewayv1.HTTPURLRewriteFilter) *gatewayv1.HTTPURLRewriteFilter {
	if first == nil || then == nil {
		if then == nil {
			return first
		}
		return then
	}
	out := *first
	if then.Hostname != nil {
		out.Hostname = then.Hostname
	}
	if then.Path != nil {
		out.Path = then.Path
	}
	return &out
}
