// Package envoy is a shelf of small constructors, one for each Envoy message that Fleetgate makes, each hiding one quirk of
// Envoy and saying why. It is a leaf: it knows neither the Gateway API nor records, and holds no state.
//
// Bytes are the currency. A message is validated with its own rules and marshalled deterministically once, by whoever compiled
// it; later steps (VirtualHostBytes, VirtualHostsBytes) only concatenate, since repeated protobuf fields do. So the
// same input gives the same bytes on every replica, and nobody unmarshals a route to put it into a virtual host.
package envoy

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// nestedFetchTimeout bounds how long a listener or cluster waits for what it names (RDS, EDS, SDS): without it one hole keeps a
// starting Envoy from accepting on any port.
const nestedFetchTimeout = 10 * time.Second

// Marshal validates a message by its protoc-gen-validate rules, as Envoy will, and gives its deterministic bytes.
func Marshal(m proto.Message) ([]byte, error) {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return nil, fmt.Errorf("envoy: %s would be rejected: %w", m.ProtoReflect().Descriptor().Name(), err)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("envoy: marshal %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return b, nil
}

// Any packs a message, validated and deterministic.
func Any(m proto.Message) (*anypb.Any, error) {
	b, err := Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: b}, nil
}

// ads is the source of everything that another resource names: the one ADS stream.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(nestedFetchTimeout),
	}
}

func socket(address string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       address,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}
