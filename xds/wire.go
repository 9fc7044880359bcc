package xds

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of envoy.service.discovery.v3 and google.protobuf.Any.
const (
	requestType, requestSubscribe, requestUnsubscribe, requestInitial, requestNonce, requestError = 2, 3, 4, 5, 6, 7
	responseSystemVersion, responseResources, responseType, responseNonce, responseRemoved        = 1, 2, 4, 5, 6
	responseControlPlane                                                                          = 7
)

// frameEntry makes a complete `resources` field of a DeltaDiscoveryResponse, tag included. A response is these, one after the other:
// so a resource is marshalled once, whoever gets it and whatever goes beside it.
func frameEntry(t Type, r Resource) mem.BufferSlice {
	length := 0
	for _, p := range r.Bytes {
		length += len(p)
	}
	any := appendString(nil, 1, URLs[t])
	any = protowire.AppendVarint(protowire.AppendTag(any, 2, protowire.BytesType), uint64(length))
	body := appendString(nil, 1, r.Version)
	body = protowire.AppendVarint(protowire.AppendTag(body, 2, protowire.BytesType), uint64(len(any)+length))
	name := appendString(nil, 3, r.Name)
	head := protowire.AppendTag(nil, responseResources, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(body)+len(any)+length+len(name)))
	pieces := append(append([][]byte{slices.Concat(head, body, any)}, r.Bytes...), name)
	if length <= copyBelow {
		return mem.BufferSlice{mem.SliceBuffer(slices.Concat(pieces...))}
	}
	out := make(mem.BufferSlice, len(pieces))
	for i, p := range pieces {
		out[i] = mem.SliceBuffer(p)
	}
	return out
}

// copyBelow is the size in bytes up to which the pieces of a resource are copied into one: that is cheaper than many buffers for each client.
const copyBelow = 64 << 10

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// frame is a response on its way out: shared entries and a small tail of the stream's own.
type frame struct{ buffers mem.BufferSlice }

// tail makes all fields of a response but its resources.
func tail(typeURL, nonce, systemVersion, replica string, removed []string) mem.Buffer {
	size := len(typeURL) + len(nonce) + len(systemVersion) + len(replica) + 32
	for _, n := range removed {
		size += len(n) + 4
	}
	b := make([]byte, 0, size)
	if systemVersion != "" {
		b = appendString(b, responseSystemVersion, systemVersion)
	}
	b = appendString(b, responseType, typeURL)
	b = appendString(b, responseNonce, nonce)
	for _, n := range removed {
		b = appendString(b, responseRemoved, n)
	}
	if replica != "" {
		control := appendString(nil, 1, replica)
		b = protowire.AppendBytes(protowire.AppendTag(b, responseControlPlane, protowire.BytesType), control)
	}
	return mem.SliceBuffer(b)
}

// request is what matters of a DeltaDiscoveryRequest. It has no node on purpose: a client cannot say who it is.
type request struct {
	typeURL     string
	subscribe   []string
	unsubscribe []string
	initial     []nameVersion
	nonce       string
	nack        bool
	message     string
}

type nameVersion struct{ name, version string }

var errWire = errors.New("malformed DeltaDiscoveryRequest")

// parseRequest reads a request; the strings in it share b.
func parseRequest(b string) (*request, error) {
	r := &request{}
	err := fields(b, func(n protowire.Number, v string) (err error) {
		switch n {
		case requestType:
			r.typeURL = v
		case requestSubscribe:
			r.subscribe = append(r.subscribe, v)
		case requestUnsubscribe:
			r.unsubscribe = append(r.unsubscribe, v)
		case requestInitial:
			var nv nameVersion
			nv.name, nv.version, err = parsePair(v)
			r.initial = append(r.initial, nv)
		case requestNonce:
			r.nonce = v
		case requestError:
			r.nack = true
			_, r.message, err = parsePair(v) // google.rpc.Status: message is field 2, like a map entry's value
		}
		return err
	})
	return r, err
}

func parsePair(b string) (first, second string, err error) {
	err = fields(b, func(n protowire.Number, v string) error {
		switch n {
		case 1:
			first = v
		case 2:
			second = v
		}
		return nil
	})
	return first, second, err
}

// fields calls f for each length-delimited field of a message and skips all others.
func fields(b string, f func(protowire.Number, string) error) error {
	raw := []byte(b)
	for at := 0; at < len(raw); {
		num, typ, n := protowire.ConsumeTag(raw[at:])
		if n < 0 {
			return fmt.Errorf("%w: %w", errWire, protowire.ParseError(n))
		}
		at += n
		if n = protowire.ConsumeFieldValue(num, typ, raw[at:]); n < 0 {
			return fmt.Errorf("%w: %w", errWire, protowire.ParseError(n))
		}
		if typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(raw[at:])
			if err := f(num, b[at+n-len(v):at+n]); err != nil {
				return err
			}
		}
		at += n
	}
	return nil
}

// codec sends frames as they are, parses requests by hand, and leaves all else to grpc's own codec.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		if n := f.buffers.Len(); n > math.MaxInt32 {
			return nil, fmt.Errorf("response of %d bytes does not fit into a gRPC message", n)
		}
		return f.buffers, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*request)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	parsed, err := parseRequest(string(data.Materialize()))
	if err == nil {
		*r = *parsed
	}
	return err
}
