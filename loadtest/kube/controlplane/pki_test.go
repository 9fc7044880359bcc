// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

func readCertificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s is no PEM", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestKeys: the API server is believed at each address that it is reached at, and each component is who RBAC takes it for.
func TestKeys(t *testing.T) {
	dir := t.TempDir()
	c := rig.Cluster{
		Name: "c1", Dir: dir, Server: "https://127.0.0.1:7", Kubeconfig: filepath.Join(dir, "kubeconfig"), NodeKubeconfig: filepath.Join(dir, "node.kubeconfig"),
		NodeName: "n", NodeIP: netip.MustParseAddr("10.10.0.1"), ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16"),
	}
	k, err := writeKeys(c, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(readCertificate(t, k.path("ca.crt")))
	for _, name := range []string{"127.0.0.1", "10.10.0.1", "10.101.0.1", "kubernetes.default.svc"} {
		if _, err := readCertificate(t, k.path("apiserver.crt")).Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("the API server at %s: %v", name, err)
		}
	}
	for file, user := range map[string]string{"kube-scheduler": "system:kube-scheduler", "kube-controller-manager": "system:kube-controller-manager"} {
		if got := readCertificate(t, k.path(file+".crt")).Subject.CommonName; got != user {
			t.Errorf("%s is %q, want %q", file, got, user)
		}
		if _, err := clientcmd.BuildConfigFromFlags("", k.path(file+".kubeconfig")); err != nil {
			t.Error(err)
		}
	}
	if config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig); err != nil || config.Host != c.Server {
		t.Errorf("the kubeconfig leads to %v, %v", config, err)
	}
}
