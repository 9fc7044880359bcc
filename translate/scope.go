package translate

import (
	"fmt"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// Default Gateways (GEP-3793): a route that asks for a scope is taken by every Gateway that has it, as if it named them all. Who they are is decided at
// assembly; only where a redirect leads depends here on where they listen.

// defaultFact is a Gateway that takes routes which do not name it.
type defaultFact struct{ namespace, name string }

// defaultOf gives the fact of a Gateway that is a default one, nil for others.
func defaultOf(e Event, fact any) any {
	if f, ok := fact.(*gatewayFact); ok && f.spec.DefaultScope == gatewayv1.GatewayDefaultScopeAll {
		return &defaultFact{e.Namespace, e.Name}
	}
	return nil
}

// scopeOf reads a scope, "" = none.
func scopeOf(field string, scope gatewayv1.GatewayDefaultScope) (string, error) {
	switch scope {
	case "", gatewayv1.GatewayDefaultScopeNone:
		return "", nil
	case gatewayv1.GatewayDefaultScopeAll:
		return string(scope), nil
	}
	return "", fmt.Errorf("%s %s is not supported: use All or None", field, scope)
}

// scope reads which Gateways a route asks for without naming them.
func (f *routeFact) scope() (string, []record.Problem) {
	var scope gatewayv1.GatewayDefaultScope
	switch {
	case f.http != nil:
		scope = f.http.UseDefaultGateways
	case f.grpc != nil:
		scope = f.grpc.UseDefaultGateways
	case f.tls != nil:
		scope = f.tls.UseDefaultGateways
	case f.tcp != nil:
		scope = f.tcp.UseDefaultGateways
	case f.udp != nil:
		scope = f.udp.UseDefaultGateways
	}
	out, err := scopeOf("useDefaultGateways", scope)
	if err != nil {
		return "", []record.Problem{accepted("UnsupportedValue", err.Error())}
	}
	return out, nil
}

// defaults are the parents of a route that asks for a scope.
func (v *view) defaults(scope string) []record.Parent {
	if scope == "" {
		return nil
	}
	var out []record.Parent
	for _, d := range set[defaultFact](v, input{inputDefaults, "", ""}) {
		out = append(out, record.Parent{Group: gatewayv1.GroupName, Kind: "Gateway", Namespace: d.namespace, Name: d.name})
	}
	return out
}
