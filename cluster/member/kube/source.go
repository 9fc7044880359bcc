package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/fleetgate/fleetgate/cluster/member"
)

// Config says which cluster, and how it is reached.
type Config struct {
	Name    string       // of the member cluster
	Connect *rest.Config // from FromFile or InCluster
	Replica string       // our name, for the cluster's audit log
	Logger  *slog.Logger // nil = slog.Default()
	// Hold is asked before an object is kept from vanishing; false says that nothing may be held any more. nil = always.
	Hold func(context.Context) (bool, error)
}

// Status writes are limited here and not by the client: reads and watches must never wait for them.
const (
	writesPerSecond = 100
	writesAtOnce    = 200
)

// Times of the loop.
const (
	rediscover = 30 * time.Second // what CRDs say nothing about is found by asking
	reconfirm  = time.Second      // deletions that could not be confirmed, and a cluster that is another one, are looked at again
)

// Source is one API server as a stream of events. It implements member.Source and member.Asked.
type Source struct {
	name    string
	connect *rest.Config
	log     *slog.Logger
	api     *api
	hold    func(context.Context) (bool, error)
	writes  flowcontrol.RateLimiter
	inbox   *inbox
	nudge   chan struct{} // ask again what is served

	mu       sync.Mutex // guards what follows; the loop is the only writer but of wanted, and of kept by status writes
	kept     map[*kind]*kept
	versions map[*kind]string // that are followed
	missing  map[*kind]bool   // not served, says discovery
	synced   bool
	wanted   map[member.Ref]bool
	problems map[string]string    // what failed -> how
	recorder events.EventRecorder // nil = it does not run
}

var (
	_ member.Source     = (*Source)(nil)
	_ member.Asked      = (*Source)(nil)
	_ member.Finalizing = (*Source)(nil)
	_ member.Telling    = (*Source)(nil)
)

// New makes a source; it does not connect before Run.
func New(c Config) (*Source, error) {
	if c.Name == "" || c.Connect == nil {
		return nil, errors.New("a cluster needs a name and a connection: set Config.Name and Config.Connect")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	connect := prepare(c.Connect, UserAgent(c.Replica))
	a, err := newAPI(connect)
	if err != nil {
		return nil, fmt.Errorf("member cluster %s: %w; correct its kubeconfig", c.Name, err)
	}
	s := &Source{
		name: c.Name, connect: connect, hold: c.Hold, log: c.Logger.With("cluster", c.Name), api: a, inbox: newInbox(), nudge: make(chan struct{}, 1),
		writes: flowcontrol.NewTokenBucketRateLimiter(writesPerSecond, writesAtOnce),
		kept:   map[*kind]*kept{}, versions: map[*kind]string{}, missing: map[*kind]bool{}, wanted: map[member.Ref]bool{}, problems: map[string]string{},
	}
	for _, k := range kinds {
		s.kept[k] = newKept()
	}
	return s, nil
}

// Name implements member.Source.
func (s *Source) Name() string { return s.name }

// Want implements member.Asked.
func (s *Source) Want(refs []member.Ref) {
	wanted := make(map[member.Ref]bool, len(refs))
	for _, r := range refs {
		wanted[r] = true
	}
	s.mu.Lock()
	s.wanted = wanted
	s.mu.Unlock()
	s.inbox.signal()
}

// Problems implements member.Source: what keeps this from seeing the cluster, and what is kept although the cluster no longer shows it.
func (s *Source) Problems() []member.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	whom := map[string][]string{}
	for what, how := range s.problems {
		whom[how] = append(whom[how], what)
	}
	var out []member.Problem
	for _, how := range slices.Sorted(maps.Keys(whom)) {
		out = append(out, member.Problem{File: "cluster " + s.name, Object: strings.Join(slices.Sorted(slices.Values(whom[how])), ", "), Message: how})
	}
	return append(out, s.kindProblems()...)
}

