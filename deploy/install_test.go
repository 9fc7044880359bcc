package deploy

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write install.yaml anew")

// TestInstallIsAllOfIt: install.yaml is the one file that `kubectl apply --server-side -f` takes. It consists of the CRDs and of every manifest beside it, the
// namespace first and the replicas last.
func TestInstallIsAllOfIt(t *testing.T) {
	files, err := filepath.Glob("crds/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs: %v", err)
	}
	manifests, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	manifests = slices.DeleteFunc(manifests, func(f string) bool { return f == "install.yaml" || f == "namespace.yaml" || f == "replicas.yaml" })
	files = append(append(append(files, "namespace.yaml"), manifests...), "replicas.yaml")
	want := []byte("# Fleetgate: kubectl apply --server-side -f install.yaml\n# Put together from the files beside it by `go test ./deploy -update`: change those.\n")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		want = append(append(want, "---\n"...), bytes.TrimPrefix(b, []byte("---\n"))...)
	}
	if *update {
		if err := os.WriteFile("install.yaml", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("install.yaml")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("install.yaml is not what it consists of (%v): go test ./deploy -update", err)
	}
}
