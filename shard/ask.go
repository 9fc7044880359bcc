package shard

import (
	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate"
)

// asking is what a controller wants by name, and what it has been told of that. A record that is made from an object about which nobody has said
// anything yet is not proposed: unknown is not absent (D10), and the last good record stays. That it may not be read is said too: the compiler keeps the last
// good record then, and where there is none its listener says why.
type asking struct {
	ask      func(before, now map[translate.Ref]bool) (wait bool)
	wait     bool // an object that nobody has told of may exist
	asked    map[translate.Ref]bool
	answered map[translate.Ref]bool
	held     map[store.Key]bool // records that are not proposed yet
}

// hear notes which objects were told of.
func (a *asking) hear(events []translate.Event) {
	for _, e := range events {
		if translate.ByName(e.Kind) && (!e.Unknown || e.Denied) {
			a.answered[translate.Ref{Kind: e.Kind, Namespace: e.Namespace, Name: e.Name}] = true
		}
	}
}

// update says what the compiler reads by now, and finds what has to wait for an answer.
func (a *asking) update(c *translate.Compiler) {
	if refs, moved := c.Asks(); moved {
		now := make(map[translate.Ref]bool, len(refs))
		for _, r := range refs {
			now[r] = true
		}
		for r := range a.answered {
			if !now[r] {
				delete(a.answered, r)
			}
		}
		a.wait = a.ask(a.asked, now)
		a.asked = now
	}
	clear(a.held)
	if !a.wait {
		return
	}
	for r := range a.asked {
		if a.answered[r] {
			continue
		}
		for _, k := range c.Readers(r) {
			a.held[StoreKey(k)] = true
		}
	}
}
