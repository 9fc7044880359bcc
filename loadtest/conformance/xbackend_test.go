// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	xv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"
	"sigs.k8s.io/gateway-api/conformance/utils/http"
	"sigs.k8s.io/gateway-api/conformance/utils/kubernetes"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// ownXBackend: the pods that an XBackend selects are reached, whichever they are at the moment, as it says (GEP-4894). The GEP has no feature's name yet, so that of a neighbour in the
// experimental channel tells where there are XBackends.
var ownXBackend = suite.ConformanceTest{
	ShortName:   "OwnXBackend",
	Description: "An XBackend sends to the pods that it selects, also by TLS, follows its labels, goes and comes back",
	Features:    []features.FeatureName{features.SupportGateway, features.SupportHTTPRoute, "HTTPRouteSessionPersistence"},
	Manifests:   []string{"own/xbackend.yaml"},
	Parallel:    true,
	Test: func(t *testing.T, s *suite.ConformanceTestSuite) {
		x := xbackend{t, s, kubernetes.GatewayAndRoutesMustBeAccepted(t, s.Client, s.TimeoutConfig, s.ControllerName, kubernetes.NewGatewayRef(infra("same-namespace")), &gatewayv1.HTTPRoute{}, true,
			infra("own-xbackend"))}
		x.answers(suite.InfraBackendServiceNameV1)

		secure := x.expect("/tls", 200)
		secure.Backend = "tls-backend"
		secure.ExpectedRequest = &http.ExpectedRequest{Request: http.Request{Host: secure.Request.Host, Path: "/tls", SNI: "abc.example.com"}}
		http.MakeRequestAndExpectEventuallyConsistentResponse(t, s.RoundTripper, s.TimeoutConfig, x.address, secure)

		x.selects("infra-backend-v2")
		x.answers("infra-backend-v2")

		x.selects("nobody-has-this")
		http.MakeRequestAndExpectEventuallyConsistentResponse(t, s.RoundTripper, s.TimeoutConfig, x.address, x.expect("/", 503))

		gone := x.read()
		require.NoError(t, s.Client.Delete(t.Context(), gone))
		http.MakeRequestAndExpectEventuallyConsistentResponse(t, s.RoundTripper, s.TimeoutConfig, x.address, x.expect("/", 500))

		again := &xv1alpha1.XBackend{ObjectMeta: metav1.ObjectMeta{Namespace: gone.Namespace, Name: gone.Name}, Spec: gone.Spec}
		again.Spec.EndpointSelector.MatchLabels["app"] = suite.InfraBackendServiceNameV1
		require.NoError(t, s.Client.Create(t.Context(), again))
		x.answers(suite.InfraBackendServiceNameV1)
	},
}

type xbackend struct {
	t       *testing.T
	s       *suite.ConformanceTestSuite
	address string
}

func (x xbackend) expect(path string, code int) http.ExpectedResponse {
	return http.ExpectedResponse{Request: http.Request{Host: "own-xbackend.example.com", Path: path}, Response: http.Response{StatusCodes: []int{code}}, Namespace: suite.InfrastructureNamespace}
}

// answers waits until requests are answered by the pods of a Deployment.
func (x xbackend) answers(backend string) {
	x.t.Helper()
	expected := x.expect("/", 200)
	expected.Backend = backend
	http.MakeRequestAndExpectEventuallyConsistentResponse(x.t, x.s.RoundTripper, x.s.TimeoutConfig, x.address, expected)
}

func (x xbackend) read() *xv1alpha1.XBackend {
	x.t.Helper()
	var out xv1alpha1.XBackend
	require.NoError(x.t, x.s.Client.Get(x.t.Context(), infra("own-xbackend"), &out))
	return &out
}

// selects changes the label that pods must have.
func (x xbackend) selects(app gatewayv1.LabelValue) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), x.s.TimeoutConfig.CreateTimeout)
	defer cancel()
	require.NoError(x.t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		b := x.read()
		b.Spec.EndpointSelector.MatchLabels["app"] = app
		return x.s.Client.Update(ctx, b)
	}))
}
