// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// validity of a rig's certificates: longer than anybody keeps one.
const validity = 365 * 24 * time.Hour

// authority is a cluster's certificate authority.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(name string, now time.Time) (*authority, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(validity),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a := &authority{certificate: template}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make a certificate authority: %w", err)
	}
	if a.pem, err = a.sign(template, a.key); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(a.pem)
	if a.certificate, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("make a certificate authority: %w", err)
	}
	return a, nil
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", template.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// pair is a certificate and its key, PEM.
type pair struct{ certificate, key []byte }

// issue makes a certificate for user and groups, valid for these addresses and names when it serves.
func (a *authority) issue(user string, groups []string, ips []net.IP, names []string) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, fmt.Errorf("make a key: %w", err)
	}
	certificate, err := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: user, Organization: groups}, NotBefore: a.certificate.NotBefore, NotAfter: a.certificate.NotAfter,
		IPAddresses: ips, DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, key)
	if err != nil {
		return pair{}, err
	}
	encoded, err := encodeKey(key)
	return pair{certificate, encoded}, err
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// keys are the files below a cluster's directory that the components are given.
type keys struct{ dir string }

func (k keys) path(name string) string { return filepath.Join(k.dir, name) }

// writeKeys makes all keys, certificates and kubeconfigs of a cluster.
func writeKeys(c rig.Cluster, now time.Time) (keys, error) {
	k := keys{filepath.Join(c.Dir, "pki")}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return k, fmt.Errorf("make the directory of keys: %w", err)
	}
	ca, err := newAuthority(c.Name, now)
	if err != nil {
		return k, err
	}
	authorityKey, err := encodeKey(ca.key)
	if err != nil {
		return k, err
	}
	serviceAccounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return k, fmt.Errorf("make the key of service accounts: %w", err)
	}
	serviceAccountKey, err := encodeKey(serviceAccounts)
	if err != nil {
		return k, err
	}
	for name, data := range map[string][]byte{"ca.crt": ca.pem, "ca.key": authorityKey, "sa.key": serviceAccountKey} {
		if err := os.WriteFile(k.path(name), data, 0o600); err != nil {
			return k, fmt.Errorf("write a key: %w", err)
		}
	}
	return k, k.writeIdentities(c, ca)
}

// writeIdentities makes what each component proves itself with.
func (k keys) writeIdentities(c rig.Cluster, ca *authority) error {
	node := c.NodeIP.AsSlice()
	service := c.ServiceCIDR.Addr().Next().AsSlice() // the Service "kubernetes" always has the first address
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	inside := "https://" + c.NodeIP.String() + ":6443"
	for _, i := range []struct {
		name, user string
		groups     []string
		ips        []net.IP
		names      []string
		kubeconfig map[string]string // path -> server
	}{
		{name: "apiserver", user: "kube-apiserver", ips: []net.IP{net.IPv4(127, 0, 0, 1), node, service}, names: names},
		{name: "kubelet-client", user: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		{name: "admin", user: "admin", groups: []string{"system:masters"}, kubeconfig: map[string]string{c.Kubeconfig: c.Server, c.NodeKubeconfig: inside}},
		{name: "kube-controller-manager", user: "system:kube-controller-manager", kubeconfig: map[string]string{k.path("kube-controller-manager.kubeconfig"): inside}},
		{name: "kube-scheduler", user: "system:kube-scheduler", kubeconfig: map[string]string{k.path("kube-scheduler.kubeconfig"): inside}},
	} {
		p, err := ca.issue(i.user, i.groups, i.ips, i.names)
		if err != nil {
			return err
		}
		for path, server := range i.kubeconfig {
			if err := writeKubeconfig(path, c.Name, server, ca.pem, p); err != nil {
				return err
			}
		}
		for name, data := range map[string][]byte{i.name + ".crt": p.certificate, i.name + ".key": p.key} {
			if err := os.WriteFile(k.path(name), data, 0o600); err != nil {
				return fmt.Errorf("write a certificate: %w", err)
			}
		}
	}
	return nil
}

func writeKubeconfig(path, name, server string, ca []byte, p pair) error {
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: p.certificate, ClientKeyData: p.key}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write a kubeconfig: %w", err)
	}
	return nil
}

// MergeKubeconfigs writes one kubeconfig with the contexts of all clusters, the first one current.
func MergeKubeconfigs(path string, clusters []rig.Cluster) error {
	merged := clientcmdapi.NewConfig()
	for _, c := range clusters {
		one, err := clientcmd.LoadFromFile(c.Kubeconfig)
		if err != nil {
			return fmt.Errorf("merge kubeconfigs: %w", err)
		}
		merged.Clusters[c.Name], merged.AuthInfos[c.Name], merged.Contexts[c.Name] = one.Clusters[c.Name], one.AuthInfos[c.Name], one.Contexts[c.Name]
	}
	merged.CurrentContext = clusters[0].Name
	if err := clientcmd.WriteToFile(*merged, path); err != nil {
		return fmt.Errorf("merge kubeconfigs: %w", err)
	}
	return nil
}
