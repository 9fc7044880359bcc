package xds

import (
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// mixture makes a resource of parts, as assembly does: a refused form of a part gives way to its next lesser one. The part "gateway" stays.
type mixture struct{ parts map[string]string }

var lesser = map[string]string{"new": "old", "old": "500"}

func (m mixture) without(_ string, t Type, name string, refuse map[string]string) (Resource, bool) {
	parts := maps.Clone(m.parts)
	for p, form := range refuse {
		switch next := lesser[form]; {
		case p == "gateway":
		case next == "":
			delete(parts, p)
		default:
			parts[p] = next
		}
	}
	return mixed(t, name, parts), true
}

func mixed(t Type, name string, parts map[string]string) Resource {
	return Resource{Type: t, Name: name, Version: fmt.Sprint(parts), Bytes: [][]byte{[]byte(fmt.Sprint(parts))}, Parts: Parts{parts}}
}

// rejector is a proxy that rejects every response with a bad form of a part in it, and holds what it took last.
type rejector struct {
	*peerOf
	bad    []string // "part:form"
	held   string
	trials int
}

func (e *rejector) take(r *discovery.DeltaDiscoveryResponse) {
	e.trials++
	version := r.Resources[0].Version
	if i := slices.IndexFunc(e.bad, func(b string) bool { return strings.Contains(version, b) }); i >= 0 {
		e.nack(r, "no "+e.bad[i])
		return
	}
	e.held = version
	e.ack(r)
}

// rejects answers until a rejection is reported.
func (e *rejector) rejects(reports <-chan Report) Rejection {
	e.t.Helper()
	for {
		select {
		case r := <-reports:
			if len(r.Rejected) == 1 {
				return r.Rejected[0]
			}
		case r := <-e.toClient:
			e.take(r)
		case <-time.After(time.Minute):
			e.t.Fatalf("no rejection was reported after %d trials", e.trials)
		}
	}
}

// TestCulpritsAreFound makes random parts bad and holds what is found, what the proxy ends up with, and how often it was asked, against what was made bad.
func TestCulpritsAreFound(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 100
	}
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		findCulprits(t, r, 1+r.IntN(40), r.IntN(3) == 0, r.IntN(3) == 0)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// findCulprits: fresh = no proxy has ever accepted anything; worse = the previous bytes of the culprits are rejected too.
func findCulprits(t *testing.T, r *rand.Rand, n int, fresh, worse bool) {
	worse = worse && fresh
	m := mixture{map[string]string{"gateway": "same"}}
	before, want, left := maps.Clone(m.parts), map[string]string{}, maps.Clone(m.parts)
	e := &rejector{}
	for i := range n {
		p := fmt.Sprintf("r%02d", i)
		m.parts[p], left[p], before[p] = "new", "new", "old"
		if i == n/2 || r.IntN(8) == 0 {
			want[p], left[p] = "new", "old"
			e.bad = append(e.bad, p+":new")
			if worse {
				left[p] = "500"
				e.bad = append(e.bad, p+":old")
			}
		}
	}
	reports := make(chan Report, 1000)
	s := plainServer(Config{Gate: true, Trial: m.without, Report: func(r Report) { reports <- r }})
	e.peerOf = openPipe(t, s)
	if !fresh {
		put(s, 1, mixed(Route, "rc", before))
		e.ask(Route, "rc")
		e.expect(Route, "rc")
	}
	put(s, 2, mixed(Route, "rc", m.parts))
	if fresh {
		e.ask(Route, "rc")
	}
	e.finds(reports, want, left, 4+len(want)*(bits.Len(uint(n))+1))

	second := &rejector{bad: e.bad, peerOf: openPipe(t, s)} // it is told what the first one found, and confirms it
	second.ask(Route, "rc")
	second.finds(reports, want, left, 4+len(want)*(bits.Len(uint(len(want)))+1))
}

func (e *rejector) finds(reports <-chan Report, want, left map[string]string, limit int) {
	e.t.Helper()
	if got := e.rejects(reports).Parts; !maps.Equal(got, want) {
		e.t.Errorf("found %v, the culprits are %v", got, want)
	}
	if e.held != fmt.Sprint(left) {
		e.t.Errorf("the proxy was left with %s, want %v", e.held, left)
	}
	if e.trials > limit {
		e.t.Errorf("%d responses for %d culprits, want at most %d", e.trials, len(want), limit)
	}
}

// TestRejectedThoughNothingIsSuspect: where even the least form is rejected, what cannot be done without is to blame.
func TestRejectedThoughNothingIsSuspect(t *testing.T) {
	m := mixture{map[string]string{"gateway": "bad", "r1": "new", "r2": "new"}}
	reports := make(chan Report, 100)
	s := plainServer(Config{Gate: true, Trial: m.without, Report: func(r Report) { reports <- r }})
	put(s, 1, mixed(Route, "rc", m.parts))
	e := &rejector{peerOf: openPipe(t, s), bad: []string{"gateway:bad"}}
	e.ask(Route, "rc")
	if got := e.rejects(reports); !maps.Equal(got.Parts, map[string]string{"gateway": "bad"}) || got.Message != "no gateway:bad" {
		t.Errorf("found %+v", got)
	}
}

// TestSearchEndsWithANewerVersion which is sent instead of further trials.
func TestSearchEndsWithANewerVersion(t *testing.T) {
	m := mixture{map[string]string{"r1": "new", "r2": "new", "r3": "new"}}
	s := plainServer(Config{Gate: true, Trial: m.without})
	put(s, 1, mixed(Route, "rc", m.parts))
	p := openPipe(t, s)
	p.ask(Route, "rc")
	p.nack(p.next(), "no")
	trial := p.next()
	put(s, 2, mixed(Route, "rc", map[string]string{"r1": "newer"}))
	p.nack(trial, "no")
	if got := p.expect(Route, "rc").Resources[0].Version; got != "map[r1:newer]" {
		t.Errorf("got %s", got)
	}
	p.silent()
}
