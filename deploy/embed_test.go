package deploy

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCRDsAreThoseOfTheModule keeps the copies from drifting when go.mod moves to another gateway-api.
func TestCRDsAreThoseOfTheModule(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatalf("finding the gateway-api module: %v", err)
	}
	module := filepath.Join(strings.TrimSpace(string(out)), "config", "crd")
	sameCRDs(t, filepath.Join(module, "standard", "gateway.networking.k8s.io_*s.yaml"), "crds", "gateway.networking.k8s.io_*.yaml")
	sameCRDs(t, filepath.Join(module, "experimental", "gateway.networking.x-k8s.io_*s.yaml"), "experimental", "*.yaml")
}

// notOurs are the module's files that are left out.
func notOurs(name string) bool {
	return strings.Contains(name, "_vap_") || // an admission policy, not a CRD
		strings.Contains(name, "_xmeshes") // of service meshes
}

// sameCRDs holds the copies in a directory against the module's files.
func sameCRDs(t *testing.T, module, dir, copies string) {
	t.Helper()
	theirs, err := filepath.Glob(module)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, path := range theirs {
		name := filepath.Base(path)
		if notOurs(name) {
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := fs.ReadFile(CRDs, dir+"/"+name)
		if err != nil {
			t.Errorf("%s is missing: copy it from %s", name, path)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s/%s differs from the module's: copy it again from %s", dir, name, path)
		}
		checked++
	}
	ours, _ := fs.Glob(CRDs, dir+"/"+copies)
	if checked == 0 || checked != len(ours) {
		t.Errorf("%d CRDs are embedded in %s, %d of them are the module's", len(ours), dir, checked)
	}
}
