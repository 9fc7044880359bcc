package shard

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/record"
)

// gated is a log that answers when it is let.
type gated struct{ asked, answer chan store.Command }

func (g gated) Propose(ctx context.Context, cmd store.Command) (store.Result, error) {
	g.asked <- cmd
	select {
	case <-g.answer:
		return store.Result{}, nil
	case <-ctx.Done():
		return store.Result{}, ctx.Err()
	}
}

func endpointsOp(content string) store.Op {
	return store.Op{Key: store.Key{Cluster: "c", Namespace: "n", Kind: string(record.KindEndpoints), Name: "s"}, Content: &store.Content{Payload: []byte(content)}}
}

// TestEndpointsOutrunTheLog: each change is told at once, while the log has the last; untold to the log, it is told again each second; the log takes the newest, once a second.
func TestEndpointsOutrunTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		o := &outrun{told: map[store.Key]*store.Content{}, logged: map[store.Key]time.Time{}}
		o.send = func(all []Ahead) {
			for _, a := range all {
				told = append(told, string(a.Payload))
				if a.Seq != uint64(len(told)) {
					t.Errorf("%s has seq %d", a.Payload, a.Seq)
				}
			}
		}
		log := gated{make(chan store.Command, 10), make(chan store.Command)}
		c := &Controller{outrun: *o, propose: log, pending: map[store.Key]store.Op{}, log: slog.New(slog.DiscardHandler)}
		there := func(store.Key) bool { return true }
		change := func(content string) {
			op := endpointsOp(content)
			c.pending[op.Key] = op
			c.outrun.tell(time.Now(), c.pending, there)
		}
		change("1")
		sent := c.send(t.Context(), c.batch(time.Now()))
		<-log.asked
		change("2")
		change("2b")
		log.answer <- store.Command{}
		if err := <-sent.result; err != nil {
			t.Fatal(err)
		}
		c.done(sent.ops)
		if got := c.batch(time.Now()); len(got) != 0 {
			t.Errorf("the log gets %d operations within the second", len(got))
		}
		wait := c.outrun.next(time.Now(), c.pending)
		if wait <= 0 || wait > time.Second {
			t.Fatalf("the next thing to do is in %v", wait)
		}
		time.Sleep(wait)
		c.outrun.tell(time.Now(), c.pending, there)
		if got := c.batch(time.Now()); len(got) != 1 || string(got[0].Content.Payload) != "2b" {
			t.Errorf("after a second the log gets %v", got)
		}
		if want := []string{"1", "2", "2b", "2b"}; len(told) != len(want) || told[2] != "2b" || told[3] != "2b" {
			t.Errorf("told %v, want %v", told, want)
		}
	})
}

// TestNewEndpointsWaitForTheLog: what nobody serves yet is not told ahead.
func TestNewEndpointsWaitForTheLog(t *testing.T) {
	o := &outrun{told: map[store.Key]*store.Content{}, send: func(all []Ahead) { t.Errorf("told %v", all) }}
	op := endpointsOp("1")
	o.tell(time.Now(), map[store.Key]store.Op{op.Key: op}, func(store.Key) bool { return false })
}

// TestSweepOvertakesWhatRanAhead: endpoints that are again as the store has them, while something else was told ahead, are proposed all the same: only the log tells everybody.
func TestSweepOvertakesWhatRanAhead(t *testing.T) {
	s := newSingle(t)
	row := store.Row{ID: 1, Cluster: "c", Owner: "a@1", Epoch: 1}
	if res, err := s.Propose(t.Context(), store.Command{Version: 1, Table: &store.TableCommand{Rows: []store.Row{row}}}); err != nil || res.Code != "" {
		t.Fatalf("%v: %+v", err, res)
	}
	compiler := translate.New(translate.Config{Cluster: "c", ControllerNames: []string{"ours"}, Owns: func(string) bool { return true }})
	key := record.Key{Cluster: "c", Namespace: "n", Kind: record.KindEndpoints, Name: "s/80/auto"}
	compiler.Apply(backend("10.0.0.1"))
	compiler.Referenced([]record.Key{key})
	c := &Controller{row: row, db: s.db, compiler: compiler, pending: map[store.Key]store.Op{}, outrun: outrun{told: map[store.Key]*store.Content{}}, log: slog.New(slog.DiscardHandler)}
	sweep := func() store.Op {
		t.Helper()
		if err := c.sweep(); err != nil {
			t.Fatal(err)
		}
		return c.pending[StoreKey(key)]
	}
	op := sweep()
	if res, err := s.Propose(t.Context(), store.Command{Version: 1, Put: &store.PutCommand{Proposer: "a@1", Row: 1, Epoch: 1, Seq: 1, Ops: []store.Op{op}}}); err != nil || res.Code != "" {
		t.Fatalf("%v: %+v", err, res)
	}
	if again := sweep(); again.Content != nil {
		t.Errorf("what the store has is proposed again: %+v", again)
	}
	c.outrun.told[StoreKey(key)] = endpointsOp("something else").Content
	if again := sweep(); again.Content == nil || string(again.Content.Payload) != string(op.Content.Payload) {
		t.Errorf("something else runs ahead for ever: %+v is proposed", again)
	}
}
