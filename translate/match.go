package translate

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// checkMatch tells why a match cannot be expressed.
func checkMatch(m *gatewayv1.HTTPRouteMatch) error {
	if m.Path != nil {
		if err := checkPath(*pathType(m), pathValue(m)); err != nil {
			return err
		}
	}
	for _, h := range m.Headers {
		if err := checkValue("header "+string(h.Name), string(value(h.Type)), h.Value); err != nil {
			return err
		}
		if strings.HasPrefix(string(h.Name), ":") {
			return fmt.Errorf("header %s is a pseudo-header: match on path, method or hostname instead", h.Name)
		}
	}
	for _, q := range m.QueryParams {
		if err := checkValue("query parameter "+string(q.Name), string(value(q.Type)), q.Value); err != nil {
			return err
		}
	}
	return nil
}

func checkPath(kind gatewayv1.PathMatchType, path string) error {
	switch kind {
	case gatewayv1.PathMatchRegularExpression:
		if err := checkRegex(path); err != nil {
			return fmt.Errorf("path: %w", err)
		}
	case gatewayv1.PathMatchExact, gatewayv1.PathMatchPathPrefix:
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "?#") {
			return fmt.Errorf("path %q: begin it with a slash and leave out the query", path)
		}
	default:
		return fmt.Errorf("path type %s is not supported: use Exact, PathPrefix or RegularExpression", kind)
	}
	return nil
}

