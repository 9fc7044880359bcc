package assemble

import (
	"fmt"
	"strings"

	"github.com/fleetgate/fleetgate/translate/record"
)

// decoded is a content with its payload read once.
type decoded struct {
	Content
	value any // *record.Route and so on, by the kind of the key
	err   error
}

// entry is what was last committed of one record, and which of its contents is live.
type entry struct {
	key       record.Key
	cur, prev *decoded
	pinned    string
	reason    string
	live      live
}

// live is the content that counts now.
type live struct {
	*decoded        // nil = none
	form     string // what Resource.Parts calls it: a hash, with a suffix where a pin made it a lesser form
	degraded bool   // its matches answer 500
	pending  string // why it is not the newest one as it is, "" = it is
	rejected bool   // because proxies rejected the newest
}

// same tells whether two choices serve the same.
func (l live) same(m live) bool { return l.decoded == m.decoded && l.form == m.form }

// decode reads a payload as the kind of its key says.
func decode(kind record.Kind, c *Content) *decoded {
	if c == nil {
		return nil
	}
	d := &decoded{Content: *c}
	switch kind {
	case record.KindClass:
		d.value, d.err = read[record.Class](c.Payload)
	case record.KindGateway:
		d.value, d.err = read[record.Gateway](c.Payload)
	case record.KindNamespace:
		d.value, d.err = read[record.Namespace](c.Payload)
	case record.KindRoute:
		d.value, d.err = read[record.Route](c.Payload)
	case record.KindBackend:
		d.value, d.err = read[record.Backend](c.Payload)
	case record.KindEndpoints:
		d.value, d.err = read[record.Endpoints](c.Payload)
	case record.KindSecret:
		d.value, d.err = read[record.Secret](c.Payload)
	case record.KindListenerSet:
		d.value, d.err = read[record.ListenerSet](c.Payload)
	case record.KindPolicy:
		d.value, d.err = read[record.Policy](c.Payload)
	case record.KindTrust:
		d.value, d.err = read[record.Trust](c.Payload)
	}
	return d
}

func read[T any](payload []byte) (*T, error) {
	v := new(T)
	return v, record.Unmarshal(payload, v)
}

// choose picks the live content (D7, D13): the newest if all that it names is there and no proxy rejected it, else the previous one on the same terms,
// else, where proxies rejected the newest, its matches answering 500, else nothing. Prev's references are protected by the store.
func choose(e *entry, exists func(record.Key) bool) live {
	why := e.obstacle(e.cur, exists)
	if why == "" {
		return live{decoded: e.cur, form: e.cur.Hash}
	}
	rejected := e.rejects(e.cur)
	if e.prev != nil && !e.rejectsPrevious() && e.obstacle(e.prev, exists) == "" {
		form := e.prev.Hash
		if rejected {
			form = e.cur.Hash + previousSuffix
		}
		return live{decoded: e.prev, form: form, rejected: rejected, pending: why + "; the previous version is served meanwhile"}
	}
	if e.key.Kind == record.KindRoute && e.cur.err == nil && rejected && e.pinned != e.cur.Hash+degradedSuffix {
		return live{decoded: e.cur, form: e.cur.Hash + degradedSuffix, rejected: true, degraded: true, pending: why + "; its requests answer 500 until it is changed"}
	}
	return live{rejected: rejected, pending: why}
}

// rejects tells whether a pin keeps a content from being served.
func (e *entry) rejects(d *decoded) bool {
	hash, _, _ := strings.Cut(e.pinned, "/")
	return hash != "" && hash == d.Hash
}

// rejectsPrevious tells whether a pin keeps the previous content from being served too.
func (e *entry) rejectsPrevious() bool {
	return e.pinned == e.cur.Hash+previousSuffix || e.pinned == e.cur.Hash+degradedSuffix
}

// obstacle says what keeps a content from being live, "" = nothing.
func (e *entry) obstacle(d *decoded, exists func(record.Key) bool) string {
	if d.err != nil {
		return fmt.Sprintf("its record cannot be read (%v); save the object again", d.err)
	}
	if e.rejects(d) {
		return fmt.Sprintf("proxies rejected it: %s; change the object", e.reason)
	}
	for _, r := range d.Refs {
		if !exists(r) {
			return fmt.Sprintf("waiting for the %s %s/%s to be compiled", r.Kind, r.Namespace, r.Name)
		}
	}
	return ""
}

// refs are the records that one of the contents names.
func (e *entry) refs() []record.Key {
	out := append([]record.Key(nil), e.cur.Refs...)
	if e.prev != nil {
		out = append(out, e.prev.Refs...)
	}
	return out
}

// as gives the live value of a kind, nil where there is none.
func as[T any](e *entry) *T {
	if e == nil || e.live.decoded == nil {
		return nil
	}
	v, _ := e.live.value.(*T)
	return v
}
