package translate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fleetgate/fleetgate/translate/record"
)

// compiled is what a unit becomes: a record's value (nil = no record) and the records that it needs.
type compiled struct {
	value any
	refs  []record.Key
}

// compilers is the table of what makes which record.
var compilers = map[record.Kind]func(*view, record.Key) compiled{
	record.KindClass:     compileClass,
	record.KindNamespace: compileNamespace,
	record.KindGateway:   compileGateway,

	record.KindListenerSet: compileListenerSet,
	record.KindTrust:       compileTrust,
	record.KindPolicy:      compilePolicy,
	record.KindRoute:       compileRoute,
	record.KindBackend:     compileBackend,
	record.KindEndpoints:   compileEndpoints,
	record.KindSecret:      compileSecret,
}

// run compiles a unit. A panic quarantines it (D16): it keeps its last good record, with a problem.
func (c *Compiler) run(k record.Key, old *result, out *Output) (next *result) {
	v := &view{c: c, reads: map[input]struct{}{objectOf(k): {}}}
	defer func() {
		if p := recover(); p != nil {
			next = c.quarantine(k, old, p, out)
			next.reads = v.reads
		}
	}()
	if k.Kind == record.KindRoute {
		out.Compiled++
	}
	if c.before != nil {
		c.before(k)
	}
	made := compilers[k.Kind](v, k)
	next = &result{put: pack(k, made)}
	if v.blind {
		if kept := c.keep(k, old, next.put); kept != nil {
			kept.reads = v.reads
			return kept
		}
	}
	next.good = next.put
	next.wants = c.wants(next.put.Refs)
	next.reads = v.reads
	return next
}

// wants are those of the references that this row compiles.
func (c *Compiler) wants(refs []record.Key) []record.Key {
	var out []record.Key
	for _, r := range refs {
		if c.compiles(r) {
			out = append(out, r)
		}
	}
	return out
}

// pack encodes a record; one that is too large becomes a small one that says so.
func pack(k record.Key, made compiled) Put {
	if made.value == nil {
		return Put{}
	}
	refs := slices.Clone(made.refs)
	slices.SortFunc(refs, record.Key.Compare)
	refs = slices.Compact(refs)
	payload := mustMarshal(made.value)
	if size := len(payload) + sizeOf(refs); size > MaxPayload {
		refs, payload = nil, mustMarshal(tooLarge(made.value, size))
	}
	return Put{Key: k, Payload: payload, Refs: refs}
}

// sizeOf is about what references take in the log, where they travel beside the payload.
func sizeOf(refs []record.Key) (n int) {
	for _, r := range refs {
		n += r.LogSize()
	}
	return n
}

// mustMarshal encodes our own plain structs; a failure is a broken invariant, and the panic guard of run handles it.
func mustMarshal(value any) []byte {
	b, err := record.Marshal(value)
	if err != nil {
		panic(fmt.Errorf("translate: encode %T: %w", value, err))
	}
	return b
}

// tooLarge is what remains of a record above the limit: who it is, and why it is not more.
func tooLarge(value any, size int) any {
	problem := record.Problem{
		Condition: "Accepted", Reason: "UnsupportedValue", Rule: -1,
		Message: fmt.Sprintf("compiled to %d bytes, the limit is %d: split the object into several smaller ones", size, MaxPayload),
	}
	switch r := value.(type) {
	case record.Route:
		return record.Route{Object: r.Object, Created: r.Created, Hostnames: r.Hostnames, Parents: r.Parents, Scope: r.Scope, Problems: []record.Problem{problem}}
	case record.Gateway:
		return record.Gateway{Object: r.Object, Class: r.Class, Scope: r.Scope, Problems: []record.Problem{problem}}
	case record.ListenerSet:
		return record.ListenerSet{Object: r.Object, Created: r.Created, Parent: r.Parent, Problems: []record.Problem{problem}}
	case record.Secret:
		problem.Condition, problem.Reason = "ResolvedRefs", "InvalidCertificateRef"
		return record.Secret{Name: r.Name, Problem: &problem}
	case record.Policy:
		return record.Policy{Object: r.Object, Problems: []record.Problem{problem}}
	case record.Backend:
		return record.Backend{Name: r.Name, Missing: true, Problem: &problem}
	case record.Trust:
		problem.Condition, problem.Reason = "ResolvedRefs", "InvalidCACertificateRef"
		return record.Trust{Problem: &problem}
	case record.Namespace:
		return record.Namespace{Name: r.Name}
	case record.Class:
		return record.Class{Object: r.Object, ControllerName: r.ControllerName, Problems: []record.Problem{problem}}
	}
	panic(fmt.Errorf("translate: a %T of %d bytes", value, size))
}

