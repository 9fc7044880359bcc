// Package translate turns Gateway API objects into records: pure, incremental, and the same on every replica.
//
// Every record is a unit of compiling: a function of facts (the deciding parts of objects) that it reads through a view, and the view
// remembers what was read, found or not. When a fact changes, exactly the units that read it are compiled again. So nobody keeps a list of
// which kind affects which, and the one accident of an incremental compiler, a dependency that somebody forgot, cannot happen:
// what was not read through the view was not known. TestIncrementalEqualsFull holds this against compiling everything anew.
//
// Routes are compiled once, for all their parents (D1). Backends, endpoints and secrets are compiled where someone wants them: routes and Gateways
// of this row, or committed references from elsewhere (Referenced).
package translate

import (
	"maps"
	"reflect"
	"slices"

	"github.com/fleetgate/fleetgate/translate/record"
)

// MaxPayload is the largest payload of a record in bytes, as the store has it, its references counted in; what is larger is refused with a problem.
const MaxPayload = 512 << 10

// Compiler compiles the objects of one row. It is not safe for concurrent use.
type Compiler struct {
	cfg   Config
	facts map[input]any
	// Facts that are read as a set: grants by namespace, slices by (namespace, service), each by name.
	sets map[input]map[string]any
	// sliceService remembers under which service a slice is filed.
	sliceService map[input]string

	results    map[record.Key]*result
	readers    map[input]map[record.Key]struct{} // who read a fact
	wanted     map[record.Key]int                // how many want a backend, endpoints or secret record
	referenced map[record.Key]struct{}           // what committed references from elsewhere want

	asks      map[Ref]struct{} // objects that are read by name, and that some unit reads
	asksMoved bool

	unknown    map[input]bool // what may be there; input{} = everything
	revisiting bool           // what is unknown has changed, which alone changes nothing
	answers    map[input]reply

	before func(record.Key) // called before a unit is compiled; for tests that need a panic
}

// input names a fact or a set of facts.
type input struct{ kind, namespace, name string }

// Kinds of inputs beside the objects' own kinds.
const (
	inputPorts       = "/ports"                       // behind the kind: the (scheme, port) pairs of a Gateway or a ListenerSet
	inputClass       = "Gateway/class"                // the class of a Gateway
	inputOurs        = "GatewayClass/ours"            // the controller of a GatewayClass
	inputGrants      = "ReferenceGrant/all"           // all grants of a namespace
	inputTLS         = "BackendTLSPolicy/all"         // all BackendTLSPolicies of a namespace
	inputTraffic     = "XBackendTrafficPolicy/all"    // all XBackendTrafficPolicies of a namespace
	inputTelemetry   = "XTelemetryPolicy/all"         // all XTelemetryPolicies of a namespace
	inputSlices      = "EndpointSlice/all"            // all slices of a Service
	inputDefinitions = "CustomResourceDefinition/all" // all CRDs of ours that a cluster has
	inputDefaults    = "Gateway/defaults"             // all Gateways of a cluster that take routes which do not name them
)

// policySets are the sets, each of a namespace, in which policies are found by what they are attached to.
var policySets = map[string]string{"BackendTLSPolicy": inputTLS, kindTraffic: inputTraffic, kindTelemetry: inputTelemetry}

// result is what a unit gave.
type result struct {
	put     Put // Payload nil = no record
	good    Put // the last put without a panic
	reads   map[input]struct{}
	wants   []record.Key
	suspect bool // quarantined
	kept    bool // the committed record, because something that the unit reads is unknown
}

// New gives an empty compiler.
func New(cfg Config) *Compiler {
	return &Compiler{
		cfg:          cfg,
		facts:        map[input]any{},
		sets:         map[input]map[string]any{},
		sliceService: map[input]string{},
		unknown:      map[input]bool{},
		answers:      map[input]reply{},
		results:      map[record.Key]*result{},
		readers:      map[input]map[record.Key]struct{}{},
		wanted:       map[record.Key]int{},
		referenced:   map[record.Key]struct{}{},
		asks:         map[Ref]struct{}{},
	}
}

// Apply takes changes of objects, all at once, and gives what they change.
func (c *Compiler) Apply(events []Event) Output {
	dirty := map[record.Key]struct{}{}
	c.revisiting = c.doubt(events)
	if c.revisiting {
		for k := range c.results {
			dirty[k] = struct{}{}
		}
	}
	for _, e := range events {
		for _, k := range c.answered(e) {
			dirty[k] = struct{}{}
		}
		if e.Unknown {
			continue
		}
		if e.Kind == "GatewayClass" || e.Kind == "Namespace" || e.Kind == "CustomResourceDefinition" {
			e.Namespace = ""
		}
		for _, in := range c.learn(e) {
			for k := range c.readers[in] {
				dirty[k] = struct{}{}
			}
		}
		if k, ok := c.unitOf(e); ok && c.results[k] == nil {
			dirty[k] = struct{}{}
		}
	}
	out := c.compileAll(dirty)
	out.Doubted, c.revisiting = c.revisiting, false
	return out
}

