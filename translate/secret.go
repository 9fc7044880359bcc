package translate

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"

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
	if reason := checkChain(pair); reason != "" {
		return nil, reason
	}
	plain, err = envoy.Marshal(envoy.TLSSecret(name, f.certificate, f.key))
	if err != nil {
		return nil, fmt.Sprintf("is not valid (%v): correct it", err)
	}
	return plain, ""
}

// checkChain holds a chain against what BoringSSL takes.
func checkChain(pair tls.Certificate) (reason string) {
	for i, der := range pair.Certificate {
		if _, err := x509.ParseCertificate(der); err != nil {
			return fmt.Sprintf("holds a chain whose certificate %d is broken (%v): correct tls.crt", i+1, err)
		}
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
