package deploy

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the files to install from anew")

// TestInstallIsAllOfIt: install.yaml is the one file that `kubectl apply --server-side -f` takes. It consists of the CRDs and of every manifest beside it, the
// namespace first and the replicas last. Its sister is for clusters that have the Gateway API's CRDs already, of the experimental channel for instance, and leaves those alone.
func TestInstallIsAllOfIt(t *testing.T) {
	manifests, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	manifests = slices.DeleteFunc(manifests, func(f string) bool {
		return strings.HasPrefix(f, "install") || f == "namespace.yaml" || f == "replicas.yaml"
	})
	for name, crds := range map[string]string{"install.yaml": "crds/*.yaml", "install-without-gateway-api.yaml": "crds/fleetgate.io_*.yaml"} {
		files, err := filepath.Glob(crds)
		if err != nil || len(files) == 0 {
			t.Fatalf("no CRDs: %v", err)
		}
		together(t, name, slices.Concat(files, []string{"namespace.yaml"}, manifests, []string{"replicas.yaml"}))
	}
}

// together holds a file to what it consists of.
func together(t *testing.T, name string, files []string) {
	t.Helper()
	want := []byte("# Fleetgate: kubectl apply --server-side -f " + name + "\n# Put together from the files beside it by `go test ./deploy -update`: change those.\n")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		want = append(append(want, "---\n"...), bytes.TrimPrefix(b, []byte("---\n"))...)
	}
	if *update {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what it consists of (%v): go test ./deploy -update", name, err)
	}
}
