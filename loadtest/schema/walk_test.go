package schema

import (
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/translate"
)

// silent are the fields that change nothing, by the specification's own words.
var silent = map[string]string{
	"GatewayClass spec/description": "a text for people",
	"HTTPRoute spec/rules/name":     ruleName,
	"GRPCRoute spec/rules/name":     ruleName,
	"TLSRoute spec/rules/name":      ruleName,
	"TCPRoute spec/rules/name":      ruleName,
	"UDPRoute spec/rules/name":      ruleName,
}

// coupled are the fields that the schema lets nobody change alone to something that matters.
var coupled = map[string]string{
	"XBackend spec/tls/mode":                              "validation and clientCertificateRef must change with it; they are walked",
	"XTelemetryPolicy spec/tracing/mode":                  "what Enabled asks for must come and go with it and is walked; the other two both mean no traces here",
	"XTelemetryPolicy spec/tracing/attributes/sourceType": "the field of the value must change with it; all three are walked",
}

const ruleName = "a name for others to refer to the rule by; the rule does the same under any name (GEP-995)"

// How many pairs of specs that differ in one field are tried before the field counts as ignored; fewer where it is known to be.
const (
	tries       = 3000
	triesSilent = 100
	enough      = 4 // objects that are told that something around the field is refused
)

// TestMeasureEveryFieldCounts walks the schema of every kind in both channels: for each field, some valid object that differs from another in nothing but that
// field must change a byte of what proxies are sent, a condition, how the fleet is run, or which pods Kubernetes finds. A field that does not is neither translated nor refused.
func TestMeasureEveryFieldCounts(t *testing.T) {
	if testing.Short() {
		t.Skip("short: the walk takes a minute")
	}
	for name, load := range map[string]func() (channel, error){"standard": standard, "experimental": experimental} {
		c := must(t, load)
		all := must(t, seeds)
		var fields, pairs atomic.Int64
		t.Run(name, func(t *testing.T) {
			for _, kind := range slices.Sorted(maps.Keys(c)) {
				t.Run(kind, func(t *testing.T) {
					t.Parallel()
					f, p := walk(t, c[kind], all[kind])
					fields.Add(int64(f))
					pairs.Add(int64(p))
				})
			}
		})
		t.Logf("| %-34s | %s channel: %d fields of %d kinds, %d pairs of objects that differ in one |", "every field is translated or refused", name, fields.Load(), len(c), pairs.Load())
	}
}

// honoured are the fields of the experimental channel, of kinds that the standard one has, that are translated, with those below them. All others are refused.
var honoured = map[string]bool{
	"Gateway spec/addresses/routability":                    true,
	"Gateway spec/defaultScope":                             true,
	"Gateway spec/listeners/filters":                        true,
	"ListenerSet spec/listeners/filters":                    true,
	"HTTPRoute spec/useDefaultGateways":                     true,
	"GRPCRoute spec/useDefaultGateways":                     true,
	"TLSRoute spec/useDefaultGateways":                      true,
	"TCPRoute spec/useDefaultGateways":                      true,
	"UDPRoute spec/useDefaultGateways":                      true,
	"HTTPRoute spec/rules/backendRefs/filters/externalAuth": true,
	"HTTPRoute spec/rules/filters/externalAuth":             true,
	"HTTPRoute spec/rules/sessionPersistence":               true,
	"GRPCRoute spec/rules/sessionPersistence":               true,
}

// TestExperimentalFieldsAreRefused: whatever stands in a field that only the experimental channel has, a condition says that it is not supported, by the field's name.
func TestExperimentalFieldsAreRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("short: the walk takes a minute")
	}
	known, c, all := must(t, standard), must(t, experimental), must(t, seeds)
	n := 0
	for _, kind := range slices.Sorted(maps.Keys(c)) {
		if known[kind] == nil { // TestMeasureEveryFieldCounts holds all of it
			continue
		}
		before, now := known[kind].structural.Properties["spec"], c[kind].structural.Properties["spec"]
		for _, path := range leaves(&now, "spec") {
			fields := strings.Split(path, "/")[1:]
			if at := newcomer(&before, fields); at >= 0 && !honoured[kind+" spec/"+strings.Join(fields[:at+1], "/")] {
				n++
				t.Run(kind+" "+path, func(t *testing.T) {
					t.Parallel()
					refused(t, c[kind], all[kind], fields, fields[at])
				})
			}
		}
	}
	if n+len(honoured) == 0 {
		t.Error("no field is new in the experimental channel: the module's layout has changed")
	}
}

// newcomer is the index of the first of some nested fields that a schema does not have, -1 = it has all.
func newcomer(s *structuralschema.Structural, fields []string) int {
	for i, field := range fields {
		for s.Items != nil {
			s = s.Items
		}
		p, there := s.Properties[field]
		if !there {
			return i
		}
		s = &p
	}
	return -1
}

