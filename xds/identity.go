package xds

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Identity says who a proxy is. It comes from its certificate, never from what it says of itself (D15).
type Identity struct {
	Cluster, Namespace, Gateway string
	Proxy                       string // the pod's uid
}

// Fleet is the name of the fleet that the proxy belongs to, the only one whose resources its streams can see.
// The parts are escaped exactly as record.Join escapes them.
func (i Identity) Fleet() string {
	return escape.Replace(i.Cluster) + "/" + escape.Replace(i.Namespace) + "/" + escape.Replace(i.Gateway)
}

var escape = strings.NewReplacer("%", "%25", "/", "%2F")

// URI is the SPIFFE id that a certificate for this identity carries.
func (i Identity) URI() *url.URL {
	parts := []string{"proxy", i.Cluster, i.Namespace, i.Gateway, i.Proxy}
	raw := make([]string, len(parts))
	for n, p := range parts {
		raw[n] = url.PathEscape(p)
	}
	return &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/" + strings.Join(parts, "/"), RawPath: "/" + strings.Join(raw, "/")}
}

const trustDomain = "fleetgate"

var errNoIdentity = errors.New("want exactly one URI SAN spiffe://fleetgate/proxy/<cluster>/<namespace>/<gateway>/<proxy uid>")

// ParseIdentity reads the identity of a proxy out of its (already verified) certificate. Anything but exactly one well-formed
// identity is an error: a certificate that says two things says nothing.
func ParseIdentity(cert *x509.Certificate) (Identity, error) {
	if cert == nil || len(cert.URIs) != 1 {
		return Identity{}, fmt.Errorf("proxy certificate: %w", errNoIdentity)
	}
	u := cert.URIs[0]
	parts := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	if u.Scheme != "spiffe" || u.Host != trustDomain || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(parts) != 5 || parts[0] != "proxy" {
		return Identity{}, fmt.Errorf("proxy certificate names %q: %w", u.String(), errNoIdentity)
	}
	for n, p := range parts {
		plain, err := url.PathUnescape(p)
		if err != nil || plain == "" {
			return Identity{}, fmt.Errorf("proxy certificate names %q: %w", u.String(), errNoIdentity)
		}
		parts[n] = plain
	}
	return Identity{Cluster: parts[1], Namespace: parts[2], Gateway: parts[3], Proxy: parts[4]}, nil
}

// identifyVerified is the default of Config.Identify: the identity of the client certificate, provided that the TLS stack verified it.
func identifyVerified(s *tls.ConnectionState) (Identity, error) {
	if s == nil || len(s.VerifiedChains) == 0 || len(s.VerifiedChains[0]) == 0 {
		return Identity{}, errors.New("no verified client certificate: proxies must use mutual TLS")
	}
	return ParseIdentity(s.VerifiedChains[0][0])
}
