package translate

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// External authorization (GEP-1494) fails closed: a rule whose server cannot be named answers 500, one whose server does not answer 403.

// readExternalAuth adds a server that has to allow the request.
func readExternalAuth(r *ruleCompiler, f *gatewayv1.HTTPRouteFilter, a *action) (reason string, err error) {
	auth, server, problem := resolveAuthorization(r.view, r.spec.object, f.ExternalAuth)
	if problem != nil {
		return problem.Reason, errors.New(problem.Message)
	}
	r.use(server)
	a.auths = append(a.auths, auth)
	return "", nil
}

// resolveAuthorization reads a filter of an object, with the server that it names.
func resolveAuthorization(v *view, from record.Object, in *gatewayv1.HTTPExternalAuthFilter) (auth envoy.Authorization, server record.Key, problem *record.Problem) {
	refuse := func(err error) (envoy.Authorization, record.Key, *record.Problem) {
		p := accepted("UnsupportedValue", err.Error())
		return auth, server, &p
	}
	if in == nil {
		return refuse(errors.New("an ExternalAuth without content: fill it in or remove it"))
	}
	auth, err := authorization(in)
	if err != nil {
		return refuse(err)
	}
	consumer := consumerAuto
	if auth.GRPC {
		consumer = consumerH2
	}
	if server, problem = resolveBackend(v, from, in.BackendRef, consumer); problem != nil {
		return auth, server, problem
	}
	auth.Cluster, auth.Authority = record.ClusterName(server), authority(v, server)
	if _, err := envoy.Authorize(auth); err != nil {
		return refuse(err)
	}
	return auth, server, nil
}

// authorization reads all but where the server is.
func authorization(in *gatewayv1.HTTPExternalAuthFilter) (out envoy.Authorization, err error) {
	if in.ForwardBody != nil {
		out.MaxBody = uint32(max(in.ForwardBody.MaxSize, 0))
	}
	http, grpc := value(in.HTTPAuthConfig), value(in.GRPCAuthConfig)
	switch p := in.ExternalAuthProtocol; {
	case p == gatewayv1.HTTPRouteExternalAuthGRPCProtocol && in.HTTPAuthConfig == nil:
		out.GRPC = true
		out.Allowed, err = headerList("grpc.allowedHeaders", grpc.AllowedRequestHeaders)
		return out, err
	case p == gatewayv1.HTTPRouteExternalAuthHTTPProtocol && in.GRPCAuthConfig == nil:
	case p == gatewayv1.HTTPRouteExternalAuthGRPCProtocol || p == gatewayv1.HTTPRouteExternalAuthHTTPProtocol:
		return out, fmt.Errorf("protocol %s with the settings of the other: remove these", p)
	default:
		return out, fmt.Errorf("protocol %s is not supported: use HTTP or GRPC", p)
	}
	if out.PathPrefix, err = pathPrefix(http.Path); err != nil {
		return out, err
	}
	if out.Allowed, err = headerList("http.allowedHeaders", http.AllowedRequestHeaders); err != nil {
		return out, err
	}
	if out.Copied, err = headerList("http.allowedResponseHeaders", http.AllowedResponseHeaders); err != nil {
		return out, err
	}
	for _, h := range out.Copied {
		if framing(h) {
			return out, fmt.Errorf("http.allowedResponseHeaders: %s of an answer means nothing in a request: remove it", h)
		}
	}
	return out, nil
}

// checkAuths: a request passes no more servers than there are slots for. Those of a rule come first, then those of the backend that it goes to.
func (a *action) checkAuths() error {
	most := len(a.auths)
	for _, s := range a.shares {
		if s.own != nil {
			most = max(most, len(a.auths)+len(s.own.auths))
		}
	}
	if most > envoy.RouteSlots {
		return fmt.Errorf("%d filters ExternalAuth for one request are not supported: use at most %d", most, envoy.RouteSlots)
	}
	return nil
}

// headerList reads names of headers, in lower case.
func headerList(field string, names []string) (out []string, err error) {
	for _, n := range names {
		if !token.MatchString(n) {
			return nil, fmt.Errorf("%s: %q is no name of a header: correct it", field, n)
		}
		out = append(out, strings.ToLower(n))
	}
	return out, nil
}

// plainPath is what the API takes for a path (HTTPAuthConfig.path), which asks to check it all the same.
var plainPath = regexp.MustCompile(`^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*$`)

// pathPrefix makes of a prefix one that a path can follow.
func pathPrefix(prefix string) (string, error) {
	if !plainPath.MatchString(prefix) {
		return "", fmt.Errorf("http.path %q is not valid: leave out query, fragment and what must be escaped", prefix)
	}
	if prefix = strings.Trim(prefix, "/"); prefix == "" {
		return "", nil
	}
	return "/" + prefix, nil
}

// perFilter is what the action's Envoy routes say to filters. What was read into it was packed once before: a failure is a broken invariant, for the panic guard.
func (a *action) perFilter() map[string]*anypb.Any {
	out := map[string]*anypb.Any{}
	if a.cors != nil {
		out[envoy.CORSFilter] = a.cors
	}
	for i, auth := range a.auths {
		packed, err := envoy.Authorize(auth)
		if err != nil {
			panic(err)
		}
		out[envoy.RouteSlot(i)] = packed
	}
	return out
}
