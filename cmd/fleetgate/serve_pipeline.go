package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/shard"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

// pipeline follows the store: committed records -> assembly -> xDS. It needs no leader, no quorum and no Kubernetes API (D4).
type pipeline struct {
	db      *store.Store
	server  *xds.Server
	open    func(sealed, additional []byte) ([]byte, error)
	check   func(*store.Record) error // refuses to start on what cannot be served (D14)
	touch   func(keys []record.Key)   // records whose objects' status may differ
	selects func(keys []record.Key)   // policy records of XBackends whose pods may have to be found
	log     *slog.Logger

	mu     sync.RWMutex
	state  *assemble.State
	config assemble.Config
	fleets map[string]uint64 // fleet -> index of the last step that changed something for it
	pins   map[store.Key]store.Pin
	ahead  map[store.Key]shard.Ahead // endpoints that the store does not have yet
	logged map[store.Key]logged      // what the log has had of endpoints since this replica began
	from   uint64                    // index of the last rebuild
	served uint64                    // index up to which every step has been handed to xds
	moved  chan struct{}             // closed when served is another
	cancel func()
	events <-chan store.Event
}

// start assembles what the disk holds, so that proxies can be answered before anybody else was heard. records are all that the store read when it was
// opened; nothing has been applied since.
func (p *pipeline) start(records []*store.Record) error {
	p.logged, p.moved = map[store.Key]logged{}, make(chan struct{})
	p.events, p.cancel = p.db.Subscribe()
	return p.assemble(func(each func(*store.Record) error) (uint64, error) {
		for _, r := range records {
			if err := each(r); err != nil {
				return 0, err
			}
		}
		return p.db.Applied(), nil
	})
}

// rebuild assembles everything from the store.
func (p *pipeline) rebuild() error { return p.assemble(p.db.Snapshot) }

// assemble replaces what is assembled by what a scan finds; the scan gives the index of what it saw.
func (p *pipeline) assemble(scan func(each func(*store.Record) error) (uint64, error)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, old := p.state, p.fleets
	p.state, p.fleets = assemble.New(p.config), map[string]uint64{}
	p.ahead = map[store.Key]shard.Ahead{} // a snapshot may have newer: what it has not is sent again
	p.loadPins()
	var changes []assemble.Change
	index, err := scan(func(r *store.Record) error {
		changes = append(changes, p.change(r.Key, r))
		return p.check(r)
	})
	if err != nil {
		return fmt.Errorf("reading the route store: %w", err)
	}
	p.from = index
	delta := p.state.Apply(changes)
	if before != nil {
		remove(delta.Fleets, before)
	}
	p.publish(index, delta)
	for fleet := range old {
		if _, still := p.fleets[fleet]; !still {
			p.server.Apply([]xds.Update{{Fleet: fleet, Index: index, Gone: true}})
		}
	}
	p.reach(index)
	return nil
}

// reach notes that everything up to an index is served; the caller holds mu.
func (p *pipeline) reach(index uint64) {
	p.served = index
	close(p.moved)
	p.moved = make(chan struct{})
}

// await waits until everything up to an index is served: the store has it before.
func (p *pipeline) await(ctx context.Context, index uint64) error {
	for {
		p.mu.RLock()
		served, moved := p.served, p.moved
		p.mu.RUnlock()
		if served >= index {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("waiting for index %d to be served (now: %d): %w", index, served, ctx.Err())
		}
	}
}

// remove adds the removal of what fleets had before: a state that is made anew tells only of what there is.
func remove(fleets []assemble.FleetDelta, before *assemble.State) {
	for i := range fleets {
		f := &fleets[i]
		is := map[assemble.ResourceType]map[string]bool{}
		for _, r := range f.Resources {
			if is[r.Type] == nil {
				is[r.Type] = map[string]bool{}
			}
			is[r.Type][r.Name] = true
		}
		for _, r := range before.Resources(f.Fleet) {
			if !is[r.Type][r.Name] {
				f.Resources = append(f.Resources, assemble.Resource{Type: r.Type, Name: r.Name})
			}
		}
	}
}

func (p *pipeline) loadPins() {
	p.pins = map[store.Key]store.Pin{}
	for _, pin := range p.db.Pins() {
		p.pins[pin.Key] = pin
	}
}

// run applies every committed step until ctx ends.
func (p *pipeline) run(ctx context.Context) error {
	defer p.cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-p.events:
			if !ok {
				return nil
			}
			if err := p.step(e); err != nil {
				return err
			}
		}
	}
}

