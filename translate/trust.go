package translate

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// compileGatewayTLS resolves what spec.tls says of a whole Gateway: how clients are validated, and what it shows to backends.
func compileGatewayTLS(v *view, f *gatewayFact, out *record.Gateway) {
	if f.spec.TLS == nil {
		return
	}
	if front := f.spec.TLS.Frontend; front != nil {
		out.Frontend = &record.Frontend{Default: clientValidation(v, f.object, front.Default.Validation)}
		for _, p := range front.PerPort {
			out.Frontend.PerPort = append(out.Frontend.PerPort, record.PortValidation{Port: int32(p.Port), Clients: clientValidation(v, f.object, p.TLS.Validation)})
		}
	}
	if back := f.spec.TLS.Backend; back != nil && back.ClientCertificateRef != nil {
		key, problem := resolveCertificate(v, f.object, *back.ClientCertificateRef)
		if problem != nil {
			if problem.Reason == "InvalidCertificateRef" {
				problem.Reason = string(gatewayv1.GatewayReasonInvalidClientCertificateRef)
			}
			problem.Message = "tls.backend.clientCertificateRef: " + problem.Message
			out.Problems = append(out.Problems, *problem)
			return
		}
		out.Client, out.ClientKey = secretName(key), &key
	}
}

// clientValidation resolves the authorities of client certificates. A reference that cannot be used is left out, with a problem for every listener of the
// port; one that leads to nothing usable is its record's matter.
func clientValidation(v *view, from record.Object, in *gatewayv1.FrontendTLSValidation) *record.ClientValidation {
	if in == nil {
		return nil
	}
	out := &record.ClientValidation{AllowInsecure: in.Mode == gatewayv1.AllowInsecureFallback}
	if !out.AllowInsecure && in.Mode != "" && in.Mode != gatewayv1.AllowValidOnly {
		out.Problems = append(out.Problems, accepted("UnsupportedValue", fmt.Sprintf("tls.frontend: mode %s is not supported: use AllowValidOnly or AllowInsecureFallback", in.Mode)))
	}
	for _, ref := range in.CACertificateRefs {
		key, problem := resolveAuthority(v, from, ref)
		if problem != nil {
			out.Problems = append(out.Problems, *problem)
			continue
		}
		out.Trust = append(out.Trust, key)
	}
	return out
}

func resolveAuthority(v *view, from record.Object, ref gatewayv1.ObjectReference) (record.Key, *record.Problem) {
	if ref.Group != "" || ref.Kind != "ConfigMap" {
		p := unresolved(string(gatewayv1.ListenerReasonInvalidCACertificateKind), fmt.Sprintf("tls.frontend: caCertificateRef %s is no core ConfigMap: name a ConfigMap with a key ca.crt", ref.Name))
		return record.Key{}, &p
	}
	namespace := from.Namespace
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	if !v.granted(from.Kind, from.Namespace, "ConfigMap", namespace, string(ref.Name)) {
		p := unresolved("RefNotPermitted", fmt.Sprintf("no ReferenceGrant in namespace %s allows %ss of %s to use ConfigMap %s: create one", namespace, from.Kind, from.Namespace, ref.Name))
		return record.Key{}, &p
	}
	return v.key(record.KindTrust, namespace, record.Join("ConfigMap", string(ref.Name))), nil
}

// compileTrust makes the record of authorities that somebody trusts.
func compileTrust(v *view, k record.Key) compiled {
	kind, name := splitRoute(k.Name)
	bundle, reason := authorities(v, kind, k.Namespace, name)
	if reason == "" {
		return compiled{value: record.Trust{PEM: []byte(bundle)}}
	}
	p := unresolved(string(gatewayv1.ListenerReasonInvalidCACertificateRef), fmt.Sprintf("%s %s/%s %s", kind, k.Namespace, name, reason))
	return compiled{value: record.Trust{Problem: &p}}
}

// authorities reads the certificates of authorities from a ConfigMap.
func authorities(v *view, kind, namespace, name string) (bundle, reason string) {
	f := fact[configMapFact](v, kind, namespace, name)
	if f == nil {
		return "", v.absence(kind, namespace, name)
	}
	if f.authorities == "" {
		return "", "has no key ca.crt: put certificates in PEM there"
	}
	return cleanBundle(f.authorities)
}

// cleanBundle keeps the certificates of a PEM bundle: Envoy rejects a whole resource for one that is broken.
func cleanBundle(in string) (bundle, reason string) {
	var out strings.Builder
	for rest := []byte(in); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", fmt.Sprintf("holds a broken certificate (%v): correct ca.crt", err)
		}
		out.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
	}
	if out.Len() == 0 {
		return "", "holds no certificate: put certificates in PEM into ca.crt"
	}
	return out.String(), ""
}
