package schema

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fleetgate/fleetgate/translate"
)

// full tells whether everything is measured, or a part as a test.
var full = os.Getenv("FLEETGATE_MEASURE") == "1"

// perWorld is how many objects one world sees: enough to fill it, few enough for a failure to be read.
const perWorld = 400

// amount is how many objects or Gateways are tried: few in a short test, all when measuring.
func amount(short, test, all int) int {
	switch {
	case full:
		return all
	case testing.Short():
		return short
	}
	return test
}

// TestMeasureObjects: whatever an API server would store compiles and assembles without a panic, into resources that the protos' own rules allow.
func TestMeasureObjects(t *testing.T) {
	want := amount(3_000, 15_000, 1_000_000)
	worlds := int64((want + perWorld - 1) / perWorld)
	channels := []channel{must(t, standard), must(t, experimental)}
	all := must(t, seeds)
	var next, done atomic.Int64
	var mu sync.Mutex
	counts, seen := map[string]*tally{}, &outcome{}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := next.Add(1); i <= worlds && !t.Failed(); i = next.Add(1) {
				n, err := populate(generatorOf(1, uint64(i)), channels[i%2], all, seen)
				if err != nil {
					t.Errorf("world %d: %v", i, err)
				}
				mu.Lock()
				merge(counts, n)
				mu.Unlock()
				if d := done.Add(1); full && d%100 == 0 {
					t.Logf("%d of %d objects", d*perWorld, worlds*perWorld)
				}
			}
		})
	}
	wg.Wait()
	t.Log(seen)
	if seen.attached.Load()*4 < seen.parents.Load() || seen.resources.Load() < worlds*perWorld {
		t.Errorf("%v: too little comes through to Envoy", seen)
	}
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		c := counts[k]
		t.Logf("%-16s %7d of %7d generated objects are valid (%d %%)", k, c.valid, c.tried, 100*c.valid/c.tried)
		if c.valid*10 < c.tried {
			t.Errorf("%s: only %d of %d generated objects are valid: the generator has lost touch with the schema", k, c.valid, c.tried)
		}
	}
}

// TestSameSeedSameObjects: a failure that does not come again cannot be mended.
func TestSameSeedSameObjects(t *testing.T) {
	c, all := must(t, experimental), must(t, seeds)
	draw := func() string {
		g := generatorOf(7, 1)
		var events []translate.Event
		for range 300 {
			events = append(events, g.next(c, all, map[string]*tally{}))
		}
		return describe(events)
	}
	if one, other := draw(), draw(); one != other {
		t.Errorf("the same seed gave different objects:\n%s", cmp.Diff(one, other))
	}
}

func merge(into, from map[string]*tally) {
	for k, c := range from {
		if into[k] == nil {
			into[k] = &tally{}
		}
		into[k].tried += c.tried
		into[k].valid += c.valid
	}
}

// outcome counts what became of what was tried, so that a test that tries nothing is seen.
type outcome struct{ resources, parents, attached atomic.Int64 }

func (o *outcome) String() string {
	return fmt.Sprintf("%d resources validated; %d of %d parents of routes attached", o.resources.Load(), o.attached.Load(), o.parents.Load())
}

// populate lets a world see objects, some at a time, and holds what becomes of them against the rules.
func populate(g generator, c channel, all map[string][]map[string]any, o *outcome) (map[string]*tally, error) {
	w, counts := newWorld(), map[string]*tally{}
	if _, err := w.apply(furnish()...); err != nil {
		return counts, fmt.Errorf("an empty world: %w", err)
	}
	for seen := 0; seen < perWorld; {
		var events []translate.Event
		for range 1 + g.IntN(16) {
			events = append(events, g.next(c, all, counts))
		}
		seen += len(events)
		delta, err := w.apply(events...)
		if err == nil {
			err = o.check(delta)
		}
		if err == nil {
			err = o.ask(w)
		}
		if err != nil {
			return counts, fmt.Errorf("%w\nby one of these:\n%s\nin the world:\n%s", err, describe(events), w.dump())
		}
	}
	return counts, nil
}

// ask asks for every status: it must be there, and each condition must have what an API server asks of it.
func (o *outcome) ask(w *world) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	for _, k := range w.state.Routes() {
		if s, ok := w.state.RouteStatus(k); ok {
			for _, p := range s.Parents {
				err = valid(p.Conditions, err)
				o.parents.Add(1)
				if p.Attached {
					o.attached.Add(1)
				}
			}
		}
	}
	for _, k := range w.state.Gateways() {
		if s, ok := w.state.GatewayStatus(k); ok {
			err = valid(s.Conditions, err)
			for _, l := range s.Listeners {
				err = valid(l.Conditions, err)
			}
		}
	}
	for _, k := range w.state.ListenerSets() {
		if s, ok := w.state.ListenerSetStatus(k); ok {
			err = valid(s.Conditions, err)
			for _, l := range s.Listeners {
				err = valid(l.Conditions, err)
			}
		}
	}
	for _, k := range w.state.Policies() {
		if s, ok := w.state.PolicyStatus(k); ok {
			err = valid(s.Conditions, err)
		}
	}
	return err
}

func describe(events []translate.Event) string {
	var out strings.Builder
	for _, e := range events {
		fmt.Fprintf(&out, "--- # %s %s/%s\n%s", e.Kind, e.Namespace, e.Name, toYAML(e.Object))
	}
	return out.String()
}

// choices is a source of random numbers that a fuzzer chooses: a changed byte changes one decision of the generator.
type choices struct {
	data []byte
	rest rand.Source
}

func (c *choices) Uint64() uint64 {
	if len(c.data) == 0 {
		return c.rest.Uint64()
	}
	n := min(len(c.data), 2)
	var b [8]byte
	copy(b[:], c.data[:n])
	c.data = c.data[n:]
	v := uint64(binary.LittleEndian.Uint16(b[:]))
	return v * 0x9E3779B97F4A7C15 // spread over all bits: which of them decide is the reader's matter
}

// FuzzObjects lets coverage choose the objects of a small world.
func FuzzObjects(f *testing.F) {
	c := must(f, experimental)
	all := must(f, seeds)
	for i := range 16 {
		g := generatorOf(2, uint64(i))
		data := make([]byte, 400)
		for j := range data {
			data[j] = byte(g.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		g := generator{Rand: rand.New(&choices{data, rand.NewPCG(3, uint64(len(data)))})}
		w, o := newWorld(), &outcome{}
		events := furnish()
		for range 8 {
			events = append(events, g.next(c, all, map[string]*tally{}))
		}
		delta, err := w.apply(events...)
		if err == nil {
			err = o.check(delta)
		}
		if err == nil {
			err = o.ask(w)
		}
		if err != nil {
			t.Fatalf("%v\nin the world:\n%s", err, w.dump())
		}
	})
}