// Referenced sets all backend, endpoints and secret records that committed references from elsewhere name; keys outside this row are ignored.
func (c *Compiler) Referenced(keys []record.Key) Output {
	next := map[record.Key]struct{}{}
	for _, k := range keys {
		for _, k := range withEndpoints(k) {
			if c.compiles(k) {
				next[k] = struct{}{}
			}
		}
	}
	dirty := map[record.Key]struct{}{}
	c.want(slices.Collect(maps.Keys(next)), +1, dirty)
	c.want(slices.Collect(maps.Keys(c.referenced)), -1, dirty)
	c.referenced = next
	return c.compileAll(dirty)
}

// Records gives all records that must exist, for the sweep and for tests. See Quarantined for what the sweep must leave alone.
func (c *Compiler) Records() map[record.Key]Put {
	out := make(map[record.Key]Put, len(c.results))
	for k, r := range c.results {
		if r.put.Payload != nil {
			out[k] = r.put
		}
	}
	return out
}

// Record gives one record that must exist.
func (c *Compiler) Record(k record.Key) (Put, bool) {
	r := c.results[k]
	if r == nil || r.put.Payload == nil {
		return Put{}, false
	}
	return r.put, true
}

// Quarantined gives the keys of records that keep their last good content because their object makes the compiler panic, sorted. Those that
// Records lacks have no last good content here: the sweep must not delete them.
func (c *Compiler) Quarantined() []record.Key {
	var out []record.Key
	for k, r := range c.results {
		if r.suspect {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, record.Key.Compare)
	return out
}

// learn files an event's fact and gives the inputs that changed by it.
func (c *Compiler) learn(e Event) []input {
	var fact any
	if e.Object != nil {
		fact = factOf(e.Kind, e.Object)
	}
	switch e.Kind {
	case "CustomResourceDefinition":
		return c.file(input{inputDefinitions, "", ""}, e.Name, fact)
	case "ReferenceGrant":
		return c.file(input{inputGrants, e.Namespace, ""}, e.Name, fact)
	case "EndpointSlice":
		return c.learnSlice(e, fact)
	}
	in := input{e.Kind, e.Namespace, e.Name}
	old := c.facts[in]
	if reflect.DeepEqual(old, fact) {
		return nil
	}
	if fact == nil {
		delete(c.facts, in)
	} else {
		c.facts[in] = fact
	}
	changed := append([]input{in}, aspects(in, old, fact)...)
	if set, ok := policySets[e.Kind]; ok {
		c.file(input{set, e.Namespace, ""}, e.Name, fact)
	}
	if e.Kind == "Gateway" {
		return append(changed, c.file(input{inputDefaults, "", ""}, record.Join(e.Namespace, e.Name), defaultOf(e, fact))...)
	}
	return changed
}

// aspects are the smaller inputs that an object's change may touch: a new label selector of a Gateway changes no redirect.
func aspects(in input, old, fact any) []input {
	if set, ok := policySets[in.kind]; ok {
		return []input{{set, in.namespace, ""}}
	}
	switch in.kind {
	case "Gateway", "ListenerSet":
		var out []input
		if !slices.Equal(portsOf(old), portsOf(fact)) {
			out = append(out, input{in.kind + inputPorts, in.namespace, in.name})
		}
		if classOf(old) != classOf(fact) {
			out = append(out, input{inputClass, in.namespace, in.name})
		}
		return out
	case "GatewayClass":
		if controllerOf(old) != controllerOf(fact) {
			return []input{{inputOurs, in.namespace, in.name}}
		}
	}
	return nil
}

func (c *Compiler) learnSlice(e Event, fact any) []input {
	id := input{e.Kind, e.Namespace, e.Name}
	old, was := c.sliceService[id]
	s, _ := fact.(*sliceFact)
	var changed []input
	if was && (s == nil || s.service != old) {
		changed = c.file(input{inputSlices, e.Namespace, old}, e.Name, nil)
		delete(c.sliceService, id)
	}
	if s == nil || s.service == "" {
		return changed
	}
	c.sliceService[id] = s.service
	return append(changed, c.file(input{inputSlices, e.Namespace, s.service}, e.Name, s)...)
}

// file puts a fact into a set, nil removes it.
func (c *Compiler) file(set input, name string, fact any) []input {
	old, had := c.sets[set][name]
	if fact == nil {
		delete(c.sets[set], name)
		if len(c.sets[set]) == 0 {
			delete(c.sets, set)
		}
		if !had {
			return nil
		}
		return []input{set}
	}
	if had && reflect.DeepEqual(old, fact) {
		return nil
	}
	if c.sets[set] == nil {
		c.sets[set] = map[string]any{}
	}
	c.sets[set][name] = fact
	return []input{set}
}

// unitOf gives the record that an object itself becomes, if this row compiles it.
func (c *Compiler) unitOf(e Event) (record.Key, bool) {
	k, ok := RecordOf(c.cfg.Cluster, e)
	return k, ok && c.cfg.Owns(k.Namespace)
}

// RecordOf gives the record that an object of a cluster itself becomes; false for objects that only others are made from.
func RecordOf(cluster string, e Event) (record.Key, bool) {
	k := record.Key{Cluster: cluster, Namespace: e.Namespace, Name: e.Name}
	switch e.Kind {
	case "GatewayClass":
		k.Kind, k.Namespace = record.KindClass, ""
	case "Gateway":
		k.Kind = record.KindGateway
	case "ListenerSet":
		k.Kind = record.KindListenerSet
	case "Namespace":
		k.Kind, k.Namespace = record.KindNamespace, e.Name
	case "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute":
		k.Kind, k.Name = record.KindRoute, record.Join(e.Kind, e.Name)
	case "BackendTLSPolicy", kindTraffic, kindTelemetry, kindXBackend:
		k.Kind, k.Name = record.KindPolicy, record.Join(e.Kind, e.Name)
	default:
		return k, false
	}
	return k, true
}

// compileAll compiles dirty units and whatever comes to be wanted by them.
func (c *Compiler) compileAll(dirty map[record.Key]struct{}) Output {
	changed := map[record.Key]Put{} // first content before this call, by key
	var out Output
	for len(dirty) > 0 {
		batch := slices.SortedFunc(maps.Keys(dirty), record.Key.Compare)
		dirty = map[record.Key]struct{}{}
		for _, k := range batch {
			var old Put
			if r := c.results[k]; r != nil {
				old = r.put
			}
			if _, seen := changed[k]; !seen {
				changed[k] = old
			}
			c.compileOne(k, dirty, &out)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(changed), record.Key.Compare) {
		c.emit(k, changed[k], &out)
	}
	return out
}

func (c *Compiler) emit(k record.Key, old Put, out *Output) {
	var now Put
	if r := c.results[k]; r != nil {
		now = r.put
	}
	switch {
	case now.Payload == nil && old.Payload != nil:
		out.Deletes = append(out.Deletes, k)
	case now.Payload != nil && (!record.Equal(now.Payload, old.Payload) || !slices.Equal(now.Refs, old.Refs)):
		out.Puts = append(out.Puts, now)
	}
}

// compileOne compiles one unit, exchanges what it read and wants, and forgets a unit that nothing keeps.
func (c *Compiler) compileOne(k record.Key, dirty map[record.Key]struct{}, out *Output) {
	old := c.results[k]
	if old == nil {
		old = &result{}
	}
	next := &result{}
	if c.alive(k) {
		next = c.run(k, old, out)
	}
	for in := range old.reads {
		if _, still := next.reads[in]; !still {
			c.unread(in, k)
		}
	}
	for in := range next.reads {
		if c.readers[in] == nil {
			c.readers[in] = map[record.Key]struct{}{}
			c.ask(in, true)
		}
		c.readers[in][k] = struct{}{}
	}
	c.want(next.wants, +1, dirty)
	c.want(old.wants, -1, dirty)
	if len(next.reads) == 0 {
		delete(c.results, k)
		return
	}
	c.results[k] = next
}

func (c *Compiler) unread(in input, k record.Key) {
	delete(c.readers[in], k)
	if len(c.readers[in]) == 0 {
		delete(c.readers, in)
		c.ask(in, false)
	}
}

// alive tells whether a unit has a reason to exist: its object is there, or somebody wants it.
func (c *Compiler) alive(k record.Key) bool {
	if demanded(k.Kind) {
		return c.wanted[k] > 0
	}
	_, there := c.facts[objectOf(k)]
	return there
}

// want counts who wants records; those that come to be wanted, or stop being so, are dirty.
func (c *Compiler) want(keys []record.Key, by int, dirty map[record.Key]struct{}) {
	for _, k := range keys {
		before := c.wanted[k]
		c.wanted[k] = before + by
		if c.wanted[k] == 0 {
			delete(c.wanted, k)
		}
		if before == 0 || before+by == 0 {
			dirty[k] = struct{}{}
		}
	}
}

// compiles tells whether this row compiles a record on demand.
func (c *Compiler) compiles(k record.Key) bool {
	return demanded(k.Kind) && k.Cluster == c.cfg.Cluster && c.cfg.Owns(k.Namespace)
}

func demanded(k record.Kind) bool {
	return k == record.KindBackend || k == record.KindEndpoints || k == record.KindSecret || k == record.KindTrust
}

// objectOf names the object that a record is made of.
func objectOf(k record.Key) input {
	switch k.Kind {
	case record.KindClass:
		return input{"GatewayClass", "", k.Name}
	case record.KindGateway:
		return input{"Gateway", k.Namespace, k.Name}
	case record.KindListenerSet:
		return input{"ListenerSet", k.Namespace, k.Name}
	case record.KindNamespace:
		return input{"Namespace", "", k.Name}
	case record.KindRoute:
		kind, name := splitRoute(k.Name)
		return input{kind, k.Namespace, name}
	case record.KindSecret:
		return input{"Secret", k.Namespace, k.Name}
	case record.KindPolicy, record.KindTrust:
		kind, name := splitRoute(k.Name)
		return input{kind, k.Namespace, name}
	}
	return backendObject(k)
}
