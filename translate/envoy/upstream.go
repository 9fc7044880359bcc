package envoy

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// SystemAuthorities is where a proxy's system keeps the authorities that it trusts. Envoy's own system_root_certs verifies nothing: a backend of any
// authority was let in.
const SystemAuthorities = "/etc/ssl/certs/ca-certificates.crt"

// BackendTLS is TLS towards a backend.
type BackendTLS struct {
	ServerName string        // SNI, and the name that the certificate must have where Names is empty
	Names      []SubjectName // one of these must be in the certificate
	Trust      []byte        // PEM, nil = SystemAuthorities
	Protocols  []string      // ALPN
	Client     string        // SDS name of the certificate that is shown, "" = none
}

// SubjectName is a subject alternative name.
type SubjectName struct {
	URI   bool
	Value string
}

// UpstreamTLS speaks TLS with a backend, and only with one whose certificate is signed and named as it should be.
func UpstreamTLS(t BackendTLS) (*corev3.TransportSocket, error) {
	names := t.Names
	if len(names) == 0 {
		names = []SubjectName{{Value: t.ServerName}}
	}
	validation := &tlsv3.CertificateValidationContext{TrustedCa: inline(t.Trust)}
	if t.Trust == nil {
		validation.TrustedCa = &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: SystemAuthorities}}
	}
	for _, n := range names {
		kind := tlsv3.SubjectAltNameMatcher_DNS
		if n.URI {
			kind = tlsv3.SubjectAltNameMatcher_URI
		}
		validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: exactly(n.Value)})
	}
	common := &tlsv3.CommonTlsContext{
		AlpnProtocols:         t.Protocols,
		TlsParams:             &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation},
	}
	if t.Client != "" {
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{{Name: t.Client, SdsConfig: ads()}}
	}
	packed, err := Any(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: t.ServerName})
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed}}, nil
}

// clusterTransportSocket is the field of a Cluster; TestClusterTLS holds it against the proto.
const clusterTransportSocket = 24

// ClusterTLS is what makes a marshalled Cluster speak TLS when it is appended to it.
func ClusterTLS(t BackendTLS) ([]byte, error) {
	socket, err := UpstreamTLS(t)
	if err != nil {
		return nil, err
	}
	b, err := Marshal(socket)
	if err != nil {
		return nil, err
	}
	return appendBytes(nil, clusterTransportSocket, b), nil
}

// socketMatch is where Envoy looks for what chooses an endpoint's transport socket.
const socketMatch, socketPart = "envoy.transport_socket_match", "part"

// StreamTLS has a part of a stream cluster speak TLS; those that match nothing stay in the clear. (A last match for them would take all: Envoy tries all
// matches against the endpoint before it tries any against the locality, which is what carries the part's name.)
func StreamTLS(c *clusterv3.Cluster, part string, t BackendTLS) error {
	socket, err := UpstreamTLS(t)
	if err != nil {
		return err
	}
	c.TransportSocketMatches = append(c.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{Name: part, Match: partOf(part), TransportSocket: socket})
	return nil
}

func partOf(name string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{socketPart: structpb.NewStringValue(name)}}
}