// refused holds objects that have a field against what is said of them. One that is not accepted for another reason, such as a parent that does not take it, may say that alone.
func refused(t *testing.T, d *definition, seeds []map[string]any, fields []string, name string) {
	st := newStage(t, d.kind)
	if plain := st.plain(); plain != nil {
		seeds = append(slices.Clone(seeds), slices.Repeat([]map[string]any{plain}, 2*len(seeds))...)
	}
	says := regexp.MustCompile(`(?i)\b` + name + `\b[^()]* not supported`)
	s := d.structural.Properties["spec"]
	g := generatorOf(7, 1)
	g.tame = true
	told := 0
	for i := 0; i < tries && told < 5*enough; i++ {
		o := st.subject(d, g.touch(&s, g.spec(d, seeds), fields, "spec", false))
		if o == nil {
			continue
		}
		st.outcome(o)
		switch said := st.ofSubject(d); {
		case says.MatchString(said):
			told++
		case strings.Contains(said, "Accepted=True"):
			t.Fatalf("an object that has %s is accepted, and this is said of it:\n%s\n%s", strings.Join(fields, "/"), said, toYAML(o))
		}
	}
	if told < enough {
		t.Errorf("only %d objects with %s are told anything: the walk does not reach it", told, strings.Join(fields, "/"))
	}
}

// unread are the kinds of the experimental channel that no one reads, with what their users see of that.
var unread = map[string]string{
	"XMesh": "Fleetgate runs no mesh; its status is nobody's of ours",
}

// TestEveryKindIsReadOrNot: a kind that appears with a new version of the Gateway API is taken up or put on the list.
func TestEveryKindIsReadOrNot(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(must(t, gatewayAPI), "config", "crd", "experimental", "gateway.networking.*_*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range files {
		crd, err := readCRD(f)
		if err != nil {
			t.Fatal(err)
		}
		kind := crd.Spec.Names.Kind
		if seen[kind] = kind != ""; seen[kind] && (typed[kind] != nil) == (unread[kind] != "") {
			t.Errorf("%s: it must be either among the kinds that are read or, with the reason, among those that are not", kind)
		}
	}
	if !seen["HTTPRoute"] || !seen["XMesh"] {
		t.Errorf("only %v are there: the module's layout has changed", seen)
	}
}

// walk gives how many fields it went through, and how many pairs of objects that took.
func walk(t *testing.T, d *definition, seeds []map[string]any) (fields, pairs int) {
	spec := d.structural.Properties["spec"]
	st := newStage(t, d.kind)
	if plain := st.plain(); plain != nil {
		seeds = append(slices.Clone(seeds), slices.Repeat([]map[string]any{plain}, 2*len(seeds))...)
	}
	for i, path := range leaves(&spec, "spec") {
		reason, most := silent[d.kind+" "+path], tries
		if reason == ruleName && hasSessions(&spec) { // one without a name is called after its rule (GEP-1619)
			reason = ""
		}
		if reason != "" {
			most = triesSilent
		}
		g := generatorOf(6, uint64(i))
		g.tame = true
		counts, tried := st.counts(g, d, seeds, path, most)
		fields, pairs = fields+1, pairs+tried
		switch {
		case !counts && coupled[d.kind+" "+path] != "":
		case tried == 0 && !counts:
			t.Errorf("%s: no two valid objects that differ there: the walk does not reach it", path)
		case counts && reason != "":
			t.Errorf("%s changes something and is on the list of what changes nothing (%s): take it off", path, reason)
		case !counts && reason == "":
			t.Errorf("%s is neither translated nor refused: %d pairs of valid objects that differ there come to the same. Of the last is said:\n%s", path, tried, st.ofSubject(d))
		}
	}
	return fields, pairs
}

// hasSessions tells whether rules keep sessions, in the channel that a schema is of.
func hasSessions(spec *structuralschema.Structural) bool {
	rules := spec.Properties["rules"]
	_, sessions := rules.Items.Properties["sessionPersistence"]
	return sessions
}

// leaves are the fields that hold values, as paths without indexes.
func leaves(s *structuralschema.Structural, path string) []string {
	switch {
	case s.Items != nil:
		return leaves(s.Items, path)
	case s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil:
		return leaves(s.AdditionalProperties.Structural, path)
	case len(s.Properties) == 0:
		return []string{path}
	}
	var out []string
	for _, field := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[field]
		out = append(out, leaves(&p, join(path, field))...)
	}
	return out
}

// stage is a world in which an object named subject matters, whatever its kind.
type stage struct {
	*world
	t    *testing.T
	kind string
}

