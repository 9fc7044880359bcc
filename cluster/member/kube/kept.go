package kube

import (
	"cmp"
	"slices"

	"github.com/fleetgate/fleetgate/cluster/member"
)

// key names an object of a kind.
type key struct{ namespace, name string }

func keyOf(o member.Object) key { return key{o.GetNamespace(), o.GetName()} }

// kept is what was delivered of a kind. It decides, and does nothing: pure but for its own maps.
type kept struct {
	objects map[key]member.Object
	// gone are objects that the server no longer shows and whose deletion is not believed yet.
	gone map[key]doubt
}

// doubt says why a deletion is not delivered.
type doubt int

const (
	unconfirmed doubt = iota // nobody has looked yet whether the kind itself goes
	vanished                 // its CRD goes or is gone
	tooMany                  // a relist lacked too many at once
)

func newKept() *kept { return &kept{objects: map[key]member.Object{}, gone: map[key]doubt{}} }

// upsert takes an object in; it tells whether it differs from what was delivered.
func (k *kept) upsert(o member.Object) bool {
	id := keyOf(o)
	old, had := k.objects[id]
	_, doubted := k.gone[id]
	k.objects[id] = o
	delete(k.gone, id)
	return !had || doubted || old.GetResourceVersion() != o.GetResourceVersion() || old.GetUID() != o.GetUID()
}

// lose notes that a watch says that an object is gone.
func (k *kept) lose(id key) {
	if _, had := k.objects[id]; had {
		k.gone[id] = unconfirmed
	}
}

// replace takes in a complete list: it gives what is new or changed, and notes what is not there.
func (k *kept) replace(list []member.Object, held func(lost, known int) bool) (changed []member.Object) {
	there := make(map[key]bool, len(list))
	for _, o := range list {
		there[keyOf(o)] = true
		if k.upsert(o) {
			changed = append(changed, o)
		}
	}
	var lost []key
	for id := range k.objects {
		if !there[id] {
			lost = append(lost, id)
		}
	}
	hold := held(len(lost), len(k.objects))
	for _, id := range lost {
		switch why, doubted := k.gone[id]; {
		case !doubted && hold:
			k.gone[id] = tooMany
		case !doubted || why == vanished: // the kind is back: its list is to be believed, if it is confirmed
			k.gone[id] = unconfirmed
		}
	}
	return changed
}

// doubted lists the deletions that are in doubt for a reason, in order.
func (k *kept) doubted(why doubt) []key {
	var out []key
	for id, d := range k.gone {
		if d == why {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	return out
}

// settle ends the doubt about deletions that nobody had looked at: they are believed and forgotten, or kept because the kind itself goes.
func (k *kept) settle(believed bool) []key {
	ids := k.doubted(unconfirmed)
	for _, id := range ids {
		if believed {
			delete(k.objects, id)
			delete(k.gone, id)
		} else {
			k.gone[id] = vanished
		}
	}
	if !believed {
		return nil
	}
	return ids
}

// suspicious tells whether a relist that lacks this many of the known objects is more likely a fault than a wish: one clean sweep of a cluster
// costs one confirmation, one false sweep costs all its traffic.
func suspicious(lost, known int) bool {
	return lost > 1 && lost*2 > known
}
