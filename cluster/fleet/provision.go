package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Cluster is a member cluster as the provisioner needs it.
type Cluster interface {
	// Follow keeps a view of everything that is provisioned, and of the pods, until ctx ends. It returns when the view is complete; changed is told whose
	// things changed since.
	Follow(ctx context.Context, changed func(namespace, gateway string)) (View, error)
	// Apply applies an object. create says that it is not in the view: one that is there all the same and is not ours must stay as it is.
	Apply(ctx context.Context, o Object, create bool) error
	Delete(ctx context.Context, o Object) error
}

// View is what is there.
type View interface {
	// Of gives what belongs to a Gateway.
	Of(namespace, gateway string) []Object
	// Gateways are those that something belongs to.
	Gateways() [][2]string
}

// Decision says what is to become of a fleet.
type Decision int

// Decisions. Keep is for all that is not known: a Gateway that was not read yet, parameters that are wrong.
const (
	Keep   Decision = iota
	Run             // as the Gateway asks
	Remove          // the Gateway is another controller's now
	Forget          // the Gateway is gone, and its fleet goes with it
)

// Config is a member cluster and what is to become of the fleets in it.
type Config struct {
	Cluster Cluster
	Install Install
	// Decide gives what a Gateway asks for.
	Decide func(namespace, name string) (Gateway, Decision)
	// All are the Gateways that ask for something.
	All func() [][2]string
	// Tell passes a row to the group, nil = there is no fleet, and Told gives the one that the group has.
	Tell func(ctx context.Context, namespace, gateway string, r *Row) error
	Told func(namespace, gateway string) *Row
	Log  *slog.Logger
}

// Provisioner keeps the fleets of one member cluster as they should be. It runs on the leader alone.
type Provisioner struct {
	Config

	mu    sync.Mutex
	dirty map[[2]string]bool
	wake  chan struct{}
	tries map[attempt]*try
}

// attempt is at a fleet, or at an address that is asked for, by the Service that is there for it. The one does not wait for the other.
type attempt struct {
	fleet   [2]string
	service string // "" = at all else
}

// try is what came of the last attempt at something that is not as it should be.
type try struct {
	problem string
	pause   time.Duration
	next    time.Time
}

// NewProvisioner does nothing before Run.
func NewProvisioner(c Config) *Provisioner {
	return &Provisioner{Config: c, dirty: map[[2]string]bool{}, wake: make(chan struct{}, 1), tries: map[attempt]*try{}}
}

// Touch has a Gateway's fleet looked at; it does not block.
func (p *Provisioner) Touch(namespace, name string) {
	p.mu.Lock()
	p.dirty[[2]string{namespace, name}] = true
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run provisions until ctx ends.
func (p *Provisioner) Run(ctx context.Context) error {
	view, err := p.Cluster.Follow(ctx, p.Touch)
	if err != nil {
		return err
	}
	for _, g := range append(p.All(), view.Gateways()...) {
		p.Touch(g[0], g[1])
	}
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-retry.C:
		}
		var under errgroup.Group
		under.SetLimit(8)
		for _, g := range p.due() {
			under.Go(func() error { p.keep(ctx, view, g); return nil })
		}
		_ = under.Wait() // its functions give no errors
	}
}

// due takes the Gateways that were touched, and those whose next try has come.
func (p *Provisioner) due() [][2]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for a, t := range p.tries {
		if !now.Before(t.next) {
			p.dirty[a.fleet] = true
		}
	}
	var out [][2]string
	for g := range p.dirty {
		if t := p.tries[attempt{fleet: g}]; t != nil && now.Before(t.next) {
			continue // stays dirty
		}
		out = append(out, g)
		delete(p.dirty, g)
	}
	return out
}