func (p *pipeline) step(e store.Event) error {
	if e.Reset {
		return p.rebuild()
	}
	if e.Index <= p.from {
		return nil // was in the scan: it must not put older bytes back
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settle(e.Put)
	if len(e.PinsMoved) > 0 {
		p.loadPins()
	}
	changes := make([]assemble.Change, 0, len(e.Changes))
	for _, c := range e.Changes {
		changes = append(changes, p.change(c.Key, c.Record))
	}
	if len(changes) > 0 {
		p.publish(e.Index, p.state.Apply(changes))
	}
	if e.TableMoved {
		p.fence()
	}
	p.reach(e.Index)
	return nil
}

// change turns a stored record into what assembly reads; the caller holds mu.
func (p *pipeline) change(k store.Key, r *store.Record) assemble.Change {
	p.overtaken(k, r)
	out := assemble.Change{Key: shard.RecordKey(k)}
	if r == nil {
		return out
	}
	out.Cur = toContent(&r.Cur, r.Modified)
	if r.Prev != nil {
		out.Prev = toContent(r.Prev, r.PrevAt)
	}
	if pin, ok := p.pins[k]; ok {
		out.PinnedHash, out.PinReason = pin.Hash, pin.Reason
	}
	return out
}

func toContent(c *store.Content, index uint64) *assemble.Content {
	out := &assemble.Content{Hash: c.Hash, Payload: c.Payload, Index: index, Refs: make([]record.Key, len(c.Refs))}
	for i, k := range c.Refs {
		out.Refs[i] = shard.RecordKey(k)
	}
	return out
}

// publish hands a step to xds; the caller holds mu.
func (p *pipeline) publish(index uint64, d assemble.Delta) {
	updates := make([]xds.Update, 0, len(d.Fleets))
	for _, f := range d.Fleets {
		p.fleets[f.Fleet] = index
		u := xds.Update{Fleet: f.Fleet, Index: index, Gone: f.Gone}
		if f.Gone {
			delete(p.fleets, f.Fleet)
		}
		for _, r := range f.Resources {
			if res, ok := p.resource(p.newest(f.Fleet, r)); ok {
				u.Resources = append(u.Resources, res)
			}
		}
		updates = append(updates, u)
	}
	if len(updates) > 0 {
		p.server.Apply(updates)
	}
	if p.touch != nil {
		p.touch(d.Status)
	}
	if p.selects != nil {
		p.selects(d.Selections)
	}
}

// trial gives a resource as it would be with some records pinned.
func (p *pipeline) trial(fleet string, t xds.Type, name string, refuse map[string]string) (xds.Resource, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	r, ok := p.state.Trial(fleet, assemble.ResourceType(t), name, refuse)
	if !ok {
		return xds.Resource{}, false
	}
	return p.resource(r)
}

// resource opens sealed secrets; everything else passes as it is.
func (p *pipeline) resource(r assemble.Resource) (xds.Resource, bool) {
	out := toResource(r)
	if r.Type != assemble.TypeSecret || len(r.Bytes) == 0 || r.Plain {
		return out, true
	}
	plain, err := p.open(slices.Concat(r.Bytes...), secretContext(r.Name))
	if err != nil {
		p.log.Error("a sealed secret cannot be opened: its listener is not served. Give this replica the seal key of its group", "secret", r.Name, "err", err)
		return out, false
	}
	out.Bytes = [][]byte{plain}
	return out, true
}

func toResource(r assemble.Resource) xds.Resource {
	return xds.Resource{Type: xds.Type(r.Type), Name: r.Name, Version: r.Version, Bytes: r.Bytes, Index: r.Index, Uses: r.Uses, Parts: r.Parts}
}

// secretContext is translate.SecretContext of the record that an SDS name (cluster/namespace/name) stands for.
func secretContext(name string) []byte {
	cluster, namespace, secret := splitName(name)
	return translate.SecretContext(record.Key{Cluster: cluster, Namespace: namespace, Kind: record.KindSecret, Name: secret})
}

// Class reads what committed state says of a GatewayClass.
func (p *pipeline) Class(k record.Key) (assemble.ClassStatus, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.ClassStatus(k)
}

// Gateway reads what committed state says of a Gateway.
func (p *pipeline) Gateway(k record.Key) (assemble.GatewayStatus, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.GatewayStatus(k)
}

// Infrastructure reads what a Gateway asks of its fleet.
func (p *pipeline) Infrastructure(k record.Key) (assemble.Infrastructure, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.Infrastructure(k)
}

// Selection reads which pods an XBackend selects.
func (p *pipeline) Selection(k record.Key) (*assemble.Selection, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.Selection(k)
}

// selections lists all XBackends.
func (p *pipeline) selections() []record.Key {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.Selections()
}

// ListenerSet reads what committed state says of a ListenerSet.
func (p *pipeline) ListenerSet(k record.Key) (assemble.ListenerSetStatus, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.ListenerSetStatus(k)
}

// Route reads what committed state says of a route.
func (p *pipeline) Route(k record.Key) (assemble.RouteStatus, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.RouteStatus(k)
}

// due is the index that a fleet must have ACKed for everything up to index to be live: beyond its last change there is nothing to ACK.
func (p *pipeline) due(fleet string, index uint64) uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return min(index, p.fleets[fleet])
}

// Policy reads what committed state says of a policy on backends.
func (p *pipeline) Policy(k record.Key) (assemble.PolicyStatus, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.PolicyStatus(k)
}

// attached lists what else has a status because of a Gateway: ListenerSets and policies.
func (p *pipeline) attached() []record.Key {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return append(p.state.ListenerSets(), p.state.Policies()...)
}

// about lists what has a status because of one Gateway: it, its routes, and all ListenerSets and policies.
func (p *pipeline) about(gateway record.Key) []record.Key {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return slices.Concat([]record.Key{gateway}, p.state.RoutesOf(gateway), p.state.ListenerSets(), p.state.Policies())
}

// keys lists the Gateways and routes that have a status.
func (p *pipeline) keys() (gateways, routes []record.Key) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state.Gateways(), p.state.Routes()
}