// quarantine keeps a unit's last good record, from this compiler or, after a restart, from the store.
func (c *Compiler) quarantine(k record.Key, old *result, cause any, out *Output) *result {
	in := objectOf(k)
	out.Quarantined = append(out.Quarantined, record.Object{Kind: in.kind, Namespace: in.namespace, Name: in.name})
	good := old.good
	if good.Payload == nil && c.cfg.Last != nil {
		good = c.recall(k)
	}
	next := &result{good: good, put: good, suspect: true}
	if good.Payload == nil {
		return next
	}
	next.put = withProblem(good, record.Problem{
		Condition: "PartiallyInvalid", Reason: "UnsupportedValue", Rule: -1,
		Message: "Fall Back: this version makes the compiler fail (" + firstLine(cause) + "), so the last good one is served; undo the change and report a bug",
	})
	next.wants = c.wants(next.put.Refs)
	return next
}

// recall reads a last good record back from the store, with the references that its content implies.
func (c *Compiler) recall(k record.Key) Put {
	payload := c.cfg.Last(k)
	if payload == nil {
		return Put{}
	}
	put := Put{Key: k, Payload: payload}
	put = edit(put, func(problems []record.Problem) []record.Problem { return slices.DeleteFunc(problems, fellBack) })
	slices.SortFunc(put.Refs, record.Key.Compare)
	put.Refs = slices.Compact(put.Refs)
	return put
}

func fellBack(p record.Problem) bool { return p.Condition == "PartiallyInvalid" && p.Rule == -1 }

// withProblem adds a problem to a record that can carry one.
func withProblem(put Put, p record.Problem) Put {
	refs := put.Refs
	put = edit(put, func(problems []record.Problem) []record.Problem { return append(problems, p) })
	put.Refs = refs
	return put
}

// edit changes the problems of a record that has some, and reads its references from its content.
func edit(put Put, change func([]record.Problem) []record.Problem) Put {
	var gateway record.Gateway
	var set record.ListenerSet
	var route record.Route
	var backend record.Backend
	switch {
	case put.Key.Kind == record.KindRoute && record.Unmarshal(put.Payload, &route) == nil:
		put.Refs, route.Problems = refsOfRoute(route), change(route.Problems)
		put.Payload = mustMarshal(route)
	case put.Key.Kind == record.KindGateway && record.Unmarshal(put.Payload, &gateway) == nil:
		put.Refs, gateway.Problems = refsOfGateway(gateway), change(gateway.Problems)
		put.Payload = mustMarshal(gateway)
	case put.Key.Kind == record.KindListenerSet && record.Unmarshal(put.Payload, &set) == nil:
		put.Refs, set.Problems = refsOfListeners(set.Listeners), change(set.Problems)
		put.Payload = mustMarshal(set)
	case put.Key.Kind == record.KindBackend && record.Unmarshal(put.Payload, &backend) == nil: // it has no problems of this kind
		put.Refs = refsOfBackend(backend)
	}
	return put
}

func firstLine(cause any) string {
	line, _, _ := strings.Cut(fmt.Sprint(cause), "\n")
	return line
}
