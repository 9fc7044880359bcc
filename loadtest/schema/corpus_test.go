package schema

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/translate"
)

var update = flag.Bool("update", false, "rewrite testdata/*.txtar")

// builtins are the kinds without a CRD that the compiler reads.
var builtins = map[string]func() translate.Object{
	"Namespace":     func() translate.Object { return &corev1.Namespace{} },
	"Service":       func() translate.Object { return &corev1.Service{} },
	"EndpointSlice": func() translate.Object { return &discoveryv1.EndpointSlice{} },
	"Secret":        func() translate.Object { return &corev1.Secret{} },
	"ConfigMap":     func() translate.Object { return &corev1.ConfigMap{} },
}

// spoken are the kinds whose objects have a status of ours: of each something is expected, if only that nothing is said.
var spoken = set([]string{"GatewayClass", "Gateway", "ListenerSet", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "BackendTLSPolicy", "XBackend", "XBackendTrafficPolicy", "XTelemetryPolicy"})

// TestExamples compiles the Gateway API's own examples: testdata/examples.txtar has what is said of the objects of each file, and a changed answer is read by
// a person before it becomes the expected one. Files of one directory belong together. A class that is named is there, and ours.
func TestExamples(t *testing.T) {
	root := filepath.Join(must(t, gatewayAPI), "examples")
	got := map[string]string{}
	for group, files := range groups(t, root) {
		c := must(t, experimental)
		if strings.HasPrefix(group, "standard") {
			c = must(t, standard)
			sameAtTheDoor(t, c, files)
		}
		got[group] = outcomeOf(t, c, newWorld(), files)
	}
	compare(t, "testdata/examples.txtar", got, 40)
}

