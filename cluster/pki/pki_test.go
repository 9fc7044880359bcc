package pki

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// issue makes an authority in dir and a certificate of it.
func issue(t *testing.T, dir, authority, name string) (cert, key, ca string) {
	t.Helper()
	a, err := NewAuthority(dir, authority)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err = a.Issue(dir, name, []string{"localhost", "127.0.0.1"}, []string{"spiffe://fleetgate/replica/" + name}, true, true)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, a.CertFile()
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	cert, key, ca := issue(t, dir, "peers", "a")
	_, otherKey, otherCA := issue(t, dir, "proxies", "b")
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, cert, key, ca string
		says                string
	}{
		{"missing certificate", filepath.Join(dir, "none"), key, ca, "check that the path is right"},
		{"key of another certificate", cert, otherKey, ca, "issued together"},
		{"certificate of another authority", cert, key, otherCA, "does not vouch for"},
		{"authority file is a text", cert, key, text, "holds no PEM certificate"},
		{"authority file is a key", cert, key, key, "no certificate"},
		{"certificate file is a text", text, key, ca, "issued together"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(c.cert, c.key, c.ca)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want it to say %q", err, c.says)
			}
			if c.name != "missing certificate" && !errors.Is(err, ErrDoesNotFit) {
				t.Errorf("%v is not ErrDoesNotFit", err)
			}
		})
	}
}

func TestAuthorityIsLoadedAgain(t *testing.T) {
	dir := t.TempDir()
	cert, key, ca := issue(t, dir, "peers", "a")
	if _, _, again := issue(t, dir, "peers", "b"); again != ca {
		t.Fatalf("authority moved from %s to %s", ca, again)
	}
	if _, err := Load(cert, key, ca); err != nil {
		t.Fatalf("certificate of before the authority was loaded again: %v", err)
	}
}

// A renewed certificate is shown to the next client, and the connection of before stays.
func TestRenewalDropsNoConnection(t *testing.T) {
	dir := t.TempDir()
	cert, key, ca := issue(t, dir, "peers", "a")
	s, err := Load(cert, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	addr := echo(t, s)
	before := dial(t, s, addr)
	old := before.ConnectionState().PeerCertificates[0].SerialNumber
	exchange(t, before)

	renew(t, dir, cert)
	after := dial(t, s, addr)
	if now := after.ConnectionState().PeerCertificates[0].SerialNumber; now.Cmp(old) == 0 {
		t.Error("the renewed certificate was not taken up")
	}
	exchange(t, after)
	exchange(t, before)
}

// A broken renewal leaves the last good certificate in force, and says so.
func TestBrokenRenewalKeepsTheOld(t *testing.T) {
	dir := t.TempDir()
	cert, key, ca := issue(t, dir, "peers", "a")
	s, err := Load(cert, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	addr := echo(t, s)
	if err := os.WriteFile(cert, []byte("half a certi"), 0o600); err != nil {
		t.Fatal(err)
	}
	exchange(t, dial(t, s, addr))
	if s.Problem() == nil {
		t.Error("the broken certificate is not reported")
	}
	renew(t, dir, cert)
	if err := s.Problem(); err != nil {
		t.Errorf("still reported after it was mended: %v", err)
	}
}

func TestStrangerIsRefused(t *testing.T) {
	dir := t.TempDir()
	cert, key, ca := issue(t, dir, "peers", "a")
	s, err := Load(cert, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	addr := echo(t, s)
	proxyCert, proxyKey, proxyCA := issue(t, dir, "proxies", "envoy")
	stranger, err := Load(proxyCert, proxyKey, proxyCA)
	if err != nil {
		t.Fatal(err)
	}
	config := stranger.ClientConfig("localhost", "test")
	config.RootCAs = s.current().roots // it knows our authority, but is not of it
	conn, err := tls.Dial("tcp", addr, config)
	if err == nil {
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
	}
	if err == nil || errors.Is(err, io.EOF) {
		t.Fatalf("a proxy's certificate was accepted by the peers' listener: %v", err)
	}
}

// A bundle that has got the other port's authority too is not taken up either: it would open the peers' port to every proxy, and no replica would start again.
func TestReloadKeepsAuthoritiesApart(t *testing.T) {
	dir := t.TempDir()
	cert, key, ca := issue(t, dir, "peers", "a")
	peers, err := Load(cert, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	proxyCert, proxyKey, proxyCA := issue(t, dir, "proxies", "envoy")
	proxies, err := Load(proxyCert, proxyKey, proxyCA)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckApart(peers, proxies); err != nil {
		t.Fatal(err)
	}
	addr := echo(t, peers)
	before, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	more, err := os.ReadFile(proxyCA)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, append(slices.Clone(before), more...), 0o600); err != nil {
		t.Fatal(err)
	}
	config := proxies.ClientConfig("localhost", "test")
	config.RootCAs = peers.current().roots
	conn, err := tls.Dial("tcp", addr, config)
	if err == nil {
		defer conn.Close()
		_, err = conn.Write([]byte("x"))
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // it comes back where it was let in
		}
	}
	if err == nil {
		t.Error("a proxy's certificate was accepted at the peers' port")
	}
	if err := peers.Problem(); err == nil || !strings.Contains(err.Error(), "one authority for replicas") {
		t.Errorf("problem: %v", err)
	}
	if err := os.WriteFile(ca, before, 0o600); err != nil {
		t.Fatal(err)
	}
	exchange(t, dial(t, peers, addr))
	if err := peers.Problem(); err != nil {
		t.Errorf("still reported after it was mended: %v", err)
	}
}

func renew(t *testing.T, dir, cert string) {
	t.Helper()
	issue(t, dir, "peers", "a")
	later := time.Now().Add(time.Minute) // a clock of coarse grain must not hide the change
	if err := os.Chtimes(cert, later, later); err != nil {
		t.Fatal(err)
	}
}

func echo(t *testing.T, s *Source) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", s.ServerConfig("test"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) { defer c.Close(); io.Copy(c, c) }(c)
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, s *Source, addr string) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", addr, s.ClientConfig("localhost", "test"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func exchange(t *testing.T, c *tls.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}
