package envoy

import (
	"cmp"
	"math"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// ConnectTimeout is how long Envoy waits for a TCP connection to a backend.
const ConnectTimeout = 5 * time.Second

// maxRetries is how many retries may be under way at once; Envoy's default of 3 makes retries fail under any load.
const maxRetries = 1024

// Cluster is a backend whose endpoints come by EDS under the same name.
// The default circuit breakers (1,024 of each) are lifted: limits are a matter of policy, not of an accident.
func Cluster(name string, protocol Protocol) (*clusterv3.Cluster, error) {
	c := edsCluster(name, clusterv3.Cluster_LEAST_REQUEST)
	return c, speak(c, protocol)
}

// HostCluster is a backend outside the cluster, whose addresses proxies look up themselves. Each address is an endpoint.
func HostCluster(name, hostname string, port uint32, protocol Protocol) (*clusterv3.Cluster, error) {
	c := edsCluster(name, clusterv3.Cluster_LEAST_REQUEST)
	lookUp(c)
	c.LoadAssignment = LoadAssignment(name, []Endpoint{HostEndpoint(hostname, port)})
	return c, speak(c, protocol)
}

// HostEndpoint is an endpoint that proxies look up. Its name ends in a dot for DNS, or the proxy's search domains could make that of a Service in another namespace of it.
func HostEndpoint(hostname string, port uint32) Endpoint { return Endpoint{hostname + ".", port} }

// lookUp has proxies look up the endpoints of a cluster, as often as DNS says, where it had them by EDS. IPv4 is preferred, and IPv6 taken where there is nothing else: a proxy
// without a way to IPv6 would fail on a part of the addresses. An endpoint that is an address already stays what it is.
func lookUp(c *clusterv3.Cluster) {
	c.ClusterDiscoveryType, c.EdsClusterConfig = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}, nil
	c.DnsLookupFamily, c.RespectDnsTtl = clusterv3.Cluster_V4_PREFERRED, true
}

func speak(c *clusterv3.Cluster, protocol Protocol) error {
	options, err := Any(httpOptions(protocol))
	if err != nil {
		return err
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
	return nil
}

// edsCluster is what all our clusters have in common.
func edsCluster(name string, policy clusterv3.Cluster_LbPolicy) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                      name,
		ClusterDiscoveryType:      &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:          &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: name},
		ConnectTimeout:            durationpb.New(ConnectTimeout),
		LbPolicy:                  policy,
		CircuitBreakers:           unlimited(),
		IgnoreHealthOnHostRemoval: true,
	}
}

func unlimited() *clusterv3.CircuitBreakers {
	most := wrapperspb.UInt32(math.MaxUint32)
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     most,
		MaxPendingRequests: most,
		MaxRequests:        most,
		MaxRetries:         wrapperspb.UInt32(maxRetries),
	}}}
}

// RetryBudget limits how many of a cluster's requests may be retries. It takes the place of every other limit on retries.
type RetryBudget struct {
	Percent        float64       // of the requests of the last Interval that may be retries, 0 to 100
	Interval       time.Duration // for which a request counts from when it began
	MinConcurrency uint32        // so many retries may always be under way at once
}

// LimitRetries gives a cluster a retry budget; what exceeds it is not retried.
func LimitRetries(c *clusterv3.Cluster, b RetryBudget) {
	c.CircuitBreakers.Thresholds[0].RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
		BudgetPercent:       &typev3.Percent{Value: b.Percent},
		BudgetInterval:      durationpb.New(b.Interval),
		MinRetryConcurrency: wrapperspb.UInt32(b.MinConcurrency),
	}
}

// Protocol is the version of HTTP that a backend is spoken to in.
type Protocol int

// The versions of HTTP.
const (
	HTTP1      Protocol = iota
	HTTP2               // with prior knowledge, also within TLS
	Negotiated          // by ALPN: the cluster must have TLS that offers both
)

func httpOptions(protocol Protocol) *httpv3.HttpProtocolOptions {
	if protocol == Negotiated {
		return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_AutoConfig{AutoConfig: &httpv3.HttpProtocolOptions_AutoHttpConfig{}}}
	}
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
	}
	if protocol == HTTP2 {
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}
	}
	return &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit},
	}
}

// Endpoint is one address of a backend.
type Endpoint struct {
	Address string // IP; of a HostEndpoint a name in DNS
	Port    uint32
}

// LoadAssignment is the set of endpoints of a cluster, sorted and without duplicates. An empty set answers 503.
func LoadAssignment(cluster string, endpoints []Endpoint) *endpointv3.ClusterLoadAssignment {
	sorted := slices.Clone(endpoints)
	slices.SortFunc(sorted, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
	})
	sorted = slices.Compact(sorted)
	out := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	if len(sorted) == 0 {
		return out
	}
	all := &endpointv3.LocalityLbEndpoints{}
	for _, e := range sorted {
		all.LbEndpoints = append(all.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socket(e.Address, e.Port)}},
		})
	}
	out.Endpoints = []*endpointv3.LocalityLbEndpoints{all}
	return out
}

// TLSSecret is a certificate chain with its private key, in PEM.
func TLSSecret(name string, chain, key []byte) *tlsv3.Secret {
	return &tlsv3.Secret{
		Name: name,
		Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(chain),
			PrivateKey:       inline(key),
		}},
	}
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}
