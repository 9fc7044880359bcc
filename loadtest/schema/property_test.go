package schema

import (
	"encoding/binary"
	"errors"
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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/record"
)

// full tells whether everything is measured, or a part as a test.
var full = os.Getenv("FLEETGATE_MEASURE") == "1"

// perWorld is how many objects with a CRD one world sees: enough to fill it, few enough for a failure to be read.
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

// TestMeasureObjects: whatever an API server would store compiles and assembles without a panic, into resources that the protos' own rules allow. What is
// counted are objects of kinds with a CRD that the compiler was given; Services, Secrets and deletions come besides.
func TestMeasureObjects(t *testing.T) {
	want := amount(3_000, 15_000, 1_000_000)
	channels := []channel{must(t, standard), must(t, experimental)}
	all := must(t, seeds)
	counts, became := tallies{}, &outcome{}
	var mu sync.Mutex // guards both
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !t.Failed() {
				i := next.Add(1)
				n, o, err := populate(generatorOf(1, uint64(i)), channels[i%2], all)
				if err != nil {
					t.Errorf("world %d: %v", i, err)
				}
				mu.Lock()
				counts.add(n)
				became.add(o)
				done := counts.applied()
				mu.Unlock()
				if full && i%100 == 0 {
					t.Logf("%d of %d objects", done, want)
				}
				if done >= want {
					return
				}
			}
		})
	}
	wg.Wait()
	report(t, counts, became, channels)
}

// report tells what was tried, and fails where that is too little or too much alike.
func report(t *testing.T, counts tallies, became *outcome, channels []channel) {
	t.Helper()
	objects, distinct := counts.applied(), 0
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		c := counts[kind]
		distinct += len(c.specs)
		t.Logf("%-16s %7d of %7d generated objects are valid (%d %%), %d different specs", kind, c.valid, c.tried, 100*c.valid/c.tried, len(c.specs))
		if c.valid*10 < c.tried {
			t.Errorf("%s: only %d of %d generated objects are valid: the generator has lost touch with the schema", kind, c.valid, c.tried)
		}
	}
	if became.attached*5 < became.parents || became.resources < objects {
		t.Errorf("%v: too little comes through to Envoy", became)
	}
	reached, missed := counts.unreached(channels...)
	if all := reached + len(missed); full && len(missed) > 0 || reached*10 < all*8 {
		t.Errorf("no valid object had these %d of %d fields: %s", len(missed), all, strings.Join(missed, ", "))
	}
	if distinct*10 < objects*8 {
		t.Errorf("only %d of %d objects are different ones", distinct, objects)
	}
	for _, what := range slices.Sorted(maps.Keys(became.said)) {
		t.Logf("said %8d times: %s", became.said[what], what)
	}
	t.Logf("| %-34s | %d objects of %d kinds, %d different specs, %d of %d fields of both channels; %v; 0 panics, 0 rejected |", "random objects compiled", objects, len(counts), distinct, reached,
		reached+len(missed), became)
}

// TestSameSeedSameObjects: a failure that does not come again cannot be mended.
func TestSameSeedSameObjects(t *testing.T) {
	c, all := must(t, experimental), must(t, seeds)
	draw := func() string {
		g := generatorOf(7, 1)
		var events []translate.Event
		for range 300 {
			events = append(events, g.next(c, all, tallies{}))
		}
		return describe(events)
	}
	if one, other := draw(), draw(); one != other {
		t.Errorf("the same seed gave different objects:\n%s", cmp.Diff(one, other))
	}
}

// populate lets a world see objects, some at a time, and holds what becomes of them against the rules.
func populate(g generator, c channel, all map[string][]map[string]any) (tallies, *outcome, error) {
	w, counts, o := newWorld(), tallies{}, &outcome{}
	if _, err := w.apply(furnish()...); err != nil {
		return counts, o, fmt.Errorf("an empty world: %w", err)
	}
	for counts.applied() < perWorld {
		var events []translate.Event
		for range 1 + g.IntN(16) {
			events = append(events, g.next(c, all, counts))
		}
		if err := counts.unreadable(); err != nil {
			return counts, o, err
		}
		if err := o.try(w, events); err != nil {
			return counts, o, fmt.Errorf("%w\nby one of these:\n%s\nin the world:\n%s", err, describe(events), w.dump())
		}
	}
	return counts, o, nil
}

// try lets a world see events, and finds what must not be.
func (o *outcome) try(w *world, events []translate.Event) error {
	delta, err := w.apply(events...)
	if err == nil {
		err = o.check(delta)
	}
	if err == nil {
		err = o.ask(w)
	}
	return err
}

// ask asks for every status: it must be there, and each condition must have what an API server asks of it.
func (o *outcome) ask(w *world) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	var errs []error
	hear := func(of string, list []metav1.Condition) { errs = append(errs, o.conditions(of, list)) }
	for _, k := range w.state.Routes() {
		s, _ := w.state.RouteStatus(k)
		for _, p := range s.Parents {
			hear(s.Object.Kind, p.Conditions)
			o.parents++
			if p.Attached || p.Overruled != "" {
				o.attached++
			}
		}
	}
	for _, k := range w.state.Gateways() {
		s, _ := w.state.GatewayStatus(k)
		hear("Gateway", s.Conditions)
		for _, l := range s.Listeners {
			hear("listener", l.Conditions)
		}
	}
	for _, k := range w.state.ListenerSets() {
		s, _ := w.state.ListenerSetStatus(k)
		hear("ListenerSet", s.Conditions)
		for _, l := range s.Listeners {
			hear("listener", l.Conditions)
		}
	}
	for _, k := range w.state.Policies() {
		s, _ := w.state.PolicyStatus(k)
		hear(s.Object.Kind, s.Conditions)
	}
	for _, k := range w.compiled(record.KindClass) {
		s, _ := w.state.ClassStatus(k)
		hear("GatewayClass", s.Conditions)
	}
	return errors.Join(errs...)
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
			events = append(events, g.next(c, all, tallies{}))
		}
		if err := o.try(w, events); err != nil {
			t.Fatalf("%v\nin the world:\n%s", err, w.dump())
		}
	})
}
