package translate

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

// walkedCRDs are the kinds whose every field is walked, by file; the experimental channel has all fields of the standard one.
var walkedCRDs = map[string]string{
	"GatewayClass": "gatewayclasses", "Gateway": "gateways", "ListenerSet": "listenersets", "HTTPRoute": "httproutes", "GRPCRoute": "grpcroutes",
	"XBackend": "xbackends", "XBackendTrafficPolicy": "xbackendtrafficpolicies", "XTelemetryPolicy": "xtelemetrypolicies",
	"TLSRoute": "tlsroutes", "TCPRoute": "tcproutes", "UDPRoute": "udproutes", "ReferenceGrant": "referencegrants", "BackendTLSPolicy": "backendtlspolicies",
}

// told are the fields that change nothing, and why that is right.
var told = map[string]string{
	"GatewayClass.description": "a text for people",
}

// refused are the fields that are not honoured, with all that is below them: that they are there at all is told by a condition.
var refused = []string{".extensionRef", ".options.{}", "XBackendTrafficPolicy.sessionPersistence"}

// refusedPart gives the part of a path that is refused as a whole.
func refusedPart(path string) (string, bool) {
	end := len(path)
	for _, r := range refused {
		if i := strings.Index(path, r); i >= 0 {
			end = min(end, i+len(r))
		}
	}
	return path[:end], end < len(path) || slices.ContainsFunc(refused, func(r string) bool { return strings.HasSuffix(path, r) })
}

// TestEveryFieldIsHonouredOrRefused takes a valid world in which every field of every kind is set (testdata/walk.yaml), changes one field after the other, and wants
// other records each time: a field that changes nothing was ignored in silence.
func TestEveryFieldIsHonouredOrRefused(t *testing.T) {
	text, err := os.ReadFile("testdata/walk.yaml")
	if err != nil {
		t.Fatal(err)
	}
	docs := strings.Split(string(text), "\n---\n")
	events := walkSecrets
	for _, doc := range docs {
		e, ok := parse([]byte(doc))
		if !ok {
			t.Fatalf("not valid:\n%s", doc)
		}
		events = append(events, e)
	}
	w := &walk{t: t, c: New(testConfig()), seen: map[string]bool{}, honoured: map[string]bool{}}
	w.c.Apply(events)
	for _, doc := range docs {
		w.object([]byte(doc))
	}
	for path := range w.seen {
		if !w.honoured[path] && told[path] == "" {
			t.Errorf("%s is ignored: changing it changes no record", path)
		}
	}
	for kind, file := range walkedCRDs {
		for _, path := range schemaLeaves(t, kind, file) {
			if path, _ = refusedPart(path); !w.seen[path] {
				t.Errorf("%s is set nowhere in testdata/walk.yaml", path)
			}
		}
	}
}

// walk changes one field after the other in a compiled world.
type walk struct {
	t              *testing.T
	c              *Compiler
	seen, honoured map[string]bool
}

func (w *walk) object(doc []byte) {
	var object map[string]any
	if err := yaml.Unmarshal(doc, &object); err != nil {
		w.t.Fatal(err)
	}
	kind, _ := object["kind"].(string)
	if walkedCRDs[kind] == "" {
		return
	}
	before, _ := parse(doc)
	leaves(kind, object["spec"], func(path string, v any, set func(any)) {
		w.seen[path] = true
		for _, other := range append(others(v), gone{}) {
			if w.honoured[path] || told[path] != "" {
				return
			}
			set(other)
			changed, err := yaml.Marshal(object)
			if err != nil {
				w.t.Fatal(err)
			}
			set(v)
			w.honoured[path] = w.matters(changed, before)
		}
	})
}

// matters tells whether a changed object gives other records, all of which hold what proxies get and what conditions say; then it is put back.
func (w *walk) matters(changed []byte, before Event) bool {
	e, ok := parse(changed)
	if !ok {
		return false
	}
	out := w.c.Apply([]Event{e})
	if len(out.Quarantined) > 0 {
		w.t.Errorf("quarantined %v by:\n%s", out.Quarantined, changed)
	}
	w.c.Apply([]Event{before})
	return len(out.Puts)+len(out.Deletes) > 0
}

