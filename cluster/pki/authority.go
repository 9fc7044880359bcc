package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// How long dev's certificates live. They are issued again at every start.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
)

// ReplicaURI is the URI SAN of a replica's peer certificate. A certificate that carries one speaks for that pod alone; one without any
// speaks for whichever replica it is given to.
func ReplicaURI(pod string) string { return "spiffe://fleetgate/replica/" + pod }

// Authority is a certificate authority in two files.
type Authority struct {
	certFile, keyFile string
	cert              *x509.Certificate
	key               *ecdsa.PrivateKey
}

// OpenAuthority loads an authority from its two PEM files.
func OpenAuthority(certFile, keyFile string) (*Authority, error) {
	a := &Authority{certFile: certFile, keyFile: keyFile}
	if err := a.load(); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return a, nil
}

// NewAuthority loads the authority called name from dir, or makes it there.
func NewAuthority(dir, name string) (*Authority, error) {
	a := &Authority{certFile: filepath.Join(dir, name+"-ca.crt"), keyFile: filepath.Join(dir, name+"-ca.key")}
	err := a.load()
	if errors.Is(err, fs.ErrNotExist) {
		err = a.create(name)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority %q in %s: %w", name, dir, err)
	}
	return a, nil
}

// CertFile is the file that those who trust the authority are given.
func (a *Authority) CertFile() string { return a.certFile }

// Sign makes a PEM certificate of a client: whose key it is, who it is, and from when until when.
func (a *Authority) Sign(key any, who *url.URL, from, until time.Time) ([]byte, error) {
	t, err := template("", 0)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %s: %w", who, err)
	}
	t.NotBefore, t.NotAfter, t.URIs = from, until, []*url.URL{who}
	t.Subject = pkix.Name{Organization: []string{"Fleetgate"}} // a name there would be one more that could be believed
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	raw, err := x509.CreateCertificate(rand.Reader, t, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %s: %w", who, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), nil
}

// Issue writes a new certificate and key for name into dir and returns their files. hosts are DNS names and IP addresses, uris are URI SANs;
// client and server say what it may be used as. Both files are replaced by rename, key first.
func (a *Authority) Issue(dir, name string, hosts, uris []string, client, server bool) (certFile, keyFile string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("issue certificate %q: %w", name, err)
	}
	template, err := leaf(name, hosts, uris, client, server)
	if err != nil {
		return "", "", fmt.Errorf("issue certificate %q: %w", name, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("issue certificate %q: %w", name, err)
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return "", "", fmt.Errorf("issue certificate %q: %w", name, err)
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if err := writePair(certFile, raw, keyFile, key); err != nil {
		return "", "", fmt.Errorf("issue certificate %q: %w", name, err)
	}
	return certFile, keyFile, nil
}

func leaf(name string, hosts, uris []string, client, server bool) (*x509.Certificate, error) {
	c, err := template(name, leafLife)
	if err != nil {
		return nil, err
	}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	if client {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if server {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, host)
		}
	}
	for _, raw := range uris {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("URI %q: %w", raw, err)
		}
		c.URIs = append(c.URIs, u)
	}
	return c, nil
}

func template(name string, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: []string{"Fleetgate"}},
		NotBefore:    now.Add(-time.Hour), // clocks differ
		NotAfter:     now.Add(life),
	}, nil
}

func (a *Authority) create(name string) error {
	if err := os.MkdirAll(filepath.Dir(a.certFile), 0o700); err != nil {
		return err
	}
	c, err := template("Fleetgate "+name, authorityLife)
	if err != nil {
		return err
	}
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		return err
	}
	if a.cert, err = x509.ParseCertificate(raw); err != nil {
		return err
	}
	a.key = key
	return writePair(a.certFile, raw, a.keyFile, key)
}

func (a *Authority) load() error {
	certPEM, err := os.ReadFile(a.certFile)
	if err != nil {
		return err
	}
	keyPEM, err := os.ReadFile(a.keyFile)
	if err != nil {
		return err
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return fmt.Errorf("%w: %s and %s are no PEM files: delete both to have a new authority made", ErrDoesNotFit, a.certFile, a.keyFile)
	}
	if a.cert, err = x509.ParseCertificate(certBlock.Bytes); err != nil {
		return fmt.Errorf("%s: %w: delete it and its key to have a new authority made", a.certFile, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return fmt.Errorf("%s: %w: delete it and its certificate to have a new authority made", a.keyFile, err)
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok || !private.PublicKey.Equal(a.cert.PublicKey) {
		return fmt.Errorf("%w: %s is not the key of %s: delete both to have a new authority made", ErrDoesNotFit, a.keyFile, a.certFile)
	}
	a.key = private
	return nil
}

func writePair(certFile string, cert []byte, keyFile string, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := replace(keyFile, "PRIVATE KEY", raw, 0o600); err != nil {
		return err
	}
	return replace(certFile, "CERTIFICATE", cert, 0o644)
}

// replace puts a PEM file in place by rename, so that nobody reads half of it.
func replace(file, kind string, raw []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}))
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
