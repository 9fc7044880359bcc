package assemble

import (
	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// traceTo takes up the backend that the spans of a Gateway's requests are reported to, if there is one: Envoy refuses a listener whose tracer names a cluster that is not there.
func (g *gateway) traceTo(s *State) {
	t := g.record.Tracing
	if t == nil {
		return
	}
	if _, there := s.cluster(t.Collector); there {
		g.collector = &t.Collector
	}
}

// tracing is what the connection managers are told, nil = requests are not traced. It is a part of the listener: a change drains its connections.
func (g *gateway) tracing() *envoy.Tracing {
	t := g.record.Tracing
	if g.collector == nil || t == nil {
		return nil
	}
	out := &envoy.Tracing{Collector: record.ClusterName(t.Collector), Authority: t.Authority, ServiceName: t.ServiceName, SpanName: t.SpanName, IgnoreParent: t.IgnoreParent,
		PerMillion: uint32(int64(t.Rate.Numerator) * 1_000_000 / int64(t.Rate.Denominator))}
	for _, h := range t.Headers {
		out.Headers = append(out.Headers, envoy.Pair(h))
	}
	for _, a := range t.Attributes {
		out.Attributes = append(out.Attributes, envoy.Attribute(a))
	}
	return out
}