// kindProblems tell what is not believed; the caller holds mu.
func (s *Source) kindProblems() []member.Problem {
	var out []member.Problem
	if gateways := kindOf("Gateway"); s.missing[gateways] && len(s.kept[gateways].objects) == 0 {
		out = append(out, member.Problem{File: "cluster " + s.name, Object: gateways.name, Message: "the cluster does not serve the Gateway API. Install its CRDs; they are noticed without a restart"})
	}
	for _, k := range kinds {
		say := func(message string) {
			out = append(out, member.Problem{File: "cluster " + s.name, Object: k.name, Message: message})
		}
		if n := len(s.kept[k].doubted(tooMany)); n > 0 {
			say(fmt.Sprintf("%d of %d objects were missing all at once when the cluster could be read again: they are kept as they were. If they are to go, put them back and delete them while this replica watches", n, len(s.kept[k].objects)))
		}
		if n := len(s.kept[k].doubted(vanished)); n > 0 {
			say(fmt.Sprintf("the CRD %s was removed, and %d objects with it: what they said is still served. Install the CRD again", k.definition(), n))
		} else if s.missing[k] && len(s.kept[k].objects) > 0 {
			say(fmt.Sprintf("the cluster does not serve %s in %s any more: %d objects are kept as they were. Install the CRD again", k.definition(), strings.Join(k.versions, ", "), len(s.kept[k].objects)))
		}
	}
	return out
}

// runner is one Run: what the loop alone knows.
type runner struct {
	*Source
	ctx      context.Context
	sink     func([]member.Event, bool)
	running  sync.WaitGroup
	id       types.UID // of the cluster
	followed map[*kind]*follower
	unknown  map[*kind]bool // told to be unknown as a whole
	single   map[member.Ref]*follower
	asked    bool // discovery has answered about every kind at least once
	stranger bool // another cluster answers
	events   []member.Event
	fresh    []member.Object // routes of which a new generation is among events
	told     bool            // synced was passed on
}

// Run implements member.Source.
func (s *Source) Run(ctx context.Context, sink func(events []member.Event, synced bool)) error {
	ctx, stop := context.WithCancel(ctx)
	r := &runner{Source: s, ctx: ctx, sink: sink, followed: map[*kind]*follower{}, unknown: map[*kind]bool{}, single: map[member.Ref]*follower{}}
	defer r.running.Wait()
	defer stop()
	stopEvents, err := s.sendEvents(ctx)
	if err != nil {
		return err
	}
	defer stopEvents()
	if !r.meet() {
		return nil
	}
	r.running.Go(r.discover)
	for _, k := range kinds {
		if !k.custom && !k.byName {
			r.follow(k, k.versions[0])
		}
	}
	for {
		r.takeIn()
		select {
		case <-ctx.Done():
			return nil
		case <-s.inbox.wake:
		case <-r.again():
		}
	}
}

// again fires when something that is in doubt is to be looked at again.
func (r *runner) again() <-chan time.Time {
	if r.stranger {
		return time.After(reconfirm)
	}
	for _, k := range kinds {
		if len(r.kept[k].doubted(unconfirmed)) > 0 {
			return time.After(reconfirm)
		}
	}
	return nil
}

// meet waits until the cluster says who it is.
func (r *runner) meet() bool {
	for {
		id, _, err := identity(r.ctx, r.api.metadata)
		if r.ctx.Err() != nil {
			return false
		}
		r.note("the cluster", err)
		if err == nil {
			r.id = id
			return true
		}
		select {
		case <-r.ctx.Done():
			return false
		case <-time.After(reconfirm):
		}
	}
}

// note remembers how something went, and logs when that changes.
func (s *Source) note(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		if _, had := s.problems[what]; had {
			delete(s.problems, what)
			s.log.Info("works again", "what", what)
		}
		return
	}
	how := explain(err)
	if s.problems[what] != how {
		s.problems[what] = how
		s.log.Warn("the member cluster cannot be read: what is known of it stays", "what", what, "problem", how)
	}
}

// explain says what a failure means and what to do.
func explain(err error) string {
	if at := (*url.Error)(nil); errors.As(err, &at) {
		err = at.Err // without the address of each request, so that all requests that fail alike are one problem
	}
	remedy := "See whether its API server runs and can be reached from here"
	switch {
	case apierrors.IsForbidden(err):
		remedy = "Give Fleetgate's service account the rights of deploy/rbac.yaml"
	case apierrors.IsUnauthorized(err):
		remedy = "Give this cluster's kubeconfig a valid token or certificate"
	case apierrors.IsNotFound(err):
		remedy = "Install the CRD again"
	case apierrors.IsTooManyRequests(err):
		remedy = "Apply deploy/flowschema.yaml, or give the API server room"
	}
	return fmt.Sprintf("%v. What was known is kept. %s", err, remedy)
}

