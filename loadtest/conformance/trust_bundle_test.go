// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/http"
	"sigs.k8s.io/gateway-api/conformance/utils/kubernetes"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/conformance/utils/tls"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// ownTrustBundleFrontend: clients are validated with what a ClusterTrustBundle holds at the moment (GEP-5075), from a namespace that no ReferenceGrant speaks of.
var ownTrustBundleFrontend = suite.ConformanceTest{
	ShortName:   "OwnTrustBundleFrontend",
	Description: "A ClusterTrustBundle that is not there, comes, changes, goes and comes back decides whose client certificates a Gateway takes",
	Features: []features.FeatureName{
		features.SupportGateway, features.SupportHTTPRoute, features.SupportGatewayFrontendClientCertificateValidation, features.SupportClusterTrustBundle,
	},
	Manifests: []string{"own/trust-bundle-frontend.yaml"},
	Parallel:  true,
	Test: func(t *testing.T, s *suite.ConformanceTestSuite) {
		gateway := infra("own-trust-bundle")
		first, second := newClient(t, "first"), newClient(t, "second")
		bundle := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "own-trust-bundle-frontend"}}
		removeBundle(t, s, bundle)

		listenerMust(t, s, gateway, metav1.ConditionFalse, gatewayv1.ListenerReasonInvalidCACertificateRef, gatewayv1.ListenerReasonNoValidCACertificate)

		setBundle(t, s, bundle, first.authority)
		address := kubernetes.GatewayAndRoutesMustBeAccepted(t, s.Client, s.TimeoutConfig, s.ControllerName, kubernetes.NewGatewayRef(gateway), &gatewayv1.HTTPRoute{}, true, infra("own-trust-bundle"))
		listenerMust(t, s, gateway, metav1.ConditionTrue, gatewayv1.ListenerReasonResolvedRefs, gatewayv1.ListenerReasonAccepted)
		first.passes(t, s, address)
		second.fails(t, s, address)
		tlsClient{}.fails(t, s, address)

		setBundle(t, s, bundle, second.authority)
		second.passes(t, s, address)
		first.fails(t, s, address)

		setBundle(t, s, bundle, first.authority+second.authority)
		first.passes(t, s, address)
		second.passes(t, s, address)

		removeBundle(t, s, bundle)
		listenerMust(t, s, gateway, metav1.ConditionFalse, gatewayv1.ListenerReasonInvalidCACertificateRef, gatewayv1.ListenerReasonNoValidCACertificate)
		tlsClient{}.fails(t, s, address) // without a certificate: nobody asks for one where nothing is served

		setBundle(t, s, bundle, second.authority)
		second.passes(t, s, address)
		first.fails(t, s, address)
	},
}

// ownTrustBundleBackend: backends are validated with what a ClusterTrustBundle holds at the moment, and nothing reaches them without it (GEP-5075).
var ownTrustBundleBackend = suite.ConformanceTest{
	ShortName:   "OwnTrustBundleBackend",
	Description: "A ClusterTrustBundle that is not there, comes, changes and goes decides whether a BackendTLSPolicy's backends are reached",
	Features:    []features.FeatureName{features.SupportGateway, features.SupportHTTPRoute, features.SupportBackendTLSPolicy, features.SupportClusterTrustBundle},
	Manifests:   []string{"own/trust-bundle-backend.yaml"},
	Parallel:    true,
	Test: func(t *testing.T, s *suite.ConformanceTestSuite) {
		bundle := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "own-trust-bundle-backend"}}
		removeBundle(t, s, bundle)
		address := kubernetes.GatewayAndRoutesMustBeAccepted(t, s.Client, s.TimeoutConfig, s.ControllerName, kubernetes.NewGatewayRef(infra("same-namespace")), &gatewayv1.HTTPRoute{}, true,
			infra("own-trust-bundle-backend"))

		policyMust(t, s, metav1.ConditionFalse, gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef, gatewayv1.BackendTLSPolicyReasonNoValidCACertificate)
		backendAnswers(t, s, address, 500, 502, 503)

		setBundle(t, s, bundle, authorityOf(t, s, "tls-checks-ca-certificate"))
		policyMust(t, s, metav1.ConditionTrue, gatewayv1.BackendTLSPolicyReasonResolvedRefs, gatewayv1.PolicyReasonAccepted)
		backendAnswers(t, s, address, 200)

		setBundle(t, s, bundle, authorityOf(t, s, "mismatch-ca-certificate"))
		backendAnswers(t, s, address, 500, 502, 503)
		policyMust(t, s, metav1.ConditionTrue, gatewayv1.BackendTLSPolicyReasonResolvedRefs, gatewayv1.PolicyReasonAccepted)

		setBundle(t, s, bundle, authorityOf(t, s, "tls-checks-ca-certificate"))
		backendAnswers(t, s, address, 200)

		removeBundle(t, s, bundle)
		policyMust(t, s, metav1.ConditionFalse, gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef, gatewayv1.BackendTLSPolicyReasonNoValidCACertificate)
		backendAnswers(t, s, address, 500, 502, 503)
	},
}

// infra names an object in the namespace where the suite has its Gateways.
func infra(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: suite.InfrastructureNamespace, Name: name}
}

// tlsClient is a client with a certificate, or without one.
type tlsClient struct {
	certificate, key []byte
	authority        string // PEM: who signed it
}

