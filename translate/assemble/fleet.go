package assemble

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/fleetgate/fleetgate/translate/record"
)

// fleet is what the proxies of one Gateway run.
type fleet struct {
	key       record.Key
	name      string
	gateway   *gateway // nil = not ours any more
	resources map[resourceKey]Resource
	streams   map[string]bool // whose clusters and endpoints are among them
	shown     map[string]bool // certificates among them that are there for backends which ask for one of their own
	told      bool            // it has been in a Delta
}

type resourceKey struct {
	Type ResourceType
	Name string
}

// dirt is what one Apply touched of a fleet.
type dirt struct {
	all      bool // the Gateway was made anew
	backends map[record.Key]bool
}

// refresh brings the resources of a fleet up to date and gives those that changed, sorted.
func (f *fleet) refresh(d *dirt, s *State) []Resource {
	var out []Resource
	for _, c := range f.gateway.configs {
		c.touch(d.backends, s.cluster)
	}
	f.gateway.touchStreams(d.backends)
	streams := f.gateway.streamsDirty
	if streams {
		f.gateway.flushStreams(s)
	}
	if d.all {
		out = f.replace(f.desired(s))
		f.noteStreams()
		out = append(out, f.refreshSecrets(s)...)
	} else {
		for _, c := range f.gateway.configs {
			if c.dirty() {
				out = append(out, f.put(f.flushed(c, s))...)
			}
		}
		for k := range d.backends {
			out = append(out, f.refreshBackend(k, s)...)
		}
		if streams {
			out = append(out, f.refreshStreams()...)
		}
		if f.shows(d, s) {
			out = append(out, f.refreshSecrets(s)...)
		}
	}
	slices.SortFunc(out, compareResources)
	return out
}

func compareResources(a, b Resource) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
}

// touch notes which of the clusters that a configuration names have come or gone since it was made.
func (c *config) touch(backends map[record.Key]bool, cluster func(record.Key) (string, bool)) {
	for k := range backends {
		if c.backends[k] == 0 {
			continue
		}
		name, there := cluster(k)
		if _, was := slices.BinarySearch(c.resource.Uses, name); there != was {
			c.dirtyUses[k] = true
		}
	}
}

func (f *fleet) flushed(c *config, s *State) Resource {
	if c.dirty() {
		c.flush(s.cluster)
	}
	return c.resource
}

// refreshStreams brings the ports and what streams need up to date.
func (f *fleet) refreshStreams() []Resource {
	var out []Resource
	want := map[resourceKey]bool{}
	for _, r := range slices.Concat(f.gateway.ports, f.gateway.streamResources) {
		want[resourceKey{r.Type, r.Name}] = true
		out = append(out, f.put(r)...)
	}
	for name := range f.streams {
		for _, t := range []ResourceType{TypeCluster, TypeEndpoints} {
			if k := (resourceKey{t, name}); !want[k] {
				out = append(out, f.remove(k)...)
			}
		}
	}
	f.noteStreams()
	return out
}

// shows tells whether a certificate that backends are shown may have changed: to look at all backends costs as much as there are.
func (f *fleet) shows(d *dirt, s *State) bool {
	asks := func(backends map[record.Key]bool) bool {
		for k := range backends {
			if as[record.Backend](s.entries[k]).ClientKey() != nil {
				return true
			}
		}
		return false
	}
	return len(f.shown) > 0 || asks(d.backends) || asks(f.gateway.streamBackends)
}

// refreshSecrets brings the certificates up to date that backends are shown which ask for one of their own.
func (f *fleet) refreshSecrets(s *State) []Resource {
	want := map[string]bool{}
	var out []Resource
	for _, k := range f.gateway.shownSecrets(s) {
		if r, ok := s.secret(k); ok {
			want[r.Name] = true
			out = append(out, f.put(r)...)
		}
	}
	for name := range f.shown {
		if !want[name] && !f.gateway.holds(name) {
			out = append(out, f.remove(resourceKey{TypeSecret, name})...)
		}
	}
	f.shown = want
	return out
}

func (f *fleet) noteStreams() {
	f.streams = map[string]bool{}
	for name := range f.gateway.streams {
		f.streams[name] = true
	}
}

// desired is all that the fleet should run.
func (f *fleet) desired(s *State) map[resourceKey]Resource {
	out := map[resourceKey]Resource{}
	put := func(r Resource) { out[resourceKey{r.Type, r.Name}] = r }
	for _, r := range slices.Concat(f.gateway.ports, f.gateway.streamResources) {
		put(r)
	}
	for _, r := range f.gateway.trusts {
		put(r)
	}
	for _, k := range slices.Concat(f.gateway.secrets, f.gateway.shownSecrets(s)) {
		if r, ok := s.secret(k); ok {
			put(r)
		}
	}
	if k := f.gateway.collector; k != nil {
		for _, r := range s.backend(*k, f.gateway) {
			put(r)
		}
	}
	for _, c := range f.gateway.configs {
		put(f.flushed(c, s))
		for k := range c.backends {
			for _, r := range s.backend(k, f.gateway) {
				put(r)
			}
		}
	}
	return out
}

// replace makes the resources those given.
func (f *fleet) replace(want map[resourceKey]Resource) []Resource {
	var out []Resource
	for k := range f.resources {
		if _, ok := want[k]; !ok {
			out = append(out, f.remove(k)...)
		}
	}
	for _, r := range want {
		out = append(out, f.put(r)...)
	}
	return out
}