// discover finds which kinds are served, at once after CRDs have changed and now and then besides, and by whom: a watch does not fail where another cluster answers, or this one after it was restored from a backup, but waits until that has come as far.
func (r *runner) discover() {
	before := ""
	for {
		served, err := r.api.served(r.ctx)
		id, revision, _ := identity(r.ctx, r.api.metadata) // where it does not say, whoever takes in a list asks again
		if r.ctx.Err() != nil {
			return
		}
		r.note("discovery", err)
		restored := id == r.id && older(revision, before)
		if id == r.id {
			before = revision
		}
		r.inbox.put(delta{served: served, id: id, restored: restored})
		wait := rediscover
		if err != nil {
			wait = reconfirm
		}
		select {
		case <-r.ctx.Done():
			return
		case <-r.nudge:
		case <-time.After(wait):
		}
	}
}

func (s *Source) rediscover() {
	select {
	case s.nudge <- struct{}{}:
	default:
	}
}

func (r *runner) follow(k *kind, version string) {
	f := &follower{kind: k, version: version, out: r.inbox}
	r.followed[k] = f
	r.mu.Lock()
	r.versions[k] = version
	r.mu.Unlock()
	f.start(r.ctx, r.api, &r.running)
}

// takeIn works off what was heard, and passes on what came of it in one call.
func (r *runner) takeIn() {
	for _, d := range r.inbox.take() {
		switch {
		case d.served != nil && d.id != "" && d.id != r.id:
			r.estrange(another(d.id, r.id))
		case d.served != nil:
			r.serve(d.served)
			if d.restored {
				r.estrange(errRestored) // and everything is listed anew
			}
		case !r.current(d.from):
		case d.told:
			r.hear(d.from, d.failed)
		default:
			r.learn(d)
		}
	}
	r.askFor()
	if r.stranger {
		r.greet()
	}
	r.confirm()
	r.askForNamed()
	r.deliver()
}

// current tells whether a follower is one that we still listen to.
func (r *runner) current(f *follower) bool {
	if f.only != nil {
		return r.single[*f.only] == f
	}
	return r.followed[f.kind] == f
}

// serve starts and stops followers after what discovery found.
func (r *runner) serve(served map[*kind]string) {
	for k, version := range served {
		if k.optional {
			r.serveNamed(k, version)
			continue
		}
		r.miss(k, version == "")
		f := r.followed[k]
		if f != nil && f.version == version {
			continue
		}
		if f != nil {
			f.stop()
			delete(r.followed, k)
			r.note(k.name, nil)
		}
		if version != "" && !r.stranger {
			r.follow(k, version)
		}
	}
	r.asked = r.asked || len(served) == len(discovered)
}

// serveNamed takes up the version of a kind that is read by name, "" = it is not served. Those that follow its objects in another one are stopped, and start anew in this.
func (r *runner) serveNamed(k *kind, version string) {
	r.mu.Lock()
	before, told := r.versions[k]
	r.versions[k] = version
	r.mu.Unlock()
	if before == version && told {
		return
	}
	for ref, f := range r.single {
		if f.kind == k {
			f.stop()
			delete(r.single, ref)
			r.mu.Lock()
			delete(r.kept[k].objects, key{ref.Namespace, ref.Name})
			r.mu.Unlock()
		}
	}
	e := member.Event{Cluster: r.name, Kind: kindCRD, Name: k.definition()}
	if version != "" {
		e.Object = &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{Kind: kindCRD}, ObjectMeta: metav1.ObjectMeta{Name: e.Name}}
	}
	if before != "" || version != "" {
		r.events = append(r.events, e)
	}
}

// miss notes whether a kind is not served. What there was of it may be there still, for all that anybody can tell.
func (r *runner) miss(k *kind, missing bool) {
	r.mu.Lock()
	before, told := r.missing[k]
	r.missing[k] = missing
	r.mu.Unlock()
	if k.group == gatewayGroup && missing && !(told && before) {
		r.events = append(r.events, member.Event{Cluster: r.name, Kind: k.name, Unknown: true})
		r.unknown[k] = true
	}
}

