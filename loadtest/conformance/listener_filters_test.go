// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/http"
	"sigs.k8s.io/gateway-api/conformance/utils/kubernetes"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// ownListenerFilters: what GEP-5224 requires under "Required conformance tests" of filters of type ExternalAuth: order, matching after the last filter, hosts that stay, and answers that end it. The
// suite's echo server is the authorization server: it does what X-Echo-Set-Header says.
var ownListenerFilters = suite.ConformanceTest{
	ShortName:   "OwnListenerFilters",
	Description: "Filters of a listener run in their order on each of its requests, before a route is matched with what they made of it",
	Features:    []features.FeatureName{features.SupportGateway, features.SupportHTTPRoute, features.SupportGatewayListenerFilters},
	Manifests:   []string{"own/listener-filters.yaml"},
	Parallel:    true,
	Test: func(t *testing.T, s *suite.ConformanceTestSuite) {
		gateway := infra("own-listener-filters")
		address := kubernetes.GatewayAndHTTPRoutesMustBeAccepted(t, s.Client, s.TimeoutConfig, s.ControllerName, kubernetes.NewGatewayRef(gateway), gateway)
		kubernetes.GatewayListenersMustHaveConditions(t, s.Client, s.TimeoutConfig, gateway, []metav1.Condition{
			{Type: string(gatewayv1.ListenerConditionAccepted), Status: metav1.ConditionTrue, Reason: string(gatewayv1.ListenerReasonAccepted)},
			{Type: string(gatewayv1.ListenerConditionResolvedRefs), Status: metav1.ConditionTrue, Reason: string(gatewayv1.ListenerReasonResolvedRefs)},
		})
		ana, passOn := map[string]string{"X-User": "ana"}, map[string]string{"X-Echo-Set-Header": "X-User:ana"}
		for _, c := range []struct {
			name, host, path string
			order            map[string]string // headers that the server is told to answer with
			status           int
			backend          string
		}{
			{"what a filter sets selects a route that nothing matched before", "granted", "/nobody", ana, 200, suite.InfraBackendServiceNameV2},
			{"what a filter sets selects another route", "granted", "/anybody", ana, 200, suite.InfraBackendServiceNameV2},
			{"a filter that sets nothing leaves the route", "granted", "/anybody", nil, 200, suite.InfraBackendServiceNameV1},
			{"the second filter sees what the first has made", "ordered", "/anybody", passOn, 200, suite.InfraBackendServiceNameV2},
			{"the other way round the first filter may set it", "reversed", "/anybody", ana, 200, suite.InfraBackendServiceNameV2},
			{"the other way round the order comes too late", "reversed", "/anybody", passOn, 200, suite.InfraBackendServiceNameV1},
			{"a host that a filter sets stays", "granted", "/anybody", map[string]string{"Host": "unfiltered.example.com"}, 200, suite.InfraBackendServiceNameV1},
			{"a refusal is the answer where no route matches", "granted", "/status/401", nil, 401, ""},
			{"a refusal is the answer of the first filter", "ordered", "/status/403", nil, 403, ""},
			{"filters allow what no route matches", "granted", "/nobody", nil, 404, ""},
			{"a listener without filters runs none", "unfiltered", "/anybody", ana, 200, suite.InfraBackendServiceNameV1},
			{"a listener without filters refuses nothing", "unfiltered", "/status/401", nil, 404, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				host := c.host + ".example.com"
				http.MakeRequestAndExpectEventuallyConsistentResponse(t, s.RoundTripper, s.TimeoutConfig, address, http.ExpectedResponse{
					Request:                   http.Request{Host: host, Path: c.path},
					BackendSetResponseHeaders: c.order,
					Response:                  http.Response{StatusCodes: []int{c.status}},
					Backend:                   c.backend,
					Namespace:                 suite.InfrastructureNamespace,
				})
			})
		}
	},
}

// ownListenerFiltersRefused: a listener with a filter that cannot run says which and why, by the reasons of GEP-5224, and lets nothing through: neither does another listener that covers its hosts.
var ownListenerFiltersRefused = suite.ConformanceTest{
	ShortName:   "OwnListenerFiltersRefused",
	Description: "A filter of a listener that is not supported or does not resolve is told by index, and the listener's requests get no further",
	Features:    []features.FeatureName{features.SupportGateway, features.SupportHTTPRoute, features.SupportGatewayListenerFilters},
	Manifests:   []string{"own/listener-filters-refused.yaml"},
	Parallel:    true,
	Test: func(t *testing.T, s *suite.ConformanceTestSuite) {
		gateway := infra("own-listener-filters-refused")
		address, err := kubernetes.WaitForGatewayAddress(t, s.Client, s.TimeoutConfig, kubernetes.NewGatewayRef(gateway))
		require.NoError(t, err)
		accepted, resolved := string(gatewayv1.ListenerConditionAccepted), string(gatewayv1.ListenerConditionResolvedRefs)
		for _, c := range []struct {
			listener, condition, reason, says string
			status                            int
		}{
			{"extension", accepted, string(gatewayv1.ListenerReasonUnsupportedValue), "filters.requests[1]", 500},
			{"extension", resolved, "InvalidListenerFilterRef", "filters.requests[1]", 500},
			{"missing", resolved, "InvalidListenerFilterRef", "filters.requests[0]", 500},
			{"kind", resolved, "InvalidListenerFilterRef", "filters.requests[0]", 500},
			{"ungranted", resolved, string(gatewayv1.ListenerReasonRefNotPermitted), "filters.requests[0]", 500},
			{"unfiltered", accepted, string(gatewayv1.ListenerReasonAccepted), "", 200},
		} {
			t.Run(c.listener+" "+c.condition, func(t *testing.T) {
				t.Parallel()
				want := metav1.Condition{Type: c.condition, Status: metav1.ConditionFalse, Reason: c.reason}
				if c.status == 200 {
					want.Status = metav1.ConditionTrue
				}
				kubernetes.GatewayListenerMustHaveConditions(t, s.Client, s.TimeoutConfig, gateway, c.listener, []metav1.Condition{want})
				g := &gatewayv1.Gateway{}
				require.NoError(t, s.Client.Get(t.Context(), gateway, g))
				for _, l := range g.Status.Listeners {
					if string(l.Name) == c.listener {
						got := apimeta.FindStatusCondition(l.Conditions, c.condition)
						require.Truef(t, strings.Contains(got.Message, c.says), "message %q", got.Message)
					}
				}
				http.MakeRequestAndExpectEventuallyConsistentResponse(t, s.RoundTripper, s.TimeoutConfig, address, http.ExpectedResponse{
					Request:   http.Request{Host: c.listener + ".example.com", Path: "/"},
					Response:  http.Response{StatusCodes: []int{c.status}},
					Backend:   suite.InfraBackendServiceNameV1,
					Namespace: suite.InfrastructureNamespace,
				})
			})
		}
		t.Run("filters of a listener that sees no requests", func(t *testing.T) {
			g := &gatewayv1.Gateway{}
			require.NoError(t, s.Client.Get(t.Context(), gateway, g))
			tcp := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: gateway.Namespace, Name: "own-listener-filters-tcp"}, Spec: g.Spec}
			tcp.Spec.Listeners = g.Spec.Listeners[1:2]
			tcp.Spec.Listeners[0].Protocol, tcp.Spec.Listeners[0].Hostname = gatewayv1.TCPProtocolType, nil
			err := s.Client.Create(t.Context(), tcp)
			if err == nil {
				_ = s.Client.Delete(t.Context(), tcp)
			}
			require.Truef(t, apierrors.IsInvalid(err), "the API server says %v", err)
		})
	},
}
