package kube

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/fleetgate/fleetgate/cluster/fleet"
)

// fleets is a view of everything that is provisioned in a cluster.
type fleets []cache.SharedIndexInformer

// Follow implements fleet.Cluster.
func (i *Infrastructure) Follow(ctx context.Context, changed func(namespace, gateway string)) (fleet.View, error) {
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(i.client, 0, metav1.NamespaceAll,
		func(o *metav1.ListOptions) { o.LabelSelector = fleet.Selector })
	var view fleets
	for _, r := range followed() {
		informer := factory.ForResource(r).Informer()
		if err := prepareInformer(informer, changed); err != nil {
			return nil, fmt.Errorf("following the %s of fleets: %w", r.Resource, err)
		}
		view = append(view, informer)
	}
	factory.Start(ctx.Done())
	for r, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return nil, fmt.Errorf("following the %s of fleets: %w", r.Resource, context.Cause(ctx))
		}
	}
	return view, nil
}

func followed() []schema.GroupVersionResource {
	out := []schema.GroupVersionResource{pods}
	for _, k := range fleet.Kinds {
		out = append(out, k.GroupVersion().WithResource(k.Resource))
	}
	return out
}

func prepareInformer(informer cache.SharedIndexInformer, changed func(namespace, gateway string)) error {
	if err := informer.AddIndexers(cache.Indexers{belongsTo: func(o any) ([]string, error) {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			return nil, nil
		}
		namespace, name := fleet.Object(u.Object).GatewayOf()
		return []string{namespace + "/" + name}, nil
	}}); err != nil {
		return err
	}
	if err := informer.SetTransform(func(o any) (any, error) {
		if u, ok := o.(*unstructured.Unstructured); ok {
			u.SetManagedFields(nil)
		}
		return o, nil
	}); err != nil {
		return err
	}
	tell := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if u, ok := o.(*unstructured.Unstructured); ok {
			changed(fleet.Object(u.Object).GatewayOf())
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell, DeleteFunc: tell, UpdateFunc: func(_, o any) { tell(o) }})
	return err
}

// Of implements fleet.View.
func (f fleets) Of(namespace, gateway string) []fleet.Object {
	var out []fleet.Object
	for _, informer := range f {
		objects, err := informer.GetIndexer().ByIndex(belongsTo, namespace+"/"+gateway)
		if err != nil { // the index is there: prepareInformer made it
			continue
		}
		for _, o := range objects {
			if u, ok := o.(*unstructured.Unstructured); ok {
				out = append(out, u.Object)
			}
		}
	}
	return out
}

// Gateways implements fleet.View.
func (f fleets) Gateways() [][2]string {
	seen := map[[2]string]bool{}
	var out [][2]string
	for _, informer := range f {
		for _, o := range informer.GetStore().List() {
			u, ok := o.(*unstructured.Unstructured)
			if !ok {
				continue
			}
			namespace, name := fleet.Object(u.Object).GatewayOf()
			if id := [2]string{namespace, name}; !seen[id] {
				seen[id] = true
				out = append(out, id)
			}
		}
	}
	return out
}
