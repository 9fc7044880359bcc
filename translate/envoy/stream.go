package envoy

import (
	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	udpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// streamFormat tells of a connection what can be known without looking inside.
const streamFormat = "[%START_TIME%] \"%REQUESTED_SERVER_NAME%\" %DOWNSTREAM_REMOTE_ADDRESS% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION%ms -> %UPSTREAM_HOST%\n"

// StreamCluster is where a chain sends its streams: its backends are the localities of its load assignment, with their weights, so that neither the
// chain nor the cluster changes when a route does, and no connection is cut (D17).
func StreamCluster(name string) *clusterv3.Cluster {
	c := edsCluster(name, clusterv3.Cluster_ROUND_ROBIN)
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{LocalityConfigSpecifier: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
		LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
	}}
	return c
}

// LookUpStream has proxies look up the endpoints of a stream cluster, some of which are names in DNS: Envoy takes no names by EDS. It gives the marshalled cluster with its load
// assignment, as StreamAssignment makes it; a change of endpoints is one of the cluster then.
func LookUpStream(c *clusterv3.Cluster, assignment []byte) ([]byte, error) {
	lookUp(c)
	b, err := Marshal(c)
	return appendBytes(b, clusterLoadAssignment, assignment), err
}

// clusterLoadAssignment is the field of a Cluster; TestLookUpStream holds it against the proto.
const clusterLoadAssignment = 33

// StreamPart is one backend's part of a stream cluster.
type StreamPart struct {
	Name       string // tells the parts of one cluster apart
	Weight     uint32 // above 0
	Assignment []byte // marshalled ClusterLoadAssignment of the backend; one without endpoints has its part refused
}

// Field numbers of what StreamAssignment splices; TestStreamAssignment holds them against the protos.
const (
	assignmentName, assignmentEndpoints = 1, 2
	localityLocality, localityWeight    = 1, 3
	localityMetadata                    = 9
	localityZone                        = 2
	wrapperValue                        = 1
)

// StreamAssignment is the load assignment of a stream cluster, spliced from those of its backends.
func StreamAssignment(name string, parts []StreamPart) []byte {
	out := appendBytes(nil, assignmentName, name)
	refused := uint32(0) // in one part: to Envoy an address is an endpoint once
	for _, p := range parts {
		if group, ok := endpointGroup(p.Assignment); ok {
			out = appendBytes(out, assignmentEndpoints, locality(p.Name, group, p.Weight))
		} else {
			refused += p.Weight
		}
	}
	if refused > 0 {
		out = appendBytes(out, assignmentEndpoints, locality("refused", refusing, refused))
	}
	return out
}

// locality puts a name and a weight to a group of endpoints.
func locality(name string, group []byte, weight uint32) []byte {
	b := appendBytes(nil, localityLocality, appendBytes(nil, localityZone, name))
	b = append(b, group...)
	if m, err := Marshal(&corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{socketMatch: partOf(name)}}); err == nil { // it cannot fail
		b = appendBytes(b, localityMetadata, m)
	}
	return appendBytes(b, localityWeight, protowire.AppendVarint(protowire.AppendTag(nil, wrapperValue, protowire.VarintType), uint64(weight)))
}

// endpointGroup cuts the LocalityLbEndpoints out of a load assignment, which has one at most.
func endpointGroup(assignment []byte) ([]byte, bool) {
	for rest := assignment; len(rest) > 0; {
		number, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return nil, false
		}
		size := protowire.ConsumeFieldValue(number, kind, rest[n:])
		if size < 0 {
			return nil, false
		}
		if number == assignmentEndpoints && kind == protowire.BytesType {
			group, m := protowire.ConsumeBytes(rest[n:])
			return group, m >= 0 && len(group) > 0
		}
		rest = rest[n+size:]
	}
	return nil, false
}

// refusing is a group with an endpoint that nobody can listen on: connections to port 0 are refused, datagrams to it are dropped. Without it Envoy would give
// the part of a backend that is not there to the others.
var refusing = mustGroup(Endpoint{Address: "127.0.0.1", Port: 0})

func mustGroup(e Endpoint) []byte {
	b, err := Marshal(LoadAssignment("x", []Endpoint{e}))
	if err != nil {
		panic(err) // a constant of this package is wrong
	}
	group, _ := endpointGroup(b)
	return group
}

// StreamChain is a filter chain that forwards connections to a cluster: those with one of the server names (none = all), after terminating TLS if tls is not nil.
func StreamChain(name string, serverNames []string, tls *tlsv3.DownstreamTlsContext, cluster string, accessLog AccessLog) (*listenerv3.FilterChain, error) {
	logs, err := accessLogs(accessLog, streamFormat)
	if err != nil {
		return nil, err
	}
	chain, err := proxyChain(name, cluster, logs)
	if err != nil {
		return nil, err
	}
	if len(serverNames) > 0 {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: serverNames}
	}
	if tls == nil {
		return chain, nil
	}
	packed, err := Any(tls)
	if err != nil {
		return nil, err
	}
	chain.TransportSocket = &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed}}
	return chain, nil
}

func proxyChain(name, cluster string, logs []*accesslogv3.AccessLog) (*listenerv3.FilterChain, error) {
	proxy, err := Any(&tcpproxyv3.TcpProxy{
		StatPrefix:       "stream",
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
		AccessLog:        logs,
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.FilterChain{Name: name, Filters: []*listenerv3.Filter{{
		Name:       "envoy.filters.network.tcp_proxy",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: proxy},
	}}}, nil
}

// DatagramListener forwards the datagrams of a UDP port to a cluster, those of one client to one endpoint. Its bytes are constant.
func DatagramListener(name, address string, port int32, cluster string) (*listenerv3.Listener, error) {
	if address == "" {
		address = AnyAddress
	}
	route, err := Any(&udpproxyv3.Route{Cluster: cluster})
	if err != nil {
		return nil, err
	}
	proxy, err := Any(&udpproxyv3.UdpProxyConfig{
		StatPrefix: "datagrams",
		RouteSpecifier: &udpproxyv3.UdpProxyConfig_Matcher{Matcher: &xdsmatcherv3.Matcher{OnNoMatch: &xdsmatcherv3.Matcher_OnMatch{
			OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{Name: "route", TypedConfig: route}},
		}}},
	})
	if err != nil {
		return nil, err
	}
	at := socket(address, uint32(port))
	at.GetSocketAddress().Protocol = corev3.SocketAddress_UDP
	return &listenerv3.Listener{
		Name:              name,
		Address:           at,
		EnableReusePort:   wrapperspb.Bool(true),
		UdpListenerConfig: &listenerv3.UdpListenerConfig{},
		ListenerFilters: []*listenerv3.ListenerFilter{{
			Name:       "envoy.filters.udp_listener.udp_proxy",
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: proxy},
		}},
	}, nil
}
