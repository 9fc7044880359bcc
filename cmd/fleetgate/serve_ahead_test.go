package main

import (
	"testing"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/shard"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

const oneBackend = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: gw}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: "", port: 80}]
endpoints: [{addresses: [10.0.0.1]}]
`

// TestTheLogOvertakesWhatRanAhead: of endpoints that an owner changes, messages are lost, doubled and late; what is served in the end is what the log has had last.
func TestTheLogOvertakesWhatRanAhead(t *testing.T) {
	type of struct {
		t   *testing.T
		c   *committed
		p   *pipeline
		op  store.Op
		seq uint64
	}
	change := func(o *of, content string) store.Op {
		o.t.Helper()
		e := record.Endpoints{}
		if err := record.Unmarshal(o.op.Content.Payload, &e); err != nil {
			o.t.Fatal(err)
		}
		e.Bytes = []byte(content)
		b, err := record.Marshal(e)
		if err != nil {
			o.t.Fatal(err)
		}
		return store.Op{Key: o.op.Key, Content: &store.Content{Payload: b}}
	}
	say := func(o *of, content string) shard.Ahead {
		o.seq++
		return shard.Ahead{Key: o.op.Key, Epoch: 1, Seq: o.seq, After: o.c.seq, Payload: change(o, content).Content.Payload}
	}
	commit := func(o *of, op store.Op) {
		o.c.propose(op)
		take(o.t, o.p)
	}
	cases := []struct {
		name string
		play func(o *of)
		want string
	}{
		{"what is ahead waits for the log", func(o *of) {
			o.p.takeAhead([]shard.Ahead{say(o, "x")})
		}, "x"},
		{"what was on its way through the log puts older endpoints back", func(o *of) {
			o.c.seq++
			a := say(o, "x")
			o.c.seq--
			o.p.takeAhead([]shard.Ahead{a})
			commit(o, change(o, "older"))
		}, "x"},
		{"after a lost message older endpoints stay", func(o *of) {
			o.p.takeAhead([]shard.Ahead{say(o, "x")})
			say(o, "y")
			commit(o, change(o, "y"))
		}, "y"},
		{"after a lost message that took a change back the change stays", func(o *of) {
			o.p.takeAhead([]shard.Ahead{say(o, "x")})
			commit(o, o.op)
		}, "before"},
		{"a message that comes late brings older endpoints back", func(o *of) {
			x := say(o, "x")
			o.p.takeAhead([]shard.Ahead{x})
			commit(o, change(o, "x"))
			commit(o, change(o, "y"))
			o.p.takeAhead([]shard.Ahead{x})
		}, "y"},
		{"after a snapshot older endpoints stay", func(o *of) {
			o.p.takeAhead([]shard.Ahead{say(o, "x")})
			o.c.propose(change(o, "y"))
			<-o.p.events
			if err := o.p.step(store.Event{Reset: true}); err != nil {
				o.t.Fatal(err)
			}
		}, "y"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := &of{t: t, c: newCommitted(t)}
			o.p = o.c.serving()
			o.c.put(gatewayWith("8080") + oneBackend)
			take(t, o.p)
			all, err := o.c.db.List(string(record.KindEndpoints), "")
			if err != nil || len(all) != 1 {
				t.Fatalf("%d records of endpoints, %v", len(all), err)
			}
			o.op = store.Op{Key: all[0].Key, Content: &all[0].Cur}
			commit(o, change(o, "before"))
			o.op = change(o, "before")
			c.play(o)
			var e record.Endpoints
			if err := record.Unmarshal(o.op.Content.Payload, &e); err != nil {
				t.Fatal(err)
			}
			r := asks(t, o.p.server, xds.Endpoints, e.Name)()
			if len(r.Resources) != 1 || r.Resources[0].Version != record.Hash([]byte(c.want)) {
				t.Errorf("served: %v, want what has the version %s", r, record.Hash([]byte(c.want)))
			}
		})
	}
}
