package member

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestInventoryAgainstADumbOne: after every step of random histories the incremental inventory says what replaying the
// whole history on plain lists says, and settle named every key that changed.
func TestInventoryAgainstADumbOne(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		clever, dumb := newInventory(), &dumbInventory{files: map[place]parsed{}, holder: map[objectKey]place{}}
		before := map[objectKey]string{}
		for step := range 40 {
			at := place{random.IntN(2), fmt.Sprintf("f%d", random.IntN(4))}
			if random.IntN(4) == 0 {
				clever.remove(at)
				dumb.remove(at)
			} else {
				file := randomFile(random)
				clever.set(at, file)
				dumb.set(at, file)
			}
			changed := clever.settle()
			want := dumb.desired()
			got := map[objectKey]string{}
			for key, e := range clever.desired {
				got[key] = e.hash
			}
			for key := range union(before, union(got, want)) {
				if got[key] != want[key] {
					t.Fatalf("seed %d, step %d: %s is %q, want %q", seed, step, key, got[key], want[key])
				}
				if got[key] != before[key] && !slices.Contains(changed, key) {
					t.Fatalf("seed %d, step %d: %s changed unsaid", seed, step, key)
				}
			}
			before = got
		}
	}
}

func union(a, b map[objectKey]string) map[objectKey]string {
	out := map[objectKey]string{}
	for k := range a {
		out[k] = ""
	}
	for k := range b {
		out[k] = ""
	}
	return out
}

func randomFile(random *rand.Rand) parsed {
	file := parsed{refused: map[objectKey]bool{}, opaque: random.IntN(6) == 0}
	for i := range random.IntN(5) {
		key := objectKey{"Service", fmt.Sprintf("n%d", random.IntN(2)), fmt.Sprintf("s%d", random.IntN(3))}
		if random.IntN(4) == 0 {
			key = objectKey{"Namespace", "", key.namespace}
		}
		if random.IntN(5) == 0 {
			file.refused[key] = true
			continue
		}
		hash := fmt.Sprint(random.Uint32())
		file.entries = append(file.entries, entry{key: key, hash: hash, document: i + 1})
	}
	return file
}

// dumbInventory remembers lists and decides everything anew each time.
type dumbInventory struct {
	files  map[place]parsed
	holder map[objectKey]place
}

func (d *dumbInventory) set(at place, file parsed) {
	entries := slices.Clone(file.entries)
	for _, old := range d.files[at].entries {
		named := slices.ContainsFunc(file.entries, func(e entry) bool { return e.key == old.key })
		if !named && (file.opaque || file.refused[old.key]) {
			entries = append(entries, old)
		}
	}
	d.files[at] = parsed{entries: entries}
	d.elect()
}

func (d *dumbInventory) remove(at place) {
	delete(d.files, at)
	d.elect()
}

// first gives the first entry of a key in a file.
func (d *dumbInventory) first(at place, key objectKey) (entry, bool) {
	for _, e := range d.files[at].entries {
		if e.key == key {
			return e, true
		}
	}
	return entry{}, false
}

func (d *dumbInventory) elect() {
	claims := map[objectKey][]place{}
	for at, file := range d.files {
		for _, e := range file.entries {
			claims[e.key] = append(claims[e.key], at)
		}
	}
	for key := range d.holder {
		if !slices.Contains(claims[key], d.holder[key]) {
			delete(d.holder, key)
		}
	}
	for key, places := range claims {
		if _, held := d.holder[key]; !held {
			d.holder[key] = slices.MinFunc(places, comparePlaces)
		}
	}
}

func (d *dumbInventory) desired() map[objectKey]string {
	out := map[objectKey]string{}
	for key, at := range d.holder {
		e, _ := d.first(at, key)
		out[key] = e.hash
	}
	for key := range d.holder {
		if ns := (objectKey{"Namespace", "", key.namespace}); key.namespace != "" && out[ns] == "" {
			out[ns] = impliedNamespace(key.namespace).hash
		}
	}
	return out
}
