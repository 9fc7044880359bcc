package translate

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/translate/record"
)

var update = flag.Bool("update", false, "rewrite the expected sections of testdata/*.txtar")

// TestCases runs testdata: a sentence, the objects in in.yaml, and what they become: records.yaml for all records, or one kind in class.yaml, gateway.yaml,
// namespace.yaml, route.yaml, backend.yaml, endpoints.yaml, secret.yaml; xds.yaml is what the proxies are sent in the end, status.yaml all that is said of it.
// Only the sections that are there are compared.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { runCase(t, file) })
	}
}

func runCase(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := New(testConfig())
	for i, section := range archive.Files {
		if section.Name == "in.yaml" {
			c.Apply(parseObjects(t, string(section.Data)))
			continue
		}
		got := renderSection(t, c, strings.TrimSuffix(section.Name, ".yaml"))
		if *update {
			archive.Files[i].Data = []byte(got)
		} else if d := cmp.Diff(string(section.Data), got); d != "" {
			t.Errorf("%s (-want +got; -update rewrites):\n%s", section.Name, d)
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// renderSection writes one section of a case.
func renderSection(t testing.TB, c *Compiler, section string) string {
	switch section {
	case "xds":
		return renderResources(t, assembled(c))
	case "status":
		return renderStatuses(t, c, assembled(c))
	}
	return render(t, c.Records(), section)
}

func testConfig() Config {
	return Config{
		Cluster:         "c1",
		ControllerNames: []string{"fleetgate.io/gatewayclass-controller"},
		Owns:            func(string) bool { return true },
		Seal: func(plain, additional []byte) ([]byte, error) {
			return append(append([]byte{}, additional...), record.Hash(plain)...), nil
		},
		Version: record.Hash,
	}
}

var kinds = map[string]func() Object{
	"EnvoyFleet":            func() Object { return &v1alpha1.EnvoyFleet{} },
	"GatewayClass":          func() Object { return &gatewayv1.GatewayClass{} },
	"Gateway":               func() Object { return &gatewayv1.Gateway{} },
	"ListenerSet":           func() Object { return &gatewayv1.ListenerSet{} },
	"XBackend":              func() Object { return &gatewayxv1alpha1.XBackend{} },
	"XBackendTrafficPolicy": func() Object { return &gatewayxv1alpha1.XBackendTrafficPolicy{} },
	"XTelemetryPolicy":      func() Object { return &gatewayxv1alpha1.XTelemetryPolicy{} },
	"BackendTLSPolicy":      func() Object { return &gatewayv1.BackendTLSPolicy{} },
	"ClusterTrustBundle":    func() Object { return &certificatesv1.ClusterTrustBundle{} },
	"ConfigMap":             func() Object { return &corev1.ConfigMap{} },
	"HTTPRoute":             func() Object { return &gatewayv1.HTTPRoute{} },
	"GRPCRoute":             func() Object { return &gatewayv1.GRPCRoute{} },
	"TLSRoute":              func() Object { return &gatewayv1.TLSRoute{} },
	"TCPRoute":              func() Object { return &gatewayv1.TCPRoute{} },
	"UDPRoute":              func() Object { return &gatewayv1.UDPRoute{} },
	"Namespace":             func() Object { return &corev1.Namespace{} },
	"Service":               func() Object { return &corev1.Service{} },
	"EndpointSlice":         func() Object { return &discoveryv1.EndpointSlice{} },
	"Secret":                func() Object { return &corev1.Secret{} },
	"ReferenceGrant":        func() Object { return &gatewayv1.ReferenceGrant{} },
}

func parseObjects(t testing.TB, text string) []Event {
	t.Helper()
	var out []Event
	for _, doc := range strings.Split(text, "\n---\n") {
		var head struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		if kinds[head.Kind] == nil {
			t.Fatalf("kind %q in:\n%s", head.Kind, doc)
		}
		o := kinds[head.Kind]()
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		out = append(out, eventOf(head.Kind, o))
	}
	return out
}

func eventOf(kind string, o Object) Event {
	return Event{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), Object: o}
}

// render writes records for people: Envoy messages as YAML, nothing that is empty.
func render(t testing.TB, records map[record.Key]Put, only string) string {
	t.Helper()
	var out strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(records), record.Key.Compare) {
		if only != "records" && only != string(k.Kind) {
			continue
		}
		put := records[k]
		body := map[string]any{}
		if v := decode(t, k.Kind, put.Payload); v != nil {
			body = readable(t, k.Kind, v).(map[string]any)
		}
		var refs []any
		for _, r := range put.Refs {
			refs = append(refs, name(r))
		}
		if refs != nil {
			body["refs"] = refs
		}
		b, err := yaml.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "# %s\n%s", name(k), b)
	}
	return out.String()
}

func name(k record.Key) string { return string(k.Kind) + " " + k.Namespace + " " + k.Name }

func decode(t testing.TB, kind record.Kind, payload []byte) any {
	t.Helper()
	v := map[record.Kind]any{
		record.KindClass: &record.Class{}, record.KindGateway: &record.Gateway{}, record.KindNamespace: &record.Namespace{}, record.KindRoute: &record.Route{},
		record.KindBackend: &record.Backend{}, record.KindEndpoints: &record.Endpoints{}, record.KindSecret: &record.Secret{},
		record.KindListenerSet: &record.ListenerSet{}, record.KindTrust: &record.Trust{}, record.KindPolicy: &record.Policy{},
	}[kind]
	if err := record.Unmarshal(payload, v); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var generic any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&generic); err != nil {
		t.Fatal(err)
	}
	return generic
}

// messages says what a record's bytes are.
var messages = map[record.Kind]func() proto.Message{
	record.KindRoute:     func() proto.Message { return &routev3.Route{} },
	record.KindBackend:   func() proto.Message { return &clusterv3.Cluster{} },
	record.KindEndpoints: func() proto.Message { return &endpointv3.ClusterLoadAssignment{} },
}

func readable(t testing.TB, kind record.Kind, v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = readable(t, kind, v[i])
		}
	case map[string]any:
		if v["Cluster"] != nil && v["Kind"] != nil {
			return fmt.Sprint(v["Kind"], " ", v["Namespace"], " ", v["Name"])
		}
		for field, x := range v {
			switch {
			case empty(x) && field != "rule":
				delete(v, field)
			case field == "Bytes":
				v[field] = message(t, kind, x.(string))
			case field == "Variants":
				for at, b := range x.(map[string]any) {
					x.(map[string]any)[at] = message(t, kind, b.(string))
				}
			default:
				v[field] = readable(t, kind, x)
			}
		}
	}
	return v
}

func empty(x any) bool {
	switch x := x.(type) {
	case nil:
		return true
	case string:
		return x == "" || x == "0001-01-01T00:00:00Z"
	case bool:
		return !x
	case json.Number:
		return x == "0"
	case []any:
		return len(x) == 0
	case map[string]any:
		return len(x) == 0
	}
	return false
}

func message(t testing.TB, kind record.Kind, encoded string) any {
	b, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	m := messages[kind]()
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	j, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(j, &out); err != nil {
		t.Fatal(err)
	}
	return out
}
