package envoy

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Redirection is where a redirect leads; zero fields keep what the request has.
type Redirection struct {
	Scheme, Host string
	Port         uint32  // 0: Envoy keeps the port of the Host header, unless Host is set, which drops it
	Path         *string // whole path
	Prefix       *PathRewrite
	Code         int // 301, 302, 303, 307, 308; 0 = 302, as in the Gateway API
}

var redirectCodes = map[int]routev3.RedirectAction_RedirectResponseCode{
	0:   routev3.RedirectAction_FOUND,
	301: routev3.RedirectAction_MOVED_PERMANENTLY,
	302: routev3.RedirectAction_FOUND,
	303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT,
	308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

// RedirectCode tells whether Envoy can redirect with a status code.
func RedirectCode(code int) bool {
	_, ok := redirectCodes[code]
	return ok
}

// Redirect answers with a Location. The query is kept.
func Redirect(to Redirection) *routev3.Route_Redirect {
	a := &routev3.RedirectAction{
		HostRedirect: to.Host,
		PortRedirect: to.Port,
		ResponseCode: redirectCodes[to.Code],
	}
	if to.Scheme != "" {
		a.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: to.Scheme}
	}
	switch {
	case to.Path != nil:
		a.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: rooted(*to.Path)}
	case to.Prefix != nil:
		a.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: to.Prefix}
	}
	return &routev3.Route_Redirect{Redirect: a}
}

// CrossOrigin is a CORS policy. "*" in a list means all.
type CrossOrigin struct {
	Origins, Methods, Headers, Expose []string
	Credentials                       bool
	MaxAge                            int32 // seconds, 0 = none
}

// CORSFilter is the name under which a route carries its CORS policy.
const CORSFilter = "envoy.filters.http.cors"

// CORS is the policy of one route. A preflight of another origin is answered here, without headers that allow anything, and never reaches the backend.
func CORS(c CrossOrigin) (*anypb.Any, error) {
	p := &corsv3.CorsPolicy{
		AllowMethods:                 strings.Join(c.Methods, ","),
		AllowHeaders:                 strings.Join(c.Headers, ","),
		ExposeHeaders:                strings.Join(c.exposed(), ","),
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	for _, o := range c.Origins {
		p.AllowOriginStringMatch = append(p.AllowOriginStringMatch, origin(o))
	}
	if c.Credentials {
		p.AllowCredentials = wrapperspb.Bool(true)
	}
	if c.MaxAge > 0 {
		p.MaxAge = strconv.Itoa(int(c.MaxAge))
	}
	return Any(p)
}

// exposed are the headers that scripts may read. With credentials "*" must not be said, and means nothing to browsers but a header of this name.
func (c CrossOrigin) exposed() []string {
	if !c.Credentials {
		return c.Expose
	}
	return slices.DeleteFunc(slices.Clone(c.Expose), func(name string) bool { return name == "*" })
}

// origin takes "*" in a host for any number of labels, but never across a port or a scheme. It is written as browsers write theirs (RFC 6454): in lower case and
// without the port that its scheme has anyway.
func origin(o string) *matcherv3.StringMatcher {
	o = strings.ToLower(o)
	for scheme, port := range map[string]string{"http://": ":80", "https://": ":443"} {
		if strings.HasPrefix(o, scheme) {
			o = strings.TrimSuffix(o, port)
		}
	}
	if o == "*" {
		return like(".*")
	}
	if !strings.Contains(o, "*") {
		return exactly(o)
	}
	return like(strings.ReplaceAll(regexp.QuoteMeta(o), `\*`, `[^/:]+`))
}
