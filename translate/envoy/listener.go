package envoy

import (
	"cmp"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	statefulv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const tlsSocket = "envoy.transport_sockets.tls"

// AnyAddress is the address on which listeners listen unless told otherwise.
const AnyAddress = "0.0.0.0"

// Listener makes a TCP listener on address ("" = AnyAddress) and port. tls says that the port serves TLS: it then always carries the TLS inspector,
// whatever its chains are at the moment, because a change of any listener-level field drops every connection of the listener
// while chains are exchanged in place. fallback is the chain without a match, nil = connections that match no chain are closed.
func Listener(name, address string, port int32, tls bool, chains []*listenerv3.FilterChain, fallback *listenerv3.FilterChain) (*listenerv3.Listener, error) {
	if address == "" {
		address = AnyAddress
	}
	l := &listenerv3.Listener{
		Name:               name,
		Address:            socket(address, uint32(port)),
		EnableReusePort:    wrapperspb.Bool(true),
		FilterChains:       chains,
		DefaultFilterChain: fallback,
	}
	if !tls {
		return l, nil
	}
	inspector, err := Any(&tlsinspectorv3.TlsInspector{})
	if err != nil {
		return nil, err
	}
	l.ListenerFilters = []*listenerv3.ListenerFilter{{
		Name:       "envoy.filters.listener.tls_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: inspector},
	}}
	return l, nil
}

// HTTPChain is the filter chain of a plaintext port: one connection manager for all listeners that share the port.
// Renaming a chain counts as changing it, so name must be stable.
func HTTPChain(name string, hcm *hcmv3.HttpConnectionManager) (*listenerv3.FilterChain, error) {
	packed, err := Any(hcm)
	if err != nil {
		return nil, err
	}
	return &listenerv3.FilterChain{
		Name: name,
		Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed},
		}},
	}, nil
}

// HTTPSChain is the filter chain of one HTTPS listener: chosen by SNI (no serverNames = any, also none), terminating TLS with the
// certificates that SDS gives under the secret names. clients says what it asks of them, nil = nothing.
func HTTPSChain(name string, serverNames, secrets []string, clients *Clients, hcm *hcmv3.HttpConnectionManager) (*listenerv3.FilterChain, error) {
	chain, err := HTTPChain(name, hcm)
	if err != nil {
		return nil, err
	}
	tls, err := Any(DownstreamTLS(secrets, clients, "h2", "http/1.1"))
	if err != nil {
		return nil, err
	}
	if len(serverNames) > 0 {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: serverNames}
	}
	chain.TransportSocket = &corev3.TransportSocket{
		Name:       tlsSocket,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: tls},
	}
	return chain, nil
}

// Clients says that clients must show a certificate.
type Clients struct {
	Trust    string // SDS name of the authorities that may have signed it (TrustSecret)
	Optional bool   // those without one are let in too; the authorities' secret then says the same of those with a wrong one
}

// TrustSecret holds the certificates of authorities, in PEM. untrusted lets in those too that none of them has signed: without it Envoy closes the connection
// even where no certificate is required.
func TrustSecret(name string, bundle []byte, untrusted bool) *tlsv3.Secret {
	v := &tlsv3.CertificateValidationContext{TrustedCa: inline(bundle)}
	if untrusted {
		v.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	}
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: v}}
}

// DownstreamTLS terminates TLS 1.2 and later with certificates from SDS, offering protocols by ALPN, the preferred first.
func DownstreamTLS(secrets []string, clients *Clients, protocols ...string) *tlsv3.DownstreamTlsContext {
	common := &tlsv3.CommonTlsContext{
		AlpnProtocols: protocols,
		TlsParams:     &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
	}
	for _, s := range secrets {
		common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs, &tlsv3.SdsSecretConfig{Name: s, SdsConfig: ads()})
	}
	out := &tlsv3.DownstreamTlsContext{CommonTlsContext: common}
	if clients != nil {
		out.RequireClientCertificate = wrapperspb.Bool(!clients.Optional)
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: clients.Trust, SdsConfig: ads()},
		}
	}
	return out
}

// HTTPConnectionManager routes by the named RouteConfiguration from RDS. tracing nil = none. Its bytes are constant for given arguments: all that routes
// need is either in here from the start (filters of listeners, cors, external authorization, sessions, websocket) or set for each route.
func HTTPConnectionManager(statPrefix, routeConfig string, accessLog AccessLog, tracing *Tracing) (*hcmv3.HttpConnectionManager, error) {
	filters, err := httpFilters()
	if err != nil {
		return nil, err
	}
	logs, err := accessLogs(accessLog, accessFormat)
	if err != nil {
		return nil, err
	}
	out := &hcmv3.HttpConnectionManager{
		StatPrefix: statPrefix,
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource:    ads(),
			RouteConfigName: routeConfig,
		}},
		HttpFilters:                  filters,
		AccessLog:                    logs,
		UseRemoteAddress:             wrapperspb.Bool(true), // we are the edge: what a client says of its address is not believed
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT,
		UpgradeConfigs:               []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		StripTrailingHostDot:         true,
	}
	if tracing != nil {
		out.Tracing, err = tracing.tracing()
	}
	return out, err
}

// httpFilters are what requests pass, the first one first. Some are off until a route, or its host, says what they do.
func httpFilters() (out []*hcmv3.HttpFilter, err error) {
	add := func(name string, off bool, config proto.Message) {
		packed, failed := Any(config)
		err = cmp.Or(err, failed)
		out = append(out, &hcmv3.HttpFilter{Name: name, Disabled: off, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed}})
	}
	for i := range ListenerSlots {
		add(ListenerSlot(i), true, &compositev3.Composite{})
	}
	add("envoy.filters.http.cors", false, &corsv3.Cors{})
	for i := range RouteSlots {
		add(RouteSlot(i), true, &compositev3.Composite{})
	}
	add(SessionFilter, true, &statefulv3.StatefulSession{})
	add("envoy.filters.http.router", false, &routerv3.Router{})
	return out, err
}
