package main

import (
	"log/slog"
	"slices"
	"testing"
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
	everybody := func(string) bool { return true }
	cases := []struct {
		name  string
		leave func(leader *acks)
		live  func(session string) bool
	}{
		{"a proxy that says so is waited for for ever", func(leader *acks) {
			leader.receive(reportBatch{Session: "b@1", Reports: []xds.Report{on("b", "leaves", false)}})
		}, everybody},
		{"a proxy that left under another leader is waited for for ever", func(leader *acks) {
			leader.lead()
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
			leader.see(everybody)
			c.leave(leader)
			leader.changed = func() { looks++ }
			leader.receive(reportBatch{Session: "a@1", Reports: []xds.Report{{Fleet: fleet, Proxy: "stays", Connected: true, Acked: 2}}})
			for second := range 120 {
				got := leader.converged(fleet, 2, record.Key{}, nil)
				if want := second >= 60; got.Live() != want {
					t.Fatalf("after %d s: %+v", second, got)
				}
				now = now.Add(time.Second)
				leader.see(c.live)
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

func proxyNamesOf(all []xds.Report) (out []string) {
	for _, r := range all {
		out = append(out, r.Proxy)
	}
	return out
}