// hear takes in how a follower's request went.
func (r *runner) hear(f *follower, err error) {
	what := f.kind.name
	if f.only != nil {
		what = fmt.Sprintf("%s %s/%s", f.only.Kind, f.only.Namespace, f.only.Name)
	}
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || errors.Is(err, context.Canceled) {
		return // the reflector lists anew
	}
	r.note(what, err)
	r.deny(f, err)
	if (f.kind.custom || f.kind.optional) && apierrors.IsNotFound(err) {
		r.rediscover()
	}
	if f.kind.name == kindCRD && apierrors.IsForbidden(err) {
		f.synced = true // it only says which version this is
	}
}

// deny tells once that an object that was asked for may not be read, so that whoever asked can say it where its users look. What was known of it stays.
func (r *runner) deny(f *follower, err error) {
	if f.only == nil || f.denied || !apierrors.IsForbidden(err) {
		return
	}
	f.denied = true
	r.events = append(r.events, member.Event{Cluster: r.name, Kind: f.kind.name, Namespace: f.only.Namespace, Name: f.only.Name, Unknown: true, Denied: true})
}

// learn takes in what a follower saw.
func (r *runner) learn(d delta) {
	k := d.from.kind
	d.from.denied = false
	switch {
	case d.whole && d.from.only != nil:
		r.answer(*d.from.only, d.objects)
		d.from.synced = true
	case d.whole:
		r.list(d)
	case d.changed != nil:
		if !r.relevant(k, d.changed) {
			return
		}
		r.renamed(k, d.changed)
		r.mu.Lock()
		changed := r.kept[k].upsert(d.changed)
		r.mu.Unlock()
		if changed {
			r.emit(k, d.changed)
		}
	case d.lost != nil:
		r.mu.Lock()
		r.kept[k].lose(*d.lost)
		r.mu.Unlock()
	}
}

// relevant drops CRDs that are not ours, and notices those that are.
func (r *runner) relevant(k *kind, o member.Object) bool {
	if k.name != kindCRD {
		return true
	}
	_, ours := slices.BinarySearch(definitions, o.GetName())
	if ours {
		r.rediscover()
	}
	return ours
}

// list takes in a complete view of a kind. Once something is known it is believed only from the cluster that we know.
func (r *runner) list(d delta) {
	k := d.from.kind
	objects := slices.DeleteFunc(d.objects, func(o member.Object) bool { return !r.relevant(k, o) })
	r.mu.Lock()
	known := len(r.kept[k].objects)
	r.mu.Unlock()
	if (known > 0 || r.told) && !r.same() {
		return
	}
	for _, o := range objects {
		r.renamed(k, o)
	}
	r.mu.Lock()
	changed := r.kept[k].replace(objects, func(lost, known int) bool { return k.guarded && suspicious(lost, known) })
	r.mu.Unlock()
	for _, o := range changed {
		r.emit(k, o)
	}
	if r.unknown[k] {
		delete(r.unknown, k)
		r.events = append(r.events, member.Event{Cluster: r.name, Kind: k.name})
	}
	d.from.synced = true
}

// same tells whether this is the cluster that we know; if it is not, nobody listens to it until the known one is back. Where it does not
// say, its list is not taken in either: the follower starts anew.
func (r *runner) same() bool {
	id, _, err := identity(r.ctx, r.api.metadata)
	if err == nil && id == r.id {
		return true
	}
	if err == nil {
		err = another(id, r.id)
	}
	r.estrange(err)
	return false
}

func another(id, known types.UID) error {
	return fmt.Errorf("another cluster answers at this address: namespace kube-system has UID %s, not %s. If the cluster was made anew, register it under a new name", id, known)
}

var errRestored = errors.New("the cluster has gone back to an earlier state: its etcd was restored from a backup")

// estrange stops listening.
func (r *runner) estrange(why error) {
	r.note("the cluster", why)
	r.stranger = true
	for _, f := range r.followed {
		f.stop()
	}
	for _, f := range r.single {
		f.stop()
	}
	clear(r.followed)
	clear(r.single)
}