// keep makes one fleet what it should be, and tells of it.
func (p *Provisioner) keep(ctx context.Context, view View, id [2]string) {
	have := view.Of(id[0], id[1])
	g, decision := p.Decide(id[0], id[1])
	switch decision {
	case Keep:
		return
	case Forget:
		p.settle(id, nil)
		p.note(attempt{fleet: id}, nil)
		p.tell(ctx, id, nil)
		return
	case Remove:
		p.settle(id, nil)
		p.note(attempt{fleet: id}, p.remove(ctx, have))
		p.tell(ctx, id, nil)
		return
	}
	var lacking []Object
	want, err := Render(g, p.Install)
	if err == nil {
		lacking, err = p.apply(ctx, id, want, have)
	}
	if ctx.Err() != nil {
		return
	}
	p.note(attempt{fleet: id}, err)
	row := rowOf(g, want, have)
	row.Refused = p.settle(id, lacking)
	if err != nil {
		row.Problem = err.Error()
	}
	p.tell(ctx, id, &row)
}

// apply makes what is there what is wanted, and gives what was not so. That an address cannot be had is no error of the fleet: it is noted, told and tried again on its own.
func (p *Provisioner) apply(ctx context.Context, id [2]string, want, have []Object) (lacking []Object, err error) {
	there := map[string]bool{}
	for _, o := range have {
		there[o.id()] = true
	}
	lacking, remove := plan(want, have)
	var errs []error
	for _, o := range lacking {
		if o.annotation(AnnotationAddress) != "" {
			p.address(ctx, attempt{id, o.Name()}, o, !there[o.id()])
			continue
		}
		p.Log.Info("applying", "object", o.String())
		if err := p.Cluster.Apply(ctx, o, !there[o.id()]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", o, err))
		}
	}
	if len(errs) == 0 {
		errs = append(errs, p.remove(ctx, remove))
	}
	return lacking, errors.Join(errs...)
}

// address applies the Service of an address that is asked for, unless it was refused just now.
func (p *Provisioner) address(ctx context.Context, a attempt, o Object, create bool) {
	p.mu.Lock()
	t := p.tries[a]
	p.mu.Unlock()
	if t != nil && time.Now().Before(t.next) {
		return
	}
	p.Log.Info("applying", "object", o.String())
	if err := p.Cluster.Apply(ctx, o, create); ctx.Err() == nil {
		p.note(a, err)
	}
}

func (p *Provisioner) remove(ctx context.Context, objects []Object) error {
	var errs []error
	for _, o := range objects {
		if o.Kind() == kindPod || o.deleting() {
			continue
		}
		p.Log.Info("removing", "object", o.String())
		if err := p.Cluster.Delete(ctx, o); err != nil {
			errs = append(errs, fmt.Errorf("removing %s: %w", o, err))
		}
	}
	return errors.Join(errs...)
}

// tell passes a row on where the group has another one.
func (p *Provisioner) tell(ctx context.Context, id [2]string, r *Row) {
	if reflect.DeepEqual(p.Told(id[0], id[1]), r) {
		return
	}
	if err := p.Tell(ctx, id[0], id[1], r); err != nil && ctx.Err() == nil {
		p.note(attempt{fleet: id}, fmt.Errorf("telling the group of it: %w", err))
	}
}

// note takes up what came of an attempt. A failure is tried again later and later; users hear of it by the Gateway's status, and its events.
func (p *Provisioner) note(a attempt, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.tries, a)
		return
	}
	t := p.tries[a]
	if t == nil {
		t = &try{pause: time.Second / 2}
		p.tries[a] = t
	}
	another := t.problem != err.Error()
	t.problem, t.pause = err.Error(), min(2*t.pause, time.Minute)
	t.next = time.Now().Add(t.pause)
	if another {
		p.Log.Warn("a fleet is not as it should be, it is tried again", "gateway", a.fleet, "err", err)
	}
}

// settle forgets the attempts at addresses that are had, or not wanted any more, and gives those that the cluster refused, with its reason.
func (p *Provisioner) settle(id [2]string, lacking []Object) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	lacks := map[string]string{}
	for _, o := range lacking {
		lacks[o.Name()] = o.annotation(AnnotationAddress)
	}
	var refused []string
	for a, t := range p.tries {
		switch address := lacks[a.service]; {
		case a.fleet != id || a.service == "":
		case address == "":
			delete(p.tries, a)
		default:
			refused = append(refused, address+": "+t.problem)
		}
	}
	slices.Sort(refused)
	return refused
}
