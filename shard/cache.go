package shard

import (
	"sync"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate"
)

// objectID names an object in a cluster's cache.
type objectID struct{ kind, namespace, name string }

// cache is the last known view of one member cluster, from which a controller that starts is fed. Controllers that run get the same events.
type cache struct {
	mu      sync.Mutex
	objects map[objectID]translate.Object
	synced  bool
	subs    map[*Controller]bool
}

func newCache() *cache {
	return &cache{objects: map[objectID]translate.Object{}, subs: map[*Controller]bool{}}
}

// observe takes what a source found and passes it on to all controllers.
func (c *cache) observe(events []translate.Event, synced bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.synced = c.synced || synced
	for _, e := range events {
		id := objectID{e.Kind, e.Namespace, e.Name}
		if e.Object == nil {
			delete(c.objects, id)
		} else {
			c.objects[id] = e.Object
		}
	}
	for s := range c.subs {
		s.deliver(events, c.synced)
	}
}

// join feeds a controller everything that is known, and then every change, without a gap.
func (c *cache) join(s *Controller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	events := make([]translate.Event, 0, len(c.objects))
	for id, o := range c.objects {
		events = append(events, translate.Event{Kind: id.kind, Namespace: id.namespace, Name: id.name, Object: o})
	}
	c.subs[s] = true
	s.deliver(events, c.synced)
}

func (c *cache) leave(s *Controller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.subs, s)
}

// weights counts the objects of each namespace: what a plan balances by.
func (c *cache) weights() (map[string]uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]uint64{"": 1}
	for id := range c.objects {
		switch id.kind {
		case "Namespace":
			out[id.name]++
		case "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "Gateway", "ListenerSet", "BackendTLSPolicy":
			out[id.namespace]++
		}
	}
	return out, c.synced
}

// get reads one object.
func (c *cache) get(kind, namespace, name string) translate.Object {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objects[objectID{kind, namespace, name}]
}

// rowOf finds the row of a namespace.
func rowOf(rows []store.Row, cluster, namespace string) (store.Row, bool) {
	for _, r := range rows {
		if r.Cluster == cluster && Contains(r, namespace) {
			return r, true
		}
	}
	return store.Row{}, false
}
