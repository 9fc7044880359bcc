package translate

import (
	"fmt"
	"strings"

	"github.com/fleetgate/fleetgate/translate/record"
)

// Unknown is not absent (D10): where nobody can tell whether an object is there, what was compiled when one could stays. The unknown alone changes
// nothing; a person's change does, and is compiled with what is known. So a route or a Gateway of which a newer generation came is compiled anew, and
// what has no generation of its own (backends, endpoints, secrets) is kept until something that it reads changes.

// reply is what has been said of an object that was asked for by name.
type reply int

const (
	silent reply = iota
	seen         // that it is there, or that it is not
	denied       // that it may not be read
)

// answered notes what an event answers, and gives the records that have to be compiled again for that alone. What was kept because nobody had answered stays
// when the answer is that nobody may: the last good certificate is served on.
func (c *Compiler) answered(e Event) (again []record.Key) {
	if !c.cfg.Asked || !ByName(e.Kind) || e.Unknown && !e.Denied {
		return nil
	}
	in, now := input{e.Kind, e.Namespace, e.Name}, seen
	if e.Denied {
		now = denied
	}
	if c.answers[in] == now {
		return nil
	}
	c.answers[in] = now
	for k := range c.readers[in] {
		if now == seen || !c.results[k].kept {
			again = append(again, k)
		}
	}
	return again
}

// absence says why an object that is read by name could not be found, and what to do.
func (v *view) absence(kind, namespace, name string) string {
	if namespace == "" && v.c.answers[input{kind, namespace, name}] == denied {
		return fmt.Sprintf("may not be read: RBAC forbids Fleetgate to list and watch it: grant %ss to its service account as deploy/rbac.yaml does", kind)
	}
	if v.c.answers[input{kind, namespace, name}] == denied {
		return fmt.Sprintf("may not be read: RBAC forbids Fleetgate to list and watch it: grant %ss to its service account as deploy/rbac.yaml does, or in namespace %s alone", kind, namespace)
	}
	return "does not exist: create it"
}

// doubt notes what events say of what is unknown, and tells whether that changed.
func (c *Compiler) doubt(events []Event) (changed bool) {
	for _, e := range events {
		in := input{e.Kind, e.Namespace, e.Name}
		if e.Denied || c.unknown[in] == e.Unknown {
			continue
		}
		changed = true
		if e.Unknown {
			c.unknown[in] = true
		} else {
			delete(c.unknown, in)
		}
	}
	return changed
}

// Unknown tells whether a record's object may be there although this compiler does not have it: the sweep must leave the record alone.
func (c *Compiler) Unknown(k record.Key) bool {
	in := objectOf(k)
	_, there := c.facts[in]
	return !there && (c.mayBe(in) || c.unknown[input{kind: in.kind}])
}

func (c *Compiler) mayBe(in input) bool { return c.unknown[input{}] || c.unknown[in] }

// ObjectOf names the object that a record is made of.
func ObjectOf(k record.Key) (kind, namespace, name string) {
	in := objectOf(k)
	return in.kind, in.namespace, in.name
}

// missing notes that a unit did not find an object.
func (v *view) missing(kind, namespace, name string) {
	in := input{kind, namespace, name}
	v.blind = v.blind || v.c.mayBe(in) || v.c.cfg.Asked && ByName(kind) && v.c.answers[in] != seen
}

// missingOf notes that a unit did not find what it looked for in a set of objects of a namespace.
func (v *view) missingOf(set input) {
	if len(v.c.unknown) == 0 || v.blind {
		return
	}
	kind, _, _ := strings.Cut(set.kind, "/")
	for in := range v.c.unknown {
		if in == (input{}) || in.kind == kind && (set.namespace == "" || in.namespace == set.namespace) {
			v.blind = true
			return
		}
	}
}

// keep gives the committed record of a unit that needs something unknown, nil where what was just compiled is to be taken.
func (c *Compiler) keep(k record.Key, old *result, compiled Put) *result {
	if c.cfg.Last == nil || demanded(k.Kind) && old.reads != nil && !(old.kept && c.revisiting) {
		return nil
	}
	last := c.recall(k)
	if last.Payload == nil || compiled.Payload != nil && !sameGeneration(k, last.Payload, compiled.Payload) {
		return nil
	}
	return &result{put: last, good: last, wants: c.wants(last.Refs), kept: true}
}

// sameGeneration tells whether two payloads of one record come from the same generation of its object; true where the record does not say.
func sameGeneration(k record.Key, a, b []byte) bool {
	object := func(payload []byte) record.Object {
		switch k.Kind {
		case record.KindRoute:
			var r record.Route
			_ = record.Unmarshal(payload, &r) // what does not decode has no generation, and equals no other
			return r.Object
		case record.KindGateway:
			var g record.Gateway
			_ = record.Unmarshal(payload, &g)
			return g.Object
		case record.KindListenerSet:
			var l record.ListenerSet
			_ = record.Unmarshal(payload, &l)
			return l.Object
		case record.KindPolicy:
			var p record.Policy
			_ = record.Unmarshal(payload, &p)
			return p.Object
		}
		return record.Object{}
	}
	return object(a) == object(b)
}
