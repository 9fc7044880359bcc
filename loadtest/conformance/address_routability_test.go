// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/http"
	"sigs.k8s.io/gateway-api/conformance/utils/kubernetes"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// ownAddressRoutability: what GEP-5093 wants of everybody who claims the feature: each address says from where it is reached, an unknown routability is not satisfied by another one.
var ownAddressRoutability = suite.ConformanceTest{
	ShortName:   "OwnAddressRoutability",
	Description: "A Gateway says of each address from where it is reached, and of each that it asks for whether it has it",
	Features:    []features.FeatureName{features.SupportGateway, features.SupportHTTPRoute, features.SupportGatewayAddressRoutability},
	Manifests:   []string{"own/address-routability.yaml"},
	Parallel:    true,
	Test: func(t *testing.T, s *suite.ConformanceTestSuite) {
		r := routability{t, s, infra("own-address-routability")}
		const unknown = "own.example.com/nowhere"
		for _, c := range []struct {
			name string
			asks []gatewayv1.GatewaySpecAddress
			want outcome
		}{
			{"nothing asked for", nil, outcome{has: []string{"IPAddress "}, reason: gatewayv1.GatewayReasonAddressesAssigned}},
			{"no routability", asks(""), outcome{has: []string{"IPAddress "}, reason: gatewayv1.GatewayReasonAddressesAssigned}},
			{"the one for tests", asks("testing.x-k8s.io/sentinel"), outcome{has: []string{"IPAddress testing.x-k8s.io/sentinel"}, reason: gatewayv1.GatewayReasonAddressesAssigned}},
			{"an unknown one beside", asks("", unknown), outcome{has: []string{"IPAddress "}, reason: gatewayv1.GatewayReasonAddressesPartiallyAssigned, says: unknown}},
			{"another of the tests' own domain", asks("", "testing.x-k8s.io/other"),
				outcome{has: []string{"IPAddress "}, reason: gatewayv1.GatewayReasonAddressesPartiallyAssigned, says: "testing.x-k8s.io/other"}},
			{"an unknown one alone", asks(unknown), outcome{reason: gatewayv1.GatewayReasonAddressesNotAssigned, says: unknown}},
			{"nothing asked for again", nil, outcome{has: []string{"IPAddress "}, reason: gatewayv1.GatewayReasonAddressesAssigned}},
		} {
			g := r.set(c.name, c.asks, c.want)
			for _, a := range g.Status.Addresses {
				r.answers(a.Value)
			}
		}
	},
}

// ownAddressRoutabilityCluster: an address with routability Cluster is a ClusterIP (GEP-5093), at which the Gateway answers inside the cluster; no load balancer is made for it.
var ownAddressRoutabilityCluster = suite.ConformanceTest{
	ShortName:   "OwnAddressRoutabilityCluster",
	Description: "A Gateway that asks for ClusterIPs is reached at these, at the values that it asks for, and at nothing else unless it asks for that too",
	Features: []features.FeatureName{
		features.SupportGateway, features.SupportHTTPRoute, features.SupportGatewayStaticAddresses, features.SupportGatewayAddressRoutability, features.SupportGatewayAddressRoutabilityCluster,
	},
	Manifests: []string{"own/address-routability-cluster.yaml"},
	Parallel:  true,
	Test: func(t *testing.T, s *suite.ConformanceTestSuite) {
		r := routability{t, s, infra("own-address-routability-cluster")}
		within := r.serviceCIDR()
		one, other := last(within, 3), last(within, 4)
		const inside, outside = "IPAddress Cluster", "192.0.2.77" // of TEST-NET-1 (RFC 5737)
		for _, c := range []struct {
			name string
			asks []gatewayv1.GatewaySpecAddress
			want outcome
		}{
			{"any ClusterIP", asks("Cluster"), outcome{has: []string{inside}, reason: gatewayv1.GatewayReasonAddressesAssigned, service: corev1.ServiceTypeClusterIP}},
			{"one of each", asks("", "Cluster"), outcome{has: []string{"IPAddress ", inside}, reason: gatewayv1.GatewayReasonAddressesAssigned, service: corev1.ServiceTypeLoadBalancer}},
			{"in another order", asks("Cluster", ""), outcome{has: []string{"IPAddress ", inside}, reason: gatewayv1.GatewayReasonAddressesAssigned, service: corev1.ServiceTypeLoadBalancer}},
			{"two ClusterIPs", asks("Cluster", "Cluster"), outcome{has: []string{inside, inside}, reason: gatewayv1.GatewayReasonAddressesAssigned, service: corev1.ServiceTypeClusterIP}},
			{"a certain one", static(one), outcome{has: []string{inside}, value: one, reason: gatewayv1.GatewayReasonAddressesAssigned, service: corev1.ServiceTypeClusterIP}},
			{"another in its place", static(other), outcome{has: []string{inside}, value: other, reason: gatewayv1.GatewayReasonAddressesAssigned, service: corev1.ServiceTypeClusterIP}},
			{"one that no Service can have, beside", append(asks(""), static(outside)...),
				outcome{has: []string{"IPAddress "}, reason: gatewayv1.GatewayReasonAddressesPartiallyAssigned, says: outside, service: corev1.ServiceTypeLoadBalancer}},
			{"one that no Service can have", static(outside), outcome{reason: gatewayv1.GatewayReasonAddressesNotAssigned, says: outside, service: corev1.ServiceTypeClusterIP}},
			{"a name, of which DNS decides", []gatewayv1.GatewaySpecAddress{{Type: new(gatewayv1.HostnameAddressType), Routability: gatewayv1.GatewayAddressRoutabilityCluster}},
				outcome{reason: gatewayv1.GatewayReasonAddressesNotAssigned, says: "Hostname", service: corev1.ServiceTypeClusterIP}},
		} {
			g := r.set(c.name, c.asks, c.want)
			for _, a := range g.Status.Addresses {
				if *a.Routability == gatewayv1.GatewayAddressRoutabilityCluster {
					require.True(t, within.Contains(netip.MustParseAddr(a.Value)), "%s: %s is not in the ServiceCIDR %s", c.name, a.Value, within)
					r.answersPods(a.Value)
				}
				r.answers(a.Value)
			}
		}
	},
}

