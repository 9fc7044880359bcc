package translate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// nasty are values that the CRDs' validation would mostly refuse; a member cluster may run other CRDs than we know.
var nasty = []string{
	"", "a", "/", "//", "/a", "/a/", "/a//b", "/a?b", "/a#b", "/%2F", "/a b", "/é", "*", "a.example", "*.example", "a:80", ":path", ":", "host", "Host", "x y", "x:y", "x\ny", "x\x00y", "é",
	"%", "%%", "%REQ(x)%", "%PROTOCOL%x", "100%", `\1`, `\`, `\0\9`, "(", ")", "(?i)a", "(?P<n>a)", "[[:alpha:]]", `\pL`, `\C`, `\Qa`, "a{1001}", "(a{100}){100}", "$", "^", "[^/]", "a|", "(?s).*", `\x{10ffff}`, `\x{ff}`, `[\x{100}-\x{200}]`, `\\x{100}`, `(?<n>a)`, `\p{Greek}`, `\p{Lu}`, `\PN`,
	`\p{Letter}`, `\p{Any}`, `\p{ASCII}`, `\p{LC}`, `\p{^Lu}`, `\p{greek}`, `\p{Garay}`, `\p{Cn}`, `\p{Assigned}`, `\p{Old_Italic}`, `\p{OldItalic}`, `世`, `[世]`, `\z`, `\A`, `\Z`, `\b`, `\pZ`, `(?U)a+`, `(?-s).`, `a**`, `[a-z]{900}`, `(ab|cd|[e-g]){200}`, `.{1000}`, `(\pL){2}`, `([^a]{10}){10}`, `(?i)(abc){100}`, `x{2,1}`, `\8`, `[a-\d]`, `[^\x00-\x{10FFFF}]`,
	strings.Repeat("a", 2000), "https://a", "https://*", "null", "transfer-encoding", "content-length", "x-envoy-original-path", "0s", "1ms", "99999h", "-1s",
}

// TestRealEnvoyAcceptsAnything: whatever is written into a route, the real Envoy takes what it was compiled to.
func TestRealEnvoyAcceptsAnything(t *testing.T) {
	binary := realEnvoy(t)
	c := New(testConfig())
	c.Apply(parseObjects(t, lab))
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 2000 {
		route := parseObjects(t, slice(lab, 4))[0].Object.(*gatewayv1.HTTPRoute)
		route.Name = fmt.Sprint("r", i)
		route.Spec.Rules[0] = nastyRule(r, route.Spec.Rules[0])
		if out := c.Apply([]Event{eventOf("HTTPRoute", route)}); len(out.Quarantined) > 0 {
			t.Fatalf("quarantined: %+v", route.Spec)
		}
	}
	routes := routesOf(t, c)
	if direct := directResponses(t, c); direct > len(routes)*9/10 {
		t.Fatalf("%d of %d answer 500: the test proves little", direct, len(routes))
	}
	for _, expr := range append(slices.Collect(maps.Keys(classExpressions())), nasty...) {
		b, err := envoy.Marshal(&routev3.Route{Name: expr, Match: envoy.RegexPath(expr), Action: envoy.DirectResponse(500)})
		if err == nil && checkRegex(expr) == nil {
			routes = append(routes, b)
		}
	}
	if culprit := bisect(t, binary, routes); culprit != nil {
		t.Errorf("Envoy rejects %s", culprit)
	}
}

// classExpressions are all classes that checkEscapes lets through.
func classExpressions() map[string]bool {
	out := map[string]bool{}
	for name := range unicodeClasses {
		out[`[\p{`+name+`}]\P{`+name+`}`] = true
	}
	return out
}

func directResponses(t *testing.T, c *Compiler) (n int) {
	for k, put := range c.Records() {
		if k.Kind == record.KindRoute && len(routeOf(t, put).Problems) > 0 {
			n++
		}
	}
	return n
}

// bisect finds a route that Envoy rejects, with what it says.
func bisect(t *testing.T, binary string, routes [][]byte) error {
	err := validate(t, binary, routes)
	if err == nil || len(routes) == 1 {
		return err
	}
	if err := bisect(t, binary, routes[:len(routes)/2]); err != nil {
		return err
	}
	return bisect(t, binary, routes[len(routes)/2:])
}

func validate(t *testing.T, binary string, routes [][]byte) error {
	l := listenerOf(t, routes)
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	config := fmt.Sprintf(`{"node": {"id": "n", "cluster": "c"}, "layered_runtime": {"layers": [{"name": "re2", "static_layer": {"re2.max_program_size.error_level": 32768}}]}, "static_resources": {"listeners": [%s]}}`, protojson.Format(l))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "--mode", "validate", "--disable-hot-restart", "-l", "warn", "-c", file).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s\n%s", err, out, protojson.Format(l.DefaultFilterChain.Filters[0].GetTypedConfig()))
	}
	return nil
}

// nastyRule puts a nasty value into some of the fields.
func nastyRule(r *rand.Rand, rule gatewayv1.HTTPRouteRule) gatewayv1.HTTPRouteRule {
	s := func() string { return pick(r, nasty...) }
	some := func(f func()) {
		if r.IntN(8) == 0 {
			f()
		}
	}
	m := gatewayv1.HTTPRouteMatch{}
	some(func() { m.Path = path(gatewayv1.PathMatchExact, s()) })
	some(func() { m.Path = path(gatewayv1.PathMatchPathPrefix, s()) })
	some(func() { m.Path = path(gatewayv1.PathMatchRegularExpression, s()) })
	some(func() { m.Method = new(gatewayv1.HTTPMethod(s())) })
	regex := gatewayv1.HeaderMatchRegularExpression
	some(func() {
		m.Headers = append(m.Headers, gatewayv1.HTTPHeaderMatch{Name: gatewayv1.HTTPHeaderName(s()), Value: s()})
	})
	some(func() { m.Headers = append(m.Headers, gatewayv1.HTTPHeaderMatch{Type: &regex, Name: "x", Value: s()}) })
	some(func() {
		m.QueryParams = append(m.QueryParams, gatewayv1.HTTPQueryParamMatch{Name: gatewayv1.HTTPHeaderName(s()), Value: s()})
	})
	rule.Matches = []gatewayv1.HTTPRouteMatch{m}
	modifier := func() *gatewayv1.HTTPPathModifier {
		return &gatewayv1.HTTPPathModifier{Type: pick(r, gatewayv1.FullPathHTTPPathModifier, gatewayv1.PrefixMatchHTTPPathModifier), ReplaceFullPath: new(s()), ReplacePrefixMatch: new(s())}
	}
	headers := func() *gatewayv1.HTTPHeaderFilter {
		return &gatewayv1.HTTPHeaderFilter{Set: []gatewayv1.HTTPHeader{{Name: gatewayv1.HTTPHeaderName(pick(r, "x", s())), Value: s()}}, Remove: []string{pick(r, "x", s())}}
	}
	add := func(f gatewayv1.HTTPRouteFilter) { rule.Filters = append(rule.Filters, f) }
	some(func() {
		add(gatewayv1.HTTPRouteFilter{Type: gatewayv1.HTTPRouteFilterRequestHeaderModifier, RequestHeaderModifier: headers()})
	})
	some(func() {
		add(gatewayv1.HTTPRouteFilter{Type: gatewayv1.HTTPRouteFilterResponseHeaderModifier, ResponseHeaderModifier: headers()})
	})
	some(func() {
		add(gatewayv1.HTTPRouteFilter{Type: gatewayv1.HTTPRouteFilterURLRewrite, URLRewrite: &gatewayv1.HTTPURLRewriteFilter{Hostname: new(gatewayv1.PreciseHostname(s())), Path: modifier()}})
	})
	some(func() {
		rule.BackendRefs = nil
		add(gatewayv1.HTTPRouteFilter{Type: gatewayv1.HTTPRouteFilterRequestRedirect, RequestRedirect: &gatewayv1.HTTPRequestRedirectFilter{Scheme: new(s()), Hostname: new(gatewayv1.PreciseHostname(s())), Path: modifier(), Port: new(pick[int32](r, 0, 80, 70000, -1))}})
	})
	some(func() {
		add(gatewayv1.HTTPRouteFilter{Type: gatewayv1.HTTPRouteFilterCORS, CORS: &gatewayv1.HTTPCORSFilter{AllowOrigins: []gatewayv1.CORSOrigin{gatewayv1.CORSOrigin(s())}, AllowMethods: []gatewayv1.HTTPMethodWithWildcard{gatewayv1.HTTPMethodWithWildcard(s())}, AllowHeaders: []gatewayv1.HTTPHeaderName{gatewayv1.HTTPHeaderName(s())}}})
	})
	some(func() { rule.Timeouts = &gatewayv1.HTTPRouteTimeouts{Request: new(gatewayv1.Duration(s()))} })
	some(func() {
		rule.Timeouts = &gatewayv1.HTTPRouteTimeouts{BackendRequest: new(gatewayv1.Duration(pick(r, "1ms", "99999h", "0s", "1ns")))}
	})
	some(func() {
		rule.Retry = &gatewayv1.HTTPRouteRetry{Attempts: new(pick(r, 0, 1, 1<<40)), Backoff: new(gatewayv1.Duration(pick(r, "1ms", "1ns", "99999h"))), Codes: []gatewayv1.HTTPRouteRetryStatusCode{pick[gatewayv1.HTTPRouteRetryStatusCode](r, 500, -1, 0)}}
	})
	some(func() {
		for i := range rule.BackendRefs {
			rule.BackendRefs[i].Weight = new(pick[int32](r, -1, 0, 1<<30))
			rule.BackendRefs = append(rule.BackendRefs, rule.BackendRefs...)
		}
	})
	return rule
}
