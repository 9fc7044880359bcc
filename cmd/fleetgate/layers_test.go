package main

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fleetgate/fleetgate"

// internal says which of our packages each may import. Nothing is listed twice, so the list can be read from the bottom up: leaves come last.
var internal = map[string][]string{
	"cmd/fleetgate":  {"cluster/enroll", "cluster/fleet", "cluster/fleet/v1alpha1", "cluster/group", "cluster/headless", "cluster/member", "cluster/member/kube", "cluster/pki", "cluster/seal", "cluster/status", "cluster/store", "shard", "translate", "translate/assemble", "translate/envoy", "translate/record", "xds"},
	"shard":          {"cluster/store", "translate", "translate/record"},
	"cluster/status": {"cluster/member", "translate/assemble", "translate/record"},
	"cluster/group":  {"cluster/pki", "cluster/store"},
	// member hashes objects as records are hashed, and reads the CRDs that an installation consists of.
	"cluster/member/kube":    {"cluster/enroll", "cluster/fleet", "cluster/fleet/v1alpha1", "cluster/headless", "cluster/member"},
	"cluster/member":         {"cluster/fleet/v1alpha1", "cluster/store", "deploy", "translate/record"},
	"translate":              {"cluster/fleet/v1alpha1", "translate/envoy", "translate/record"},
	"translate/assemble":     {"translate/envoy", "translate/record"},
	"translate/envoy":        {},
	"translate/record":       {},
	"cluster/enroll":         {"xds"},
	"cluster/fleet":          {"cluster/fleet/v1alpha1", "cluster/keep"},
	"cluster/headless":       {"cluster/fleet/v1alpha1", "cluster/keep"},
	"cluster/keep":           {},
	"cluster/store":          {},
	"cluster/pki":            {},
	"cluster/seal":           {},
	"cluster/fleet/v1alpha1": {},
	"xds":                    {},
	"deploy":                 {},
}

// confined says who alone may import a dependency, and why.
var confined = []struct{ dependency, owner, why string }{
	{"github.com/hashicorp/raft", "cluster/group", "its scars are known in one place"},
	{"k8s.io/client-go", "cluster/member/kube", "the rest knows objects, not where they come from"},
	{"k8s.io/apiextensions-apiserver", "cluster/member", "validation belongs to the source"},
	{"go.etcd.io/bbolt", "cluster/store", "others see a store, not a file"},
	{"github.com/spf13/cobra", "cmd/fleetgate", "only the command has a command line"},
}

// forbidden says what a package must not import, nor anything that it imports.
var forbidden = []struct{ pkg, dependency, why string }{
	{"cluster/store", "github.com/hashicorp/raft", "the replicated state machine imports no Raft (STYLE 15)"},
	{"cluster/store", "sigs.k8s.io/gateway-api", "payloads are opaque bytes"},
	{"cluster/store", "k8s.io", "payloads are opaque bytes"},
	{"xds", "k8s.io", "a server knows no domain"},
	{"xds", "sigs.k8s.io", "a server knows no domain"},
	{"xds", "github.com/hashicorp/raft", "xds takes named bytes, wherever they come from"},
	{"xds", "go.etcd.io/bbolt", "xds takes named bytes, wherever they come from"},
	{"translate/envoy", "sigs.k8s.io/gateway-api", "a shelf of Envoy constructors is a leaf"},
	{"translate/envoy", "k8s.io", "a shelf of Envoy constructors is a leaf"},
}

// impure is what pure packages must not import themselves.
var impure = []string{"context", "log", "log/slog", "os", "net/http", "math/rand", "math/rand/v2", "crypto/rand"}

var pure = []string{"translate", "translate/assemble", "translate/envoy", "translate/record"}

var badNames = []string{"util", "utils", "common", "helpers", "types", "models"}

type goPackage struct{ imports, deps []string }

// goList reads what packages import; test files do not count.
func goList(t *testing.T) map[string]goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-f", "{{.ImportPath}}|{{join .Imports \" \"}}|{{join .Deps \" \"}}", "./...")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := map[string]goPackage{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		f := strings.Split(line, "|")
		packages[strings.TrimPrefix(f[0], module+"/")] = goPackage{imports: strings.Fields(f[1]), deps: strings.Fields(f[2])}
	}
	return packages
}

func within(dependency, root string) bool {
	return dependency == root || strings.HasPrefix(dependency, root+"/") || strings.HasPrefix(dependency, root+"-") && root == "github.com/hashicorp/raft"
}

// TestLayers holds the direction of imports that DESIGN.md draws.
func TestLayers(t *testing.T) {
	packages := goList(t)
	for name, p := range packages {
		if slices.Contains(badNames, path.Base(name)) {
			t.Errorf("%s: a package is named for what it holds, not %q", name, path.Base(name))
		}
		checkInternal(t, name, p)
		for _, c := range confined {
			if i := slices.IndexFunc(p.imports, func(d string) bool { return within(d, c.dependency) }); i >= 0 && name != c.owner && !strings.HasPrefix(name, "loadtest") { // the harness may look at everything
				t.Errorf("%s imports %s, which only %s may: %s", name, p.imports[i], c.owner, c.why)
			}
		}
	}
	for _, f := range forbidden {
		for _, d := range packages[f.pkg].deps {
			if within(d, f.dependency) {
				t.Errorf("%s depends on %s: %s", f.pkg, d, f.why)
			}
		}
	}
}

func checkInternal(t *testing.T, name string, p goPackage) {
	if strings.HasPrefix(name, "loadtest") { // the harness may look at everything
		return
	}
	allowed, known := internal[name]
	if !known {
		t.Errorf("package %s is not in the layers: add it to the list here, and say in DESIGN.md what it holds", name)
	}
	for _, d := range p.imports {
		if rel, ours := strings.CutPrefix(d, module+"/"); ours && !slices.Contains(allowed, rel) {
			t.Errorf("%s imports %s, which is against the direction of DESIGN.md", name, rel)
		}
	}
}

// TestPurePackagesHaveNoWorld: objects in, records out; the same on every replica and at every time.
func TestPurePackagesHaveNoWorld(t *testing.T) {
	packages := goList(t)
	clock := regexp.MustCompile(`\btime\.(Now|Since|Until|Sleep|After|NewTimer|NewTicker)\b`)
	for _, name := range pure {
		for _, d := range packages[name].imports {
			if slices.Contains(impure, d) {
				t.Errorf("%s imports %s: it is pure", name, d)
			}
		}
		files, err := filepath.Glob(filepath.Join("..", "..", name, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no files: %v", name, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if found := clock.Find(b); found != nil && !strings.HasSuffix(f, "_test.go") {
				t.Errorf("%s reads the clock with %s: time is a parameter", f, found)
			}
		}
	}
}
