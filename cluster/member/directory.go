package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fleetgate/fleetgate/cluster/store"
)

// DirectoryConfig says which directories play a member cluster.
type DirectoryConfig struct {
	Name       string   // of the member cluster
	Dirs       []string // the user's own comes first: where two directories give one object at once, the earlier counts
	Dir        string   // short for a first element of Dirs
	StatusDir  string   // where status is kept; made when it is missing
	Identifier Identifier
	Logger     *slog.Logger     // nil = slog.Default()
	Now        func() time.Time // nil = time.Now
	MaxFile    int64            // largest file in bytes; 0 = MaxFile
	Rescan     time.Duration    // how often everything is looked at in case an event was lost; 0 = 10 s
}

// Times of the directory source. None of them delays a change that is complete when its writer closes it.
const (
	// quiet is how long a file must have been left alone before it is believed although nobody said that it is complete, and how long a
	// broken file stays unreported: its writer may not be done.
	quiet = 150 * time.Millisecond
	// grace is how long after the last deletion in a directory files are believed to be deleted: editors delete and create anew when they
	// save, and `rm -r` of the directory itself begins with its files, but means "unknown", not "delete all routes" (D10).
	grace = 30 * time.Millisecond
	// longestGrace bounds the wait where deletions never stop.
	longestGrace = time.Second
	// returning is how long a directory that had vanished must have been left alone before what it lacks now counts as deleted.
	returning = time.Second
	// absentPoll is how often a vanished directory is looked for.
	absentPoll = 250 * time.Millisecond
	// identifyRetry is the pause after identities could not be had.
	identifyRetry = time.Second
	// patience is how long at least a question for identities is waited for after it went out of date.
	patience        = 20 * time.Millisecond
	longestPatience = time.Second
)

// Directory is a member cluster that is a directory of manifests (or several). It implements Source.
//
// Leading edge at once: a file is read when its writer closes it, and what is good in it is delivered right then. Only what could be
// a half-done save waits for quiet: a broken or emptied file, a file that vanished.
type Directory struct {
	cfg    DirectoryConfig
	log    *slog.Logger
	status *statusDir

	mu        sync.Mutex // guards what follows; Run is the only writer
	files     *tree
	delivered map[objectKey]delivered
}

// delivered is what the sink was told last.
type delivered struct {
	hash, specHash string
	identity       store.Identity
	object         Object
}

// NewDirectory checks the configuration. The directories need not exist yet.
func NewDirectory(cfg DirectoryConfig) (*Directory, error) {
	if cfg.Dir != "" {
		cfg.Dirs = append([]string{cfg.Dir}, cfg.Dirs...)
	}
	switch {
	case cfg.Name == "":
		return nil, errors.New("a directory cluster needs a name: set DirectoryConfig.Name")
	case len(cfg.Dirs) == 0:
		return nil, fmt.Errorf("member cluster %s: no directory of manifests is given: set DirectoryConfig.Dirs", cfg.Name)
	case cfg.StatusDir == "":
		return nil, fmt.Errorf("member cluster %s: no status directory is given: set DirectoryConfig.StatusDir", cfg.Name)
	case cfg.Identifier == nil:
		return nil, fmt.Errorf("member cluster %s: nobody gives identities: set DirectoryConfig.Identifier", cfg.Name)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxFile == 0 {
		cfg.MaxFile = MaxFile
	}
	if cfg.Rescan == 0 {
		cfg.Rescan = 10 * time.Second
	}
	return &Directory{
		cfg: cfg, log: cfg.Logger.With("cluster", cfg.Name), status: &statusDir{dir: cfg.StatusDir},
		files:     newTree(cfg.Dirs, cfg.StatusDir, cfg.MaxFile),
		delivered: map[objectKey]delivered{},
	}, nil
}

// Name implements Source.
func (d *Directory) Name() string { return d.cfg.Name }

// Problems implements Source.
func (d *Directory) Problems() []Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files.problems()
}

// Where tells where an object is: file:line, "" where it has no such place.
func (d *Directory) Where(kind, namespace, name string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := objectKey{kind, namespace, name}
	at, ok := d.files.inventory.holder[key]
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s:%d", at.path, d.files.inventory.claims[key][at].line)
}

// Run implements Source. It may be called once at a time.
func (d *Directory) Run(ctx context.Context, sink func(events []Event, synced bool)) error {
	return d.run(ctx, sink, newWatcher)
}

