package shard

import (
	"sync"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/record"
)

// objectID names an object in a cluster's cache.
type objectID struct{ kind, namespace, name string }

// cache is the last known view of one member cluster, from which a controller that starts is fed. Controllers that run get the same events.
type cache struct {
	mu      sync.Mutex
	objects map[objectID]translate.Object
	synced  bool
	unknown map[objectID]bool // that may be there, as in translate.Event
	subs    map[*Controller]bool
	asks    map[objectID]int  // objects that are read by name -> controllers that want them
	absent  map[objectID]bool // of those, that are known not to exist
	denied  map[objectID]bool // of those, that may not be read
}

func newCache() *cache {
	return &cache{objects: map[objectID]translate.Object{}, unknown: map[objectID]bool{}, subs: map[*Controller]bool{}, asks: map[objectID]int{}, absent: map[objectID]bool{}, denied: map[objectID]bool{}}
}

// observe takes what a source found and passes it on to all controllers.
func (c *cache) observe(events []translate.Event, synced bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.synced = c.synced || synced
	for _, e := range events {
		id := objectID{e.Kind, e.Namespace, e.Name}
		delete(c.denied, id)
		switch {
		case e.Denied:
			if c.asks[id] > 0 {
				c.denied[id] = true
			}
			continue
		case e.Unknown:
			c.unknown[id] = true
			continue
		}
		delete(c.unknown, id)
		delete(c.absent, id)
		if e.Object != nil {
			c.objects[id] = e.Object
			continue
		}
		delete(c.objects, id)
		if c.asks[id] > 0 {
			c.absent[id] = true
		}
	}
	for s := range c.subs {
		s.deliver(events, c.synced)
	}
}

// ask exchanges what a controller wants by name, and answers at once what is known. It gives all that anybody wants.
func (c *cache) ask(s *Controller, before, now map[translate.Ref]bool) []translate.Ref {
	c.mu.Lock()
	defer c.mu.Unlock()
	var known []translate.Event
	for r := range now {
		id := objectID{r.Kind, r.Namespace, r.Name}
		if before[r] {
			continue
		}
		c.asks[id]++
		switch o := c.objects[id]; {
		case o != nil || c.absent[id]:
			known = append(known, translate.Event{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, Object: o})
		case c.denied[id]:
			known = append(known, translate.Event{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, Unknown: true, Denied: true})
		}
	}
	for r := range before {
		id := objectID{r.Kind, r.Namespace, r.Name}
		if now[r] {
			continue
		}
		if c.asks[id]--; c.asks[id] == 0 {
			delete(c.asks, id)
			delete(c.absent, id)
			delete(c.denied, id)
			delete(c.objects, id)
		}
	}
	if len(known) > 0 {
		s.deliver(known, c.synced)
	}
	all := make([]translate.Ref, 0, len(c.asks))
	for id := range c.asks {
		all = append(all, translate.Ref{Kind: id.kind, Namespace: id.namespace, Name: id.name})
	}
	return all
}

// join feeds a controller everything that is known, and then every change, without a gap.
func (c *cache) join(s *Controller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	events := make([]translate.Event, 0, len(c.objects))
	for id, o := range c.objects {
		events = append(events, translate.Event{Kind: id.kind, Namespace: id.namespace, Name: id.name, Object: o})
	}
	for id := range c.unknown {
		events = append(events, translate.Event{Kind: id.kind, Namespace: id.namespace, Name: id.name, Unknown: true})
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
		case "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "Gateway", "ListenerSet", "BackendTLSPolicy", "XBackend", "XBackendTrafficPolicy", "XTelemetryPolicy":
			out[id.namespace]++
		}
	}
	return out, c.synced
}

// seen tells whether the object of a record is there, or may be.
func (c *cache) seen(k record.Key) bool {
	kind, namespace, name := translate.ObjectOf(k)
	id := objectID{kind, namespace, name}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objects[id] != nil || c.denied[id] || c.unknown[id] || c.unknown[objectID{kind: kind}] || c.unknown[objectID{}]
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
