package kube

import (
	"context"
	"reflect"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/headless"
	"github.com/fleetgate/fleetgate/cluster/member"
)

// Each watch of an API server is in order, but two of them are not so with each other: a route may be heard of before the Service or the XBackend that was made before it. Without
// that it would be compiled to answer 500, until the backend is heard of too. Unknown is not absent (D10): a backend that a new or changed route names and that nobody has heard of
// is asked for before the route is passed on.

const (
	askWithin = time.Second // later than that the watch will tell
	askAtOnce = 16
)

var backendReference = reflect.TypeFor[gatewayv1.BackendObjectReference]()

// named is an object that a route names.
type named struct {
	kind string
	at   key
}

// backends are the Services and XBackends that a route names, wherever in its spec.
func backends(o member.Object) map[named]bool {
	out := map[named]bool{}
	eachBackend(reflect.ValueOf(o).Elem().FieldByName("Spec"), func(b gatewayv1.BackendObjectReference) {
		id := named{"Service", key{o.GetNamespace(), string(b.Name)}}
		group := ""
		if b.Group != nil {
			group = string(*b.Group)
		}
		if b.Kind != nil {
			id.kind = string(*b.Kind)
		}
		if b.Namespace != nil {
			id.at.namespace = string(*b.Namespace)
		}
		if id.kind == "Service" && group == "" || id.kind == headless.OwnerKind && group == experimentalGroup {
			out[id] = true
		}
	})
	return out
}

// eachBackend finds the references to backends in a part of a spec.
func eachBackend(v reflect.Value, found func(gatewayv1.BackendObjectReference)) {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		eachBackend(v.Elem(), found)
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			eachBackend(v.Index(i), found)
		}
	case v.Kind() == reflect.Struct && v.Type() == backendReference:
		found(v.Interface().(gatewayv1.BackendObjectReference))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			eachBackend(v.Field(i), found)
		}
	}
}

// isRoute tells whether objects of a kind send requests somewhere.
func (k *kind) isRoute() bool { return k.group == gatewayGroup && strings.HasSuffix(k.name, "Route") }

// renamed notes a route that may name other backends than before: a new generation of it.
func (r *runner) renamed(k *kind, o member.Object) {
	if !k.isRoute() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.kept[k].objects[keyOf(o)]; old == nil || old.GetUID() != o.GetUID() || old.GetGeneration() != o.GetGeneration() {
		r.fresh = append(r.fresh, o)
	}
}

// askForNamed asks for the backends that new and changed routes name and that nobody has heard of. Before the first complete view there is nothing to ask: no route is compiled
// without the lists of Services and XBackends.
func (r *runner) askForNamed() {
	routes := r.fresh
	r.fresh = nil
	if !r.told || r.stranger {
		return
	}
	var under errgroup.Group
	under.SetLimit(askAtOnce)
	ctx, cancel := context.WithTimeout(r.ctx, askWithin)
	defer cancel()
	type answer struct {
		k *kind
		o member.Object
	}
	found := make(chan answer, 1)
	for id, version := range r.unheard(routes) {
		k := kindOf(id.kind)
		under.Go(func() error {
			o, err := r.api.read(ctx, k, version, id.at.namespace, id.at.name)
			if o != nil {
				found <- answer{k, o}
			}
			return err
		})
	}
	go func() {
		if err := under.Wait(); err != nil {
			r.log.Info("backends that routes name could not be asked for: their watch will tell", "err", err)
		}
		close(found)
	}()
	for a := range found {
		r.mu.Lock()
		r.kept[a.k].upsert(a.o)
		r.mu.Unlock()
		r.emit(a.k, a.o)
	}
}

// unheard are the objects that routes name and that were not delivered, each with the version in which it is read. Those of a kind that is not served are not there.
func (r *runner) unheard(routes []member.Object) map[named]string {
	out := map[named]string{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range routes {
		for id := range backends(o) {
			k := kindOf(id.kind)
			if version := r.versions[k]; version != "" && r.kept[k].objects[id.at] == nil {
				out[id] = version
			}
		}
	}
	return out
}