// newClient makes a client with an authority of its own. Those that the suite makes share a name, so that they cannot be told apart in one bundle.
func newClient(t *testing.T, name string) tlsClient {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key)
	require.NoError(t, err)
	made := kubernetes.MustCreateCASignedClientCertSecret(t, suite.InfrastructureNamespace, name, authority, key)
	return tlsClient{made.Data[corev1.TLSCertKey], made.Data[corev1.TLSPrivateKeyKey], string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

func authorityOf(t *testing.T, s *suite.ConformanceTestSuite, configMap string) string {
	t.Helper()
	data, err := kubernetes.GetConfigMapData(s.Client, s.TimeoutConfig, infra(configMap))
	require.NoError(t, err)
	require.NotEmpty(t, data["ca.crt"])
	return data["ca.crt"]
}

func (c tlsClient) passes(t *testing.T, s *suite.ConformanceTestSuite, address string) {
	t.Helper()
	tls.MakeTLSRequestAndExpectEventuallyConsistentResponse(t, s.RoundTripper, s.TimeoutConfig, address, serverCertificate(t, s), c.certificate, c.key, "example.org", http.ExpectedResponse{
		Request: http.Request{Host: "example.org", Path: "/"}, Response: http.Response{StatusCodes: []int{200}}, Backend: suite.InfraBackendServiceNameV1, Namespace: suite.InfrastructureNamespace,
	})
}

func (c tlsClient) fails(t *testing.T, s *suite.ConformanceTestSuite, address string) {
	t.Helper()
	tls.MakeTLSRequestAndExpectEventuallyConsistentFailureResponse(t, s.RoundTripper, s.TimeoutConfig, address, serverCertificate(t, s), c.certificate, c.key, "example.org", http.ExpectedResponse{
		Request: http.Request{Host: "example.org", Path: "/"}, Namespace: suite.InfrastructureNamespace,
	})
}

func serverCertificate(t *testing.T, s *suite.ConformanceTestSuite) []byte {
	t.Helper()
	certificate, _, err := kubernetes.GetTLSSecret(s.Client, infra("tls-validity-checks-certificate"))
	require.NoError(t, err)
	return certificate
}

// setBundle makes a bundle, or changes it.
func setBundle(t *testing.T, s *suite.ConformanceTestSuite, bundle *certificatesv1.ClusterTrustBundle, authorities string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.TimeoutConfig.CreateTimeout)
	defer cancel()
	require.NoError(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		err := s.Client.Get(ctx, client.ObjectKeyFromObject(bundle), bundle)
		bundle.Spec.TrustBundle = authorities
		if client.IgnoreNotFound(err) == nil && err != nil {
			bundle.ResourceVersion, bundle.UID = "", ""
			return s.Client.Create(ctx, bundle)
		}
		if err != nil {
			return err
		}
		return s.Client.Update(ctx, bundle)
	}))
	t.Cleanup(func() { removeBundle(t, s, bundle) })
}

func removeBundle(t *testing.T, s *suite.ConformanceTestSuite, bundle *certificatesv1.ClusterTrustBundle) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), s.TimeoutConfig.DeleteTimeout)
	defer cancel()
	require.NoError(t, client.IgnoreNotFound(s.Client.Delete(ctx, bundle)))
}

// listenerMust waits until the Gateway's one listener says that its references are resolved and that it is accepted, or why not.
func listenerMust(t *testing.T, s *suite.ConformanceTestSuite, gateway types.NamespacedName, status metav1.ConditionStatus, resolved, accepted gatewayv1.ListenerConditionReason) {
	t.Helper()
	kubernetes.GatewayListenerMustHaveConditions(t, s.Client, s.TimeoutConfig, gateway, "https", []metav1.Condition{
		{Type: string(gatewayv1.ListenerConditionResolvedRefs), Status: status, Reason: string(resolved)},
		{Type: string(gatewayv1.ListenerConditionAccepted), Status: status, Reason: string(accepted)},
		{Type: string(gatewayv1.ListenerConditionProgrammed), Status: status},
	})
}

func policyMust(t *testing.T, s *suite.ConformanceTestSuite, status metav1.ConditionStatus, resolved, accepted gatewayv1.PolicyConditionReason) {
	t.Helper()
	for kind, reason := range map[gatewayv1.PolicyConditionType]gatewayv1.PolicyConditionReason{gatewayv1.BackendTLSPolicyConditionResolvedRefs: resolved, gatewayv1.PolicyConditionAccepted: accepted} {
		kubernetes.BackendTLSPolicyMustHaveCondition(t, s.Client, s.TimeoutConfig, infra("own-trust-bundle"), infra("same-namespace"),
			metav1.Condition{Type: string(kind), Status: status, Reason: string(reason)})
	}
}

// backendAnswers waits until requests have one of these answers; those with 200 have to come from the backend by TLS.
func backendAnswers(t *testing.T, s *suite.ConformanceTestSuite, address string, codes ...int) {
	t.Helper()
	expected := http.ExpectedResponse{
		Request: http.Request{Host: "own-trust-bundle.example.com", Path: "/"}, Response: http.Response{StatusCodes: codes}, Namespace: suite.InfrastructureNamespace,
	}
	if codes[0] == 200 {
		expected.Backend = "tls-backend"
		expected.ExpectedRequest = &http.ExpectedRequest{Request: http.Request{Host: "own-trust-bundle.example.com", Path: "/", SNI: "abc.example.com"}}
	}
	http.MakeRequestAndExpectEventuallyConsistentResponse(t, s.RoundTripper, s.TimeoutConfig, address, expected)
}
