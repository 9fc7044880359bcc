package translate

import (
	"maps"
	"slices"

	"github.com/fleetgate/fleetgate/translate/record"
)

// Ref names an object.
type Ref struct{ Kind, Namespace, Name string }

// ByName tells whether objects of a kind are read only when something refers to them: a control plane that may read every Secret is a prize.
func ByName(kind string) bool {
	return kind == "Secret" || kind == "ConfigMap" || kind == kindTrustBundle
}

// ask notes that an object comes to be read, or is not read any more.
func (c *Compiler) ask(in input, read bool) {
	if !ByName(in.kind) {
		return
	}
	c.asksMoved = true
	r := Ref{in.kind, in.namespace, in.name}
	if read {
		c.asks[r] = struct{}{}
	} else {
		delete(c.asks, r)
	}
}

// Asks gives the objects that are read by name and that some unit reads, found or not, and whether they are others than at the last call. So whoever feeds
// this compiler knows what to look for, and nobody keeps a list of where references may stand.
func (c *Compiler) Asks() (refs []Ref, moved bool) {
	if moved, c.asksMoved = c.asksMoved, false; moved {
		maps.DeleteFunc(c.answers, func(in input, _ reply) bool {
			_, asked := c.asks[Ref{in.kind, in.namespace, in.name}]
			return !asked
		})
	}
	return slices.Collect(maps.Keys(c.asks)), moved
}

// Readers gives the records that are made from an object.
func (c *Compiler) Readers(r Ref) []record.Key {
	return slices.Collect(maps.Keys(c.readers[input{r.Kind, r.Namespace, r.Name}]))
}