func (d *Directory) run(ctx context.Context, sink func([]Event, bool), watch func(*news) (watcher, error)) error {
	fresh := newNews()
	w, err := watch(fresh)
	if err != nil {
		return fmt.Errorf("member cluster %s: %w", d.cfg.Name, err)
	}
	defer func() { _ = w.close() }()
	d.mu.Lock()
	d.files, d.delivered = newTree(d.cfg.Dirs, d.cfg.StatusDir, d.cfg.MaxFile), map[objectKey]delivered{}
	d.mu.Unlock()
	r := &runner{Directory: d, watcher: w, news: fresh, sink: sink, unsent: map[objectKey]bool{}, unknown: map[objectKey]bool{}, patience: patience}
	return r.loop(ctx)
}

// runner is one Run.
type runner struct {
	*Directory
	watcher watcher
	news    *news
	sink    func([]Event, bool)
	unsent  map[objectKey]bool // may differ from what was delivered
	unknown map[objectKey]bool // as the sink was told
	synced  bool
	retry   time.Time // when identities are asked for again; zero = at once
	rescan  <-chan time.Time
	// patience is how long a question for identities that is out of date may still be answered.
	patience time.Duration
}

func (r *runner) loop(ctx context.Context) error {
	r.look(map[string]happened{"": lost})
	rescan := time.NewTicker(r.cfg.Rescan)
	defer rescan.Stop()
	r.rescan = rescan.C
	for ctx.Err() == nil {
		if again := r.flush(ctx); !again {
			r.takeIn(ctx.Done(), nil, r.nextDue())
		}
	}
	return nil
}

// takeIn waits until something happens or is due, and looks at it. It tells whether it was given up instead.
func (r *runner) takeIn(stop <-chan struct{}, giveUp <-chan time.Time, due time.Time) (gaveUp bool) {
	var timer <-chan time.Time
	if !due.IsZero() {
		timer = time.After(max(0, due.Sub(r.cfg.Now())))
	}
	select {
	case <-stop:
		return true
	case <-giveUp:
		return true
	case <-r.news.ready:
		r.look(r.news.take())
	case <-timer:
		r.look(nil)
	case <-r.rescan:
		r.look(map[string]happened{"": lost})
	}
	return false
}

func (r *runner) nextDue() time.Time {
	at := r.files.nextDue()
	if len(r.unsent) > 0 && (at.IsZero() || r.retry.Before(at)) {
		return r.retry
	}
	return at
}

// look takes in what happened, and reads what is due.
func (r *runner) look(what map[string]happened) {
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	dirs, changed := r.files.look(now, what)
	for len(dirs) > 0 { // what appeared before it was watched is found by looking again
		again := map[string]happened{}
		for _, dir := range dirs {
			if err := r.watcher.add(dir); err != nil {
				r.log.Warn("a directory cannot be watched; changes in it are seen at the next rescan", "dir", dir, "error", err)
			}
			again[dir] = noticed
		}
		var more []objectKey
		dirs, more = r.files.look(now, again)
		changed = append(changed, more...)
	}
	for _, key := range changed {
		r.unsent[key] = true
	}
}

// flush delivers what changed, and tells whether there is more to deliver at once. Where identities cannot be had it is tried again
// later: an object without its identity would be ordered wrongly.
func (r *runner) flush(ctx context.Context) (again bool) {
	now := r.cfg.Now()
	if now.Before(r.retry) {
		return false
	}
	r.retry = time.Time{}
	attempt := r.urgent()
	plan := r.plan(attempt)
	synced := r.synced || r.files.complete() // as of the plan: what is found while identities are asked for comes later
	identities, err := r.identifyUnlessStale(ctx, plan)
	if err != nil {
		maps.Copy(r.unsent, attempt)
		if errors.Is(err, errStale) {
			return true
		}
		if ctx.Err() == nil {
			r.log.Error("identities cannot be had; changes wait", "objects", len(plan), "error", err)
		}
		r.retry = now.Add(identifyRetry)
		return false
	}
	events, gone := r.commit(plan, identities)
	doubts, cleared := r.doubts()
	if events = append(events, doubts...); len(events) > 0 || synced && !r.synced {
		r.sink(events, synced)
	}
	r.forgetStatus(gone, len(r.unknown) == 0 && (cleared || synced && !r.synced))
	r.remember(synced && !r.synced)
	r.synced = synced
	return len(r.unsent) > 0
}

// urgent takes what is to be delivered next: EndpointSlices alone, where there are any after the first delivery, since they wait for no identity.
func (r *runner) urgent() map[objectKey]bool {
	slices := map[objectKey]bool{}
	for key := range r.unsent {
		if key.kind == endpointSlice {
			slices[key] = true
		}
	}
	all := r.unsent
	if len(slices) == 0 || len(slices) == len(all) || !r.synced {
		r.unsent = map[objectKey]bool{}
		return all
	}
	for key := range slices {
		delete(r.unsent, key)
	}
	return slices
}

