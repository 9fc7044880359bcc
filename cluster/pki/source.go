// Package pki holds the certificates of a replica: it loads them, says what is wrong with them in words that help, and takes up
// replaced files at the next handshake, so that a renewed certificate costs nobody a connection.
//
// It also holds the small certificate authority that `fleetgate dev` makes for itself. Peers and proxies have one authority each, and
// these never mix (D15): whoever holds a proxy's certificate must not be able to speak Raft, so every Source names its own trust.
package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ErrDoesNotFit is wrapped by every error of Load that is about the content of the files, not about reading them.
var ErrDoesNotFit = errors.New("certificate does not fit")

// Source is a certificate, its key and the authorities that it trusts, read from files and read again when the files change.
// Its methods are safe for concurrent use.
type Source struct {
	certFile, keyFile, caFile string
	uses                      []x509.ExtKeyUsage

	now     atomic.Pointer[material]
	mu      sync.Mutex // one reload at a time
	problem atomic.Pointer[error]
	other   atomic.Pointer[Source] // of another port: see CheckApart
}

// material is one consistent reading of the three files.
type material struct {
	stamp [3]stamp
	cert  tls.Certificate
	roots *x509.CertPool
}

// stamp tells a file from its successor without reading it.
type stamp struct {
	modified time.Time
	size     int64
}

// Load reads a certificate (with its intermediates), its key and the authorities to trust, all PEM. It refuses a key that is not the
// certificate's, a certificate that its own authority does not verify, one that is expired, and one that may not be used as each of uses;
// the error names the file and the remedy.
func Load(certFile, keyFile, caFile string, uses ...x509.ExtKeyUsage) (*Source, error) {
	s := &Source{certFile: certFile, keyFile: keyFile, caFile: caFile, uses: uses}
	m, err := s.read()
	if err != nil {
		return nil, err
	}
	s.now.Store(m)
	return s, nil
}

// ServerConfig is mutual TLS 1.3: a client without a certificate of our authority gets no further than the handshake.
// The files are looked at in every handshake.
func (s *Source) ServerConfig(alpn ...string) *tls.Config {
	build := func() *tls.Config {
		m := s.current()
		return &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{m.cert},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    m.roots,
			NextProtos:   alpn,
			// A resumed session would skip the verification against an authority that was replaced meanwhile.
			SessionTicketsDisabled: true,
		}
	}
	c := build()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return build(), nil }
	return c
}

// ClientConfig is for one dial: it verifies that the server is serverName by our authority and shows our certificate. Make a new one for
// each dial so that replaced authorities count; the certificate is looked at in every handshake anyway.
func (s *Source) ClientConfig(serverName string, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: serverName,
		RootCAs:    s.current().roots,
		NextProtos: alpn,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &s.current().cert, nil
		},
	}
}

// Leaf is the certificate in use.
func (s *Source) Leaf() *x509.Certificate { return s.current().cert.Leaf }

// CheckApart refuses two sources of which one's authority vouches for the other's certificate (D15): whoever may come in at one port could
// come in at the other. From then on neither takes up files that would mix them.
func CheckApart(a, b *Source) error {
	if err := a.apart(a.current(), b, b.current()); err != nil {
		return err
	}
	a.other.Store(b)
	b.other.Store(a)
	return nil
}

// apart holds a reading against one of another source.
func (s *Source) apart(mine *material, other *Source, theirs *material) error {
	for _, c := range []struct {
		caFile, certFile string
		roots            *x509.CertPool
		cert             tls.Certificate
	}{{s.caFile, other.certFile, mine.roots, theirs.cert}, {other.caFile, s.certFile, theirs.roots, mine.cert}} {
		if verify(c.cert, c.roots, x509.ExtKeyUsageAny) == nil {
			return fmt.Errorf("%w: authority %s vouches for %s too, which is for another port: use one authority for replicas and another one for proxies", ErrDoesNotFit, c.caFile, c.certFile)
		}
	}
	return nil
}

// Problem is why the files on disk are not in use (the last good reading is), nil when they are.
func (s *Source) Problem() error {
	s.current()
	if p := s.problem.Load(); p != nil {
		return *p
	}
	return nil
}

