package envoy

import (
	"regexp"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// ExactPath matches the path without its query.
func ExactPath(path string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: path}}
}

// PrefixPath matches by whole path segments. Envoy's path_separated_prefix takes no trailing slash, and "/" only as plain prefix.
func PrefixPath(prefix string) *routev3.RouteMatch {
	prefix = strings.TrimRight(prefix, "/")
	if prefix == "" {
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	}
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: prefix}}
}

// RegexPath matches the whole path, without its query.
func RegexPath(expr string) *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: regex(expr)}}
}

// HeaderIs matches if any line of the header has the value.
func HeaderIs(name, value string) *routev3.HeaderMatcher { return header(name, exactly(value)) }

// HeaderLike matches if any line of the header matches the regex as a whole.
func HeaderLike(name, expr string) *routev3.HeaderMatcher { return header(name, like(expr)) }

// MethodIs matches the HTTP method, which Envoy knows as a header.
func MethodIs(method string) *routev3.HeaderMatcher { return HeaderIs(":method", method) }

// HeaderPresent matches if the header is there.
func HeaderPresent(name string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
}

// QueryIs matches the first value of a query parameter.
func QueryIs(name, value string) *routev3.QueryParameterMatcher { return query(name, exactly(value)) }

// QueryLike matches the first value of a query parameter as a whole.
func QueryLike(name, expr string) *routev3.QueryParameterMatcher { return query(name, like(expr)) }

func header(name string, m *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m}}
}

func query(name string, m *matcherv3.StringMatcher) *routev3.QueryParameterMatcher {
	return &routev3.QueryParameterMatcher{
		Name:                         name,
		QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: m},
	}
}

func exactly(value string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}}
}

func like(expr string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: regex(expr)}}
}

func regex(expr string) *matcherv3.RegexMatcher { return &matcherv3.RegexMatcher{Regex: expr} }

// DirectResponse answers with a status and no body.
func DirectResponse(status uint32) *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: status}}
}

// SetHeader replaces a header or adds it where it is missing.
func SetHeader(name, value string) *corev3.HeaderValueOption {
	return headerOption(name, value, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
}

// AddHeader appends a line to a header.
func AddHeader(name, value string) *corev3.HeaderValueOption {
	return headerOption(name, value, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
}

// headerOption escapes the value: to Envoy "%" begins a format operator, to the user it is a character. An empty value is one that the user wants kept.
func headerOption(name, value string, action corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:         &corev3.HeaderValue{Key: name, Value: strings.ReplaceAll(value, "%", "%%")},
		AppendAction:   action,
		KeepEmptyValue: true,
	}
}

// StreamIdle is for how long Envoy lets a request be silent, in both directions, whose route says nothing of that: the default of the connection manager.
const StreamIdle = 5 * time.Minute

// Forward sends to weighted clusters. A cluster that does not exist answers 500 for its share, as the Gateway API asks for invalid backends;
// timeout 0 = none, and is always set, because Envoy's default is 15 s. The sum of the weights must be above 0: Envoy rejects 0.
func Forward(clusters []*routev3.WeightedCluster_ClusterWeight, timeout time.Duration) *routev3.RouteAction {
	a := &routev3.RouteAction{
		ClusterNotFoundResponseCode: routev3.RouteAction_INTERNAL_SERVER_ERROR,
		Timeout:                     durationpb.New(timeout),
	}
	if len(clusters) == 1 && plain(clusters[0]) {
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: clusters[0].Name}
		return a
	}
	a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: clusters}}
	return a
}

func plain(c *routev3.WeightedCluster_ClusterWeight) bool {
	return len(c.RequestHeadersToAdd)+len(c.RequestHeadersToRemove)+len(c.ResponseHeadersToAdd)+len(c.ResponseHeadersToRemove) == 0 &&
		c.HostRewriteSpecifier == nil && len(c.TypedPerFilterConfig) == 0
}

// Weighted is one cluster's share.
func Weighted(cluster string, weight uint32) *routev3.WeightedCluster_ClusterWeight {
	return &routev3.WeightedCluster_ClusterWeight{Name: cluster, Weight: wrapperspb.UInt32(weight)}
}

// Mirror copies requests to a cluster, which sees the Host header unchanged.
func Mirror(cluster string, perMillion uint32) *routev3.RouteAction_RequestMirrorPolicy {
	p := &routev3.RouteAction_RequestMirrorPolicy{Cluster: cluster, DisableShadowHostSuffixAppend: true}
	if perMillion < 1_000_000 {
		p.RuntimeFraction = PerMillion(perMillion)
	}
	return p
}

// PerMillion is a share of the requests.
func PerMillion(n uint32) *corev3.RuntimeFractionalPercent {
	return &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: n, Denominator: typev3.FractionalPercent_MILLION}}
}

// PathRewrite is a rewrite in the one form that has no double slashes: a regex with its substitution.
type PathRewrite = matcherv3.RegexMatchAndSubstitute

// ReplacePrefix rewrites a matched prefix by whole segments. Envoy's own prefix_rewrite makes "//a" of "/a" with replacement "/", and "/new//a"
// with "/new/": both ends are trimmed, and the slash that follows the prefix is put back or not by the regex.
func ReplacePrefix(prefix, replacement string) *PathRewrite {
	prefix, replacement = strings.TrimRight(prefix, "/"), strings.TrimRight(replacement, "/")
	if replacement == "" {
		return substitute("^"+regexp.QuoteMeta(prefix)+"/*", "/")
	}
	replacement = rooted(replacement)
	if prefix == "" {
		return substitute("^/", escapeSubstitution(replacement)+"/")
	}
	return substitute("^"+regexp.QuoteMeta(prefix), escapeSubstitution(replacement))
}

// ReplacePath rewrites the whole path and keeps the query.
func ReplacePath(path string) *PathRewrite {
	return substitute(`^/[^?]*`, escapeSubstitution(rooted(path)))
}

// rooted begins a path with a slash: a request without one is none, and Envoy takes no path at all for "keep the old one".
func rooted(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}

func substitute(expr, with string) *PathRewrite {
	return &PathRewrite{Pattern: regex(expr), Substitution: with}
}

// escapeSubstitution keeps a backslash a character: to RE2 it begins a group reference.
func escapeSubstitution(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }

// retryOn are the failures after which a request is retried whatever it is: the backend has not begun to work on it. "unavailable" is what gRPC calls that.
const retryOn = "connect-failure,refused-stream,reset-before-request,unavailable,retriable-status-codes"

// Retry retries failed attempts, elsewhere where it can. A try that timed out (perTry, 0 = none) is retried too, which to Envoy is a "reset";
// codes do not cover it, not even 504.
func Retry(attempts uint32, codes []uint32, backoff, perTry time.Duration) (*routev3.RetryPolicy, error) {
	predicate, err := Any(&previoushostsv3.PreviousHostsPredicate{})
	if err != nil {
		return nil, err
	}
	p := &routev3.RetryPolicy{
		RetryOn:              retryOn,
		NumRetries:           wrapperspb.UInt32(attempts),
		RetriableStatusCodes: codes,
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: predicate},
		}},
		HostSelectionRetryMaxAttempts: 5,
	}
	if backoff > 0 {
		p.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(backoff)}
	}
	if perTry > 0 {
		p.RetryOn, p.PerTryTimeout = "reset,"+retryOn, durationpb.New(perTry)
	}
	return p, nil
}