const endpointSlice = "EndpointSlice"

// errStale says that what was asked about is not so any more.
var errStale = errors.New("the objects changed meanwhile")

// identifyUnlessStale asks for identities, and goes on looking at the directories meanwhile. An answer may never come: a replica that
// does not lead waits until the leader has committed what it sees itself, and the leader may have read the next version
// of the file already and never see this one. So a question that is out of date is given up, after a while that doubles each
// time, lest a file that changes without end is never answered for.
func (r *runner) identifyUnlessStale(ctx context.Context, plan []step) (identities []store.Identity, err error) {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		identities, err = r.identify(asking, plan)
	}()
	start := time.Now()
	for gaveUp := false; !gaveUp; {
		var giveUp <-chan time.Time
		if r.stale(plan) {
			giveUp = time.After(max(0, r.patience-time.Since(start)))
		}
		gaveUp = r.takeIn(done, giveUp, r.files.nextDue())
	}
	cancel()
	<-done
	if err != nil && ctx.Err() == nil && r.stale(plan) {
		r.patience = min(2*r.patience, longestPatience)
		return nil, errStale
	}
	r.patience = patience
	return identities, err
}

// stale tells whether the plan asks for identities of what is not so any more, or holds up EndpointSlices.
func (r *runner) stale(plan []step) bool {
	for key := range r.unsent {
		if key.kind == endpointSlice {
			return true
		}
	}
	return len(r.unsent) > 0 && slices.ContainsFunc(plan, func(s step) bool {
		return r.unsent[s.key] && s.specHash() != r.files.inventory.desired[s.key].specHash
	})
}

// step is one object that is to be delivered; desired nil = it is gone.
type step struct {
	key     objectKey
	desired *entry
	before  delivered
}

// specHash is "" for what is gone.
func (s step) specHash() string {
	if s.desired == nil {
		return ""
	}
	return s.desired.specHash
}

// plan is the difference between what is and what was delivered, of the objects that may have changed.
func (r *runner) plan(changed map[objectKey]bool) []step {
	var plan []step
	for key := range changed {
		before, was := r.delivered[key]
		e, is := r.files.inventory.desired[key]
		switch {
		case is && (!was || e.hash != before.hash):
			plan = append(plan, step{key, &e, before})
		case !is && was:
			plan = append(plan, step{key, nil, before})
		}
	}
	sortSteps(plan)
	return plan
}

// identifyBatch bounds one question for identities, since it becomes one log entry.
const identifyBatch = 500

// identify asks for the identities of what is new, gone, or of another generation. The answer has one for each step.
func (r *runner) identify(ctx context.Context, plan []step) ([]store.Identity, error) {
	identities := make([]store.Identity, len(plan))
	var seen []store.IdentityObservation
	var of []int
	ask := func() error {
		if len(seen) == 0 {
			return nil
		}
		answers, err := r.cfg.Identifier.Identify(ctx, r.cfg.Name, seen)
		if err != nil {
			return fmt.Errorf("identifying %d objects of member cluster %s: %w", len(seen), r.cfg.Name, err)
		}
		if len(answers) != len(seen) {
			return fmt.Errorf("identifying %d objects of member cluster %s: %d answers came", len(seen), r.cfg.Name, len(answers))
		}
		for i, answer := range answers {
			identities[of[i]] = answer
		}
		seen, of = nil, nil
		return nil
	}
	for i, s := range plan {
		identities[i] = s.before.identity
		hash := s.specHash()
		if s.key.kind == endpointSlice {
			continue // nothing orders or counts them, and they must get through without a quorum (D18)
		}
		if s.before.object != nil && hash == s.before.specHash {
			continue
		}
		seen = append(seen, store.IdentityObservation{Kind: s.key.kind, Namespace: s.key.namespace, Name: s.key.name, SpecHash: hash})
		of = append(of, i)
		if len(seen) == identifyBatch {
			if err := ask(); err != nil {
				return nil, err
			}
		}
	}
	return identities, ask()
}

