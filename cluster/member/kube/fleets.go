package kube

import (
	"context"
	"fmt"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/fleetgate/fleetgate/cluster/fleet"
)

// fleets is a view of everything that is provisioned in a cluster.
type fleets []*provisioned

// provisioned is what there is of one kind. It is a store that tells of each change; a reflector fills it. An informer would do the same, but waits up to a minute
// before it asks an API server again that was away.
type provisioned struct {
	cache.Indexer
	of      func(*unstructured.Unstructured) (namespace, name string) // whom an object belongs to
	changed func(namespace, name string)
	once    sync.Once
	synced  chan struct{}
}

var _ cache.ReflectorStore = (*provisioned)(nil)

// Follow implements fleet.Cluster.
func (i *Infrastructure) Follow(ctx context.Context, changed func(namespace, gateway string)) (fleet.View, error) {
	var view fleets
	for _, r := range followed() {
		view = append(view, i.follow(ctx, r, fleet.Selector, gatewayOf, changed))
	}
	for n, p := range view {
		if err := p.wait(ctx); err != nil {
			return nil, fmt.Errorf("following the %s of fleets: %w", followed()[n].Resource, err)
		}
	}
	return view, nil
}

// follow keeps a view of the objects of a kind with some labels until ctx ends.
func (i *Infrastructure) follow(ctx context.Context, r schema.GroupVersionResource, selector string, of func(*unstructured.Unstructured) (string, string), changed func(namespace, name string)) *provisioned {
	p := &provisioned{of: of, changed: changed, synced: make(chan struct{})}
	p.Indexer = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{belongsTo: p.indexed})
	quiet := klog.Logger{} // a cluster that cannot be read is told of by its Source, and what that does not read by note
	backoff := retry
	reflector := cache.NewReflectorWithOptions(i.listWatch(r, selector), nil, p, cache.ReflectorOptions{Name: r.Resource, TypeDescription: r.Resource, Backoff: &backoff, Logger: &quiet})
	go reflector.RunWithContext(klog.NewContext(ctx, quiet))
	return p
}

// wait returns when the view is complete.
func (p *provisioned) wait(ctx context.Context) error {
	select {
	case <-p.synced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func followed() []schema.GroupVersionResource {
	out := []schema.GroupVersionResource{pods}
	for _, k := range fleet.Kinds {
		out = append(out, k.GroupVersion().WithResource(k.Resource))
	}
	return out
}

func (i *Infrastructure) listWatch(r schema.GroupVersionResource, selector string) cache.ListerWatcher {
	client := i.client.Resource(r)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if err := i.same(ctx, ""); err != nil {
				return nil, err
			}
			o.LabelSelector = selector
			l, err := client.List(ctx, o)
			i.note(r.Resource, err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if err := i.same(ctx, o.ResourceVersion); err != nil {
				return nil, err
			}
			o.LabelSelector = selector
			w, err := client.Watch(ctx, o)
			i.note(r.Resource, err)
			return w, err
		},
	}
}

func gatewayOf(u *unstructured.Unstructured) (namespace, name string) {
	return fleet.Object(u.Object).GatewayOf()
}

func (p *provisioned) indexed(o any) ([]string, error) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return nil, nil
	}
	namespace, name := p.of(u)
	return []string{namespace + "/" + name}, nil
}

func (p *provisioned) tell(o any) {
	if u, ok := o.(*unstructured.Unstructured); ok {
		p.changed(p.of(u))
	}
}

func trimFleet(o any) any {
	if u, ok := o.(*unstructured.Unstructured); ok {
		u.SetManagedFields(nil)
	}
	return o
}

// Add implements cache.ReflectorStore.
func (p *provisioned) Add(o any) error { return p.Update(o) }

// Update implements cache.ReflectorStore.
func (p *provisioned) Update(o any) error {
	err := p.Indexer.Update(trimFleet(o))
	p.tell(o)
	return err
}

// Delete implements cache.ReflectorStore.
func (p *provisioned) Delete(o any) error {
	err := p.Indexer.Delete(o)
	p.tell(o)
	return err
}

// Replace implements cache.ReflectorStore.
func (p *provisioned) Replace(list []any, version string) error {
	before := p.List()
	for n := range list {
		list[n] = trimFleet(list[n])
	}
	err := p.Indexer.Replace(list, version)
	for _, o := range append(before, list...) {
		p.tell(o)
	}
	p.once.Do(func() { close(p.synced) })
	return err
}

// belonging gives what belongs to somebody.
func (p *provisioned) belonging(namespace, name string) []*unstructured.Unstructured {
	objects, err := p.ByIndex(belongsTo, namespace+"/"+name)
	if err != nil { // the index is there: follow made it
		return nil
	}
	var out []*unstructured.Unstructured
	for _, o := range objects {
		if u, ok := o.(*unstructured.Unstructured); ok {
			out = append(out, u)
		}
	}
	return out
}

// Of implements fleet.View.
func (f fleets) Of(namespace, gateway string) []fleet.Object {
	var out []fleet.Object
	for _, p := range f {
		for _, u := range p.belonging(namespace, gateway) {
			out = append(out, u.Object)
		}
	}
	return out
}

// Gateways implements fleet.View.
func (f fleets) Gateways() [][2]string {
	seen := map[[2]string]bool{}
	var out [][2]string
	for _, p := range f {
		for _, o := range p.List() {
			u, ok := o.(*unstructured.Unstructured)
			if !ok {
				continue
			}
			namespace, name := gatewayOf(u)
			if id := [2]string{namespace, name}; !seen[id] {
				seen[id] = true
				out = append(out, id)
			}
		}
	}
	return out
}
