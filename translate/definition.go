package translate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"
	"sigs.k8s.io/gateway-api/pkg/consts"

	"github.com/fleetgate/fleetgate/translate/record"
)

// The oldest and the newest release of the Gateway API whose CRDs are known to work: objects of a newer one may have fields that nobody here reads.
const (
	oldestMinor = 4
	newestMinor = 7
)

// definitionFact is which Gateway API a cluster's CRD is of.
type definitionFact struct{ name, bundle, channel string }

func definitionOf(o *metav1.PartialObjectMetadata) *definitionFact {
	return &definitionFact{o.Name, o.Annotations[consts.BundleVersionAnnotation], o.Annotations[consts.ChannelAnnotation]}
}

// supports tells whether that release is one that is known to work.
func (d *definitionFact) supports() bool {
	version, _, _ := strings.Cut(strings.TrimPrefix(d.bundle, "v1."), ".")
	minor, err := strconv.Atoi(version)
	return err == nil && strings.HasPrefix(d.bundle, "v1.") && minor >= oldestMinor && minor <= newestMinor
}

// defined tells whether a cluster has a definition of a name.
func (v *view) defined(name string) bool {
	return slices.ContainsFunc(set[definitionFact](v, input{inputDefinitions, "", ""}), func(d *definitionFact) bool { return d.name == name })
}

// experimental tells whether the CRD has the fields of the experimental channel as we know them: those of older releases had other names.
func (d *definitionFact) experimental() bool {
	return d.channel == "experimental" && strings.HasPrefix(d.bundle, fmt.Sprintf("v1.%d.", newestMinor))
}

// definitions tells which releases of the Gateway API a cluster's CRDs are of, such as "v1.7.0 (standard)", "" where nobody says; whether routes and Gateways have
// the fields of the experimental channel; and what is wrong with them.
func definitions(v *view) (bundle string, experimental bool, problems []record.Problem) {
	var bundles, strange []string
	standard := false
	for _, d := range set[definitionFact](v, input{inputDefinitions, "", ""}) {
		if !strings.HasSuffix(d.name, "."+gatewayv1.GroupName) && !strings.HasSuffix(d.name, "."+gatewayxv1alpha1.GroupName) {
			continue
		}
		b := fmt.Sprintf("%s (%s)", d.bundle, d.channel)
		if d.bundle == "" {
			b = "of no stated release"
		}
		if !slices.Contains(bundles, b) {
			bundles = append(bundles, b)
		}
		if !d.supports() {
			strange = append(strange, d.name+" "+b)
		}
		standard = standard || !d.experimental()
	}
	slices.Sort(bundles)
	if len(strange) > 0 {
		problems = append(problems, record.Problem{Condition: "SupportedVersion", Reason: "UnsupportedVersion", Rule: -1,
			Message: fmt.Sprintf("these CRDs are of no release from v1.%d to v1.%d: %s. What is known of them is served; install the CRDs of %s", oldestMinor, newestMinor, strings.Join(strange, ", "), consts.BundleVersion)})
	}
	return strings.Join(bundles, ", "), len(bundles) > 0 && !standard, problems
}
