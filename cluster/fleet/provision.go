package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"

	"github.com/fleetgate/fleetgate/cluster/keep"
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

// Decisions. What is not known changes nothing.
const (
	Keep    Decision = iota // as it is: the parameters are wrong
	Run                     // as the Gateway asks
	Remove                  // the Gateway is another controller's now
	Forget                  // the Gateway is gone, and its fleet goes with it
	Unknown                 // which of these nobody can tell yet: it is kept, and asked again
)

// undecided is the part of a fleet that is tried again until it is known what is to become of it: news of it do not wait for that.
const undecided = "what is to become of it"

var errUndecided = errors.New("nobody can tell yet what is to become of it")

// Config is a member cluster and what is to become of the fleets in it.
type Config struct {
	Cluster Cluster
	Install Install
	// Decide gives what a Gateway asks for, and where it is another controller's now its class.
	Decide func(namespace, name string) (Gateway, Decision)
	// All are the Gateways that ask for something, or that the group has a row of.
	All func() [][2]string
	// Tell passes a row to the group, nil = there is no fleet, and Told gives the one that the group has.
	Tell func(ctx context.Context, namespace, gateway string, r *Row) error
	Told func(namespace, gateway string) *Row
	Log  *slog.Logger
}

// Provisioner keeps the fleets of one member cluster as they should be. It runs on the leader alone.
type Provisioner struct {
	Config
	*keep.Queue
}

// NewProvisioner does nothing before Run.
func NewProvisioner(c Config) *Provisioner { return &Provisioner{c, keep.NewQueue()} }

// Run provisions until ctx ends.
func (p *Provisioner) Run(ctx context.Context) error {
	view, err := p.Cluster.Follow(ctx, p.Touch)
	if err != nil {
		return err
	}
	for _, g := range append(p.All(), view.Gateways()...) {
		p.Touch(g[0], g[1])
	}
	p.Work(ctx, func(id keep.ID) { p.keep(ctx, view, id) })
	return nil
}

// keep makes one fleet what it should be, and tells of it.
func (p *Provisioner) keep(ctx context.Context, view View, id [2]string) {
	have := view.Of(id[0], id[1])
	g, decision := p.Decide(id[0], id[1])
	switch decision {
	case Keep, Unknown:
		if decision == Unknown {
			p.Note(keep.Attempt{Of: id, Part: undecided}, errUndecided)
		}
		if told := p.Told(id[0], id[1]); told != nil { // pods come and go all the same
			row := *told
			row.Proxies = proxies(have)
			p.tell(ctx, id, &row)
		}
		return
	case Forget:
		p.settle(id, nil)
		p.note(keep.Attempt{Of: id}, nil)
		p.tell(ctx, id, nil)
		return
	case Remove:
		p.settle(id, nil)
		// What bears the class of now was made by its controller, which may be a Fleetgate as well.
		ours := slices.DeleteFunc(slices.Clone(have), func(o Object) bool { return o.label(LabelClass) == labelValue(g.Class) })
		p.note(keep.Attempt{Of: id}, p.remove(ctx, ours))
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
	p.note(keep.Attempt{Of: id}, err)
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
			p.address(ctx, keep.Attempt{Of: id, Part: o.Name()}, o, !there[o.id()])
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
func (p *Provisioner) address(ctx context.Context, a keep.Attempt, o Object, create bool) {
	if p.Waits(a) {
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
		p.note(keep.Attempt{Of: id}, fmt.Errorf("telling the group of it: %w", err))
	}
}

// note takes up what came of an attempt. Users hear of a failure by the Gateway's status, and its events.
func (p *Provisioner) note(a keep.Attempt, err error) {
	if p.Note(a, err) && err != nil {
		p.Log.Warn("a fleet is not as it should be, it is tried again", "gateway", a.Of, "err", err)
	}
}

// settle forgets the attempts at addresses that are had, or not wanted any more, and gives those that the cluster refused, with its reason.
func (p *Provisioner) settle(id [2]string, lacking []Object) []string {
	lacks := map[string]string{}
	for _, o := range lacking {
		lacks[o.Name()] = o.annotation(AnnotationAddress)
	}
	var refused []string
	for service, problem := range p.Failed(id) {
		if address := lacks[service]; address != "" {
			refused = append(refused, address+": "+problem)
		} else {
			p.note(keep.Attempt{Of: id, Part: service}, nil)
		}
	}
	slices.Sort(refused)
	return refused
}