func newStage(t *testing.T, kind string) *stage {
	t.Helper()
	st := &stage{newWorld(), t, kind}
	events := furnish()
	for _, ns := range namespaces {
		for _, kind := range []string{"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute"} {
			events = append(events, st.route(ns, kind))
		}
		set := &gatewayv1.ListenerSet{ObjectMeta: meta(ns, "of-subject")}
		set.Spec.ParentRef = gatewayv1.ParentGatewayReference{Name: "subject", Namespace: new(gatewayv1.Namespace("a")), Kind: new(gatewayv1.Kind("Gateway")), Group: new(gatewayv1.Group(gatewayv1.GroupName))}
		set.Spec.Listeners = []gatewayv1.ListenerEntry{{Name: "of-set", Port: 7000, Protocol: "HTTP"}}
		events = append(events, event("ListenerSet", set, false))
	}
	for _, g := range []*gatewayv1.Gateway{gateway("a", "of-class"), gateway("a", "by-default"), gateway("a", "borrower")} {
		switch g.Name {
		case "of-class":
			g.Spec.GatewayClassName = "subject"
		case "by-default":
			g.Spec.DefaultScope = gatewayv1.GatewayDefaultScopeAll
		default:
			g.Spec.Listeners[1].TLS.CertificateRefs[0].Namespace = new(gatewayv1.Namespace("b"))
		}
		events = append(events, event("Gateway", g, false))
	}
	if kind == "EnvoyFleet" {
		g := gateway("a", "run-so")
		g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{Group: v1alpha1.Group, Kind: v1alpha1.Kind, Name: "subject"}}
		events = append(events, event("Gateway", g, false))
	}
	if kind != "ReferenceGrant" {
		events = append(events, event("ReferenceGrant", st.grant(), false))
	}
	if _, err := st.apply(events...); err != nil {
		t.Fatal(err)
	}
	return st
}

// grant lets everything of namespace a use everything of namespace b.
func (st *stage) grant() *gatewayv1.ReferenceGrant {
	out := &gatewayv1.ReferenceGrant{ObjectMeta: meta("b", "staged")}
	for kind := range typed {
		out.Spec.From = append(out.Spec.From, gatewayv1.ReferenceGrantFrom{Group: gatewayv1.GroupName, Kind: gatewayv1.Kind(kind), Namespace: "a"})
	}
	for _, kind := range []gatewayv1.Kind{"Service", "Secret", "ConfigMap"} {
		out.Spec.To = append(out.Spec.To, gatewayv1.ReferenceGrantTo{Kind: kind})
	}
	return out
}

// plain is the spec of a subject that does as little as it can: that of a staged object of its kind, nil where there is none.
func (st *stage) plain() map[string]any {
	for _, id := range slices.Sorted(maps.Keys(st.objects)) {
		if kind, _, _ := strings.Cut(id, " "); kind != st.kind || kind == "Gateway" { // a Gateway that does much is among the seeds
			continue
		}
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(st.objects[id])
		if err != nil {
			st.t.Fatal(err)
		}
		spec, _ := object["spec"].(map[string]any)
		return spec
	}
	return nil
}

// route gives a route of a namespace to everything that may be the subject, which leads to Services of both namespaces.
func (st *stage) route(ns, kind string) translate.Event {
	var parents, backends []any
	for _, p := range []string{"gw0", "subject"} {
		parents = append(parents, map[string]any{"name": p, "namespace": "a", "kind": "Gateway", "group": gatewayv1.GroupName})
	}
	parents = append(parents, map[string]any{"name": "subject", "namespace": "a", "kind": "ListenerSet", "group": gatewayv1.GroupName})
	for _, b := range namespaces {
		backends = append(backends, map[string]any{"name": "web", "namespace": b, "port": int64(80), "kind": "Service", "group": "", "weight": int64(1)})
	}
	if st.kind == "XBackend" {
		backends = append(backends, map[string]any{"name": "subject", "kind": "XBackend", "group": "gateway.networking.x-k8s.io", "weight": int64(1)})
	}
	rule := map[string]any{"backendRefs": backends}
	spec := map[string]any{"parentRefs": parents, "rules": []any{rule}}
	if kind == "TLSRoute" {
		spec["hostnames"] = []any{"*.example.com"}
	}
	o := typed[kind]()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(map[string]any{"spec": spec}, o); err != nil {
		st.t.Fatal(err)
	}
	o.SetNamespace(ns)
	o.SetName("staged")
	o.SetCreationTimestamp(metav1.Unix(1_700_000_000, 0))
	return event(kind, o, false)
}

