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
	dir := filepath.Join(strings.TrimSpace(string(out)), "config", "crd", "standard")
	theirs, err := filepath.Glob(filepath.Join(dir, "gateway.networking.k8s.io_*s.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, path := range theirs {
		name := filepath.Base(path)
		if strings.Contains(name, "_vap_") { // an admission policy, not a CRD
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := fs.ReadFile(CRDs, "crds/"+name)
		if err != nil {
			t.Errorf("%s is missing: copy it from %s", name, path)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("crds/%s differs from the module's: copy it again from %s", name, path)
		}
		checked++
	}
	ours, _ := fs.Glob(CRDs, "crds/gateway.networking.k8s.io_*.yaml")
	if checked == 0 || checked != len(ours) {
		t.Errorf("%d CRDs are embedded, %d of them are the module's", len(ours), checked)
	}
}
