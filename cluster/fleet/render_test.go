package fleet

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the expected objects")

var install = Install{Image: "fleetgate", XDS: "xds.example:18000", Certificates: "xds.example:18001", ServerName: "xds.fleetgate", Authority: []byte("PEM\n")}

// TestRender holds what is provisioned. A case begins with a sentence, has the Gateway as in.yaml, and the objects that it speaks of, by kind.
func TestRender(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { renderCase(t, file) })
	}
}

func renderCase(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var g Gateway
	if err := yaml.UnmarshalStrict(a.Files[0].Data, &g); err != nil {
		t.Fatal(err)
	}
	if err := g.Parameters.Validate(); err != nil {
		t.Fatal(err)
	}
	objects, err := Render(g, install)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	var kinds []string
	for _, o := range objects {
		delete(o.metadata()["annotations"].(map[string]any), AnnotationHash) // a hash of what is compared anyway
		raw, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if file := o.Kind() + ".yaml"; got[file] != "" {
			got[file] += "---\n" + string(raw)
		} else {
			got[file] = string(raw)
		}
		kinds = append(kinds, o.Kind())
	}
	got["kinds"] = strings.Join(kinds, "\n") + "\n"
	for i, f := range a.Files[1:] {
		if *update {
			a.Files[i+1].Data = []byte(got[f.Name])
		} else if diff := cmp.Diff(string(f.Data), got[f.Name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", f.Name, diff)
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoRouteIsAnInput: the same Gateway gives the same bytes, whenever it is rendered.
func TestTheSameGatewayGivesTheSameHash(t *testing.T) {
	g := Gateway{Cluster: "c", Namespace: "n", Name: "g", UID: "u", Class: "fleetgate", Ports: []Port{{80, "TCP"}, {443, "TCP"}}, Labels: map[string]string{"b": "1", "a": "2"}}
	first, err := Render(g, install)
	if err != nil {
		t.Fatal(err)
	}
	g.Ports = []Port{{443, "TCP"}, {80, "TCP"}, {80, "TCP"}}
	second, err := Render(g, install)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Error(diff)
	}
}

// TestListenersAreNotInThePodTemplate: else a new listener would start new pods and break every connection.
func TestListenersAreNotInThePodTemplate(t *testing.T) {
	g := Gateway{Cluster: "c", Namespace: "n", Name: "g", UID: "u", Class: "fleetgate", Ports: []Port{{80, "TCP"}}}
	one, err := Render(g, install)
	if err != nil {
		t.Fatal(err)
	}
	g.Ports = append(g.Ports, Port{53, "UDP"})
	two, err := Render(g, install)
	if err != nil {
		t.Fatal(err)
	}
	for i := range one {
		same := one[i].annotation(AnnotationHash) == two[i].annotation(AnnotationHash)
		if same == (one[i].Kind() == "Service") {
			t.Errorf("%s: unchanged = %v", one[i].Kind(), same)
		}
	}
}