// asks are requests for any IP address of each routability.
func asks(routabilities ...gatewayv1.GatewayAddressRoutabilityType) []gatewayv1.GatewaySpecAddress {
	var out []gatewayv1.GatewaySpecAddress
	for _, r := range routabilities {
		out = append(out, gatewayv1.GatewaySpecAddress{Type: new(gatewayv1.IPAddressType), Routability: r})
	}
	return out
}

func static(value string) []gatewayv1.GatewaySpecAddress {
	return []gatewayv1.GatewaySpecAddress{{Type: new(gatewayv1.IPAddressType), Value: value, Routability: gatewayv1.GatewayAddressRoutabilityCluster}}
}

// last is an address near the end of a range, where nobody gets one unasked before the rest is used up (KEP-3070).
func last(within netip.Prefix, back int) string {
	b := within.Masked().Addr().AsSlice()
	for i, ones := 0, within.Bits(); i < len(b)*8; i++ {
		if i >= ones {
			b[i/8] |= 1 << (7 - i%8)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	for range back {
		a = a.Prev()
	}
	return a.String()
}

// outcome is what a Gateway is to say of its addresses.
type outcome struct {
	has     []string                         // type and routability of each
	value   string                           // of the first, "" = whatever
	reason  gatewayv1.GatewayConditionReason // of AddressesAssigned
	says    string                           // in its message
	service corev1.ServiceType               // of the Service with the Gateway's labels, "" = whatever
}

func (o outcome) check(g *gatewayv1.Gateway) error {
	var has []string
	for _, a := range g.Status.Addresses {
		if a.Type == nil || a.Routability == nil {
			return fmt.Errorf("address %s has no type or no routability", a.Value)
		}
		has = append(has, string(*a.Type)+" "+string(*a.Routability))
	}
	slices.Sort(has)
	if !slices.Equal(has, o.has) || o.value != "" && g.Status.Addresses[0].Value != o.value {
		return fmt.Errorf("addresses %q, want %q %s", has, o.has, o.value)
	}
	if err := kubernetes.ConditionsHaveLatestObservedGeneration(g, g.Status.Conditions); err != nil {
		return err
	}
	assigned, programmed := apimeta.FindStatusCondition(g.Status.Conditions, string(gatewayv1.GatewayConditionAddressesAssigned)), apimeta.FindStatusCondition(g.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed))
	if assigned == nil || programmed == nil || !apimeta.IsStatusConditionTrue(g.Status.Conditions, string(gatewayv1.GatewayConditionAccepted)) {
		return fmt.Errorf("conditions %v", g.Status.Conditions)
	}
	if all := o.reason == gatewayv1.GatewayReasonAddressesAssigned; assigned.Reason != string(o.reason) || (assigned.Status == metav1.ConditionTrue) != all || !strings.Contains(assigned.Message, o.says) {
		return fmt.Errorf("AddressesAssigned is %s, %s: %s", assigned.Status, assigned.Reason, assigned.Message)
	}
	if none := o.reason == gatewayv1.GatewayReasonAddressesNotAssigned; (programmed.Status == metav1.ConditionFalse) != none || none && programmed.Reason != string(gatewayv1.GatewayReasonAddressNotAssigned) {
		return fmt.Errorf("Programmed is %s, %s: %s", programmed.Status, programmed.Reason, programmed.Message)
	}
	return nil
}

// routability has one Gateway ask for one thing after another.
type routability struct {
	t       *testing.T
	s       *suite.ConformanceTestSuite
	gateway types.NamespacedName
}

// set changes what the Gateway asks for, and waits until it says what is wanted.
func (r routability) set(name string, asks []gatewayv1.GatewaySpecAddress, want outcome) *gatewayv1.Gateway {
	r.t.Helper()
	var g gatewayv1.Gateway
	ctx, cancel := context.WithTimeout(r.t.Context(), r.s.TimeoutConfig.GatewayMustHaveAddress)
	defer cancel()
	require.NoError(r.t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if err := r.s.Client.Get(ctx, r.gateway, &g); err != nil {
			return err
		}
		g.Spec.Addresses = asks
		return r.s.Client.Update(ctx, &g)
	}), name)
	var last error
	err := wait.PollUntilContextCancel(ctx, r.s.TimeoutConfig.DefaultPollInterval, true, func(ctx context.Context) (bool, error) {
		if err := r.s.Client.Get(ctx, r.gateway, &g); err != nil {
			return false, err
		}
		if last = want.check(&g); last == nil && want.service != "" {
			last = r.isOfType(ctx, want.service)
		}
		return last == nil, nil
	})
	require.NoError(r.t, err, "%s: %v", name, last)
	return &g
}