func checkValue(what, kind, value string) error {
	switch kind {
	case "", "Exact":
		return nil
	case "RegularExpression":
		if err := checkRegex(value); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	return fmt.Errorf("%s: match type %s is not supported: use Exact or RegularExpression", what, kind)
}

// pathType and pathValue apply the defaults of the API: a prefix of "/".
func pathType(m *gatewayv1.HTTPRouteMatch) *gatewayv1.PathMatchType {
	if m.Path == nil || m.Path.Type == nil {
		prefix := gatewayv1.PathMatchPathPrefix
		return &prefix
	}
	return m.Path.Type
}

func pathValue(m *gatewayv1.HTTPRouteMatch) string {
	if m.Path == nil || m.Path.Value == nil || *m.Path.Value == "" {
		return "/"
	}
	if *pathType(m) == gatewayv1.PathMatchRegularExpression {
		return *m.Path.Value
	}
	return plain(*m.Path.Value)
}

// escape is an escaped octet of a path; needless matches what never has to be escaped (RFC 3986 2.3).
var escape, needless = regexp.MustCompile(`%[0-9A-Fa-f]{2}`), regexp.MustCompile(`^[-A-Za-z0-9._~]$`)

// plain takes needless escapes out of a path. Envoy does so with the path of each request before it looks for a route, so that one with such an escape would match none.
func plain(path string) string {
	return escape.ReplaceAllStringFunc(path, func(escaped string) string {
		n, _ := strconv.ParseUint(escaped[1:], 16, 8) // of two hexadecimal digits
		if c := string(rune(n)); needless.MatchString(c) {
			return c
		}
		return escaped
	})
}

// routeMatch makes Envoy's match of a checked one. Of several entries for one header or parameter only the first counts.
func routeMatch(m *gatewayv1.HTTPRouteMatch, grpc bool) *routev3.RouteMatch {
	var out *routev3.RouteMatch
	switch *pathType(m) {
	case gatewayv1.PathMatchExact:
		out = envoy.ExactPath(pathValue(m))
	case gatewayv1.PathMatchRegularExpression:
		out = envoy.RegexPath(pathValue(m))
	default:
		out = envoy.PrefixPath(pathValue(m))
	}
	if m.Method != nil {
		out.Headers = append(out.Headers, envoy.MethodIs(string(*m.Method)))
	}
	for _, h := range firstHeaders(m.Headers) {
		if value(h.Type) == gatewayv1.HeaderMatchRegularExpression {
			out.Headers = append(out.Headers, envoy.HeaderLike(string(h.Name), h.Value))
		} else {
			out.Headers = append(out.Headers, envoy.HeaderIs(string(h.Name), h.Value))
		}
	}
	for _, q := range firstQueries(m.QueryParams) {
		if value(q.Type) == gatewayv1.QueryParamMatchRegularExpression {
			out.QueryParameters = append(out.QueryParameters, envoy.QueryLike(string(q.Name), q.Value))
		} else {
			out.QueryParameters = append(out.QueryParameters, envoy.QueryIs(string(q.Name), q.Value))
		}
	}
	if grpc {
		out.Grpc = &routev3.RouteMatch_GrpcRouteMatchOptions{}
	}
	return out
}

// hidesPreflights tells whether a match keeps out the CORS preflights of the requests that it takes: those are OPTIONS requests without the headers.
func hidesPreflights(m *gatewayv1.HTTPRouteMatch) bool {
	return len(m.Headers) > 0 || m.Method != nil && *m.Method != gatewayv1.HTTPMethodOptions
}

// preflightMatch matches the CORS preflights of the requests that a match takes.
func preflightMatch(m *gatewayv1.HTTPRouteMatch) *routev3.RouteMatch {
	plain := *m
	plain.Method, plain.Headers = nil, nil
	out := routeMatch(&plain, false)
	out.Headers = []*routev3.HeaderMatcher{envoy.MethodIs("OPTIONS"), envoy.HeaderPresent("origin")}
	if m.Method != nil {
		out.Headers = append(out.Headers, envoy.HeaderIs("access-control-request-method", string(*m.Method)))
	} else {
		out.Headers = append(out.Headers, envoy.HeaderPresent("access-control-request-method"))
	}
	return out
}

func firstHeaders(in []gatewayv1.HTTPHeaderMatch) []gatewayv1.HTTPHeaderMatch {
	return firsts(in, func(h gatewayv1.HTTPHeaderMatch) string { return strings.ToLower(string(h.Name)) })
}

// firstChanges of several that set, or add to, one header: only the first counts (HTTPHeader.name).
func firstChanges(in []gatewayv1.HTTPHeader) []gatewayv1.HTTPHeader {
	return firsts(in, func(h gatewayv1.HTTPHeader) string { return strings.ToLower(string(h.Name)) })
}

func firstQueries(in []gatewayv1.HTTPQueryParamMatch) []gatewayv1.HTTPQueryParamMatch {
	return firsts(in, func(q gatewayv1.HTTPQueryParamMatch) string { return string(q.Name) })
}

func firsts[T any](in []T, name func(T) string) []T {
	seen := map[string]bool{}
	var out []T
	for _, x := range in {
		if n := name(x); !seen[n] {
			seen[n] = true
			out = append(out, x)
		}
	}
	return out
}

// sortKey gives what orders a match among those of other routes.
func sortKey(m *gatewayv1.HTTPRouteMatch, grpc bool) record.SortKey {
	k := record.SortKey{
		Path:    pathValue(m),
		Method:  m.Method != nil,
		Headers: len(firstHeaders(m.Headers)),
		Queries: len(firstQueries(m.QueryParams)),
		GRPC:    grpc,
	}
	switch *pathType(m) {
	case gatewayv1.PathMatchExact:
		k.PathKind = 0
	case gatewayv1.PathMatchRegularExpression:
		k.PathKind = 2
	default:
		k.PathKind = 1
		if trimmed := strings.TrimRight(k.Path, "/"); trimmed != "" {
			k.Path = trimmed
		} else {
			k.Path = "/"
		}
	}
	k.PathLength = utf8.RuneCountInString(k.Path)
	return k
}

// headerOps are the changes that a header modifier makes.
type headerOps struct {
	add    []*corev3.HeaderValueOption
	remove []string
}

// then gives the changes of two modifiers, one after the other, as one. Within one, Envoy removes before it adds.
func (o headerOps) then(next headerOps) headerOps {
	removed := func(h *corev3.HeaderValueOption) bool {
		return slices.ContainsFunc(next.remove, func(name string) bool { return strings.EqualFold(name, h.Header.Key) })
	}
	return headerOps{
		add:    append(slices.DeleteFunc(slices.Clone(o.add), removed), next.add...),
		remove: append(slices.Clone(o.remove), next.remove...),
	}
}

// modify reads a header modifier. Envoy refuses to change Host and pseudo-headers this way, and rejects the whole configuration for it.
func modify(f *gatewayv1.HTTPHeaderFilter) (headerOps, error) {
	var out headerOps
	if f == nil {
		return out, fmt.Errorf("a header modifier without content: fill it in or remove it")
	}
	for _, h := range firstChanges(f.Set) {
		out.add = append(out.add, envoy.SetHeader(string(h.Name), h.Value))
	}
	for _, h := range firstChanges(f.Add) {
		out.add = append(out.add, envoy.AddHeader(string(h.Name), h.Value))
	}
	out.remove = append(out.remove, f.Remove...)
	for _, o := range out.add {
		if err := changeable(o.Header.Key); err != nil {
			return headerOps{}, err
		}
	}
	for _, name := range out.remove {
		if err := changeable(name); err != nil {
			return headerOps{}, err
		}
	}
	return out, nil
}

func changeable(name string) error {
	if name == "" || strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
		return fmt.Errorf("header %q cannot be changed by a header modifier: remove it (URLRewrite changes host and path)", name)
	}
	return nil
}
