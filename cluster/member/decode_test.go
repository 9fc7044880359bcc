package member

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

var rewrite = flag.Bool("rewrite", false, "write what the cases of testdata give now into them")

// TestManifests runs the cases of testdata: each begins with a sentence, has manifests as a user would apply them, and says which
// objects and which problems come of them.
func TestManifests(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files, want := map[string][]byte{}, ""
			for _, f := range archive.Files {
				if f.Name == "want" {
					want = string(f.Data)
					continue
				}
				files[f.Name] = f.Data
			}
			got := describe(Decode(files))
			if *rewrite {
				writeWant(t, path, archive, got)
				return
			}
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func describe(objects []Object, problems []Problem) string {
	var b strings.Builder
	for _, o := range objects {
		kind := o.GetObjectKind().GroupVersionKind().Kind
		fmt.Fprintf(&b, "object  %s\n", objectKey{kind, o.GetNamespace(), o.GetName()})
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}

func writeWant(t *testing.T, path string, archive *txtar.Archive, got string) {
	t.Helper()
	var files []txtar.File
	for _, f := range archive.Files {
		if f.Name != "want" {
			files = append(files, f)
		}
	}
	archive.Files = append(files, txtar.File{Name: "want", Data: []byte(got)})
	if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestDefaults proves that a manifest gets what an API server would have filled in.
func TestDefaults(t *testing.T) {
	objects, problems := Decode(map[string][]byte{"a.yaml": []byte(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: g}]
  rules: [{backendRefs: [{name: s, port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {k: v}
`)})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *gatewayv1.HTTPRoute:
			rule, parent := o.Spec.Rules[0], o.Spec.ParentRefs[0]
			if m := rule.Matches; len(m) != 1 || *m[0].Path.Type != gatewayv1.PathMatchPathPrefix || *m[0].Path.Value != "/" {
				t.Errorf("matches: %+v", m)
			}
			if b := rule.BackendRefs[0]; *b.Weight != 1 || *b.Kind != "Service" || *b.Group != "" {
				t.Errorf("backendRef: %+v", b)
			}
			if *parent.Kind != "Gateway" || *parent.Group != GatewayGroup {
				t.Errorf("parentRef: %+v", parent)
			}
			if o.Namespace != "default" || o.Kind != "HTTPRoute" || o.APIVersion != "gateway.networking.k8s.io/v1" {
				t.Errorf("meta: %+v %+v", o.TypeMeta, o.ObjectMeta)
			}
		case *corev1.Service:
			if p := o.Spec.Ports[0]; p.Protocol != corev1.ProtocolTCP || p.TargetPort.IntValue() != 80 || o.Spec.Type != corev1.ServiceTypeClusterIP {
				t.Errorf("service: %+v", o.Spec)
			}
		case *corev1.Secret:
			if string(o.Data["k"]) != "v" || o.StringData != nil || o.Type != corev1.SecretTypeOpaque {
				t.Errorf("secret: %+v", o)
			}
		case *corev1.Namespace:
			if o.Labels[namespaceNameLabel] != "default" {
				t.Errorf("namespace: %+v", o)
			}
		}
	}
	if len(objects) != 4 {
		t.Errorf("%d objects", len(objects))
	}
}

// TestServerOwnedMetadataIsIgnored: what only an API server may say has no effect in a manifest.
func TestServerOwnedMetadataIsIgnored(t *testing.T) {
	plain := "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\n%sspec: {ports: [{port: 80}]}\n%s"
	forged := "  creationTimestamp: \"2001-01-01T00:00:00Z\"\n  uid: x\n  generation: 9\n  resourceVersion: \"7\"\n  managedFields: [{manager: me}]\n"
	a := parseFile("a", fmt.Appendf(nil, plain, "", ""))
	b := parseFile("a", fmt.Appendf(nil, plain, forged, "status: {loadBalancer: {}}\n"))
	if len(a.entries) != 1 || len(b.entries) != 1 {
		t.Fatalf("%v %v", a.problems, b.problems)
	}
	if a.entries[0].hash != b.entries[0].hash {
		t.Error("forged metadata changed the object")
	}
	if o := b.entries[0].object; !o.GetCreationTimestamp().Time.IsZero() || o.GetUID() != "" || o.GetGeneration() != 0 {
		t.Errorf("forged metadata came through: %+v", o)
	}
}

// TestLabelsAreNoGeneration: a label changes the object, not its spec.
func TestLabelsAreNoGeneration(t *testing.T) {
	manifest := "apiVersion: v1\nkind: Service\nmetadata: {name: s, labels: {a: %q}}\nspec: {ports: [{port: %d}]}\n"
	parse := func(label string, port int) entry {
		return parseFile("a", fmt.Appendf(nil, manifest, label, port)).entries[0]
	}
	base, labelled, changed := parse("1", 80), parse("2", 80), parse("1", 81)
	if base.hash == labelled.hash || base.specHash != labelled.specHash || base.specHash == changed.specHash {
		t.Error("hashes do not tell labels from spec")
	}
}

// TestTooLargeFile refuses a 2 MB file and says what to do.
func TestTooLargeFile(t *testing.T) {
	_, problems := Decode(map[string][]byte{"big.yaml": make([]byte, 2<<20)})
	want := "big.yaml: the file has 2097152 bytes, and at most 1048576 are read. Split it into smaller files"
	if len(problems) != 1 || problems[0].String() != want {
		t.Errorf("got %v", problems)
	}
}

// FuzzParseFile: no input may panic or give an object without a name.
func FuzzParseFile(f *testing.F) {
	cases, _ := filepath.Glob("testdata/*.txtar")
	for _, path := range cases {
		if archive, err := txtar.ParseFile(path); err == nil {
			for _, file := range archive.Files {
				f.Add(file.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, e := range parseFile("f", data).entries {
			if e.key.name == "" || e.object == nil {
				t.Errorf("%+v", e)
			}
		}
	})
}
