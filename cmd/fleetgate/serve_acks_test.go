package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

// TestProxiesThatLeaveAreNotWaitedFor: of a fleet that is not provisioned those proxies count that were seen in the last minute (D8), whatever became of the news that one has left.
func TestProxiesThatLeaveAreNotWaitedFor(t *testing.T) {
	const fleet = "c/ns/gw"
	on := func(session string, proxy string, connected bool) xds.Report {
		return xds.Report{Fleet: fleet, Proxy: proxy, Replica: session, Connected: connected, Acked: 1}
	}
	everybody, nobody := func(string) bool { return true }, func(string) []string { return nil }
	cases := []struct {
		name  string
		leave func(leader *acks)
		live  func(session string) bool
	}{
		{"a proxy that says so is waited for for ever", func(leader *acks) {
			leader.receive(reportBatch{Session: "b@1", Reports: []xds.Report{on("b", "leaves", false)}})
		}, everybody},
		{"a proxy that left under another leader is waited for for ever", func(leader *acks) {
			leader.lead(2)
			leader.receive(reportBatch{Session: "a@1", Full: true, Reports: []xds.Report{on("a", "stays", true)}})
			leader.receive(reportBatch{Session: "b@1", Full: true})
		}, everybody},
		{"a proxy whose end did not reach the leader is waited for for ever", func(leader *acks) {
			b := newAcks("b", slog.New(slog.DiscardHandler))
			b.local(on("b", "leaves", true))
			b.take("b@1", true)
			b.local(on("b", "leaves", false))
			b.take("b@1", false) // lost on its way: all is told again
			leader.receive(b.take("b@1", true))
		}, everybody},
		{"a proxy of a replica that was started anew is waited for for ever", func(leader *acks) {
			leader.receive(reportBatch{Session: "b@2", Full: true})
		}, func(session string) bool { return session != "b@1" }},
		{"a proxy that died with its replica is waited for for ever", func(*acks) {}, func(session string) bool { return session == "a@1" }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			now, looks := time.Unix(1000, 0), 0
			leader := newAcks("a", slog.New(slog.DiscardHandler))
			leader.now = func() time.Time { return now }
			leader.receive(reportBatch{Session: "a@1", Full: true, Reports: []xds.Report{on("a", "stays", true)}})
			leader.receive(reportBatch{Session: "b@1", Full: true, Reports: []xds.Report{on("b", "leaves", true)}})
			leader.see(everybody, nobody)
			c.leave(leader)
			leader.changed = func() { looks++ }
			leader.receive(reportBatch{Session: "a@1", Reports: []xds.Report{{Fleet: fleet, Proxy: "stays", Connected: true, Acked: 2}}})
			for second := range 120 {
				got := leader.converged(fleet, 2, record.Key{}, nil)
				if want := second >= 60; got.Live() != want {
					t.Fatalf("after %d s: %+v", second, got)
				}
				now = now.Add(time.Second)
				leader.see(c.live, nobody)
			}
			if looks != 2 {
				t.Errorf("statuses were looked at %d times: want once for the ACK and once for the end of the wait", looks)
			}
			if names := proxyNamesOf(leader.all()); !slices.Equal(names, []string{"stays"}) {
				t.Errorf("proxies %v are told of", names)
			}
		})
	}
}

