package xds

import (
	"slices"
	"strings"
	"time"
)

// subscription is what one stream knows of one type. Only the stream's own goroutine touches it. A client with ten thousand
// names costs a few bits for each, not a map.
type subscription struct {
	started  bool
	wildcard bool
	greet    bool                // a wildcard without anything to send: answered all the same, since Envoy waits for its first response
	explicit bool                // a name, or *, was ever subscribed to: from then on empty means nothing (legacy wildcard)
	named    bitset              // ids asked for by name
	unknown  map[string]struct{} // names asked for that have no id yet
	sent     uint64              // changes up to this seq were looked at
	due      bitset              // to be sent, or held back by the gate
	floor    uint64              // the client has everything due up to here, whatever is in due
	late     bitset              // gone, but perhaps still in use by the client: to be removed later
	present  bitset              // the client may hold it
	acked    bitset              // the client has ACKed some version of it since it last got it anew
	expired  bitset              // clusters that missed their deadline: they hold back nothing again
	forced   bitset              // asked for (again): answered at once, whatever else is in flight
	answers  []string            // names to answer as not existing, at once
	stray    map[string]struct{} // held by the client, but without id here: to be removed
	strayOut bool                // the removal of strays is in flight
	inflight []*response
	held     map[uint32]*item // what the client ACKed last (Listener and Route), or reported with a version unknown to us
	gated    map[uint32]*gate
	rejected map[uint32]*rejection
}

type rejection struct {
	version, message string
	parts            map[string]string // to blame, as far as is known
	search           *search           // nil = ended, or there was nothing to search
	bad              *item
	floor            uint64
}

// gate is how long a resource has been held back.
type gate struct {
	since time.Time
	got   time.Time // when the client was seen to have got the clusters that the resource waits for, zero = not yet
}

// response is one message that waits for its ACK.
type response struct {
	typ     Type
	nonce   string
	items   []*item
	removed []uint32
	names   []string // removed by name: they have no id
	stray   bool     // names are strays
	floor   uint64
	sent    time.Time
	trial   *rejection // what it helps to narrow down, nil = it is no trial
}

func (sub *subscription) wants(id uint32) bool { return sub.wildcard || sub.named.has(id) }

// refers tells whether resources of a type refer to clusters.
func (t Type) refers() bool { return t == Listener || t == Route }

// lower notes that something due is not in the client's hands beyond index floor.
func (sub *subscription) lower(floor uint64) { sub.floor = min(sub.floor, floor) }

// collect moves what changed since the last look into due.
func (sub *subscription) collect(t *table, seq, acked uint64) {
	if !sub.started || sub.sent == seq {
		return
	}
	ok := t.since(sub.sent, func(c change) {
		if sub.resolve(t.items[c.id]) {
			sub.due.add(c.id)
			sub.lower(c.floor)
		}
	})
	if !ok {
		for _, it := range t.items {
			if it.seq > sub.sent && sub.resolve(it) {
				sub.due.add(it.id)
				sub.lower(acked)
			}
		}
	}
	sub.sent = seq
}

// resolve tells whether the stream wants it, and gives a name that was asked for, or is held by the client, before it existed its id.
func (sub *subscription) resolve(it *item) bool {
	if len(sub.unknown) > 0 {
		if _, ok := sub.unknown[it.name]; ok {
			delete(sub.unknown, it.name)
			sub.named.add(it.id)
		}
	}
	if _, ok := sub.stray[it.name]; ok { // this replica has heard of it by now: it must not be removed as a stray after it was sent
		delete(sub.stray, it.name)
		sub.present.add(it.id)
		sub.acked.add(it.id)
		sub.held[it.id] = &item{id: it.id, name: it.name, opaque: true}
	}
	return sub.wants(it.id)
}

// busy tells whether unasked changes must wait: one response of a type is in flight at a time, so that changes coalesce while
// the client works, unless the client has owed the answer for too long (a cluster that does not warm withholds it).
func (sub *subscription) busy(now time.Time, patience time.Duration) (until time.Time, yes bool) {
	if len(sub.inflight) == 0 {
		return time.Time{}, false
	}
	if len(sub.inflight) >= maxInflight {
		return time.Time{}, true
	}
	until = sub.inflight[len(sub.inflight)-1].sent.Add(patience)
	return until, now.Before(until)
}

const maxInflight = 4

// start takes the first request of a type on a stream.
func (sub *subscription) start(typ Type, t *table, r *request, seq, acked uint64) (unknownVersions bool) {
	sub.started, sub.sent, sub.floor = true, seq, noFloor
	sub.held, sub.gated, sub.rejected = map[uint32]*item{}, map[uint32]*gate{}, map[uint32]*rejection{}
	sub.unknown, sub.stray = map[string]struct{}{}, map[string]struct{}{}
	if len(r.subscribe) == 0 {
		sub.openWildcard(t, acked)
	}
	sub.subscribe(t, r.subscribe, acked)
	sub.greet = sub.wildcard && len(r.initial) == 0
	for _, nv := range r.initial {
		unknownVersions = sub.reported(typ, t, nv, acked) || unknownVersions
	}
	return unknownVersions
}

