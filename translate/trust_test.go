package translate

import (
	"strconv"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

const bundlePolicy = `kind: BackendTLSPolicy
metadata: {namespace: shop, name: p}
spec: {targetRefs: [{group: "", kind: Service, name: web}], validation: {hostname: a.example, caCertificateRefs: [{group: certificates.k8s.io, kind: ClusterTrustBundle, name: corporate}]}}`

// TestTrustBundlesWhereNoneAreServed: GEP-5075 wants the reason InvalidKind where a cluster does not serve the kind, and InvalidCACertificateRef where only the object is not there. The
// object is asked for in the second case alone, and both come and go without a restart.
func TestTrustBundlesWhereNoneAreServed(t *testing.T) {
	cfg := testConfig()
	cfg.Asked = true
	c := New(cfg)
	bundle := Ref{Kind: kindTrustBundle, Name: "corporate"}
	definition := Event{Kind: "CustomResourceDefinition", Name: TrustBundles, Object: &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: TrustBundles}}}
	hold := func(when string, asked bool, reasons ...string) {
		t.Helper()
		refs, _ := c.Asks()
		if (len(refs) == 1 && refs[0] == bundle) != asked {
			t.Errorf("%s: asked for are %v", when, refs)
		}
		var p record.Policy
		put, _ := c.Record(record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindPolicy, Name: "BackendTLSPolicy/p"})
		if err := record.Unmarshal(put.Payload, &p); err != nil || len(p.Problems) != len(reasons) {
			t.Fatalf("%s: problems %v (%v), want %v", when, p.Problems, err, reasons)
		}
		for i, want := range reasons {
			if p.Problems[i].Reason != want {
				t.Errorf("%s: problem %v, want %s", when, p.Problems[i], want)
			}
		}
	}
	c.Apply(parseObjects(t, bundlePolicy))
	hold("not served", false, "InvalidKind", "NoValidCACertificate")
	c.Apply([]Event{definition})
	c.Apply([]Event{{Kind: kindTrustBundle, Name: "corporate"}})
	hold("served, and not there", true, "InvalidCACertificateRef", "NoValidCACertificate")
	c.Apply(parseObjects(t, "kind: ClusterTrustBundle\nmetadata: {name: corporate}\nspec: {trustBundle: "+strconv.Quote(string(certificates()["ecdsa"].cert))+"}"))
	hold("there", true)
	definition.Object = nil
	c.Apply([]Event{definition})
	hold("not served any more", false, "InvalidKind", "NoValidCACertificate")
}
