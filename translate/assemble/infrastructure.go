package assemble

import (
	"slices"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// Infrastructure is what decides how the fleet of a Gateway is run.
type Infrastructure struct {
	Object record.Object
	Class  string
	Ports  []Port
	Asked  record.Infrastructure
}

// Port is a port that the fleet listens on.
type Port struct {
	Number int32
	UDP    bool
}

// Infrastructure gives how the fleet of a Gateway of ours is to be run; false where there is no such Gateway. A listener that is not served counts too: it may be
// served as soon as a certificate is there, and nobody should then wait for a load balancer.
func (s *State) Infrastructure(k record.Key) (Infrastructure, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := s.fleets[k]
	if f == nil || f.gateway == nil {
		return Infrastructure{}, false
	}
	g := f.gateway
	out := Infrastructure{Object: g.record.Object, Class: g.record.Class}
	if i := g.record.Infrastructure; i != nil {
		out.Asked = *i
	}
	for _, l := range g.listeners {
		if p := (Port{Number: l.Port, UDP: l.Protocol == "UDP"}); !slices.Contains(out.Ports, p) {
			out.Ports = append(out.Ports, p)
		}
	}
	return out, true
}

// requested are the addresses that a Gateway asks for.
func (g *gateway) requested() []record.Address {
	if i := g.record.Infrastructure; i != nil {
		return i.Addresses
	}
	return nil
}

// accessLog is the fleet's own, else the installation's.
func (g *gateway) accessLog(c Config) envoy.AccessLog {
	var own *record.AccessLog
	if i := g.record.Infrastructure; i != nil {
		own = i.AccessLog
	}
	if own == nil {
		return envoy.AccessLog{Path: c.AccessLog}
	}
	switch own.Type {
	case "Text":
		return envoy.AccessLog{Path: envoy.Stdout, Format: own.Format}
	case "JSON":
		return envoy.AccessLog{Path: envoy.Stdout, JSON: true, Fields: own.Fields}
	case "OTLP":
		return envoy.AccessLog{Collector: true, Fields: own.Fields}
	}
	return envoy.AccessLog{}
}
