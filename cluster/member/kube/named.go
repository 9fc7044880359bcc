package kube

import (
	"context"
	"reflect"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
)

// Each watch of an API server is in order, but two of them are not so with each other: a route may be heard of before the Service that was made before it. Without that it would
// be compiled to answer 500, until the Service is heard of too. Unknown is not absent (D10): a Service that a new or changed route names and that nobody has heard of is asked
// for before the route is passed on.

const (
	askWithin = time.Second // later than that the watch will tell
	askAtOnce = 16
)

var backendReference = reflect.TypeFor[gatewayv1.BackendObjectReference]()

// services are the Services that a route names, wherever in its spec.
func services(o member.Object) map[key]bool {
	out := map[key]bool{}
	eachBackend(reflect.ValueOf(o).Elem().FieldByName("Spec"), func(b gatewayv1.BackendObjectReference) {
		if (b.Group != nil && *b.Group != "") || (b.Kind != nil && *b.Kind != "Service") {
			return
		}
		k := key{o.GetNamespace(), string(b.Name)}
		if b.Namespace != nil {
			k.namespace = string(*b.Namespace)
		}
		out[k] = true
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

// askForNamed asks for the Services that new and changed routes name and that nobody has heard of. Before the first complete view there is nothing to ask: no route is compiled
// without the list of Services.
func (r *runner) askForNamed() {
	routes := r.fresh
	r.fresh = nil
	if !r.told || r.stranger {
		return
	}
	k := kindOf("Service")
	var under errgroup.Group
	under.SetLimit(askAtOnce)
	ctx, cancel := context.WithTimeout(r.ctx, askWithin)
	defer cancel()
	found := make(chan member.Object, 1)
	for id := range r.unheard(k, routes) {
		under.Go(func() error {
			o, err := r.api.read(ctx, k, k.versions[0], id.namespace, id.name)
			if o != nil {
				found <- o
			}
			return err
		})
	}
	go func() {
		if err := under.Wait(); err != nil {
			r.log.Info("Services that routes name could not be asked for: their watch will tell", "err", err)
		}
		close(found)
	}()
	for o := range found {
		r.mu.Lock()
		r.kept[k].upsert(o)
		r.mu.Unlock()
		r.emit(k, o)
	}
}

// unheard are the objects of a kind that routes name and that were not delivered.
func (r *runner) unheard(k *kind, routes []member.Object) map[key]bool {
	out := map[key]bool{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range routes {
		for id := range services(o) {
			if r.kept[k].objects[id] == nil {
				out[id] = true
			}
		}
	}
	return out
}
