package assemble

import "github.com/fleetgate/fleetgate/translate/record"

// Trial gives a resource of a fleet as it would be if these forms of records were pinned (part id -> hash, as in Resource.Parts), so that a proxy can be asked what it
// makes of it before anybody is accused (D7). It takes the pins in and takes them back, so that it can serve nothing that a real pin would not. Gateways are never
// refused: without its Gateway there is no resource to try. ok is false where the fleet would not have the resource.
func (s *State) Trial(fleet string, t ResourceType, name string, refuse map[string]string) (_ Resource, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var pinned, before []Change
	for part, hash := range refuse {
		k, err := ParsePart(part)
		e := s.entries[k]
		if err != nil || e == nil || k.Kind == record.KindGateway {
			continue
		}
		c := e.change()
		before = append(before, c)
		c.PinnedHash, c.PinReason = hash, "on trial"
		pinned = append(pinned, c)
	}
	s.apply(pinned)
	defer s.apply(before)
	for _, f := range s.fleets {
		if f.name == fleet {
			out, ok := f.resources[resourceKey{t, name}]
			return out, ok
		}
	}
	return Resource{}, false
}

// change is what made an entry what it is.
func (e *entry) change() Change {
	c := Change{Key: e.key, Cur: &e.cur.Content, PinnedHash: e.pinned, PinReason: e.reason}
	if e.prev != nil {
		c.Prev = &e.prev.Content
	}
	return c
}
