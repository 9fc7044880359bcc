package envoy

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of the messages that are put together from marshalled parts; TestConcatenation holds them against the protos.
const (
	vhostName, vhostDomains, vhostRoutes = 1, 2, 3

	configName, configVirtualHosts, configNoPort = 1, 2, 14
)

// VirtualHostBytes is a marshalled VirtualHost of already marshalled Routes, in their order. The caller sees to it that a domain is in one
// virtual host of a configuration only: Envoy rejects duplicates.
func VirtualHostBytes(name string, domains []string, routes [][]byte) []byte {
	size := len(name) + 16
	for _, d := range domains {
		size += len(d) + 8
	}
	for _, r := range routes {
		size += len(r) + 8
	}
	b := appendBytes(make([]byte, 0, size), vhostName, name)
	for _, d := range domains {
		b = appendBytes(b, vhostDomains, d)
	}
	for _, r := range routes {
		b = appendBytes(b, vhostRoutes, r)
	}
	return b
}

// RouteConfigurationHead is the beginning of a marshalled RouteConfiguration; its virtual hosts follow, by VirtualHostsBytes. It ignores the port
// in the Host header.
func RouteConfigurationHead(name string) []byte {
	b := appendBytes(nil, configName, name)
	return protowire.AppendVarint(protowire.AppendTag(b, configNoPort, protowire.VarintType), 1)
}

// VirtualHostsBytes are already marshalled VirtualHosts as a part of a RouteConfiguration.
func VirtualHostsBytes(vhosts [][]byte) []byte {
	size := 0
	for _, v := range vhosts {
		size += len(v) + 8
	}
	b := make([]byte, 0, size)
	for _, v := range vhosts {
		b = appendBytes(b, configVirtualHosts, v)
	}
	return b
}

func appendBytes[T string | []byte](b []byte, field protowire.Number, v T) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}

// StatusRoute answers every request with a status and no body: 404 where nothing matches, 421 where another listener owns the host.
func StatusRoute(name string, status uint32) ([]byte, error) {
	return Marshal(&routev3.Route{
		Name:   name,
		Match:  PrefixPath("/"),
		Action: DirectResponse(status),
	})
}
