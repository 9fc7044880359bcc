package envoy

import (
	"strings"
	"time"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	bodyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/body_size_limit/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// authorizationTimeout is how long a server may think about one request; then the request is refused, as it is when the server cannot be reached.
const authorizationTimeout = 10 * time.Second

// Authorization asks a server about each request, and answers 403 where that fails.
type Authorization struct {
	Cluster   string
	Authority string // Host of a gRPC server; an HTTP server gets the client's

	GRPC       bool
	PathPrefix string   // of an HTTP server: put before the path
	Allowed    []string // request headers that are sent, in lower case; none = all to a gRPC server, and to an HTTP server only those that always are
	Copied     []string // headers of an HTTP server's answer that the backend gets, in lower case; none = all but what speaks of the answer itself
	MaxBody    uint32   // bytes; 0 = the body is not sent. A request with more answers 413

	BeforeRouting bool // it runs before a route is chosen: what it changes counts in that, and it cannot change Host (GEP-5224)
}

// Authorize is what a route says to a RouteSlot, and hosts to a ListenerSlot. What ext_authz lets a route say by itself leaves out which headers are sent. It stands last in
// what the slot runs, for once it has waited for its answer the slot is done: Envoy goes on behind the slot (envoy issue 42807).
func Authorize(a Authorization) (*anypb.Any, error) {
	filters := []proto.Message{a.filter()}
	if a.MaxBody > 0 {
		// Behind a filter that has waited, ext_authz finds the whole body in the buffer, and would send the beginning of one that is too large.
		filters = []proto.Message{&bodyv3.BodySizeLimit{MaxRequestBytes: wrapperspb.UInt64(uint64(a.MaxBody))}, a.filter()}
	}
	chain := &compositev3.FilterChainConfiguration{}
	for _, f := range filters {
		packed, err := Any(f)
		if err != nil {
			return nil, err
		}
		chain.TypedConfig = append(chain.TypedConfig, &corev3.TypedExtensionConfig{Name: string(f.ProtoReflect().Descriptor().Name()), TypedConfig: packed})
	}
	action, err := Any(&compositev3.ExecuteFilterAction{FilterChain: chain})
	if err != nil {
		return nil, err
	}
	return Any(&compositev3.CompositePerRoute{Matcher: &xdsmatcherv3.Matcher{OnNoMatch: &xdsmatcherv3.Matcher_OnMatch{
		OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{Name: "always", TypedConfig: action}},
	}}})
}

func (a Authorization) filter() *authzv3.ExtAuthz {
	out := &authzv3.ExtAuthz{TransportApiVersion: corev3.ApiVersion_V3, ValidateMutations: true, ClearRouteCache: a.BeforeRouting}
	if len(a.Allowed) > 0 {
		out.AllowedHeaders = anyOf(a.Allowed)
	}
	if a.MaxBody > 0 {
		out.WithRequestBody = &authzv3.BufferSettings{MaxRequestBytes: a.MaxBody}
	}
	if a.GRPC {
		out.Services = &authzv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: a.Cluster, Authority: a.Authority}},
			Timeout:         durationpb.New(authorizationTimeout),
		}}
		if a.BeforeRouting {
			out.DecoderHeaderMutationRules = keepHost()
		}
		return out
	}
	out.Services = &authzv3.ExtAuthz_HttpService{HttpService: a.httpService()}
	out.DecoderHeaderMutationRules = &mutationv3.HeaderMutationRules{DisallowSystem: wrapperspb.Bool(true)}
	if len(a.Copied) == 0 {
		out.DecoderHeaderMutationRules.DisallowExpression = regex(ofTheAnswer)
	}
	return out
}

// keepHost ignores changes of Host, :authority and :scheme, which Envoy's rules do as soon as there are any; all else may be changed as without rules.
func keepHost() *mutationv3.HeaderMutationRules {
	return &mutationv3.HeaderMutationRules{AllowExpression: regex(":path|:method"), AllowEnvoy: wrapperspb.Bool(true)}
}

// ofTheAnswer are headers that speak of the message that they come with (RFC 9110 section 8, RFC 9112 section 6). In the client's request they would change where its body
// ends or what it is.
const ofTheAnswer = "(?i)(content-.*|transfer-encoding|trailer|te|connection|proxy-connection|keep-alive|upgrade|host)"

// httpService asks with the client's method, host and path; the address stands in the cluster.
func (a Authorization) httpService() *authzv3.HttpService {
	copied := &matcherv3.ListStringMatcher{Patterns: []*matcherv3.StringMatcher{like(".*")}}
	if len(a.Copied) > 0 {
		copied = anyOf(a.Copied)
	}
	return &authzv3.HttpService{
		ServerUri: &corev3.HttpUri{
			Uri:              "http://" + a.Authority,
			HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: a.Cluster},
			Timeout:          durationpb.New(authorizationTimeout),
		},
		PathPrefix:            a.PathPrefix,
		AuthorizationResponse: &authzv3.AuthorizationResponse{AllowedUpstreamHeaders: copied},
	}
}

func anyOf(names []string) *matcherv3.ListStringMatcher {
	out := &matcherv3.ListStringMatcher{}
	for _, n := range names {
		out.Patterns = append(out.Patterns, exactly(strings.ToLower(n)))
	}
	return out
}