// reported takes one of the versions that a client holds from an earlier stream.
func (sub *subscription) reported(typ Type, t *table, nv nameVersion, acked uint64) (unknown bool) {
	it := t.lookup(nv.name)
	if it == nil {
		if _, named := sub.unknown[nv.name]; named || sub.wildcard {
			sub.stray[strings.Clone(nv.name)] = struct{}{}
			sub.unanswer(nv.name)
			return true
		}
		return false
	}
	if !sub.wants(it.id) {
		return false
	}
	sub.present.add(it.id)
	sub.acked.add(it.id)
	sub.forced.remove(it.id)
	if it.exists() && it.version == nv.version {
		if typ.refers() {
			sub.held[it.id] = it
		}
		sub.due.remove(it.id)
		return false
	}
	if typ != Endpoints {
		sub.held[it.id] = &item{id: it.id, name: it.name, version: strings.Clone(nv.version), opaque: true}
	}
	sub.due.add(it.id)
	sub.lower(acked)
	return true
}

// unanswer takes back the answer "does not exist" to a name that the client still holds: it is removed when that is safe.
func (sub *subscription) unanswer(name string) {
	for i, n := range sub.answers {
		if n == name {
			sub.answers = append(sub.answers[:i], sub.answers[i+1:]...)
			return
		}
	}
}

// absent takes the names to answer as not existing; one that came to exist since it was asked for is due, and must not be removed after that.
func (sub *subscription) absent(t *table) []string {
	names := sub.answers
	sub.answers = nil
	return slices.DeleteFunc(names, func(n string) bool {
		it := t.lookup(n)
		return it != nil && it.exists()
	})
}

func (sub *subscription) openWildcard(t *table, acked uint64) {
	sub.wildcard = true
	for _, it := range t.items {
		if it.exists() && !sub.present.has(it.id) {
			sub.due.add(it.id)
			sub.lower(acked)
		}
	}
	// What is still on its way from before the wildcard was given up will be taken under the new one.
	for _, r := range sub.inflight {
		for _, it := range r.items {
			sub.present.add(it.id)
			if !t.items[it.id].exists() {
				sub.late.add(it.id)
			}
		}
	}
}

// subscribe takes names. Every one is answered, also one that was asked for before, and one that does not exist.
func (sub *subscription) subscribe(t *table, names []string, acked uint64) {
	if len(names) == 0 {
		return
	}
	if !sub.explicit {
		sub.explicit = true
		if sub.wildcard {
			sub.closeWildcard()
		}
	}
	for _, name := range names {
		if name == "*" {
			sub.openWildcard(t, acked)
			continue
		}
		delete(sub.stray, name)
		it := t.lookup(name)
		if it == nil {
			name = strings.Clone(name)
			sub.unknown[name] = struct{}{}
			sub.answers = append(sub.answers, name)
			continue
		}
		sub.named.add(it.id)
		sub.forced.add(it.id)
		if it.exists() {
			sub.lower(acked)
		}
	}
}

// closeWildcard forgets all that was only held through the wildcard: the client drops it by itself.
func (sub *subscription) closeWildcard() {
	sub.wildcard = false
	sub.due.keep(sub.named)
	sub.late.keep(sub.named)
	sub.present.keep(sub.named)
	sub.acked.keep(sub.named)
	for id := range sub.held {
		if !sub.named.has(id) {
			delete(sub.held, id)
		}
	}
	clear(sub.stray)
}

func (sub *subscription) unsubscribe(t *table, names []string) {
	for _, name := range names {
		if name == "*" {
			if sub.wildcard {
				sub.closeWildcard()
			}
			continue
		}
		delete(sub.unknown, name)
		sub.unanswer(name)
		it := t.lookup(name)
		if it == nil {
			delete(sub.stray, name)
			if sub.wildcard {
				sub.answers = append(sub.answers, strings.Clone(name))
			}
			continue
		}
		sub.named.remove(it.id)
		if sub.wildcard { // still wanted: the client asks whether it may keep it
			sub.forced.add(it.id)
			continue
		}
		sub.drop(it.id)
	}
}

// drop forgets an id that the client no longer holds or wants.
func (sub *subscription) drop(id uint32) {
	for _, b := range []bitset{sub.due, sub.late, sub.present, sub.acked, sub.forced} {
		b.remove(id)
	}
	delete(sub.held, id)
	delete(sub.gated, id)
	delete(sub.rejected, id)
}

func (sub *subscription) names() int { return sub.named.count() + len(sub.unknown) + len(sub.stray) }

// take removes the response with that nonce from those in flight.
func (sub *subscription) take(nonce string) *response {
	for i, r := range sub.inflight {
		if r.nonce == nonce {
			sub.inflight = append(sub.inflight[:i], sub.inflight[i+1:]...)
			return r
		}
	}
	return nil
}