// TestStreamThatIsDeadUnnoticedHidesNone: a proxy whose connection broke silently has come to another replica long before the first one hears of it, which goes on to report.
func TestStreamThatIsDeadUnnoticedHidesNone(t *testing.T) {
	const fleet = "c/ns/gw"
	of := func(session string, connected bool, acked uint64) reportBatch {
		return reportBatch{Session: session, Reports: []xds.Report{{Fleet: fleet, Proxy: "p", Connected: connected, Acked: acked}}}
	}
	for name, end := range map[string]func(leader *acks){
		"the end of a dead stream":              func(leader *acks) { leader.receive(of("b@1", false, 10)) },
		"what a replica does not speak of more": func(leader *acks) { leader.receive(reportBatch{Session: "b@1", Full: true}) },
		"a replica that died with its streams": func(leader *acks) {
			leader.see(func(s string) bool { return s != "b@1" }, func(string) []string { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			leader := newAcks("a", slog.New(slog.DiscardHandler))
			leader.receive(of("b@1", true, 10))
			leader.receive(of("c@1", true, 11))
			leader.receive(of("b@1", true, 10)) // it was sent something, and does not answer
			end(leader)
			if got := leader.converged(fleet, 11, record.Key{}, nil); !got.Live() {
				t.Errorf("hides the proxy's other stream: %+v of %+v", got, leader.all())
			}
		})
	}
}

// TestPodsOfThePastAreForgotten, but not how far a pod was that counts: it may be cut off from this group.
func TestPodsOfThePastAreForgotten(t *testing.T) {
	now := time.Unix(1000, 0)
	leader := newAcks("a", slog.New(slog.DiscardHandler))
	leader.now = func() time.Time { return now }
	row := []string{"counts"}
	for range 2 {
		for _, proxy := range []string{"counts", "gone", "stays"} {
			leader.receive(reportBatch{Session: "a@1", Reports: []xds.Report{{Fleet: "c/ns/gw", Proxy: proxy, Connected: proxy == "stays", Acked: 7}}})
		}
		leader.receive(reportBatch{Session: "a@1", Reports: []xds.Report{{Fleet: "c/ns/deleted", Proxy: "gone"}}})
		for range 3 {
			now = now.Add(seenFor)
			leader.see(func(string) bool { return true }, func(string) []string { return row })
		}
		got := slices.Sorted(maps.Keys(leader.proxies["c/ns/gw"]))
		if !slices.Equal(got, []string{"counts", "stays"}) || len(leader.proxies) != 1 {
			t.Fatalf("%v are remembered of %d fleets", got, len(leader.proxies))
		}
		if got := leader.converged("c/ns/gw", 7, record.Key{}, row); !got.Live() {
			t.Fatalf("what counts is forgotten: %+v", got)
		}
	}
}

// TestEveryTermHearsOfAllProxies: status waits until all replicas have told a new leader all that they know.
func TestEveryTermHearsOfAllProxies(t *testing.T) {
	for _, c := range []struct {
		name   string
		before uint64 // the term in which everything was told before the leader knew that it leads
		want   bool
	}{
		{"what came while the leader waited for its barrier is not counted", 7, true},
		{"what was told in another term counts", 6, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			leader := newAcks("a", slog.New(slog.DiscardHandler))
			leader.lead(5)
			leader.receive(reportBatch{Session: "b@1", Term: c.before, Full: true})
			leader.lead(7)
			if got := leader.complete([]string{"b@1"}); got != c.want {
				t.Errorf("complete: %v", got)
			}
			leader.receive(reportBatch{Session: "b@1", Term: 7, Full: true})
			if !leader.complete([]string{"b@1"}) || leader.complete([]string{"b@1", "c@1"}) {
				t.Error("in its own term")
			}
		})
	}
}

// TestLeaderThatWasStartedAnewHearsOfAllProxies, although it is elected again before another replica looks who leads: it has forgotten all of them.
func TestLeaderThatWasStartedAnewHearsOfAllProxies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAcks("b", slog.New(slog.DiscardHandler))
		b.local(xds.Report{Fleet: "c/ns/gw", Proxy: "p", Connected: true, Acked: 1})
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		full := map[uint64]int{}
		b.send(ctx, "b@1", func() (string, uint64) { return "a", 1 + uint64(time.Since(began)/(4*time.Second)) }, func(_ context.Context, body []byte) error {
			var got reportBatch
			if err := json.Unmarshal(body, &got); err != nil {
				return err
			}
			if got.Full && len(got.Reports) == 1 {
				full[got.Term]++
			}
			return nil
		})
		if want := map[uint64]int{1: 1, 2: 1, 3: 1}; !maps.Equal(full, want) {
			t.Errorf("everything was told in the terms %v, want %v", full, want)
		}
	})
}

func proxyNamesOf(all []xds.Report) (out []string) {
	for _, r := range all {
		out = append(out, r.Proxy)
	}
	return out
}
