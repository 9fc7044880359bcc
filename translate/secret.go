package translate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// SecretContext is the additional data with which a secret record is sealed: a sealed secret that is moved to another name does not open.
func SecretContext(k record.Key) []byte {
	return []byte(record.Join(k.Cluster, k.Namespace, string(k.Kind), k.Name))
}

// secretName is the name of a secret in SDS.
func secretName(k record.Key) string { return record.Join(k.Cluster, k.Namespace, k.Name) }

// compileSecret seals a TLS secret that a listener names.
func compileSecret(v *view, k record.Key) compiled {
	out := record.Secret{Name: secretName(k)}
	plain, reason := []byte(nil), v.absence("Secret", k.Namespace, k.Name)
	if f := fact[secretFact](v, "Secret", k.Namespace, k.Name); f != nil {
		plain, reason = plainSecret(out.Name, f)
	}
	if reason == "" {
		sealed, err := v.c.cfg.Seal(plain, SecretContext(k))
		if err == nil {
			out.Version, out.Sealed = v.c.cfg.Version(plain), sealed
			return compiled{value: out}
		}
		reason = fmt.Sprintf("cannot be sealed (%v): check the sealing key of the replicas", err)
	}
	p := unresolved("InvalidCertificateRef", fmt.Sprintf("Secret %s/%s %s", k.Namespace, k.Name, reason))
	out.Problem = &p
	return compiled{value: out}
}

// plainSecret checks what Envoy would check, so that a bad certificate is its listener's problem and not a rejected resource.
func plainSecret(name string, f *secretFact) (plain []byte, reason string) {
	if f.kind != string(corev1.SecretTypeTLS) {
		return nil, fmt.Sprintf("has type %q: create it with type kubernetes.io/tls", f.kind)
	}
	pair, err := tls.X509KeyPair(f.certificate, f.key)
	if err != nil {
		return nil, fmt.Sprintf("holds no usable certificate and key (%v): put matching PEM into tls.crt and tls.key", err)
	}
	if broken(f.certificate) {
		return nil, "holds a block of PEM that is broken: correct tls.crt"
	}
	if reason := checkChain(pair); reason != "" {
		return nil, reason
	}
	plain, err = envoy.Marshal(envoy.TLSSecret(name, f.certificate, f.key))
	if err != nil {
		return nil, fmt.Sprintf("is not valid (%v): correct it", err)
	}
	return plain, ""
}

// broken tells whether PEM begins a block that cannot be read. Go passes over it, Envoy rejects all of it.
func broken(text []byte) bool {
	begun := bytes.Count(append([]byte("\n"), text...), []byte("\n-----BEGIN "))
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return begun > 0
		}
		begun--
	}
}

// mustStaple is the extension by which a certificate asks for a stapled OCSP response (RFC 7633).
var mustStaple = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

// checkChain holds a chain against what BoringSSL takes.
func checkChain(pair tls.Certificate) (reason string) {
	for i, der := range pair.Certificate {
		if _, err := x509.ParseCertificate(der); err != nil {
			return fmt.Sprintf("holds a chain whose certificate %d is broken (%v): correct tls.crt", i+1, err)
		}
	}
	if slices.ContainsFunc(pair.Leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(mustStaple) }) {
		return "must be served with an OCSP response, for which a Secret has no place: use a certificate without must-staple"
	}
	switch key := pair.Leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < 2048 {
			return fmt.Sprintf("has an RSA key of %d bits: use at least 2048", key.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if key.Curve.Params().BitSize < 256 {
			return fmt.Sprintf("has a key on curve %s: use P-256, P-384 or P-521", key.Curve.Params().Name)
		}
	default:
		return "has a key of a kind that Envoy does not take: use RSA or ECDSA"
	}
	return ""
}
