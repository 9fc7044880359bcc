package translate

import (
	"fmt"
	"slices"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// action is what a rule does with a request, the same for all its matches.
type action struct {
	request, response headerOps
	redirect          *gatewayv1.HTTPRequestRedirectFilter
	rewrite           *gatewayv1.HTTPURLRewriteFilter
	mirrors           []*routev3.RouteAction_RequestMirrorPolicy
	cors              *anypb.Any
	auths             []envoy.Authorization // that must all allow the request, in their order
	shares            []share               // empty: nothing to forward to, 500
	timeout           time.Duration         // 0 = none
	silence           *time.Duration        // for which Envoy lets a request be silent, 0 = for ever; nil = as long as it does anyway
	retry             *routev3.RetryPolicy
	grpc              bool // requests are gRPC's
}

// decide makes the rule's action, nil where it must answer 500 because of a problem that it then has noted.
func (r *ruleCompiler) decide() *action {
	a := &action{grpc: r.spec.grpc}
	ok := r.filters(r.rule.Filters, a, r.refuse)
	if err := r.timeouts(a); err != nil {
		r.refuse("UnsupportedValue", err.Error())
		ok = false
	}
	if a.redirect == nil {
		a.shares = r.forward()
	}
	if err := a.checkAuths(); err != nil {
		r.refuse("UnsupportedValue", err.Error())
		ok = false
	}
	if err := r.pinShares(a.shares); err != nil {
		r.refuse("UnsupportedValue", err.Error())
		ok = false
	}
	if !ok {
		r.backends = nil
		return nil
	}
	return a
}

// filters reads the filters of a rule or of one backend in their order; what cannot be honoured is told to refuse.
func (r *ruleCompiler) filters(filters []gatewayv1.HTTPRouteFilter, a *action, refuse func(reason, message string)) bool {
	ok := true
	for i := range filters {
		f := &filters[i]
		read, known := filterReaders[f.Type]
		if !known {
			refuse("UnsupportedValue", fmt.Sprintf("filter %s is not supported: remove it", f.Type))
			ok = false
			continue
		}
		if reason, err := read(r, f, a); err != nil {
			refuse(reason, fmt.Sprintf("filter %s: %v", f.Type, err))
			ok = false
		}
	}
	if a.redirect != nil && a.rewrite != nil {
		refuse("IncompatibleFilters", "RequestRedirect and URLRewrite exclude each other: remove one")
		ok = false
	}
	return ok
}

// filterReaders is the table of filters: each reads itself into the action.
var filterReaders = map[gatewayv1.HTTPRouteFilterType]func(*ruleCompiler, *gatewayv1.HTTPRouteFilter, *action) (reason string, err error){
	gatewayv1.HTTPRouteFilterRequestHeaderModifier: func(_ *ruleCompiler, f *gatewayv1.HTTPRouteFilter, a *action) (reason string, err error) {
		a.request, err = modify(f.RequestHeaderModifier)
		return "UnsupportedValue", err
	},
	gatewayv1.HTTPRouteFilterResponseHeaderModifier: func(_ *ruleCompiler, f *gatewayv1.HTTPRouteFilter, a *action) (reason string, err error) {
		a.response, err = modify(f.ResponseHeaderModifier)
		return "UnsupportedValue", err
	},
	gatewayv1.HTTPRouteFilterRequestRedirect: readRedirect,
	gatewayv1.HTTPRouteFilterURLRewrite:      readRewrite,
	gatewayv1.HTTPRouteFilterRequestMirror:   readMirror,
	gatewayv1.HTTPRouteFilterCORS:            readCORS,
	gatewayv1.HTTPRouteFilterExternalAuth:    readExternalAuth,
	gatewayv1.HTTPRouteFilterExtensionRef: func(_ *ruleCompiler, f *gatewayv1.HTTPRouteFilter, _ *action) (reason string, err error) {
		ref := value(f.ExtensionRef)
		return "InvalidKind", fmt.Errorf("%s.%s %s is not a filter that is known here: remove it", ref.Kind, ref.Group, ref.Name)
	},
}

func readRedirect(r *ruleCompiler, f *gatewayv1.HTTPRouteFilter, a *action) (reason string, err error) {
	a.redirect = f.RequestRedirect
	if a.redirect == nil {
		a.redirect = &gatewayv1.HTTPRequestRedirectFilter{}
	}
	if code := value(a.redirect.StatusCode); !envoy.RedirectCode(code) {
		return "UnsupportedValue", fmt.Errorf("status code %d is not supported: use 301, 302, 303, 307 or 308", code)
	}
	return "UnsupportedValue", r.checkModifier(a.redirect.Path)
}

func readRewrite(r *ruleCompiler, f *gatewayv1.HTTPRouteFilter, a *action) (reason string, err error) {
	a.rewrite = f.URLRewrite
	if a.rewrite == nil {
		return "", nil
	}
	return "UnsupportedValue", r.checkModifier(a.rewrite.Path)
}

// checkModifier: a prefix can only be replaced where one is matched.
func (r *ruleCompiler) checkModifier(m *gatewayv1.HTTPPathModifier) error {
	if m == nil {
		return nil
	}
	switch m.Type {
	case gatewayv1.FullPathHTTPPathModifier:
		return nil
	case gatewayv1.PrefixMatchHTTPPathModifier:
		for i := range r.rule.Matches {
			if *pathType(&r.rule.Matches[i]) != gatewayv1.PathMatchPathPrefix {
				return fmt.Errorf("replacePrefixMatch needs matches of type PathPrefix: change match %d, or use replaceFullPath", i)
			}
		}
		return nil
	}
	return fmt.Errorf("path modifier %s is not supported: use ReplaceFullPath or ReplacePrefixMatch", m.Type)
}

// readMirror notes a mirror that cannot be resolved, and leaves only it out: mirroring nowhere does no harm to the request.
func readMirror(r *ruleCompiler, f *gatewayv1.HTTPRouteFilter, a *action) (reason string, err error) {
	if f.RequestMirror == nil {
		return "", nil
	}
	perMillion, err := fraction(f.RequestMirror)
	if err != nil {
		return "UnsupportedValue", err
	}
	key, problem := resolveBackend(r.view, r.spec.object, f.RequestMirror.BackendRef, r.spec.consumer)
	if problem != nil {
		r.note(problem)
		return "", nil
	}
	r.use(key)
	if perMillion > 0 {
		a.mirrors = append(a.mirrors, envoy.Mirror(record.ClusterName(key), perMillion))
	}
	return "", nil
}

// fraction gives the share of requests that a mirror gets, in millionths; all if nothing is said.
func fraction(m *gatewayv1.HTTPRequestMirrorFilter) (uint32, error) {
	numerator, denominator := int64(1), int64(1)
	switch {
	case m.Percent != nil:
		numerator, denominator = int64(*m.Percent), 100
	case m.Fraction != nil:
		numerator, denominator = int64(m.Fraction.Numerator), 100
		if m.Fraction.Denominator != nil {
			denominator = int64(*m.Fraction.Denominator)
		}
	}
	if numerator < 0 || denominator <= 0 || numerator > denominator {
		return 0, fmt.Errorf("a share of %d/%d: use one between 0 and 1", numerator, denominator)
	}
	return uint32(numerator * 1_000_000 / denominator), nil
}

func readCORS(_ *ruleCompiler, f *gatewayv1.HTTPRouteFilter, a *action) (reason string, err error) {
	if f.CORS == nil {
		return "", nil
	}
	a.cors, err = envoy.CORS(envoy.CrossOrigin{
		Origins:     texts(f.CORS.AllowOrigins),
		Methods:     texts(f.CORS.AllowMethods),
		Headers:     texts(f.CORS.AllowHeaders),
		Expose:      texts(f.CORS.ExposeHeaders),
		Credentials: value(f.CORS.AllowCredentials),
		MaxAge:      f.CORS.MaxAge,
	})
	return "UnsupportedValue", err
}

func texts[T ~string](in []T) []string {
	out := make([]string, 0, len(in))
	for _, s := range in {
		out = append(out, string(s))
	}
	return out
}

// timeouts reads time-outs and retries. Where nothing is retried the time-out of the one try is that of the whole: what Envoy knows as the time-out of a try, as part of a
// retry policy, does not see to a response that has begun.
func (r *ruleCompiler) timeouts(a *action) error {
	var perTry time.Duration
	var err error
	if t := r.rule.Timeouts; t != nil {
		if a.timeout, err = duration("timeouts.request", t.Request); err != nil {
			return err
		}
		if perTry, err = duration("timeouts.backendRequest", t.BackendRequest); err != nil {
			return err
		}
		a.silence = silence(t, a.timeout, perTry)
	}
	if r.rule.Retry != nil {
		a.retry, err = retry(r.rule.Retry, perTry)
		if err != nil || a.retry != nil {
			return err
		}
	}
	if perTry > 0 && (a.timeout == 0 || perTry < a.timeout) {
		a.timeout = perTry
	}
	return nil
}

// silence is for how long a request may be silent that may take longer than Envoy lets any be: its time-outs come first.
func silence(t *gatewayv1.HTTPRouteTimeouts, request, backend time.Duration) *time.Duration {
	forever := request == 0 && (t.Request != nil || t.BackendRequest != nil && backend == 0)
	switch longest := max(request, backend); {
	case forever:
		return new(time.Duration(0))
	case longest >= envoy.StreamIdle:
		return new(longest + envoy.StreamIdle)
	}
	return nil
}

// defaultAttempts is how often a rule with a retry stanza retries that does not say how often (GEP-1731).
const defaultAttempts = 1

func retry(in *gatewayv1.HTTPRouteRetry, perTry time.Duration) (*routev3.RetryPolicy, error) {
	attempts := defaultAttempts
	if in.Attempts != nil {
		attempts = *in.Attempts
	}
	if attempts <= 0 {
		return nil, nil
	}
	backoff, err := duration("retry.backoff", in.Backoff)
	if err != nil {
		return nil, err
	}
	var codes []uint32
	for _, c := range in.Codes {
		codes = append(codes, uint32(c))
	}
	return envoy.Retry(uint32(attempts), codes, backoff, perTry)
}

func duration(field string, d *gatewayv1.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	out, err := time.ParseDuration(string(*d))
	if err != nil || out < 0 {
		return 0, fmt.Errorf("%s %q is no duration: write it like 500ms or 1m30s", field, *d)
	}
	return out, nil
}

// use notes a backend that the rule's bytes name.
func (r *ruleCompiler) use(key record.Key) {
	for _, k := range r.backends {
		if k == key {
			return
		}
	}
	r.backends = append(r.backends, key)
}

// route makes the Envoy route of a match, for a listener at a scheme and port (zero = any).
func (a *action) route(name string, match *routev3.RouteMatch, m *gatewayv1.HTTPRouteMatch, at schemePort) *routev3.Route {
	clusters, request, response := a.weighted(at.scheme)
	out := &routev3.Route{
		Name:                    name,
		Match:                   match,
		RequestHeadersToAdd:     request.add,
		RequestHeadersToRemove:  request.remove,
		ResponseHeadersToAdd:    response.add,
		ResponseHeadersToRemove: response.remove,
		TypedPerFilterConfig:    a.perFilter(),
	}
	switch {
	case a.redirect != nil:
		out.Action = envoy.Redirect(redirection(a.redirect, pathValue(m), at))
	case len(clusters) == 0 && a.grpc:
		out.Action = envoy.DirectResponse(grpcUnavailable)
	case len(clusters) == 0:
		out.Action = envoy.DirectResponse(500)
	default:
		out.Action = &routev3.Route_Route{Route: a.forwardAction(clusters, pathValue(m))}
	}
	return out
}

// grpcUnavailable is the status of which Envoy makes UNAVAILABLE in an answer to gRPC, which is to hear that of an invalid backend; of 500 it makes UNKNOWN.
const grpcUnavailable = 503

// listens tells whether the Envoy route depends on the listener.
func (a *action) listens() bool {
	return a.redirect != nil || slices.ContainsFunc(a.shares, func(s share) bool { return s.pin != nil })
}

func (a *action) forwardAction(clusters []*routev3.WeightedCluster_ClusterWeight, matched string) *routev3.RouteAction {
	out := envoy.Forward(clusters, a.timeout)
	if a.silence != nil {
		out.IdleTimeout = durationpb.New(*a.silence)
	}
	out.RetryPolicy = a.retry
	out.RequestMirrorPolicies = a.mirrors
	if a.grpc {
		out.ClusterNotFoundResponseCode = routev3.RouteAction_SERVICE_UNAVAILABLE // as grpcUnavailable
	}
	if a.rewrite == nil {
		return out
	}
	if a.rewrite.Hostname != nil {
		out.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: string(*a.rewrite.Hostname)}
	}
	if p := a.rewrite.Path; p != nil {
		if p.Type == gatewayv1.PrefixMatchHTTPPathModifier {
			out.RegexRewrite = envoy.ReplacePrefix(matched, value(p.ReplacePrefixMatch))
		} else {
			out.RegexRewrite = envoy.ReplacePath(value(p.ReplaceFullPath))
		}
	}
	return out
}

