package schema

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tally counts what was made of one kind, and how much of its schema that reached: a million objects that are all alike prove as much as one.
type tally struct {
	tried, valid, applied int             // applied is less than valid by those that were deleted instead
	fields                map[string]int  // leaf of the schema -> valid objects that have it
	specs                 map[uint64]bool // hashes of the valid ones
	unreadable            error           // the first
}

// tallies are by kind.
type tallies map[string]*tally

func (t tallies) of(kind string) *tally {
	if t[kind] == nil {
		t[kind] = &tally{fields: map[string]int{}, specs: map[uint64]bool{}}
	}
	return t[kind]
}

func (t tallies) add(from tallies) {
	for kind, n := range from {
		to := t.of(kind)
		to.tried, to.valid, to.applied = to.tried+n.tried, to.valid+n.valid, to.applied+n.applied
		for path, count := range n.fields {
			to.fields[path] += count
		}
		maps.Copy(to.specs, n.specs)
	}
}

// unreadable tells of an object that passes its schema and that our types cannot hold.
func (t tallies) unreadable() error {
	for _, c := range t {
		if c.unreadable != nil {
			return c.unreadable
		}
	}
	return nil
}

func (t tallies) applied() (n int) {
	for _, c := range t {
		n += c.applied
	}
	return n
}

var hashSeed = maphash.MakeSeed()

// note takes in a valid object's spec as it was generated, without the defaults that the API server adds.
func (t *tally) note(s *structuralschema.Structural, spec map[string]any) {
	t.valid++
	seen := map[string]bool{}
	reach(s, spec, "spec", seen)
	for path := range seen {
		t.fields[path]++
	}
	b, err := json.Marshal(spec)
	if err != nil {
		panic(fmt.Errorf("a spec that came from a schema is no JSON: %w", err)) // a mistake in this test
	}
	t.specs[maphash.Bytes(hashSeed, b)] = true
}

// reach notes the leaves of a schema that a value has, by the paths of leaves.
func reach(s *structuralschema.Structural, v any, path string, seen map[string]bool) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			if s.Items != nil {
				reach(s.Items, x, path, seen)
			}
		}
	case map[string]any:
		for field, x := range v {
			p, known := s.Properties[field]
			switch {
			case known:
				reach(&p, x, join(path, field), seen)
			case s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil:
				reach(s.AdditionalProperties.Structural, x, path, seen)
			}
		}
		if len(s.Properties) == 0 && s.AdditionalProperties == nil {
			seen[path] = true
		}
	default:
		seen[path] = true
	}
}

// unreached are the leaves of some channels that no valid object had.
func (t tallies) unreached(channels ...channel) (reached int, missed []string) {
	leavesOf := map[string]bool{}
	for _, c := range channels {
		for kind, d := range c {
			spec := d.structural.Properties["spec"]
			for _, path := range leaves(&spec, "spec") {
				leavesOf[kind+" "+path] = true
			}
		}
	}
	for _, leaf := range slices.Sorted(maps.Keys(leavesOf)) {
		kind, path, _ := strings.Cut(leaf, " ")
		if t.of(kind).fields[path] == 0 {
			missed = append(missed, leaf)
		} else {
			reached++
		}
	}
	return reached, missed
}

// outcome counts what became of what was tried, so that a test that tries nothing is seen.
type outcome struct {
	resources, parents, attached int
	said                         map[string]int // "Kind Condition=Status/Reason" -> how often
}

func (o *outcome) String() string {
	return fmt.Sprintf("%d resources validated; %d of %d parents of routes attached; %d different things said of objects", o.resources, o.attached, o.parents, len(o.said))
}

func (o *outcome) add(from *outcome) {
	o.resources, o.parents, o.attached = o.resources+from.resources, o.parents+from.parents, o.attached+from.attached
	for what, n := range from.said {
		o.tell(what, n)
	}
}

func (o *outcome) tell(what string, times int) {
	if o.said == nil {
		o.said = map[string]int{}
	}
	o.said[what] += times
}

// conditions takes in what is said of an object or a part of it, and finds what an API server would refuse.
func (o *outcome) conditions(of string, list []metav1.Condition) error {
	for _, c := range list {
		o.tell(of+" "+shown([]metav1.Condition{c}, false), 1)
	}
	return valid(list)
}
