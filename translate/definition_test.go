package translate

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/consts"

	"github.com/fleetgate/fleetgate/translate/record"
)

func TestDefinitionsAreToldOnTheClass(t *testing.T) {
	crd := func(name, bundle, channel string) Event {
		return Event{Kind: "CustomResourceDefinition", Name: name, Object: &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name,
			Annotations: map[string]string{consts.BundleVersionAnnotation: bundle, consts.ChannelAnnotation: channel}}}}
	}
	for _, c := range []struct {
		name, bundle, problem string
		crds                  []Event
		experimental, bundles bool
	}{
		{name: "a directory, which has no CRDs of its own"},
		{name: "the newest", bundle: "v1.7.0 (standard)", crds: []Event{crd("gateways.gateway.networking.k8s.io", "v1.7.0", "standard"), crd("envoyfleets.fleetgate.io", "", "")}},
		{name: "two releases", bundle: "v1.4.1 (standard), v1.7.0 (experimental)",
			crds: []Event{crd("gateways.gateway.networking.k8s.io", "v1.4.1", "standard"), crd("xbackends.gateway.networking.x-k8s.io", "v1.7.0", "experimental")}},
		{name: "the newest experiments", bundle: "v1.7.0 (experimental)", experimental: true, crds: []Event{crd("gateways.gateway.networking.k8s.io", "v1.7.0", "experimental")}},
		{name: "trust bundles, which come with no release", bundle: "v1.7.0 (experimental)", experimental: true, bundles: true,
			crds: []Event{crd("gateways.gateway.networking.k8s.io", "v1.7.0", "experimental"), crd(TrustBundles, "", "")}},
		{name: "older experiments, whose fields have other names", bundle: "v1.6.3 (experimental)", crds: []Event{crd("gateways.gateway.networking.k8s.io", "v1.6.3", "experimental")}},
		{name: "a newer release is taken for a known one", bundle: "v1.8.0 (standard)", problem: "gateways.gateway.networking.k8s.io v1.8.0",
			crds: []Event{crd("gateways.gateway.networking.k8s.io", "v1.8.0", "standard")}},
		{name: "an old release is taken for a known one", bundle: "v1.3.0 (standard)", problem: "v1.3.0", crds: []Event{crd("gateways.gateway.networking.k8s.io", "v1.3.0", "standard")}},
		{name: "no release is taken for a known one", bundle: "of no stated release", problem: "no stated release", crds: []Event{crd("gateways.gateway.networking.k8s.io", "", "")}},
	} {
		comp := New(Config{Cluster: "c", ControllerNames: []string{"ours"}, Owns: func(string) bool { return true }})
		comp.Apply(append(c.crds, Event{Kind: "GatewayClass", Name: "k", Object: &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "k"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: "ours"}}}))
		put, ok := comp.Record(record.Key{Cluster: "c", Kind: record.KindClass, Name: "k"})
		var class record.Class
		if !ok || record.Unmarshal(put.Payload, &class) != nil {
			t.Fatalf("%s: no record", c.name)
		}
		problem := ""
		for _, p := range class.Problems {
			problem += p.Condition + " " + p.Message
		}
		if class.Bundle != c.bundle || class.Experimental != c.experimental || class.TrustBundles != c.bundles || (c.problem == "") != (problem == "") || !strings.Contains(problem, c.problem) {
			t.Errorf("%s: bundle %q, experimental %v, problem %q; want %q, %v, %q", c.name, class.Bundle, class.Experimental, problem, c.bundle, c.experimental, c.problem)
		}
	}
}
