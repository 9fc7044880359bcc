package schema

import (
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/runtime"
)

// generator makes values for schemas. Values that name other objects name those of a world, most of the time; the rest is taken from what people write
// and from what has broken translators before. It knows no kind: a field is told by its place, and what it may hold by its schema.
type generator struct {
	*rand.Rand
	tame bool // mostly takes the first of what a place may name, which is there and fits the rest
}

func (g generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g generator, from []T) T { return from[g.IntN(len(from))] }

// usual is pick for what names something.
func usual[T any](g generator, from []T) T {
	if g.tame && g.chance(60) {
		return from[0]
	}
	return pick(g, from)
}

// The objects of a world, so that what is generated refers to what is there.
var (
	namespaces   = []string{"a", "b"}
	classes      = append(slices.Repeat([]string{"ours"}, 18), "theirs", "none")
	gateways     = []string{"gw0", "gw1"}
	listenerSets = []string{"ls0", "ls1"}
	listeners    = []string{"one", "two", "three", "four.five", "six"}
	services     = []string{"web", "api", "grpc", "odd", "gone", "elsewhere"}
	secrets      = []string{"ecdsa", "rsa", "other", "odd", "gone"}
	configMaps   = []string{"authority", "odd", "gone"}
	fleets       = []string{"small", "large", "gone"}
	hosts        = []string{"example.com", "*.example.com", "a.example.com", "b.a.example.com", "*.a.example.com", "*.com", "web", "x.test", "xn--bcher-kva.example"}
	headerNames  = []string{"x-one", "X-One", "host", "Host", "accept", "cookie", "content-length", "transfer-encoding", "connection", "x-envoy-original-path", "x-forwarded-for", "te", "grpc-timeout", "a_b", "x|y", "~", "*", "'", "`", ":authority"}
	durations    = []string{"0s", "1ms", "10s", "1h30m", "500ms", "99999h", "99999h99999h99999h99999h", "1s1s1s1s", "0ms", "2m"}
	ports        = []int64{80, 443, 8080, 53, 80, 443, 8080, 1, 65535, 9000}
	quantities   = []any{int64(1), "100m", "256Mi", "0.5", "1e3", "-1", "+.5", "1e99999999999999999999", "999999999999Ei"}
	// formats are lines of an access log, and what looks like one.
	formats = []string{"%START_TIME%", "%START_TIME(%Y-%m-%dT%H:%M:%S)%", "%START_TIME(%E9x%)%", "%REQ(:METHOD)% %RESPONSE_CODE%\n", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):10%", "%REQ()%", "%REQ%", "%REQ(a%", "%NONSENSE%", "%start_time%", "%%", "%% %PROTOCOL%",
		"100%", "%DYNAMIC_METADATA(a:b)%", "%FILTER_STATE(a:PLAIN)%", "%ENVIRONMENT(HOME)%", "%CEL(request.path)%", "%CEL(no such(%", "%PROTOCOL(x)%", "%DURATION:3%", "%ROUTE_NAME%%UPSTREAM_HOST%", "{\"a\": \"%BYTES_SENT%\"}"}
	// loose are values for what a schema leaves open.
	loose = []any{map[string]any{}, map[string]any{"key": "a", "operator": "Exists"}, map[string]any{"key": int64(1)}, map[string]any{"nodeAffinity": map[string]any{"requiredDuringSchedulingIgnoredDuringExecution": map[string]any{"nodeSelectorTerms": []any{}}}},
		map[string]any{"nodeAffinity": "x"}, map[string]any{"podAntiAffinity": []any{int64(1)}}, map[string]any{"maxSkew": int64(1), "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}, map[string]any{"maxSkew": "many"}, map[string]any{"of": map[string]any{"no": []any{"kind"}}}}
	// odd are texts that have a meaning somewhere between a manifest and Envoy.
	odd = []string{"a", "/", "/a", "/a/", "/a/b", "/%2F", "/é", "/a b", "/a?b", "*", "%", "%%", "%REQ(x)%", "%START_TIME%", "100%", `\1`, `\`, "(", ")", "(?i)a", "(?P<n>a)", `\pL`, `\p{Greek}`, "a{1001}", "$", "[^/]+", "a|", ".*", "^/x.*$",
		"(a{100}){100}", "https", "http", "x", "1", "-1", "null", "true", "{}", "a,b", "é", "世", "a\tb", "a\nb", "\x00", "\r\n", strings.Repeat("a", 63), strings.Repeat("b", 300), strings.Repeat("/c", 500), "foo=bar", `"`, "'", ";", "v1.Login", "com.example.User"}
)

// named says what a text in a place is taken from, first match first; the place is the path of fields without indexes.
var named = []struct {
	place *regexp.Regexp
	from  []string
}{
	{regexp.MustCompile(`parentRefs?/kind$`), append(slices.Repeat([]string{"Gateway"}, 8), "ListenerSet", "Service")},
	{regexp.MustCompile(`parentRefs?/group$`), []string{"gateway.networking.k8s.io", "gateway.networking.k8s.io", ""}},
	{regexp.MustCompile(`parentRefs?/name$`), append(slices.Repeat(gateways, 4), listenerSets...)},
	{regexp.MustCompile(`(R|r)efs?/namespace$|/namespace$`), namespaces},
	{regexp.MustCompile(`matchExpressions/key$`), []string{"team", "team", "kubernetes.io/metadata.name"}},
	{regexp.MustCompile(`matchExpressions/operator$`), []string{"In", "NotIn", "Exists", "DoesNotExist"}},
	{regexp.MustCompile(`(matchExpressions/values|matchLabels/value)$`), namespaces},
	{regexp.MustCompile(`/namespaces/from$`), []string{"All", "All", "All", "All", "Same", "Selector", "None"}},
	{regexp.MustCompile(`(certificateRefs?|clientCertificateRef)/name$`), secrets},
	{regexp.MustCompile(`(certificateRefs?|clientCertificateRef)/kind$`), []string{"Secret", "Secret", "Secret", "ConfigMap"}},
	{regexp.MustCompile(`caCertificateRefs/name$`), configMaps},
	{regexp.MustCompile(`caCertificateRefs/kind$`), []string{"ConfigMap", "ConfigMap", "ConfigMap", "Secret", "ClusterTrustBundle"}},
	{regexp.MustCompile(`parametersRef/group$`), []string{"fleetgate.io", "fleetgate.io", "fleetgate.io", "example.org"}},
	{regexp.MustCompile(`parametersRef/name$`), fleets},
	{regexp.MustCompile(`accessLog/(format|fields)$`), formats},
	{regexp.MustCompile(`accessLog/collector$`), []string{"collector.example:4317", "10.0.0.1:4317", "[2001:db8::1]:4317", "collector:0", "collector:99999", ":1", "a b:1"}},
	{regexp.MustCompile(`parametersRef/kind$`), []string{"EnvoyFleet", "EnvoyFleet", "EnvoyFleet", "ConfigMap"}},
	{regexp.MustCompile(`(backendRefs?|targetRefs)/name$`), append([]string{"web", "api", "grpc", "web", "api", "grpc"}, services...)},
	{regexp.MustCompile(`(backendRefs?|targetRefs)/kind$`), []string{"Service", "Service", "Service", "Service", "Gateway", "XBackend"}},
	{regexp.MustCompile(`^spec/from/kind$`), []string{"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "Gateway", "ListenerSet"}},
	{regexp.MustCompile(`^spec/to/kind$`), []string{"Service", "Secret", "ConfigMap"}},
	{regexp.MustCompile(`^spec/from/group$`), []string{"gateway.networking.k8s.io", "gateway.networking.k8s.io", "gateway.networking.k8s.io", "example.org"}},
	{regexp.MustCompile(`kinds/kind$`), []string{"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "Odd"}},
	{regexp.MustCompile(`kinds/group$`), []string{"gateway.networking.k8s.io", "gateway.networking.k8s.io", "gateway.networking.k8s.io", "example.org"}},
	{regexp.MustCompile(`/group$`), []string{"", "", "", "", "gateway.networking.k8s.io", "gateway.networking.x-k8s.io", "example.org"}},
	{regexp.MustCompile(`gatewayClassName$`), classes},
	{regexp.MustCompile(`controllerName$`), []string{controller, controller, "example.org/controller"}},
	{regexp.MustCompile(`parentRefs?/sectionName$`), []string{"one", "one", "two", "two", "three", "four.five", "six"}},
	{regexp.MustCompile(`(sectionName|listeners/name|rules/name)$`), listeners},
	{regexp.MustCompile(`listeners/protocol$`), []string{"HTTP", "HTTP", "HTTPS", "HTTPS", "TLS", "TCP", "UDP", "example.org/ODD"}},
	{regexp.MustCompile(`[hH]ostnames?$`), hosts},
	{regexp.MustCompile(`([hH]eaders|set|add|remove)(/name)?$`), headerNames},
	{regexp.MustCompile(`allowOrigins$`), []string{"*", "https://example.com", "https://*.example.com", "http://x:8080", "https://*", "http://a.*"}},
	{regexp.MustCompile(`wellKnownCACertificates$`), []string{"System", "System", "example.org/odd"}},
	{regexp.MustCompile(`subjectAltNames/uri$`), []string{"spiffe://example.com/ns/a", "https://example.com"}},
	{regexp.MustCompile(`addresses/value$`), []string{"10.0.0.1", "2001:db8::1", "example.com", "0.0.0.0", "127.0.0.1"}},
	{regexp.MustCompile(`addresses/type$`), []string{"IPAddress", "Hostname", "NamedAddress", "example.org/odd"}},
	{regexp.MustCompile(`path/value$`), []string{"/", "/a", "/a/", "/a/b", "/aa", "/%20", "/a.b", "/x/y/z", "/(a|b)", "/a.*", "^/a$"}},
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "/" + field
}

// value makes a value for a schema; seldom an invalid one, for what CEL rules say is left to the validation.
func (g generator) value(s *structuralschema.Structural, path string) any {
	switch {
	case s.XPreserveUnknownFields:
		return runtime.DeepCopyJSONValue(pick(g, loose))
	case s.XIntOrString && s.ValueValidation != nil && s.ValueValidation.Pattern != "":
		return pick(g, quantities)
	case s.XIntOrString:
		return pick(g, []any{int64(80), "http", "50%"})
	case s.Type == "object" && s.AdditionalProperties != nil:
		return g.dictionary(s, path)
	case s.Type == "object":
		return g.object(s, path)
	case s.Type == "array":
		return g.list(s, path)
	case s.Type == "boolean":
		return g.chance(50)
	case s.Type == "integer":
		return g.integer(s, path)
	case s.Type == "number":
		return float64(g.integer(s, path))
	}
	return g.text(s, path)
}

func (g generator) dictionary(s *structuralschema.Structural, path string) map[string]any {
	out := map[string]any{}
	for range g.IntN(3) {
		out[pick(g, []string{"app", "example.org/key", "team", "team"})] = g.value(s.AdditionalProperties.Structural, join(path, "value"))
	}
	return out
}

// object fills what is required, the member that a union's type names, and some of the rest: less, the deeper it is.
func (g generator) object(s *structuralschema.Structural, path string) map[string]any {
	out := map[string]any{}
	required := set(requiredOf(s))
	by, members := unionOf(s)
	share := max(15, 60-10*strings.Count(path, "/"))
	if len(members) > 0 {
		typ := s.Properties[by]
		out[by] = g.value(&typ, join(path, by))
	}
	for _, field := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[field]
		value, isMember := members[field]
		take := g.chance(share)
		switch {
		case isMember:
			take = out[by] == value || g.chance(1)
		case field == by:
			continue
		case required[field]:
			take = true
		case field == "parentRefs": // nobody serves a route without
			take = g.chance(90)
		case field == "group" || field == "kind": // mostly defaulted
			take = g.chance(20)
		}
		if take {
			out[field] = g.value(&p, join(path, field))
		}
	}
	return out
}

func set(of []string) map[string]bool {
	out := map[string]bool{}
	for _, v := range of {
		out[v] = true
	}
	return out
}

func requiredOf(s *structuralschema.Structural) []string {
	if s.ValueValidation == nil {
		return nil
	}
	return s.ValueValidation.Required
}

// unionOf finds the fields of which one is there, as another says: requestRedirect where type is RequestRedirect, grpc where protocol is GRPC.
func unionOf(s *structuralschema.Structural) (by string, members map[string]string) {
	for _, by := range []string{"type", "protocol"} {
		p, ok := s.Properties[by]
		if !ok || p.ValueValidation == nil {
			continue
		}
		members := map[string]string{}
		for _, e := range p.ValueValidation.Enum {
			for field := range s.Properties {
				if value, ok := e.Object.(string); ok && field != by && strings.EqualFold(field, value) {
					members[field] = value
				}
			}
		}
		if len(members) > 0 {
			return by, members
		}
	}
	return "", nil
}

func (g generator) list(s *structuralschema.Structural, path string) []any {
	least, most := int64(0), int64(3)
	if v := s.ValueValidation; v != nil {
		if v.MinItems != nil {
			least = *v.MinItems
		}
		if v.MaxItems != nil {
			most = min(most, *v.MaxItems)
		}
	}
	n := least + g.Int64N(max(most-least, 0)+1)
	if n == 0 && g.chance(60) && most > 0 {
		n = 1
	}
	out := make([]any, n)
	for i := range out {
		out[i] = g.value(s.Items, path)
	}
	return out
}

func (g generator) integer(s *structuralschema.Structural, path string) int64 {
	if strings.HasSuffix(path, "ort") && g.chance(90) { // port, targetPort
		return usual(g, ports)
	}
	if v := s.ValueValidation; v != nil && len(v.Enum) > 0 {
		switch n := pick(g, v.Enum).Object.(type) {
		case int64:
			return n
		case float64:
			return int64(n)
		}
	}
	least, most := int64(-1), int64(1<<31-1)
	if v := s.ValueValidation; v != nil {
		if v.Minimum != nil {
			least = int64(*v.Minimum)
		}
		if v.Maximum != nil {
			most = int64(*v.Maximum)
		}
	}
	return pick(g, []int64{least, least + 1, most, min(most, least+g.Int64N(10)), least + g.Int64N(most-least+1)})
}

// text makes a text that the schema's own rules allow, if one is found.
func (g generator) text(s *structuralschema.Structural, path string) any {
	v := s.ValueValidation
	from := odd
	if v != nil && strings.Contains(v.Pattern, "h|m|s|ms") {
		from = durations
	}
	for _, n := range named {
		if n.place.MatchString(path) {
			from = n.from
			break
		}
	}
	if v != nil && len(v.Enum) > 0 && !g.chance(50) {
		return pick(g, v.Enum).Object
	}
	for range 8 {
		text := usual(g, from)
		if g.chance(15) {
			text = g.vary(text)
		}
		if fits(text, v) {
			return text
		}
		if g.chance(20) {
			from = odd
		}
	}
	if v != nil && len(v.Enum) > 0 {
		return pick(g, v.Enum).Object
	}
	return "a"
}

// vary changes a text somewhere: kinds with few fields would repeat themselves.
func (g generator) vary(text string) string {
	runes := []rune(text)
	at := g.IntN(len(runes) + 1)
	return string(runes[:at]) + strconv.FormatUint(g.Uint64N(1<<(4*(1+g.Uint64N(8)))), 36) + string(runes[at:])
}

func fits(text string, v *structuralschema.ValueValidation) bool {
	if v == nil {
		return true
	}
	n := int64(len([]rune(text)))
	listed := len(v.Enum) == 0 || slices.ContainsFunc(v.Enum, func(e structuralschema.JSON) bool { return e.Object == text })
	return listed && (v.MinLength == nil || n >= *v.MinLength) && (v.MaxLength == nil || n <= *v.MaxLength) && (v.Pattern == "" || expression(v.Pattern).MatchString(text))
}

var expressions sync.Map

func expression(pattern string) *regexp.Regexp {
	if re, ok := expressions.Load(pattern); ok {
		return re.(*regexp.Regexp)
	}
	re := regexp.MustCompile(pattern)
	expressions.Store(pattern, re)
	return re
}

// mutate gives a value that differs from v at one place, which is left to chance. What v holds is not changed, but may be shared.
func (g generator) mutate(s *structuralschema.Structural, v any, path string) any {
	switch v := v.(type) {
	case map[string]any:
		if len(s.Properties) == 0 || g.chance(4) {
			return g.value(s, path)
		}
		return g.mutateObject(s, maps.Clone(v), path)
	case []any:
		if s.Items == nil || g.chance(4) {
			return g.value(s, path)
		}
		return g.mutateList(s, slices.Clone(v), path)
	}
	return g.value(s, path)
}

func (g generator) mutateObject(s *structuralschema.Structural, v map[string]any, path string) any {
	field := pick(g, slices.Sorted(maps.Keys(s.Properties)))
	if present := slices.Sorted(maps.Keys(v)); len(present) > 0 && g.chance(60) {
		field = pick(g, present)
	}
	p, known := s.Properties[field]
	old, there := v[field]
	switch {
	case !known:
	case !there:
		v[field] = g.value(&p, join(path, field))
		become(s, v, field)
	case g.chance(10) && !slices.Contains(requiredOf(s), field):
		delete(v, field)
	default:
		v[field] = g.mutate(&p, old, join(path, field))
	}
	return v
}

// become makes a union one of a member, where the field is one.
func become(s *structuralschema.Structural, v map[string]any, field string) {
	by, members := unionOf(s)
	value, ok := members[field]
	if !ok {
		return
	}
	for member := range members {
		if member != field {
			delete(v, member)
		}
	}
	v[by] = value
}

func (g generator) mutateList(s *structuralschema.Structural, v []any, path string) any {
	switch n := g.IntN(10); {
	case len(v) == 0 || n < 2:
		return append(v, g.value(s.Items, path))
	case n == 2:
		i := g.IntN(len(v))
		return slices.Delete(v, i, i+1)
	case n == 3:
		return append(v, g.mutate(s.Items, pick(g, v), path))
	case n == 4:
		i, j := g.IntN(len(v)), g.IntN(len(v))
		v[i], v[j] = v[j], v[i]
		return v
	}
	i := g.IntN(len(v))
	v[i] = g.mutate(s.Items, v[i], path)
	return v
}

// settle moves an object that somebody wrote into a world: whatever names another object names one of the world's, most of the time.
func (g generator) settle(s *structuralschema.Structural, v any, path string) any {
	switch v := v.(type) {
	case map[string]any:
		for _, field := range slices.Sorted(maps.Keys(v)) { // in an order, so that the same seed makes the same object
			if p, ok := s.Properties[field]; ok {
				v[field] = g.settle(&p, v[field], join(path, field))
			}
		}
	case []any:
		for i := range v {
			if s.Items != nil {
				v[i] = g.settle(s.Items, v[i], path)
			}
		}
	case int64:
		if strings.HasSuffix(path, "Refs/port") && g.chance(80) {
			return g.integer(s, path)
		}
	case string:
		if refers.MatchString(path) && g.chance(90) {
			return g.text(s, path)
		}
	}
	return v
}

var refers = regexp.MustCompile(`[rR]efs?/(name|namespace|sectionName)$|gatewayClassName$|controllerName$|/namespaces/from$`)

// spec makes the spec of an object: a mutated seed, or seldom one out of nothing.
func (g generator) spec(d *definition, seeds []map[string]any) map[string]any {
	s := d.structural.Properties["spec"]
	if len(seeds) == 0 || g.chance(15) {
		return g.object(&s, "spec")
	}
	var spec any = runtime.DeepCopyJSON(pick(g, seeds))
	spec = g.settle(&s, spec, "spec")
	if parents, ok := s.Properties["parentRefs"]; ok && spec.(map[string]any)["parentRefs"] == nil {
		spec.(map[string]any)["parentRefs"] = g.value(&parents, "spec/parentRefs")
	}
	changes := 1 + g.IntN(4)
	if g.tame && g.chance(70) {
		changes = 0
	}
	for range changes {
		spec = g.mutateObject(&s, spec.(map[string]any), "spec")
	}
	return runtime.DeepCopyJSON(spec.(map[string]any))
}
