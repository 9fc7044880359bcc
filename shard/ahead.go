package shard

import (
	"maps"
	"time"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate/record"
)

// Ahead is an endpoints record on its way around the log (D18): without a quorum, frozen endpoints would mean traffic to dead pods. Of one key the greatest (Epoch, Seq) is the
// newest; the epoch fences owners of the past as it does in the log.
type Ahead struct {
	Key     store.Key `json:"key"`
	Epoch   uint64    `json:"epoch"`
	Seq     uint64    `json:"seq"`
	After   uint64    `json:"after"` // the last proposal that its owner had made by then: what a later one has of this key is the same, or newer
	Payload []byte    `json:"payload"`
}

// Newer tells whether a comes after b.
func (a Ahead) Newer(b Ahead) bool { return a.Epoch > b.Epoch || a.Epoch == b.Epoch && a.Seq > b.Seq }

// aheadEvery is how often the log takes the endpoints of one key, and how often those are sent again that it has not taken yet: a replica may have missed them.
const aheadEvery = time.Second

// outrun is what a controller knows of the endpoints that run ahead of the log.
type outrun struct {
	send   func([]Ahead) // nil = the log alone carries endpoints
	seq    uint64
	told   map[store.Key]*store.Content // sent ahead, not committed yet
	toldAt time.Time
	logged map[store.Key]time.Time // when the log last took it
}

func isEndpoints(op store.Op) bool { return op.Key.Kind == string(record.KindEndpoints) }

// tell sends pending endpoints ahead, those of the last second once. New keys wait for the log: what is not there yet, nobody serves.
func (o *outrun) tell(now time.Time, pending map[store.Key]store.Op, known func(store.Key) bool) {
	if o.send == nil {
		return
	}
	if now.Sub(o.toldAt) >= aheadEvery {
		clear(o.told)
	}
	var out []Ahead
	for k, op := range pending {
		if !isEndpoints(op) || op.Content == nil || o.told[k] == op.Content || !known(k) {
			continue
		}
		if len(o.told) == 0 {
			o.toldAt = now
		}
		o.told[k] = op.Content
		o.seq++
		out = append(out, Ahead{Key: k, Seq: o.seq, Payload: op.Content.Payload})
	}
	if len(out) > 0 {
		o.send(out)
	}
}

// holds tells whether the log has had this key within the last second.
func (o *outrun) holds(now time.Time, op store.Op) bool {
	at, ok := o.logged[op.Key]
	return ok && op.Content != nil && now.Sub(at) < aheadEvery
}

// committed notes what the log took.
func (o *outrun) committed(now time.Time, op store.Op) {
	if o.send == nil || !isEndpoints(op) {
		return
	}
	if op.Content == nil {
		delete(o.logged, op.Key)
	} else {
		o.logged[op.Key] = now
	}
	if o.told[op.Key] == op.Content {
		delete(o.told, op.Key)
	}
}

// next is how long nothing has to be done: until the log takes the next of what is held back, or until it is sent again. 0 = for ever.
func (o *outrun) next(now time.Time, pending map[store.Key]store.Op) time.Duration {
	maps.DeleteFunc(o.logged, func(_ store.Key, at time.Time) bool { return now.Sub(at) >= aheadEvery })
	var wait time.Duration
	sooner := func(at time.Time) {
		if d := max(at.Add(aheadEvery).Sub(now), time.Millisecond); wait == 0 || d < wait {
			wait = d
		}
	}
	if len(o.told) > 0 {
		sooner(o.toldAt)
	}
	for k, at := range o.logged {
		if _, waits := pending[k]; waits {
			sooner(at)
		}
	}
	return wait
}
