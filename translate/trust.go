package translate

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
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
	if bad := v.notOfAuthorities(ref.Group, ref.Kind); bad != "" {
		p := unresolved(string(gatewayv1.ListenerReasonInvalidCACertificateKind), fmt.Sprintf("tls.frontend: caCertificateRef %s %s", ref.Name, bad))
		return record.Key{}, &p
	}
	if ref.Kind == kindTrustBundle {
		if ref.Namespace != nil {
			p := unresolved(string(gatewayv1.ListenerReasonInvalidCACertificateRef), fmt.Sprintf("tls.frontend: ClusterTrustBundle %s is in no namespace: remove namespace from the caCertificateRef", ref.Name))
			return record.Key{}, &p
		}
		return v.key(record.KindTrust, "", record.Join(kindTrustBundle, string(ref.Name))), nil
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

// kindTrustBundle are certificates of authorities for the whole cluster (GEP-5075): a built-in kind of Kubernetes 1.37 and, as a beta, of some before. It needs no
// ReferenceGrant, for everybody may read it.
const kindTrustBundle = "ClusterTrustBundle"

// TrustBundles is the name under which a source tells, as of a CRD, that its cluster serves ClusterTrustBundles.
const TrustBundles = "clustertrustbundles." + certificatesv1.GroupName

// notOfAuthorities says why nothing of a kind can hold certificates of authorities, "" = it can.
func (v *view) notOfAuthorities(group gatewayv1.Group, kind gatewayv1.Kind) string {
	switch {
	case group == "" && kind == "ConfigMap":
		return ""
	case group != certificatesv1.GroupName || kind != kindTrustBundle:
		return "is no core ConfigMap and no ClusterTrustBundle: name a ConfigMap with a key ca.crt, or a ClusterTrustBundle of certificates.k8s.io"
	case v.c.cfg.Asked && !v.defined(TrustBundles):
		return "is a ClusterTrustBundle, which this cluster does not serve: turn it on in the API server, or name a ConfigMap with a key ca.crt"
	}
	return ""
}

// compileTrust makes the record of authorities that somebody trusts.
func compileTrust(v *view, k record.Key) compiled {
	kind, name := splitRoute(k.Name)
	bundle, reason := authorities(v, kind, k.Namespace, name)
	if reason == "" {
		return compiled{value: record.Trust{PEM: []byte(bundle)}}
	}
	if k.Namespace != "" {
		name = k.Namespace + "/" + name
	}
	p := unresolved(string(gatewayv1.ListenerReasonInvalidCACertificateRef), fmt.Sprintf("%s %s %s", kind, name, reason))
	return compiled{value: record.Trust{Problem: &p}}
}

// placeOfPEM is where an object of a kind has its certificates.
var placeOfPEM = map[string]string{"ConfigMap": "key ca.crt", kindTrustBundle: "spec.trustBundle"}

// authorities reads the certificates of authorities from a ConfigMap or a ClusterTrustBundle.
func authorities(v *view, kind, namespace, name string) (bundle, reason string) {
	f := fact[authoritiesFact](v, kind, namespace, name)
	place := placeOfPEM[kind]
	if f == nil {
		return "", v.absence(kind, namespace, name)
	}
	if f.pem == "" {
		return "", fmt.Sprintf("has no %s: put certificates in PEM there", place)
	}
	return cleanBundle(f.pem, place)
}

// cleanBundle keeps the certificates of a PEM bundle: Envoy rejects a whole resource for one that is broken.
func cleanBundle(in, place string) (bundle, reason string) {
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
			return "", fmt.Sprintf("holds a broken certificate (%v): correct %s", err, strings.TrimPrefix(place, "key "))
		}
		out.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
	}
	if out.Len() == 0 {
		return "", fmt.Sprintf("holds no certificate: put certificates in PEM into %s", strings.TrimPrefix(place, "key "))
	}
	return out.String(), ""
}