var wellKnownPorts = map[string]int32{"http": 80, "https": 443}

// redirection says where a redirect leads. The port is the filter's, else that of the filter's scheme, else the listener's. It is left out only where
// that leaves the right one: where the request came in on the very same default port, or where a new host drops the old port.
func redirection(f *gatewayv1.HTTPRequestRedirectFilter, matched string, at schemePort) envoy.Redirection {
	out := envoy.Redirection{Scheme: value(f.Scheme), Host: string(value(f.Hostname)), Code: value(f.StatusCode)}
	scheme, port := at.scheme, at.port
	if out.Scheme != "" {
		scheme, port = out.Scheme, wellKnownPorts[out.Scheme]
	}
	if f.Port != nil {
		port = int32(*f.Port)
	}
	isDefault := port != 0 && wellKnownPorts[scheme] == port
	stays := scheme == at.scheme && port == at.port
	if !isDefault || (out.Host == "" && !stays) {
		out.Port = uint32(port)
	}
	if p := f.Path; p != nil {
		if p.Type == gatewayv1.PrefixMatchHTTPPathModifier {
			out.Prefix = envoy.ReplacePrefix(matched, value(p.ReplacePrefixMatch))
		} else {
			out.Path = new(value(p.ReplaceFullPath))
		}
	}
	return out
}