// greet looks whether the cluster that we know is back, and follows it again.
func (r *runner) greet() {
	id, _, err := identity(r.ctx, r.api.metadata)
	if err != nil || id != r.id {
		return
	}
	r.note("the cluster", nil)
	r.stranger = false
	for _, k := range kinds {
		r.mu.Lock()
		version := r.versions[k]
		r.mu.Unlock()
		if version != "" && !k.byName && r.followed[k] == nil {
			r.follow(k, version)
		}
	}
}

// askFor follows every object that is wanted by name, and forgets those that are not any more.
func (r *runner) askFor() {
	if r.stranger {
		return
	}
	r.mu.Lock()
	wanted, versions := r.wanted, maps.Clone(r.versions)
	r.mu.Unlock()
	for ref, f := range r.single {
		if !wanted[ref] {
			f.stop()
			delete(r.single, ref)
			r.mu.Lock()
			delete(r.kept[f.kind].objects, key{ref.Namespace, ref.Name})
			r.mu.Unlock()
			r.note(fmt.Sprintf("%s %s/%s", ref.Kind, ref.Namespace, ref.Name), nil)
		}
	}
	for ref := range wanted {
		k := kindOf(ref.Kind)
		if r.single[ref] != nil || k == nil || !k.byName {
			continue
		}
		version := k.versions[0]
		if k.optional {
			version = versions[k]
		}
		if version == "" { // not served, or nobody has said yet
			continue
		}
		f := &follower{kind: k, version: version, only: &ref, out: r.inbox}
		r.single[ref] = f
		f.start(r.ctx, r.api, &r.running)
	}
}

// answer takes in the whole of a view of one object: it, or that there is none.
func (r *runner) answer(ref member.Ref, objects []member.Object) {
	k := kindOf(ref.Kind)
	id := key{ref.Namespace, ref.Name}
	r.mu.Lock()
	_, had := r.kept[k].objects[id]
	r.mu.Unlock()
	if had && len(objects) == 0 && !r.same() {
		return
	}
	if len(objects) == 0 {
		r.mu.Lock()
		delete(r.kept[k].objects, id)
		r.mu.Unlock()
		r.events = append(r.events, member.Event{Cluster: r.name, Kind: k.name, Namespace: ref.Namespace, Name: ref.Name})
		return
	}
	r.mu.Lock()
	r.kept[k].upsert(objects[0])
	r.mu.Unlock()
	r.emit(k, objects[0])
}

func (r *runner) emit(k *kind, o member.Object) {
	r.events = append(r.events, member.Event{Cluster: r.name, Kind: k.name, Namespace: o.GetNamespace(), Name: o.GetName(), Object: o})
}

// confirm believes what is said to be gone once it is known that it is not its whole kind that goes: a CRD says that it is being removed
// before the first of its objects goes.
func (r *runner) confirm() {
	for _, k := range kinds {
		if len(r.kept[k].doubted(unconfirmed)) == 0 || r.stranger {
			continue
		}
		believed := true
		if k.custom {
			var err error
			believed, err = r.api.defined(r.ctx, k)
			r.note("deletions of "+k.name, err)
			if err != nil {
				continue
			}
		}
		r.mu.Lock()
		gone := r.kept[k].settle(believed)
		r.mu.Unlock()
		for _, id := range gone {
			r.events = append(r.events, member.Event{Cluster: r.name, Kind: k.name, Namespace: id.namespace, Name: id.name})
		}
		if k.name == kindCRD {
			r.rediscover()
		}
	}
}

// deliver passes on what came together, and that every kind has been seen.
func (r *runner) deliver() {
	synced := r.complete()
	if len(r.events) == 0 && (!synced || r.told) {
		return
	}
	slices.SortStableFunc(r.events, func(a, b member.Event) int { return rank[a.Kind] - rank[b.Kind] })
	r.mu.Lock()
	r.synced = synced
	r.mu.Unlock()
	r.sink(r.events, synced)
	r.events, r.told = nil, synced
}

// complete tells whether every kind that there is has been seen whole once.
func (r *runner) complete() bool {
	if r.told {
		return true
	}
	if !r.asked {
		return false
	}
	for _, f := range r.followed {
		if !f.synced {
			return false
		}
	}
	return true
}
