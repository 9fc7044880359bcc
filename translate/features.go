package translate

import (
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// SupportedFeatures are the features that are honoured, for status.supportedFeatures; those of the experimental channel only where a cluster's CRDs are of it, and
// ClusterTrustBundle only where it serves these too (GEP-5075).
func SupportedFeatures(experimental, trustBundles bool) []gatewayv1.SupportedFeature {
	names := slices.Clone(features)
	if experimental {
		names = append(names, experiments...)
		if trustBundles {
			names = append(names, clusterTrustBundle)
		}
		slices.Sort(names)
	}
	out := make([]gatewayv1.SupportedFeature, len(names))
	for i, f := range names {
		out[i].Name = gatewayv1.FeatureName(f)
	}
	return out
}

// clusterTrustBundle is claimed for both that may name such authorities: the validation of clients by a Gateway, and BackendTLSPolicy.
const clusterTrustBundle = "ClusterTrustBundle"

// experiments are the features of the experimental channel that are honoured, as their GEPs name them: version 1.7 of the suite has no test of these yet.
var experiments = []string{
	"GatewayListenerFilters",                                 // GEP-5224
	"GRPCRouteDefaultGateway",                                // GEP-3793
	"GRPCRouteSessionPersistence",                            // GEP-1619
	"GRPCRouteSessionPersistenceHeader",                      // GEP-1619
	"GatewayAddressRoutability",                              // GEP-5093
	"GatewayAddressRoutabilityCluster",                       // GEP-5093
	"HTTPRouteDefaultGateway",                                // GEP-3793
	"HTTPRouteExternalAuth",                                  // GEP-1494
	"HTTPRouteExternalAuthForwardBody",                       // GEP-1494
	"HTTPRouteExternalAuthGRPC",                              // GEP-1494
	"HTTPRouteExternalAuthHTTP",                              // GEP-1494
	"HTTPRouteSessionPersistence",                            // GEP-1619
	"HTTPRouteSessionPersistenceCookieLifetimeTypePermanent", // GEP-1619
}

// features are the features of the Gateway API that are honoured, as its conformance suite names them and in the order that status.supportedFeatures asks for. A
// feature is here when its fields reach proxies and its conditions are told; what is missing of a version's features is refused.
var features = []string{
	"BackendTLSPolicy",
	"BackendTLSPolicySANValidation",
	"GRPCRoute",
	"GRPCRouteNamedRouteRule",
	"GRPCRouteRequestHeaderModifier",
	"Gateway",
	"GatewayAddressEmpty",
	"GatewayBackendClientCertificate",
	"GatewayFrontendClientCertificateValidation",
	"GatewayFrontendClientCertificateValidationInsecureFallback",
	"GatewayHTTPListenerIsolation",
	"GatewayHTTPSListenerDetectMisdirectedRequests",
	"GatewayInfrastructure",
	"GatewayPort8080",
	"GatewayRouteHostnameIntersectionPrecedence",
	"GatewayStaticAddresses",
	"HTTPRoute",
	"HTTPRoute303RedirectStatusCode",
	"HTTPRoute307RedirectStatusCode",
	"HTTPRoute308RedirectStatusCode",
	"HTTPRouteBackendProtocolH2C",
	"HTTPRouteBackendProtocolWebSocket",
	"HTTPRouteBackendRequestHeaderModification",
	"HTTPRouteBackendTimeout",
	"HTTPRouteBackendURLRewrite",
	"HTTPRouteCORS",
	"HTTPRouteDestinationPortMatching",
	"HTTPRouteHostRewrite",
	"HTTPRouteMethodMatching",
	"HTTPRouteNamedRouteRule",
	"HTTPRouteParentRefPort",
	"HTTPRoutePathRedirect",
	"HTTPRoutePathRewrite",
	"HTTPRoutePortRedirect",
	"HTTPRouteQueryParamMatching",
	"HTTPRouteRequestMirror",
	"HTTPRouteRequestMultipleMirrors",
	"HTTPRouteRequestPercentageMirror",
	"HTTPRouteRequestTimeout",
	"HTTPRouteResponseHeaderModification",
	"HTTPRouteRetryCodes",
	"HTTPRouteRetryConnectionError",
	"HTTPRouteSchemeRedirect",
	"ListenerSet",
	"ReferenceGrant",
	"TCPRoute",
	"TLSRoute",
	"TLSRouteModeMixed",
	"TLSRouteModeTerminate",
	"UDPRoute",
}