// isOfType looks at the Services that GEP-1762 labels as the Gateway's: one of type LoadBalancer is wanted, or none.
func (r routability) isOfType(ctx context.Context, want corev1.ServiceType) error {
	var services corev1.ServiceList
	if err := r.s.Client.List(ctx, &services, client.InNamespace(r.gateway.Namespace), client.MatchingLabels{"gateway.networking.k8s.io/gateway-name": r.gateway.Name}); err != nil {
		return err
	}
	is := corev1.ServiceTypeClusterIP
	for _, s := range services.Items {
		if s.Spec.Type != corev1.ServiceTypeClusterIP {
			is = s.Spec.Type
		}
	}
	if is != want || len(services.Items) == 0 {
		return fmt.Errorf("%d Services, of type %s, want %s", len(services.Items), is, want)
	}
	return nil
}

// serviceCIDR is the range of the cluster's ClusterIPs.
func (r routability) serviceCIDR() netip.Prefix {
	r.t.Helper()
	list, err := r.s.Clientset.NetworkingV1().ServiceCIDRs().List(r.t.Context(), metav1.ListOptions{})
	require.NoError(r.t, err)
	require.NotEmpty(r.t, list.Items)
	p, err := netip.ParsePrefix(list.Items[0].Spec.CIDRs[0])
	require.NoError(r.t, err)
	return p
}

func (r routability) answers(address string) {
	r.t.Helper()
	http.MakeRequestAndExpectEventuallyConsistentResponse(r.t, r.s.RoundTripper, r.s.TimeoutConfig, net.JoinHostPort(address, "80"), http.ExpectedResponse{
		Request: http.Request{Path: "/"}, Response: http.Response{StatusCodes: []int{200}}, Backend: suite.InfraBackendServiceNameV1, Namespace: suite.InfrastructureNamespace,
	})
}

// answersPods has the Envoys of another Gateway, which are pods, connect to the address.
func (r routability) answersPods(address string) {
	r.t.Helper()
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: r.gateway.Namespace, Name: r.gateway.Name, Labels: map[string]string{discoveryv1.LabelServiceName: r.gateway.Name}}}
	slice.AddressType, slice.Ports = discoveryv1.AddressTypeIPv4, []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(80))}}
	slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{address}}}
	require.NoError(r.t, r.s.Client.Create(r.t.Context(), slice))
	defer func() { require.NoError(r.t, r.s.Client.Delete(r.t.Context(), slice)) }()
	through := kubernetes.GatewayAndRoutesMustBeAccepted(r.t, r.s.Client, r.s.TimeoutConfig, r.s.ControllerName, kubernetes.NewGatewayRef(infra("same-namespace")), &gatewayv1.HTTPRoute{}, true,
		infra("own-address-routability-from-pods"))
	http.MakeRequestAndExpectEventuallyConsistentResponse(r.t, r.s.RoundTripper, r.s.TimeoutConfig, through, http.ExpectedResponse{
		Request: http.Request{Host: "own-address-routability.example.com", Path: "/"}, Response: http.Response{StatusCodes: []int{200}},
		Backend: suite.InfraBackendServiceNameV1, Namespace: suite.InfrastructureNamespace,
	})
}
