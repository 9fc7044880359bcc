package translate

import (
	"regexp"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// lowerGRPC turns a GRPCRoute into the shape of an HTTPRoute: a gRPC method is a path, and its filters are a subset.
func lowerGRPC(f *routeFact) *routeSpec {
	out := &routeSpec{object: f.object, hostnames: f.grpc.Hostnames, parents: f.grpc.ParentRefs, consumer: consumerH2, grpc: true}
	for _, rule := range f.grpc.Rules {
		lowered := gatewayv1.HTTPRouteRule{Name: rule.Name, SessionPersistence: rule.SessionPersistence, Filters: lowerFilters(rule.Filters)}
		for _, m := range rule.Matches {
			lowered.Matches = append(lowered.Matches, gatewayv1.HTTPRouteMatch{Path: lowerMethod(m.Method), Headers: lowerHeaders(m.Headers)})
		}
		for _, b := range rule.BackendRefs {
			lowered.BackendRefs = append(lowered.BackendRefs, gatewayv1.HTTPBackendRef{BackendRef: b.BackendRef, Filters: lowerFilters(b.Filters)})
		}
		out.rules = append(out.rules, lowered)
	}
	return out
}

// lowerMethod gives the path of a method: /service/method exactly, /service as a prefix, or a regex where a part is open or is one.
func lowerMethod(m *gatewayv1.GRPCMethodMatch) *gatewayv1.HTTPPathMatch {
	if m == nil {
		return nil
	}
	service, method := value(m.Service), value(m.Method)
	if m.Type != nil && *m.Type == gatewayv1.GRPCMethodMatchRegularExpression {
		return path(gatewayv1.PathMatchRegularExpression, "/"+part(service)+"/"+part(method))
	}
	switch {
	case service == "" && method == "":
		return nil
	case service == "":
		return path(gatewayv1.PathMatchRegularExpression, "/[^/]+/"+regexp.QuoteMeta(method))
	case method == "":
		return path(gatewayv1.PathMatchPathPrefix, "/"+service)
	}
	return path(gatewayv1.PathMatchExact, "/"+service+"/"+method)
}

func part(expr string) string {
	if expr == "" {
		return "[^/]+"
	}
	return "(?:" + expr + ")"
}

func path(kind gatewayv1.PathMatchType, value string) *gatewayv1.HTTPPathMatch {
	return &gatewayv1.HTTPPathMatch{Type: &kind, Value: &value}
}

func lowerHeaders(in []gatewayv1.GRPCHeaderMatch) []gatewayv1.HTTPHeaderMatch {
	var out []gatewayv1.HTTPHeaderMatch
	for _, h := range in {
		lowered := gatewayv1.HTTPHeaderMatch{Name: gatewayv1.HTTPHeaderName(h.Name), Value: h.Value}
		if h.Type != nil {
			kind := gatewayv1.HeaderMatchType(*h.Type)
			lowered.Type = &kind
		}
		out = append(out, lowered)
	}
	return out
}

func lowerFilters(in []gatewayv1.GRPCRouteFilter) []gatewayv1.HTTPRouteFilter {
	var out []gatewayv1.HTTPRouteFilter
	for _, f := range in {
		out = append(out, gatewayv1.HTTPRouteFilter{
			Type:                   gatewayv1.HTTPRouteFilterType(f.Type),
			RequestHeaderModifier:  f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier,
			RequestMirror:          f.RequestMirror,
			ExtensionRef:           f.ExtensionRef,
		})
	}
	return out
}

// value gives what a pointer points to, or the zero value.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