// commit notes the plan as delivered, and makes its events. gone are the uids of objects that went.
func (r *runner) commit(plan []step, identities []store.Identity) (events []Event, gone map[objectKey]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	gone = map[objectKey]string{}
	for i, s := range plan {
		event := Event{Cluster: r.cfg.Name, Kind: s.key.kind, Namespace: s.key.namespace, Name: s.key.name}
		if s.desired == nil {
			delete(r.delivered, s.key)
			gone[s.key] = s.before.identity.UID
		} else {
			event.Object = identified(s.desired.object, identities[i])
			r.delivered[s.key] = delivered{s.desired.hash, s.desired.specHash, identities[i], event.Object}
		}
		events = append(events, event)
	}
	return events, gone
}

// doubts are the events that tell what is unknown now and was not, and the other way round; cleared says that nothing is unknown any more. What turned
// out to be there is told by its own event; until all that was read has been delivered, nothing else stops being unknown.
func (r *runner) doubts() (events []Event, cleared bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.files.unknown()
	event := func(key objectKey, unknown bool) {
		events = append(events, Event{Cluster: r.cfg.Name, Kind: key.kind, Namespace: key.namespace, Name: key.name, Unknown: unknown})
	}
	for key := range now {
		if !r.unknown[key] {
			r.unknown[key] = true
			event(key, true)
		}
	}
	for key := range r.unknown {
		if now[key] || len(r.unsent) > 0 {
			continue
		}
		delete(r.unknown, key)
		cleared = len(r.unknown) == 0
		if _, there := r.delivered[key]; !there {
			event(key, false)
		}
	}
	slices.SortFunc(events, func(a, b Event) int {
		return compareKeys(objectKey{a.Kind, a.Namespace, a.Name}, objectKey{b.Kind, b.Namespace, b.Name})
	})
	return events, cleared
}

// identified is a copy of the object with its identity. It has no resourceVersion: only its status changes without its manifest, and
// ReadStatus gives that one.
func identified(o Object, id store.Identity) Object {
	copied := o.DeepCopyObject().(Object)
	copied.SetUID(types.UID(id.UID))
	copied.SetGeneration(id.Generation)
	copied.SetCreationTimestamp(metav1.Unix(id.Created, 0))
	return copied
}

// forgetStatus removes the status of objects that went; the first time also of those that went while nobody looked.
func (r *runner) forgetStatus(gone map[objectKey]string, sweep bool) {
	for key, uid := range gone {
		if err := r.status.forget(key, uid); err != nil {
			r.log.Warn("a stale status stays", "object", key.String(), "error", err)
		}
	}
	if !sweep {
		return
	}
	for _, key := range r.status.list() {
		if _, there := r.object(key); !there {
			if err := os.Remove(r.status.path(key)); err != nil && !errors.Is(err, os.ErrNotExist) {
				r.log.Warn("a stale status stays", "object", key.String(), "error", err)
			}
		}
	}
}

// remember keeps what is good now for the next start, after everybody was told. Failing costs only that.
func (r *runner) remember(sweep bool) {
	r.mu.Lock()
	good := r.files.good
	r.files.good = map[place][]byte{}
	r.mu.Unlock()
	for at, content := range good {
		if err := r.files.memory.remember(at.path, content); err != nil {
			r.log.Warn("the last good content of a file cannot be kept for the next start", "file", at.path, "error", err)
		}
	}
	if err := r.files.memory.rememberHolders(r.files.inventory.contested()); err != nil {
		r.log.Warn("it cannot be kept for the next start which of several objects of one name counts", "error", err)
	}
	if sweep {
		r.files.memory.sweep(r.files.known)
	}
}

func (d *Directory) object(key objectKey) (Object, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o, ok := d.delivered[key]
	return o.object, ok
}

// WriteStatus implements Source.
func (d *Directory) WriteStatus(_ context.Context, s Status) (string, error) {
	key := objectKey{s.Kind, s.Namespace, s.Name}
	o, there := d.object(key)
	if !there || s.UID != "" && s.UID != string(o.GetUID()) {
		return "", fmt.Errorf("writing the status of %s: %w", key, ErrNotFound)
	}
	return d.status.write(key, o, s.Status, s.ResourceVersion)
}

// ReadStatus implements Source. An object that never had a status has resourceVersion "0".
func (d *Directory) ReadStatus(_ context.Context, kind, namespace, name string) ([]byte, string, error) {
	key := objectKey{kind, namespace, name}
	o, there := d.object(key)
	if !there {
		return nil, "", fmt.Errorf("reading the status of %s: %w", key, ErrNotFound)
	}
	f, err := d.status.read(key, string(o.GetUID()))
	return f.Status, f.Metadata.ResourceVersion, err
}

func sortSteps(plan []step) {
	slices.SortFunc(plan, func(a, b step) int { return compareKeys(a.key, b.key) })
}
