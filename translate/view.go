package translate

import (
	"maps"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// view is how a unit reads facts: what it reads, found or not, is noted, and compiles the unit again when it changes.
type view struct {
	c     *Compiler
	reads map[input]struct{}
	blind bool // something that was not found may be there
}

func (v *view) read(in input) any {
	v.reads[in] = struct{}{}
	f, there := v.c.facts[in]
	if !there {
		v.missing(in.kind, in.namespace, in.name)
	}
	return f
}

// aspect reads what a unit needs of an object: it is compiled again when that changes, not when the rest of the object does.
func (v *view) aspect(aspect, kind, namespace, name string) any {
	v.reads[input{aspect, namespace, name}] = struct{}{}
	f, there := v.c.facts[input{kind, namespace, name}]
	if !there {
		v.missing(kind, namespace, name)
	}
	return f
}

// fact reads one object's fact; the zero pointer where there is none.
func fact[T any](v *view, kind, namespace, name string) *T {
	f, _ := v.read(input{kind, namespace, name}).(*T)
	return f
}

// controller gives the controller of a GatewayClass, "" where there is no such class.
func (v *view) controller(class string) string {
	return controllerOf(v.aspect(inputOurs, "GatewayClass", "", class))
}

// class gives the class of a Gateway, "" where there is no such Gateway.
func (v *view) class(namespace, name string) string {
	return classOf(v.aspect(inputClass, "Gateway", namespace, name))
}

func (v *view) ours(controller string) bool {
	return slices.Contains(v.c.cfg.ControllerNames, controller)
}

// ports gives the (scheme, port) pairs of a Gateway or a ListenerSet.
func (v *view) ports(kind, namespace, name string) []schemePort {
	return portsOf(v.aspect(kind+inputPorts, kind, namespace, name))
}

// slices gives the EndpointSlices of a Service, by name.
func (v *view) slices(namespace, service string) []*sliceFact {
	return set[sliceFact](v, input{inputSlices, namespace, service})
}

// slicesFollow tells whether somebody will make EndpointSlices for a Service that has none.
func (v *view) slicesFollow(namespace, service string) bool {
	f := fact[serviceFact](v, "Service", namespace, service)
	return v.c.cfg.SlicesFollow && f != nil && f.selects && !f.external
}

func set[T any](v *view, in input) []*T {
	v.reads[in] = struct{}{}
	members := v.c.sets[in]
	if len(members) == 0 {
		v.missingOf(in)
	}
	out := make([]*T, 0, len(members))
	for _, name := range slices.Sorted(maps.Keys(members)) {
		out = append(out, members[name].(*T))
	}
	return out
}

// granted tells whether a ReferenceGrant allows a reference across namespaces.
func (v *view) granted(fromKind, fromNamespace, toKind, toNamespace, toName string) bool {
	if fromNamespace == toNamespace {
		return true
	}
	for _, g := range set[grantFact](v, input{inputGrants, toNamespace, ""}) {
		if g.allows(fromKind, fromNamespace, toKind, toName) {
			return true
		}
	}
	v.missingOf(input{inputGrants, toNamespace, ""})
	return false
}

func (g *grantFact) allows(fromKind, fromNamespace, toKind, toName string) bool {
	group := gatewayv1.Group(gatewayv1.GroupName)
	if fromKind == kindTelemetry || fromKind == kindXBackend {
		group = gatewayxv1alpha1.GroupName
	}
	from := slices.ContainsFunc(g.from, func(f gatewayv1.ReferenceGrantFrom) bool {
		return f.Group == group && string(f.Kind) == fromKind && string(f.Namespace) == fromNamespace
	})
	return from && slices.ContainsFunc(g.to, func(t gatewayv1.ReferenceGrantTo) bool {
		return t.Group == "" && string(t.Kind) == toKind && (t.Name == nil || *t.Name == "" || string(*t.Name) == toName)
	})
}

// schemePort is where a listener listens, as redirects need to know it.
type schemePort struct {
	scheme string
	port   int32
}

var schemes = map[gatewayv1.ProtocolType]string{gatewayv1.HTTPProtocolType: "http", gatewayv1.HTTPSProtocolType: "https"}

func portsOf(f any) []schemePort {
	var out []schemePort
	for _, l := range listenersIn(f) {
		p := schemePort{schemes[l.Protocol], int32(l.Port)}
		if p.scheme != "" && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// listenersIn gives the listeners of a Gateway or of a ListenerSet, whose entries have the same shape.
func listenersIn(f any) []gatewayv1.Listener {
	switch f := f.(type) {
	case *gatewayFact:
		return f.spec.Listeners
	case *listenerSetFact:
		out := make([]gatewayv1.Listener, len(f.spec.Listeners))
		for i, e := range f.spec.Listeners {
			out[i] = gatewayv1.Listener(e)
		}
		return out
	}
	return nil
}

func classOf(f any) string {
	if g, ok := f.(*gatewayFact); ok && g != nil {
		return string(g.spec.GatewayClassName)
	}
	return ""
}

func controllerOf(f any) string {
	if c, ok := f.(*classFact); ok && c != nil {
		return c.controller
	}
	return ""
}

// key makes a key in this cluster.
func (v *view) key(kind record.Kind, namespace, name string) record.Key {
	return record.Key{Cluster: v.c.cfg.Cluster, Namespace: namespace, Kind: kind, Name: name}
}
