package assemble

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// listenerSet is a ListenerSet that names a Gateway (GEP-1713): turned into further listeners of it before anything else looks at them.
type listenerSet struct {
	key      record.Key
	record   *record.ListenerSet
	live     live
	refused  *record.Problem // why the Gateway does not take it, nil = it does
	withheld string          // why none of its listeners may be served, "" = they may
}

// same tells whether two versions of a ListenerSet mean the same to routes.
func (s *listenerSet) same(t *listenerSet) bool {
	return s.key == t.key && s.live.same(t.live) && (s.refused == nil) == (t.refused == nil)
}

// parents are the Gateways that some content of a ListenerSet names.
func setParents(e *entry) []record.Key {
	var out []record.Key
	for _, d := range []*decoded{e.cur, e.prev} {
		if d == nil || d.err != nil {
			continue
		}
		p := d.value.(*record.ListenerSet).Parent
		out = append(out, record.Key{Cluster: e.key.Cluster, Namespace: p.Namespace, Kind: record.KindGateway, Name: p.Name})
	}
	return out
}

// settle chooses what of a Gateway or ListenerSet is live. Where nothing else is there, it goes live without the secrets that it waits for: its other listeners
// need not wait. One that proxies rejected is kept with all its listeners withheld, so that its status says why.
func (s *State) settle(e *entry) (withheld string) {
	e.live = choose(e, s.exists)
	if e.live.decoded == nil && e.cur.err == nil {
		e.live.decoded, e.live.form = e.cur, e.cur.Hash
		withheld = e.obstacle(e.cur, func(record.Key) bool { return true })
	}
	return withheld
}

// setsOf gives the ListenerSets of a Gateway in their order of precedence: the older first.
func (s *State) setsOf(k record.Key, g *record.Gateway) []*listenerSet {
	var out []*listenerSet
	for key := range s.sets[k] {
		e := s.entries[key]
		l := &listenerSet{key: key, withheld: s.settle(e), live: e.live}
		l.record = as[record.ListenerSet](e)
		if l.record == nil || l.record.Parent.Namespace != k.Namespace || l.record.Parent.Name != k.Name {
			continue
		}
		l.refused = s.refuseSet(k, g, key)
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b *listenerSet) int {
		return cmp.Or(a.record.Created.Compare(b.record.Created), cmp.Compare(a.key.Namespace+"/"+a.key.Name, b.key.Namespace+"/"+b.key.Name))
	})
	return out
}

// refuseSet tells why a Gateway does not take a ListenerSet.
func (s *State) refuseSet(k record.Key, g *record.Gateway, set record.Key) *record.Problem {
	var allowed record.Allowed
	if g.AllowedListeners != nil {
		allowed = *g.AllowedListeners
	}
	ok := false
	switch gatewayv1.FromNamespaces(allowed.From) {
	case gatewayv1.NamespacesFromAll:
		ok = true
	case gatewayv1.NamespacesFromSame:
		ok = set.Namespace == k.Namespace
	case gatewayv1.NamespacesFromSelector:
		space, selector := s.labels(set), selectorOf(allowed.Selector)
		ok = selector != nil && space != nil && selector.Matches(labels.Set(space))
	}
	if ok {
		return nil
	}
	return &record.Problem{
		Condition: string(gatewayv1.ListenerSetConditionAccepted), Reason: string(gatewayv1.ListenerSetReasonNotAllowed), Rule: -1,
		Message: fmt.Sprintf("Gateway %s/%s does not allow ListenerSets from namespace %s; ask its owner to widen allowedListeners", k.Namespace, k.Name, set.Namespace),
	}
}

// labels gives the labels of the namespace of a record, nil where that is not known.
func (s *State) labels(k record.Key) map[string]string {
	n := as[record.Namespace](s.entries[record.Key{Cluster: k.Cluster, Namespace: k.Namespace, Kind: record.KindNamespace, Name: k.Namespace}])
	switch {
	case n == nil:
		return nil
	case n.Labels == nil:
		return map[string]string{}
	}
	return n.Labels
}

// set gives the ListenerSet of a Gateway by its record's key, nil where it has none such.
func (g *gateway) set(k record.Key) *listenerSet {
	for _, s := range g.sets {
		if s.key == k {
			return s
		}
	}
	return nil
}

// of gives the listeners of a ListenerSet, of the Gateway's own where it is nil.
func (g *gateway) of(s *listenerSet) []*listener {
	return filter(g.listeners, func(l *listener) bool { return l.set == s })
}

// owner names what a parentRef's listeners belong to: the Gateway itself (nil) or one of its ListenerSets; ok is false where neither is named.
func (g *gateway) owner(cluster string, p record.Parent) (set *listenerSet, ok bool) {
	k, ok := parentKey(cluster, p)
	if !ok || k == g.key {
		return nil, ok
	}
	set = g.set(k)
	return set, set != nil
}

// parentKey is the record that a parentRef names, if that is a Gateway or a ListenerSet.
func parentKey(cluster string, p record.Parent) (record.Key, bool) {
	k := record.Key{Cluster: cluster, Namespace: p.Namespace, Name: p.Name}
	switch {
	case p.Group != gatewayv1.GroupName:
		return k, false
	case p.Kind == "Gateway":
		k.Kind = record.KindGateway
	case p.Kind == "ListenerSet":
		k.Kind = record.KindListenerSet
	}
	return k, k.Kind != ""
}
