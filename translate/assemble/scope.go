package assemble

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// A route that asks for default Gateways (GEP-3793) is to each of them as if it named it.

// byDefault is the parentRef by which a Gateway takes a route that asks for its scope; none where it does not, or where the route names the Gateway all the same.
func (g *gateway) byDefault(r *record.Route) []record.Parent {
	if r.Scope == "" || r.Scope != g.record.Scope {
		return nil
	}
	own := record.Parent{Group: gatewayv1.GroupName, Kind: "Gateway", Namespace: g.key.Namespace, Name: g.key.Name}
	named := func(p record.Parent) bool {
		p.Local = false
		return p == own
	}
	if slices.ContainsFunc(r.Parents, named) {
		return nil
	}
	return []record.Parent{own}
}

// defaultGateway is the condition of a Gateway that takes routes which do not name it.
func defaultGateway(g *record.Gateway) []metav1.Condition {
	if g.Scope == "" {
		return nil
	}
	return []metav1.Condition{condition("DefaultGateway", true, "DefaultGateway", "Gateway has default scope "+g.Scope, g.Object.Generation)}
}

// scope is that which some content of a route or a Gateway has.
func (e *entry) scope() (out string) {
	for _, d := range []*decoded{e.cur, e.prev} {
		if d == nil || d.err != nil || out != "" {
			continue
		}
		switch r := d.value.(type) {
		case *record.Route:
			out = r.Scope
		case *record.Gateway:
			out = r.Scope
		}
	}
	return out
}

// scoped is what of a cluster has a scope: its default Gateways, and the routes that ask for them.
type scoped struct{ gateways, routes set }

func (s *State) indexScope(e *entry) {
	if e.scope() == "" {
		return
	}
	of := s.scopes[e.key.Cluster]
	if of == nil {
		of = &scoped{set{}, set{}}
		s.scopes[e.key.Cluster] = of
	}
	of.of(e.key)[e.key] = struct{}{}
}

func (s *State) unindexScope(e *entry) {
	if of := s.scopes[e.key.Cluster]; of != nil {
		delete(of.of(e.key), e.key)
	}
}

func (of *scoped) of(k record.Key) set {
	if k.Kind == record.KindGateway {
		return of.gateways
	}
	return of.routes
}

// defaultsFor are the Gateways that may take a content of a route by default.
func (s *State) defaultsFor(k record.Key, d *decoded) []record.Key {
	of := s.scopes[k.Cluster]
	if d == nil || d.err != nil || of == nil || d.value.(*record.Route).Scope == "" {
		return nil
	}
	var out []record.Key
	for g := range of.gateways {
		out = append(out, g)
	}
	return out
}

// touchDefaulted notes that the routes which ask for default Gateways must be looked at: a Gateway is, or was, one.
func (s *State) touchDefaulted(g *gateway, w *work) {
	if g == nil || g.record.Scope == "" {
		return
	}
	if of := s.scopes[g.key.Cluster]; of != nil {
		for r := range of.routes {
			w.routes[r] = struct{}{}
		}
	}
}
