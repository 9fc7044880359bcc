package assemble

import (
	"maps"
	"slices"
	"strings"

	"github.com/fleetgate/fleetgate/translate/record"
)

// kindXBackend is how a policy that is an XBackend says so.
const kindXBackend = "XBackend"

// Selection is an XBackend that sends to pods, which somebody has to find.
type Selection struct {
	Object record.Object
	Pods   record.Pods
}

// Selection gives what an XBackend selects, by the key of its policy record; nil = nothing. known is false where there is no record, and where no route, filter or tracer leads to it of a Gateway of ours:
// other controllers may have XBackends in the same cluster. A route counts from when it could be attached, for it is served only once the pods were looked for.
func (s *State) Selection(k record.Key) (_ *Selection, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p := as[record.Policy](s.entries[k])
	if p == nil || p.Object.Kind != kindXBackend {
		return nil, false
	}
	if p.Pods == nil {
		return nil, true
	}
	for _, name := range p.Pods.Backends {
		if s.leads(record.Key{Cluster: k.Cluster, Namespace: k.Namespace, Kind: record.KindBackend, Name: name}) {
			return &Selection{p.Object, *p.Pods}, true
		}
	}
	return nil, false
}

// leads tells whether a Gateway of ours, or a route or a ListenerSet of one, names a backend.
func (s *State) leads(backend record.Key) bool {
	for k := range s.referrers[backend] {
		if s.fleets[k] != nil || slices.ContainsFunc(s.namedBy(k), func(g record.Key) bool { return s.fleets[g] != nil }) {
			return true
		}
	}
	return false
}

// namedBy are the Gateways that a route or a ListenerSet names.
func (s *State) namedBy(k record.Key) []record.Key {
	if k.Kind == record.KindListenerSet {
		return setParents(s.entries[k])
	}
	if r := s.routes[k]; r != nil {
		return slices.Collect(maps.Keys(r.shown))
	}
	return nil
}

// Selections are the policy records of all XBackends, sorted.
func (s *State) Selections() []record.Key {
	return slices.DeleteFunc(s.Policies(), func(k record.Key) bool { return !isXBackend(k) })
}

func isXBackend(policy record.Key) bool {
	kind, _, _ := strings.Cut(policy.Name, "/")
	return kind == kindXBackend
}

// selections are the XBackends that changed, or that may be led to now.
func (s *State) selections(w *work) []record.Key {
	out := set{}
	for k := range w.status {
		if k.Kind == record.KindPolicy && isXBackend(k) {
			out[k] = struct{}{}
		}
		e := s.entries[k]
		if e == nil || k.Kind != record.KindRoute && k.Kind != record.KindGateway && k.Kind != record.KindListenerSet {
			continue
		}
		for _, r := range e.refs() {
			if p, ok := policyOf(r); ok {
				out[p] = struct{}{}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(out), record.Key.Compare)
}

// policyOf gives the policy record of an XBackend by the key of a backend that it becomes.
func policyOf(backend record.Key) (record.Key, bool) {
	kind, name := objectOf(backend)
	if backend.Kind != record.KindBackend || kind != kindXBackend {
		return record.Key{}, false
	}
	backend.Kind, backend.Name = record.KindPolicy, record.Join(kindXBackend, name)
	return backend, true
}