// leaves walks an object's fields that hold no further ones.
func leaves(path string, v any, visit func(path string, v any, set func(any))) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			at := path + "." + k
			if keyed(path) {
				at = path + ".{}"
			}
			_, whole := refusedPart(at)
			switch x.(type) {
			case map[string]any, []any:
				if whole {
					visit(at, x, func(other any) { replace(v, k, other) })
					continue
				}
				leaves(at, x, visit)
			default:
				visit(at, x, func(other any) { replace(v, k, other) })
			}
		}
	case []any:
		for i, x := range v {
			switch x.(type) {
			case map[string]any, []any:
				leaves(path+"[]", x, visit)
			default:
				visit(path+"[]", x, func(other any) { v[i] = other })
			}
		}
	}
}

// gone in place of a value means that the field is not there.
type gone struct{}

func replace(in map[string]any, k string, v any) {
	if _, remove := v.(gone); remove {
		delete(in, k)
		return
	}
	in[k] = v
}

// keyed tells whether the keys of a map are the user's.
func keyed(path string) bool {
	return slices.Contains([]string{"labels", "annotations", "options", "matchLabels"}, path[strings.LastIndex(path, ".")+1:])
}

// others are values that a field could have instead.
func others(v any) []any {
	switch v := v.(type) {
	case string:
		return []any{v + "x", "other", "None", "Same", "HTTP", "3s", "All", "", "/x", "GET", "Exact", "RegularExpression", "PathPrefix", "ReplaceFullPath", "AllowValidOnly", "Passthrough"}
	case bool:
		return []any{!v}
	case float64:
		return []any{v + 1, v - 1, float64(301), float64(0)}
	}
	return nil
}

// parse reads one document, false where a changed field no longer fits its type.
func parse(doc []byte) (Event, bool) {
	var head struct{ Kind string }
	if yaml.Unmarshal(doc, &head) != nil || kinds[head.Kind] == nil {
		return Event{}, false
	}
	o := kinds[head.Kind]()
	if yaml.Unmarshal(doc, o) != nil {
		return Event{}, false
	}
	return eventOf(head.Kind, o), true
}

// walkSecrets are what certificates and authorities are taken from.
var walkSecrets = func() []Event {
	p := certificates()["ecdsa"]
	var out []Event
	for _, ns := range []string{"shop", "far"} {
		s := &corev1.Secret{Type: corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: p.cert, corev1.TLSPrivateKeyKey: p.key}}
		s.Namespace, s.Name = ns, "cert"
		ca := &corev1.ConfigMap{Data: map[string]string{"ca.crt": string(p.cert)}}
		ca.Namespace, ca.Name = ns, "ca"
		out = append(out, eventOf("Secret", s), eventOf("ConfigMap", ca))
	}
	return out
}()

// schemaLeaves are the fields of a kind's spec that hold no further ones.
func schemaLeaves(t *testing.T, kind, file string) []string {
	t.Helper()
	group := "gateway.networking.k8s.io_"
	if strings.HasPrefix(kind, "X") {
		group = "gateway.networking.x-k8s.io_"
	}
	data, err := os.ReadFile(filepath.Join(moduleDir(t), "config", "crd", "experimental", group+file+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal(data, crd); err != nil {
		t.Fatal(err)
	}
	for _, v := range crd.Spec.Versions {
		if v.Storage {
			spec := v.Schema.OpenAPIV3Schema.Properties["spec"]
			return below(kind, &spec)
		}
	}
	t.Fatalf("%s has no stored version", kind)
	return nil
}

func below(path string, s *apiextensionsv1.JSONSchemaProps) []string {
	switch {
	case s.Type == "array":
		return below(path+"[]", s.Items.Schema)
	case s.AdditionalProperties != nil:
		return below(path+".{}", s.AdditionalProperties.Schema)
	case len(s.Properties) > 0:
		var out []string
		for name := range s.Properties {
			p := s.Properties[name]
			out = append(out, below(path+"."+name, &p)...)
		}
		return out
	}
	return []string{path}
}

func moduleDir(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatal(fmt.Errorf("finding the gateway-api module: %w", err))
	}
	return strings.TrimSpace(string(out))
}