// refreshBackend serves the cluster and the endpoints of a backend, or removes them.
func (f *fleet) refreshBackend(k record.Key, s *State) []Resource {
	var out []Resource
	var want []Resource
	if f.gateway.routesTo(k) {
		want = s.backend(k, f.gateway)
	}
	for _, r := range want {
		out = append(out, f.put(r)...)
	}
	for _, t := range []ResourceType{TypeCluster, TypeEndpoints} {
		if !slices.ContainsFunc(want, func(r Resource) bool { return r.Type == t }) {
			out = append(out, f.remove(resourceKey{t, record.ClusterName(k)})...)
		}
	}
	return out
}

// put keeps a resource and gives it where it differs in anything from what was there.
func (f *fleet) put(r Resource) []Resource {
	k := resourceKey{r.Type, r.Name}
	old, ok := f.resources[k]
	if ok && old.Version == r.Version && old.Index == r.Index && slices.Equal(old.Uses, r.Uses) && slices.EqualFunc(old.Parts, r.Parts, maps.Equal) {
		return nil
	}
	f.resources[k] = r
	return []Resource{r}
}

func (f *fleet) remove(k resourceKey) []Resource {
	if _, ok := f.resources[k]; !ok {
		return nil
	}
	delete(f.resources, k)
	return []Resource{{Type: k.Type, Name: k.Name}}
}

// cluster names the Envoy cluster of a backend that is served. One that must be shown a certificate is not served without it.
func (s *State) cluster(k record.Key) (string, bool) {
	b := as[record.Backend](s.entries[k])
	if b == nil || b.Missing {
		return record.ClusterName(k), false
	}
	if shown := b.ClientKey(); shown != nil {
		secret := as[record.Secret](s.entries[*shown])
		return record.ClusterName(k), secret != nil && secret.Problem == nil
	}
	return record.ClusterName(k), true
}

// backend gives a backend's cluster with its endpoints; nothing where the Service is missing: requests then answer 500, as their routes say.
func (s *State) backend(k record.Key, g *gateway) []Resource {
	name, ok := s.cluster(k)
	if !ok {
		return nil
	}
	e := s.entries[k]
	cluster, ok := s.secured(s.resource(TypeCluster, name, e, as[record.Backend](e).Bytes), as[record.Backend](e), g)
	if !ok {
		return nil
	}
	out := []Resource{cluster}
	if e := s.entries[endpointsKey(k)]; as[record.Endpoints](e) != nil && len(as[record.Endpoints](e).Bytes) > 0 {
		out = append(out, s.resource(TypeEndpoints, name, e, as[record.Endpoints](e).Bytes))
	}
	return out
}

// Ahead gives by fleet the endpoints that are made of a record, among other records where a stream is spread over several backends, with what runs ahead of the log (D18):
// ahead gives the payload of a key's endpoints record, ok = false where the committed one counts. Nothing is kept of it.
func (s *State) Ahead(k record.Key, ahead func(record.Key) (payload []byte, ok bool)) (map[string][]Resource, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var failed error
	of := func(k record.Key) (*record.Endpoints, string) {
		e := s.entries[k]
		payload, ok := ahead(k)
		if !ok {
			return committed(e)
		}
		v, err := read[record.Endpoints](payload)
		if err != nil {
			failed = fmt.Errorf("assemble: endpoints %s/%s ahead of the log: %w", k.Namespace, k.Name, err)
			return committed(e)
		}
		return v, record.Hash(payload)
	}
	out := map[string][]Resource{}
	backend := backendKey(k)
	name, served := s.cluster(backend)
	v, hash := of(k)
	var own []Resource // what the fleets whose routes lead to the backend get
	if served && v != nil && len(v.Bytes) > 0 {
		own = []Resource{{Type: TypeEndpoints, Name: name, Version: record.Hash(v.Bytes), Bytes: [][]byte{v.Bytes}, Parts: []map[string]string{{PartID(k): hash}}}}
	}
	for _, f := range s.fleets {
		if own != nil && f.gateway.routesTo(backend) {
			out[f.name] = append(out[f.name], own...)
		}
		if f.gateway.streamBackends[backend] {
			out[f.name] = append(out[f.name], f.gateway.streamsTo(backend, s, of)...)
		}
	}
	return out, failed
}

// endpointsOf reads an endpoints record, nil = there is none, with the hash of what it was read from.
type endpointsOf func(record.Key) (*record.Endpoints, string)

// committed is the endpointsOf of the log.
func committed(e *entry) (*record.Endpoints, string) {
	v := as[record.Endpoints](e)
	if v == nil {
		return nil, ""
	}
	return v, e.live.Hash
}

func (s *State) secret(k record.Key) (Resource, bool) {
	e := s.entries[k]
	v := as[record.Secret](e)
	if v == nil || v.Problem != nil {
		return Resource{}, false
	}
	r := s.resource(TypeSecret, v.Name, e, v.Sealed)
	r.Version = v.Version
	return r, true
}

// resource is a resource made of one record.
func (s *State) resource(t ResourceType, name string, e *entry, bytes []byte) Resource {
	return Resource{Type: t, Name: name, Version: record.Hash(bytes), Bytes: [][]byte{bytes}, Index: e.live.Index, Parts: []map[string]string{{PartID(e.key): e.live.form}}}
}

func endpointsKey(backend record.Key) record.Key {
	backend.Kind = record.KindEndpoints
	return backend
}

func backendKey(endpoints record.Key) record.Key {
	endpoints.Kind = record.KindBackend
	return endpoints
}