// counts tells whether a field counts, and after how many pairs of objects that differ there that shows. A field of something that is refused as a whole counts
// where objects that have it are told so: "filter ExternalAuth is not supported" speaks for all fields of externalAuth.
func (st *stage) counts(g generator, d *definition, seeds []map[string]any, path string, most int) (counts bool, pairs int) {
	s := d.structural.Properties["spec"]
	fields := strings.Split(path, "/")[1:]
	refused, whole := 0, refusalOf(fields[:len(fields)-1])
	for range most {
		var one any = g.spec(d, seeds)
		one = g.touch(&s, one, fields, "spec", false)
		other := g.touch(&s, runtime.DeepCopyJSONValue(one), fields, "spec", true)
		if reflect.DeepEqual(one, other) {
			continue
		}
		a := st.subject(d, one)
		if a == nil {
			continue
		}
		b := st.subject(d, other)
		if b == nil || reflect.DeepEqual(a, b) {
			continue
		}
		pairs++
		if st.outcome(b) != st.outcome(a) {
			return true, pairs
		}
		if whole.MatchString(st.ofSubject(d)) {
			refused++
		}
		if refused >= enough {
			return true, pairs
		}
	}
	return false, pairs
}

// refusalOf matches what refuses one of some fields, whatever it holds.
func refusalOf(fields []string) *regexp.Regexp {
	if len(fields) == 0 {
		return regexp.MustCompile(`[^\s\S]`) // nothing
	}
	return regexp.MustCompile(`(?i)\b(` + strings.Join(fields, "|") + `)\b[^()]* not supported`)
}

// touch makes a value have a field, or where it is to change, have another value there; lists change at one place.
func (g generator) touch(s *structuralschema.Structural, v any, fields []string, path string, change bool) any {
	if s.Items != nil && len(s.Items.Properties) > 0 || s.Items != nil && len(fields) > 0 {
		list, _ := v.([]any)
		list = slices.Clone(list)
		if len(list) == 0 {
			list = append(list, g.value(s.Items, path))
		}
		at := 0
		if g.chance(30) {
			at = g.IntN(len(list))
		}
		list[at] = g.touch(s.Items, list[at], fields, path, change)
		return list
	}
	if len(fields) == 0 {
		if v == nil || change {
			return g.value(s, path)
		}
		return v
	}
	object, _ := v.(map[string]any)
	object = maps.Clone(object)
	if object == nil {
		object, _ = g.value(s, path).(map[string]any)
	}
	if by, _ := unionOf(s); change && fields[0] == by { // the member changes with it
		return g.value(s, path)
	}
	become(s, object, fields[0])
	p := s.Properties[fields[0]]
	if change && len(fields) == 1 && object[fields[0]] != nil && g.chance(30) && !slices.Contains(requiredOf(s), fields[0]) {
		delete(object, fields[0])
		return object
	}
	object[fields[0]] = g.touch(&p, object[fields[0]], fields[1:], join(path, fields[0]), change)
	return object
}

// subject makes the object of a spec, nil where the API server would refuse it.
func (st *stage) subject(d *definition, spec any) translate.Object {
	metadata := map[string]any{"name": "subject"}
	if ns := d.home(); ns != "" {
		metadata["namespace"] = ns
	}
	o, err := d.admit(map[string]any{"metadata": metadata, "spec": runtime.DeepCopyJSONValue(spec)})
	if err != nil {
		return nil
	}
	o.SetGeneration(1)
	o.SetCreationTimestamp(metav1.Unix(1_700_000_000, 0))
	return o
}

// home is the namespace that a subject is in.
func (d *definition) home() string {
	switch d.kind {
	case "GatewayClass":
		return ""
	case "ReferenceGrant":
		return "b"
	}
	return "a"
}

// ofSubject is what is said of the subject.
func (st *stage) ofSubject(d *definition) string {
	return st.said(true)[d.kind+" "+d.home()+"/subject"]
}

// outcome is all that a world comes to with a subject: what proxies are sent, what statuses say, how fleets are run, which pods are to be found.
func (st *stage) outcome(o translate.Object) string {
	if _, err := st.apply(event(st.kind, o, false)); err != nil {
		st.t.Fatalf("%v\nby\n%s", err, toYAML(o))
	}
	var out strings.Builder
	for _, f := range st.state.Fleets() {
		for _, r := range st.state.Resources(f) {
			fmt.Fprintln(&out, r.Type, r.Name, r.Version)
		}
	}
	for _, k := range st.state.Gateways() {
		in, _ := st.state.Infrastructure(k)
		fmt.Fprintf(&out, "%v %+v %+v\n", k, in.Ports, toYAML(in.Asked))
	}
	for _, k := range st.state.Selections() {
		if pods, _ := st.state.Selection(k); pods != nil {
			fmt.Fprintf(&out, "%v %v\n", k, toYAML(pods.Pods))
		}
	}
	said := st.said(true)
	for _, id := range slices.Sorted(maps.Keys(said)) {
		out.WriteString(id + said[id])
	}
	return out.String()
}