// TestConformanceManifests compiles the manifests of the conformance suite, each on top of the suite's base, with the certificates that the suite makes.
func TestConformanceManifests(t *testing.T) {
	dir, err := moduleDir(filepath.Join("..", "conformance"), "sigs.k8s.io/gateway-api/conformance")
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.ReadFile(filepath.Join(dir, "base", "manifests.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "tests", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld()
		if _, err := w.apply(suiteSecrets()...); err != nil {
			t.Fatal(err)
		}
		got["base"] = outcomeOf(t, must(t, experimental), w, map[string][]byte{"base": forSuite(base)})
		got[filepath.Base(f)] = outcomeOf(t, must(t, experimental), w, map[string][]byte{f: forSuite(text)})
	}
	compare(t, "testdata/conformance.txtar", got, 100)
}

func forSuite(text []byte) []byte {
	text = bytes.ReplaceAll(text, []byte("{GATEWAY_CLASS_NAME}"), []byte("ours"))
	text = bytes.ReplaceAll(text, []byte("{GATEWAY_CONTROLLER_NAME}"), []byte(controller))
	text = bytes.ReplaceAll(text, []byte("PLACEHOLDER_USABLE_ADDRS"), []byte("10.0.0.1"))
	return bytes.ReplaceAll(text, []byte("PLACEHOLDER_UNUSABLE_ADDRS"), []byte("192.0.2.1"))
}

// suiteSecrets are the certificates and authorities that the suite makes.
func suiteSecrets() []translate.Event {
	const infra = "gateway-conformance-infra"
	out := []translate.Event{event("Secret", tlsSecret("gateway-conformance-web-backend", "certificate", "ecdsa"), false)}
	for _, name := range []string{"tls-validity-checks-certificate", "tls-validity-checks-client-certificate", "tls-validity-checks-per-port-client-certificate", "tls-checks-certificate",
		"tls-checks-client-certificate", "tls-passthrough-checks-certificate", "tls-terminate-checks-certificate"} {
		out = append(out, event("Secret", tlsSecret(infra, name, "ecdsa"), false))
	}
	for _, name := range []string{"tls-validity-checks-ca-certificate", "tls-validity-checks-per-port-ca-certificate", "tls-checks-ca-certificate", "mismatch-ca-certificate"} {
		out = append(out, event("ConfigMap", &corev1.ConfigMap{ObjectMeta: meta(infra, name), Data: map[string]string{"ca.crt": string(certificates()["ecdsa"].chain)}}, false))
	}
	return out
}

// groups are the files that belong together: those of one directory below a channel's.
func groups(t *testing.T, root string) map[string]map[string][]byte {
	t.Helper()
	out := map[string]map[string][]byte{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if dir := filepath.Dir(name); strings.Contains(dir, string(filepath.Separator)) {
			name = dir
		}
		if out[name] == nil {
			out[name] = map[string][]byte{}
		}
		out[name][path] = text
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// outcomeOf applies files to a world and gives what is said of their objects, and which the API server would refuse.
func outcomeOf(t *testing.T, c channel, w *world, files map[string][]byte) string {
	t.Helper()
	var out strings.Builder
	var events []translate.Event
	for _, path := range slices.Sorted(maps.Keys(files)) {
		docs, err := documents(files[path])
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, d := range docs {
			o, err := c.take(d)
			if err != nil {
				fmt.Fprintf(&out, "%s %s: refused: %v\n", d.kind(), d.meta("name"), err)
			} else if o != nil {
				events = append(events, event(d.kind(), o, false))
			}
		}
	}
	delta, err := w.apply(append(classesOf(w, events), events...)...)
	if err == nil {
		err = (&outcome{}).check(delta)
	}
	if err != nil {
		t.Fatalf("%v: %v", slices.Sorted(maps.Keys(files)), err)
	}
	said := w.said(false)
	for _, e := range events {
		id := e.Kind + " " + e.Namespace + "/" + e.Name
		if said[id] == "" && spoken[e.Kind] {
			said[id] = "  nothing\n"
		}
		if said[id] != "" {
			fmt.Fprintf(&out, "%s\n%s", id, said[id])
			delete(said, id)
		}
	}
	return out.String()
}

// take reads an object; nil where nobody reads its kind.
func (c channel) take(d document) (o translate.Object, err error) {
	meta, _ := d["metadata"].(map[string]any)
	if d.kind() == "Namespace" || d.kind() == "GatewayClass" {
		delete(meta, "namespace")
	} else if meta["namespace"] == nil {
		meta["namespace"] = "default"
	}
	if definition := c[d.kind()]; definition != nil {
		version := definition.version(textOf(d["apiVersion"]))
		if version == nil {
			return nil, fmt.Errorf("version %s is not served", d["apiVersion"])
		}
		if o, err = version.admit(d); err != nil {
			return nil, err
		}
	} else if builtins[d.kind()] != nil {
		o = builtins[d.kind()]()
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(d, o); err != nil {
			return nil, err
		}
	} else {
		return nil, nil
	}
	o.SetGeneration(1)
	if d.kind() == "Namespace" {
		o.SetLabels(labelled(o.GetName(), o.GetLabels()))
	}
	return o, nil
}

// labelled adds the label that an API server gives every namespace.
func labelled(name string, labels map[string]string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	out[corev1.LabelMetadataName] = name
	return out
}

// classesOf makes the classes and namespaces that objects name and that are not there.
func classesOf(w *world, events []translate.Event) (out []translate.Event) {
	made := map[string]bool{}
	for _, e := range events {
		made[e.Kind+" "+e.Name] = true
	}
	for _, e := range events {
		if g, ok := e.Object.(*gatewayv1.Gateway); ok && !made["GatewayClass "+string(g.Spec.GatewayClassName)] {
			made["GatewayClass "+string(g.Spec.GatewayClassName)] = true
			class := &gatewayv1.GatewayClass{ObjectMeta: meta("", string(g.Spec.GatewayClassName))}
			class.Spec.ControllerName = controller
			out = append(out, event("GatewayClass", class, false))
		}
		if e.Namespace != "" && !made["Namespace "+e.Namespace] && w.objects["Namespace /"+e.Namespace] == nil {
			made["Namespace "+e.Namespace] = true
			namespace := &corev1.Namespace{ObjectMeta: meta("", e.Namespace)}
			namespace.Labels = labelled(e.Namespace, nil)
			out = append(out, event("Namespace", namespace, false))
		}
	}
	return out
}

// sameAtTheDoor: a directory of manifests takes the same objects that this test takes.
func sameAtTheDoor(t *testing.T, c channel, files map[string][]byte) {
	t.Helper()
	for path, text := range files {
		taken := map[string]bool{}
		docs, err := documents(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range docs {
			if o, err := c.take(d); err == nil && o != nil && typed[d.kind()] != nil {
				taken[d.kind()+" "+o.GetNamespace()+"/"+o.GetName()] = true
			}
		}
		objects, problems := member.Decode(map[string][]byte{"f.yaml": text})
		door := map[string]bool{}
		for _, o := range objects {
			if kind := o.GetObjectKind().GroupVersionKind().Kind; typed[kind] != nil {
				door[kind+" "+o.GetNamespace()+"/"+o.GetName()] = true
			}
		}
		if d := cmp.Diff(taken, door); d != "" {
			t.Errorf("%s (-this test +a directory of manifests):\n%s\n%v", path, d, problems)
		}
	}
}

func compare(t *testing.T, file string, got map[string]string, least int) {
	t.Helper()
	if len(got) < least {
		t.Fatalf("only %d files: the module's layout has changed", len(got))
	}
	if *update {
		a := &txtar.Archive{Comment: []byte("What is said of the objects of each file.\n\n")}
		for _, name := range slices.Sorted(maps.Keys(got)) {
			a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(got[name])})
		}
		if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, f := range a.Files {
		want[f.Name] = string(f.Data)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got; -update rewrites):\n%s", file, d)
	}
}
