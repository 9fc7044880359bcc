package assemble

import (
	"bytes"
	"fmt"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// clients is how the certificates of a port's clients are validated.
type clients struct {
	*record.ClientValidation
	name   string // of the authorities in SDS
	bundle []byte // PEM of those that are there
	index  uint64 // highest of their records
	parts  map[string]string
	notes  []record.Problem // what does not resolve; the rest is served all the same
}

// clientsOf gives the validation of a port, nil where it has none.
func (s *State) clientsOf(g *gateway, port int32) *clients {
	if g.record.Frontend == nil {
		return nil
	}
	v := g.record.Frontend.Default
	if i := slices.IndexFunc(g.record.Frontend.PerPort, func(p record.PortValidation) bool { return p.Port == port }); i >= 0 {
		v = g.record.Frontend.PerPort[i].Clients
	}
	if v == nil {
		return nil
	}
	out := &clients{ClientValidation: v, name: portName(g.fleet, port) + "/clients", notes: slices.Clone(v.Problems), parts: map[string]string{PartID(g.key): g.live.form}}
	for _, k := range v.Trust {
		e := s.entries[k]
		t := as[record.Trust](e)
		switch {
		case t == nil:
			out.notes = append(out.notes, unresolvedTrust(string(gatewayv1.ListenerReasonInvalidCACertificateRef), fmt.Sprintf("%s of %s is not there; create it", k.Name, k.Namespace)))
		case t.Problem != nil:
			out.notes = append(out.notes, unresolvedTrust(t.Problem.Reason, t.Problem.Message))
		default:
			out.bundle = append(out.bundle, t.PEM...)
		}
		if e != nil && e.live.decoded != nil {
			out.index = max(out.index, e.live.Index)
			out.parts[PartID(k)] = e.live.form
		}
	}
	return out
}

func unresolvedTrust(reason, message string) record.Problem {
	return record.Problem{Condition: string(gatewayv1.ListenerConditionResolvedRefs), Reason: reason, Message: message, Rule: -1}
}

// obstacle is why no client can be validated, which no listener of the port survives; nil = some can.
func (c *clients) obstacle() *record.Problem {
	for _, p := range c.notes {
		if p.Condition == string(gatewayv1.ListenerConditionAccepted) {
			return &p
		}
	}
	if len(c.bundle) > 0 {
		return nil
	}
	return &record.Problem{
		Condition: string(gatewayv1.ListenerConditionAccepted), Reason: string(gatewayv1.ListenerReasonNoValidCACertificate), Rule: -1,
		Message: "none of the authorities in tls.frontend can be used, and nothing is served without them; see ResolvedRefs",
	}
}

// resource is the bundle of authorities as SDS gives it: a change of it drops no connection.
func (c *clients) resource(index uint64) (Resource, error) {
	b, err := envoy.Marshal(envoy.TrustSecret(c.name, bytes.Clone(c.bundle), c.AllowInsecure))
	if err != nil {
		return Resource{}, err
	}
	return Resource{Type: TypeSecret, Name: c.name, Version: record.Hash(b), Bytes: [][]byte{b}, Plain: true, Index: max(index, c.index), Parts: []map[string]string{c.parts}}, nil
}

// downstream is what a chain asks of its clients, nil = nothing.
func (c *clients) downstream() *envoy.Clients {
	if c == nil {
		return nil
	}
	return &envoy.Clients{Trust: c.name, Optional: c.AllowInsecure}
}
