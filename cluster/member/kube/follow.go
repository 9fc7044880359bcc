package kube

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/fleetgate/fleetgate/cluster/member"
)

type watcher = watch.Interface

// listWatch makes a ListerWatcher whose every request is reported.
func listWatch(narrow func(*metav1.ListOptions), told func(error), list func(context.Context, metav1.ListOptions) (runtime.Object, error), start func(context.Context, metav1.ListOptions) (watcher, error)) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			narrow(&o)
			l, err := list(ctx, o)
			told(err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			narrow(&o)
			o.Watch = true
			w, err := start(ctx, o)
			told(err)
			return w, err
		},
	}
}

// delta is one thing that was heard; exactly one of its groups is set.
type delta struct {
	from *follower

	changed member.Object // created or changed
	lost    *key          // deleted, says the watch
	whole   bool          // objects is everything there is
	objects []member.Object

	served   map[*kind]string // what discovery says
	id       types.UID        // of the cluster that said it, "" = that is not known
	restored bool             // that has gone back to an earlier state
	failed   error            // a request failed; nil with told = it works again
	told     bool
}

// follower follows a kind, or one object of it where only is set. It is a cache.TransformingStore whose contents are deltas.
type follower struct {
	kind    *kind
	version string
	only    *member.Ref
	out     *inbox
	stop    context.CancelFunc
	synced  bool // a complete view was taken in; the loop's
	denied  bool // the server forbids to read the one object, which was told; the loop's
}

// retry is how soon after a failure an API server is asked again: at most this long after it is back, its changes are seen.
var retry = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second}

// start follows until the follower is stopped or ctx ends.
func (f *follower) start(ctx context.Context, a *api, running *sync.WaitGroup) {
	ctx, f.stop = context.WithCancel(ctx)
	namespace, name := "", ""
	if f.only != nil {
		namespace, name = f.only.Namespace, f.only.Name
	}
	quiet := klog.Logger{} // what goes wrong is told by Problems
	backoff := retry
	r := cache.NewReflectorWithOptions(a.listWatch(f.kind, f.version, namespace, name, f.told), nil, f,
		cache.ReflectorOptions{Name: f.kind.name, TypeDescription: f.kind.name, Backoff: &backoff, Logger: &quiet})
	running.Go(func() { r.RunWithContext(klog.NewContext(ctx, quiet)) })
}

func (f *follower) told(err error) { f.out.put(delta{from: f, failed: err, told: true}) }

// Add implements cache.ReflectorStore.
func (f *follower) Add(in any) error { return f.Update(in) }

// Update implements cache.ReflectorStore.
func (f *follower) Update(in any) error {
	if o, ok := f.kind.shape(in); ok {
		f.out.put(delta{from: f, changed: o})
	}
	return nil
}

// Delete implements cache.ReflectorStore.
func (f *follower) Delete(in any) error {
	if o, ok := in.(member.Object); ok {
		id := keyOf(o)
		f.out.put(delta{from: f, lost: &id})
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (f *follower) Replace(list []any, _ string) error {
	objects := make([]member.Object, 0, len(list))
	for _, in := range list {
		if o, ok := f.kind.shape(in); ok {
			objects = append(objects, o)
		}
	}
	f.out.put(delta{from: f, whole: true, objects: objects})
	return nil
}

// Resync implements cache.ReflectorStore.
func (f *follower) Resync() error { return nil }

// Transformer implements cache.TransformingStore: what nobody reads is dropped while the first list is still coming in.
func (f *follower) Transformer() cache.TransformFunc {
	return func(in any) (any, error) {
		if o, ok := f.kind.shape(in); ok {
			return o, nil
		}
		return in, nil
	}
}

// inbox holds what was heard until the loop takes it. Nobody who puts something in ever waits.
type inbox struct {
	mu    sync.Mutex
	heard []delta
	wake  chan struct{}
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (i *inbox) put(d delta) {
	i.mu.Lock()
	i.heard = append(i.heard, d)
	i.mu.Unlock()
	i.signal()
}

func (i *inbox) signal() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

func (i *inbox) take() []delta {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := i.heard
	i.heard = nil
	return out
}