// current is the newest good reading. Files that cannot be used leave the last good ones in force: a half-written renewal (key before
// certificate, say) heals by itself at the next look.
func (s *Source) current() *material {
	m := s.now.Load()
	if at, err := s.stamps(); err == nil && at == m.stamp {
		s.problem.Store(nil)
		return m
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh, err := s.read()
	if err != nil {
		s.problem.Store(&err)
		return s.now.Load()
	}
	s.problem.Store(nil)
	s.now.Store(fresh)
	return fresh
}

func (s *Source) stamps() (at [3]stamp, err error) {
	for n, file := range []string{s.certFile, s.keyFile, s.caFile} {
		info, err := os.Stat(file)
		if err != nil {
			return at, err
		}
		at[n] = stamp{info.ModTime(), info.Size()}
	}
	return at, nil
}

func (s *Source) read() (*material, error) {
	at, err := s.stamps() // before the content: a change in between is seen as a change next time
	if err != nil {
		return nil, fmt.Errorf("certificate files: %w: check that the path is right and that this user may read it", err)
	}
	cert, err := s.readPair()
	if err != nil {
		return nil, err
	}
	roots, err := s.readRoots()
	if err != nil {
		return nil, err
	}
	if err := s.check(cert, roots); err != nil {
		return nil, err
	}
	m := &material{stamp: at, cert: cert, roots: roots}
	if other := s.other.Load(); other != nil {
		return m, s.apart(m, other, other.now.Load())
	}
	return m, nil
}

func (s *Source) readPair() (tls.Certificate, error) {
	certPEM, err := os.ReadFile(s.certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(s.keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("private key: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%w: certificate %s with key %s: %v: give the PEM files that were issued together", ErrDoesNotFit, s.certFile, s.keyFile, err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return tls.Certificate{}, fmt.Errorf("%w: %s: %v: issue it again", ErrDoesNotFit, s.certFile, err)
		}
	}
	return cert, nil
}

func (s *Source) readRoots() (*x509.CertPool, error) {
	raw, err := os.ReadFile(s.caFile)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	pool, found := x509.NewCertPool(), false
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, fmt.Errorf("%w: %s holds a %s that is no certificate: leave only PEM certificates of the authority in it", ErrDoesNotFit, s.caFile, block.Type)
		}
		pool.AddCert(cert)
		found = true
	}
	if !found {
		return nil, fmt.Errorf("%w: %s holds no PEM certificate: give the authority's certificate (it begins with -----BEGIN CERTIFICATE-----)", ErrDoesNotFit, s.caFile)
	}
	return pool, nil
}

// verify holds a certificate against authorities.
func verify(cert tls.Certificate, roots *x509.CertPool, use x509.ExtKeyUsage) error {
	between := x509.NewCertPool()
	for _, raw := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(raw); err == nil {
			between.AddCert(c)
		}
	}
	_, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}})
	return err
}

func (s *Source) check(cert tls.Certificate, roots *x509.CertPool) error {
	err := verify(cert, roots, x509.ExtKeyUsageAny)
	if err == nil {
		return s.checkUses(cert, roots)
	}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w: %s is valid from %s to %s only: renew it, or mend this machine's clock", ErrDoesNotFit, s.certFile,
			cert.Leaf.NotBefore.UTC().Format(time.RFC3339), cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return fmt.Errorf("%w: authority %s does not vouch for %s: %v: issue the certificate with this authority, or give the one that issued it", ErrDoesNotFit, s.caFile, s.certFile, err)
}

// useNames are the purposes as the tools that issue certificates call them.
var useNames = map[x509.ExtKeyUsage]string{x509.ExtKeyUsageClientAuth: "clientAuth", x509.ExtKeyUsageServerAuth: "serverAuth"}

func (s *Source) checkUses(cert tls.Certificate, roots *x509.CertPool) error {
	for _, use := range s.uses {
		if err := verify(cert, roots, use); err != nil {
			return fmt.Errorf("%w: %s may not be used as %s (%v): issue it with that extended key usage", ErrDoesNotFit, s.certFile, useNames[use], err)
		}
	}
	return nil
}
