package member

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// place is where a file is: directories are ordered, the user's own comes first.
type place struct {
	dir  int
	path string
}

func comparePlaces(a, b place) int {
	return cmp.Or(cmp.Compare(a.dir, b.dir), strings.Compare(a.path, b.path))
}

// inventory is what all files together say: which object is taken from where, and what is wrong. It is pure: no clock, no file.
//
// An object that several places give belongs to the place that had it first, as the first `kubectl create` would win; between
// places seen at once the first file and document win. The others are a Problem and wait; when the holder goes, the next takes over.
type inventory struct {
	files    map[place]parsed
	extra    map[string][]Problem          // faults of files as such, by path
	claims   map[objectKey]map[place]entry // the first of each file
	holder   map[objectKey]place
	used     map[string]int      // namespace -> objects in it
	desired  map[objectKey]entry // what an API server would hold now
	touched  map[objectKey]bool  // claims changed since settle
	contests map[objectKey]bool  // objects with more than one claim
}

func newInventory() *inventory {
	return &inventory{
		files: map[place]parsed{}, extra: map[string][]Problem{}, claims: map[objectKey]map[place]entry{}, holder: map[objectKey]place{},
		used: map[string]int{}, desired: map[objectKey]entry{}, touched: map[objectKey]bool{}, contests: map[objectKey]bool{},
	}
}

// set replaces what a file says. What the new content refuses, or does not name while something in it cannot be named, keeps its last
// good state.
func (v *inventory) set(at place, now parsed) {
	now.entries = slices.Clone(now.entries)
	named := map[objectKey]bool{}
	for _, e := range now.entries {
		named[e.key] = true
	}
	for _, e := range v.files[at].entries {
		if !named[e.key] && (now.opaque || now.refused[e.key]) {
			now.entries = append(now.entries, e)
		}
	}
	v.unclaim(at)
	v.files[at] = now
	for _, e := range now.entries {
		if v.claims[e.key] == nil {
			v.claims[e.key] = map[place]entry{}
		}
		if _, twice := v.claims[e.key][at]; !twice {
			v.claims[e.key][at] = e
		}
		v.touched[e.key] = true
	}
	v.setProblems(at.path, nil)
}

// setProblems notes faults of a file as such (too large, unreadable), beside what its last content said; nil = it has none.
func (v *inventory) setProblems(path string, problems []Problem) {
	if len(problems) == 0 {
		delete(v.extra, path)
		return
	}
	v.extra[path] = problems
}

// remove forgets a file and its objects.
func (v *inventory) remove(at place) {
	v.unclaim(at)
	delete(v.files, at)
	v.setProblems(at.path, nil)
}

func (v *inventory) unclaim(at place) {
	for _, e := range v.files[at].entries {
		delete(v.claims[e.key], at)
		v.touched[e.key] = true
	}
}

// settle decides anew what the touched objects are, and returns the keys whose desired state may have changed.
func (v *inventory) settle() []objectKey {
	namespaces := map[string]bool{}
	var changed []objectKey
	for _, key := range slices.SortedFunc(maps.Keys(v.touched), compareKeys) {
		if key.kind == "Namespace" {
			namespaces[key.name] = true
			v.decideHolder(key)
			continue
		}
		changed = append(changed, key)
		v.settleObject(key, namespaces)
	}
	for _, name := range slices.Sorted(maps.Keys(namespaces)) {
		changed = append(changed, v.settleNamespace(name))
	}
	clear(v.touched)
	return changed
}

func (v *inventory) settleObject(key objectKey, namespaces map[string]bool) {
	_, was := v.desired[key]
	e, is := v.decideHolder(key)
	if is {
		v.desired[key] = e
	} else {
		delete(v.desired, key)
	}
	if key.namespace == "" || was == is {
		return
	}
	namespaces[key.namespace] = true
	if is {
		v.used[key.namespace]++
	} else if v.used[key.namespace]--; v.used[key.namespace] == 0 {
		delete(v.used, key.namespace)
	}
}

// settleNamespace takes the declared Namespace, or makes the one that an API server would need to hold the objects in it.
func (v *inventory) settleNamespace(name string) objectKey {
	key := objectKey{kind: "Namespace", name: name}
	switch claim, declared := v.decideHolder(key); {
	case declared:
		v.desired[key] = claim
	case v.used[name] > 0:
		v.desired[key] = impliedNamespace(name)
	default:
		delete(v.desired, key)
	}
	return key
}

func impliedNamespace(name string) entry {
	ns := &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{namespaceNameLabel: name}},
	}
	whole, spec, _ := hashes(ns) // a Namespace always marshals
	return entry{key: objectKey{kind: "Namespace", name: name}, object: ns, hash: whole, specHash: spec}
}

// decideHolder gives the entry that counts for a key.
func (v *inventory) decideHolder(key objectKey) (entry, bool) {
	claims := v.claims[key]
	if len(claims) == 0 {
		delete(v.claims, key)
		delete(v.holder, key)
		delete(v.contests, key)
		return entry{}, false
	}
	if _, still := claims[v.holder[key]]; !still {
		v.holder[key] = slices.MinFunc(slices.Collect(maps.Keys(claims)), comparePlaces)
	}
	if len(claims) > 1 {
		v.contests[key] = true
	} else {
		delete(v.contests, key)
	}
	return claims[v.holder[key]], true
}

// contested gives the holders of objects that more than one place claims.
func (v *inventory) contested() map[objectKey]place {
	held := map[objectKey]place{}
	for key := range v.contests {
		held[key] = v.holder[key]
	}
	return held
}

// allProblems lists everything that is wrong, in the order of files and lines.
func (v *inventory) allProblems() []Problem {
	var all []Problem
	for at, file := range v.files {
		all = append(all, file.problems...)
		all = append(all, v.repeated(at, file)...)
	}
	for _, problems := range v.extra {
		all = append(all, problems...)
	}
	return sortProblems(all)
}

func sortProblems(all []Problem) []Problem {
	slices.SortFunc(all, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	return all
}

// repeated are the objects of a file that count elsewhere.
func (v *inventory) repeated(at place, file parsed) []Problem {
	var problems []Problem
	first := map[objectKey]bool{}
	for _, e := range file.entries {
		if !first[e.key] && v.holder[e.key] == at {
			first[e.key] = true
			continue
		}
		other := v.holder[e.key]
		holding := v.claims[e.key][other]
		problems = append(problems, Problem{at.path, e.document, e.line, e.key.String(), "",
			fmt.Sprintf("the object is in %s:%d (document %d) already, and that one counts. Remove or rename one of the two", other.path, holding.line, holding.document)})
	}
	return problems
}
