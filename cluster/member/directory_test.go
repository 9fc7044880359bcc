package member

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/store"
)

// registrar is an Identifier as the state machine is one: uid, time and order of first sight, a generation for each spec.
type registrar struct {
	mu    sync.Mutex
	known map[store.IdentityObservation]*store.Identity
	order uint64
	fail  error
	asked int // observations
	// never makes Identify wait until it is given up, as a replica that does not lead waits for what its leader does not see.
	never   func(store.IdentityObservation) bool
	waiting chan struct{}
}

func (r *registrar) Identify(ctx context.Context, _ string, seen []store.IdentityObservation) ([]store.Identity, error) {
	r.mu.Lock()
	never := r.never
	r.mu.Unlock()
	if never != nil && slices.ContainsFunc(seen, never) {
		r.waiting <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return nil, r.fail
	}
	if r.known == nil {
		r.known = map[store.IdentityObservation]*store.Identity{}
	}
	out := make([]store.Identity, len(seen))
	for i, o := range seen {
		r.asked++
		hash := o.SpecHash
		o.SpecHash = ""
		if hash == "" {
			delete(r.known, o)
			continue
		}
		id := r.known[o]
		if id == nil {
			r.order++
			id = &store.Identity{UID: fmt.Sprintf("uid-%d", r.order), Created: 1_000_000 + int64(r.order), Order: r.order}
			r.known[o] = id
		}
		if id.SpecHash != hash {
			id.SpecHash = hash
			id.Generation++
		}
		out[i] = *id
	}
	return out, nil
}

func (r *registrar) failWith(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// world is what a sink knows after what it was told.
type world struct {
	t       testing.TB
	dir     string
	source  *Directory
	ids     *registrar
	objects map[objectKey]Object
	synced  bool
	events  []Event // all, in order
	told    chan told
	stop    func()

	clock sync.Mutex
	still time.Time // where the source's clock stands still, zero = it goes
}

// atOnce does what the source is to see as one save, however long the machine keeps this test from going on in between: meanwhile its clock stands still.
func (w *world) atOnce(save func()) {
	stand := func(at time.Time) {
		w.clock.Lock()
		defer w.clock.Unlock()
		w.still = at
	}
	stand(time.Now())
	defer stand(time.Time{})
	save()
}

func (w *world) now() time.Time {
	w.clock.Lock()
	defer w.clock.Unlock()
	if w.still.IsZero() {
		return time.Now()
	}
	return w.still
}

type told struct {
	events []Event
	synced bool
}

// start runs a source on a directory with these files until the test ends.
func start(t testing.TB, files map[string]string, watch func(*news) (watcher, error)) *world {
	t.Helper()
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "manifests"), ids: &registrar{}}
	for name, content := range files {
		w.write(name, content)
	}
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w.run(watch)
	return w
}

// run starts the source, anew when it ran before: with an empty sink, as after a restart.
func (w *world) run(watch func(*news) (watcher, error)) {
	w.t.Helper()
	if w.stop != nil {
		w.stop()
	}
	source, err := NewDirectory(DirectoryConfig{
		Name: "laptop", Dir: w.dir, StatusDir: filepath.Join(filepath.Dir(w.dir), "status"), Identifier: w.ids,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: w.now,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.source, w.objects, w.synced, w.events = source, map[objectKey]Object{}, false, nil
	ctx, cancel := context.WithCancel(context.Background())
	pipe, ended := make(chan told, 100), make(chan struct{})
	w.told = pipe
	go func() {
		defer close(ended)
		if err := source.run(ctx, func(events []Event, synced bool) { pipe <- told{events, synced} }, watch); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}()
	w.stop = func() { cancel(); <-ended }
	w.t.Cleanup(w.stop)
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// write makes a file, or empties one and fills it anew.
func (w *world) write(name, content string) {
	w.t.Helper()
	w.atOnce(func() { w.writeSlowly(name, content) })
}

// writeSlowly is write for a part of what happens at once.
func (w *world) writeSlowly(name, content string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.path(name)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.path(name), []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// await reads what the source tells until the condition holds.
func (w *world) await(what string, holds func() bool) {
	w.t.Helper()
	deadline := time.After(time.Minute)
	poll := time.NewTicker(5 * time.Millisecond) // for what is no event: problems
	defer poll.Stop()
	for !holds() {
		select {
		case told := <-w.told:
			w.apply(told)
		case <-poll.C:
		case <-deadline:
			w.t.Fatalf("%s: not within a minute; objects %v, problems %v", what, w.objects, w.source.Problems())
		}
	}
}

func (w *world) apply(told told) {
	if w.synced && !told.synced {
		w.t.Error("synced was taken back")
	}
	w.synced = told.synced
	for _, e := range told.events {
		w.events = append(w.events, e)
		key := objectKey{e.Kind, e.Namespace, e.Name}
		if e.Object == nil {
			delete(w.objects, key)
			continue
		}
		w.objects[key] = e.Object
	}
}

// port is the port of a Service, 0 = it is not there.
func (w *world) port(name string) int32 {
	s, ok := w.objects[objectKey{"Service", "shop", name}].(*corev1.Service)
	if !ok {
		return 0
	}
	return s.Spec.Ports[0].Port
}

func (w *world) awaitPort(name string, port int32) {
	w.t.Helper()
	w.await(fmt.Sprintf("port of %s is %d", name, port), func() bool { return w.port(name) == port })
}

func (w *world) awaitProblem(part string) {
	w.t.Helper()
	w.await("a problem with "+part, func() bool { return strings.Contains(fmt.Sprint(w.source.Problems()), part) })
}

func (w *world) awaitNoProblem() {
	w.t.Helper()
	w.await("no problem", func() bool { return len(w.source.Problems()) == 0 })
}

func (w *world) awaitSynced() {
	w.t.Helper()
	w.await("synced", func() bool { return w.synced })
}

// neverDeleted fails when an event ever deleted the Service.
func (w *world) neverDeleted(name string) {
	w.t.Helper()
	for _, e := range w.events {
		if e.Name == name && e.Object == nil && !e.Unknown {
			w.t.Errorf("%s %s was deleted in between", e.Kind, e.Name)
		}
	}
}

func service(name string, port int) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec: {ports: [{port: %d}]}\n", name, port)
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bothWatchers runs a case with the watcher of this system and with the portable one: they differ in speed only.
func bothWatchers(t *testing.T, run func(t *testing.T, watch func(*news) (watcher, error))) {
	t.Run("own", func(t *testing.T) { t.Parallel(); run(t, newWatcher) })
	t.Run("portable", func(t *testing.T) { t.Parallel(); run(t, newPortableWatcher) })
}

func TestChangesArrive(t *testing.T) {
	t.Parallel()
	bothWatchers(t, func(t *testing.T, watch func(*news) (watcher, error)) {
		w := start(t, map[string]string{"a.yaml": service("a", 1), "sub/b.yaml": service("b", 1), "notes.txt": "no", ".hidden.yaml": "no"}, watch)
		w.awaitSynced()
		if w.port("a") != 1 || w.port("b") != 1 || len(w.objects) != 3 {
			t.Fatalf("first view: %v", w.objects)
		}
		w.write("a.yaml", service("a", 2))
		w.awaitPort("a", 2)
		w.write("sub/b.yaml", service("b", 2)+"---\n"+service("c", 3))
		w.awaitPort("c", 3)
		w.awaitPort("b", 2)
		w.write("new/deep/d.yaml", service("d", 4))
		w.awaitPort("d", 4)
		w.write("new/deep/d.yaml", service("d", 5))
		w.awaitPort("d", 5)
		w.write("sub/b.yaml", service("c", 3))
		w.awaitPort("b", 0)
		w.must(os.Remove(w.path("a.yaml")))
		w.awaitPort("a", 0)
		w.must(os.RemoveAll(w.path("new")))
		w.awaitPort("d", 0)
		w.must(os.Remove(w.path("sub/b.yaml")))
		w.await("the namespace goes with its last object", func() bool { return len(w.objects) == 0 })
		if problems := w.source.Problems(); len(problems) > 0 {
			t.Error(problems)
		}
	})
}

// TestSavesOfEditors: however an editor saves, objects change and are never deleted in between.
func TestSavesOfEditors(t *testing.T) {
	t.Parallel()
	saves := map[string]func(w *world, content string){
		"truncate, then write slowly": func(w *world, content string) {
			f, err := os.OpenFile(w.path("a.yaml"), os.O_TRUNC|os.O_WRONLY, 0)
			w.must(err)
			half := len(content) / 2
			_, err = f.WriteString(content[:half])
			w.must(err)
			w.must(f.Sync())
			_, err = f.WriteString(content[half:])
			w.must(err)
			w.must(f.Close())
		},
		"temporary file renamed over": func(w *world, content string) {
			w.writeSlowly(".a.yaml.swp", content)
			w.must(os.Rename(w.path(".a.yaml.swp"), w.path("a.yaml")))
		},
		"old file renamed away, new one made": func(w *world, content string) {
			w.must(os.Rename(w.path("a.yaml"), w.path("a.yaml~")))
			w.writeSlowly("a.yaml", content)
		},
		"old file deleted, new one made": func(w *world, content string) {
			w.must(os.Remove(w.path("a.yaml")))
			w.writeSlowly("a.yaml", content)
		},
	}
	for name, save := range saves {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothWatchers(t, func(t *testing.T, watch func(*news) (watcher, error)) {
				w := start(t, map[string]string{"a.yaml": service("a", 1)}, watch)
				w.awaitSynced()
				for port := 2; port < 7; port++ {
					w.atOnce(func() { save(w, service("a", port)) })
					w.awaitPort("a", int32(port))
				}
				w.neverDeleted("a")
				if p := w.source.Problems(); len(p) > 0 {
					t.Error(p)
				}
			})
		})
	}
}

// TestBrokenFileKeepsItsLastGoodObjects, object by object, says where the fault is, and disturbs nobody else.
func TestBrokenFileKeepsItsLastGoodObjects(t *testing.T) {
	t.Parallel()
	bothWatchers(t, func(t *testing.T, watch func(*news) (watcher, error)) {
		w := start(t, map[string]string{"a.yaml": service("a", 1) + "---\n" + service("b", 1), "c.yaml": service("c", 1)}, watch)
		w.awaitSynced()

		w.write("a.yaml", service("a", 2)+"---\n{broken")
		w.awaitProblem("a.yaml:")
		w.write("c.yaml", service("c", 2))
		w.awaitPort("c", 2)
		if w.port("a") != 1 || w.port("b") != 1 {
			t.Errorf("after broken YAML a is %d and b is %d, not as before", w.port("a"), w.port("b"))
		}

		w.write("a.yaml", service("a", 3)+"---\n"+strings.Replace(service("b", 3), "port:", "prot:", 1))
		w.awaitPort("a", 3)
		w.awaitProblem("Service shop/b")
		if w.port("b") != 1 {
			t.Errorf("a refused object became %d", w.port("b"))
		}

		w.write("a.yaml", service("a", 4)+"---\n"+strings.Replace(service("b", 4), "kind: Service", "kind: Servce", 1))
		w.awaitPort("a", 4)
		w.awaitProblem("Servce")
		if w.port("b") != 1 {
			t.Errorf("an object with a misspelt kind became %d", w.port("b"))
		}

		w.write("a.yaml", service("b", 5))
		w.awaitPort("b", 5)
		w.awaitPort("a", 0)
		w.awaitNoProblem()
		w.neverDeleted("b")
		w.neverDeleted("c")
	})
}

// TestRefusedFiles: too large and unreadable files keep their last good objects.
func TestRefusedFiles(t *testing.T) {
	t.Parallel()
	w := start(t, map[string]string{"a.yaml": service("a", 1), "b.yaml": service("b", 1)}, newWatcher)
	w.awaitSynced()
	w.write("a.yaml", service("a", 2)+"# "+strings.Repeat("x", 2<<20))
	w.awaitProblem("at most 1048576 are read. Split it")
	w.atOnce(func() {
		w.must(os.Remove(w.path("b.yaml")))
		w.must(os.Symlink("b.yaml", w.path("b.yaml"))) // a loop cannot be read, whoever tries
	})
	w.awaitProblem("b.yaml: the file cannot be read")
	if w.port("a") != 1 || w.port("b") != 1 {
		t.Errorf("a is %d, b is %d", w.port("a"), w.port("b"))
	}
	w.atOnce(func() {
		w.must(os.Remove(w.path("b.yaml")))
		w.writeSlowly("b.yaml", service("b", 2))
	})
	w.write("a.yaml", service("a", 3))
	w.awaitPort("a", 3)
	w.awaitPort("b", 2)
	w.awaitNoProblem()
	w.neverDeleted("a")
	w.neverDeleted("b")
}

func TestEmptiedFileIsADeletionOnceItIsQuiet(t *testing.T) {
	t.Parallel()
	w := start(t, map[string]string{"a.yaml": service("a", 1)}, newWatcher)
	w.awaitSynced()
	w.write("a.yaml", "")
	w.awaitPort("a", 0)
}

// TestDuplicates: whoever had the object first keeps it; the other is told, and takes over when the first goes.
func TestDuplicates(t *testing.T) {
	t.Parallel()
	w := start(t, map[string]string{"m.yaml": service("s", 1)}, newWatcher)
	w.awaitSynced()
	w.write("a.yaml", service("s", 2))
	w.awaitProblem("a.yaml:1 (document 1): Service shop/s: the object is in " + w.path("m.yaml") + ":1 (document 1) already")
	if w.port("s") != 1 {
		t.Errorf("a duplicate replaced the first: port %d", w.port("s"))
	}
	w.write("m.yaml", service("s", 3))
	w.awaitPort("s", 3)
	w.must(os.Remove(w.path("m.yaml")))
	w.awaitPort("s", 2)
	w.awaitNoProblem()
	w.neverDeleted("s")
}

// TestVanishedDirectory: unknown is not absent. It comes back with less in it, and only then something is deleted.
func TestVanishedDirectory(t *testing.T) {
	t.Parallel()
	goes := map[string]func(w *world){
		"renamed away": func(w *world) { w.must(os.Rename(w.dir, w.dir+".away")) },
		"deleted": func(w *world) {
			w.must(os.CopyFS(w.dir+".away", os.DirFS(w.dir)))
			w.must(os.RemoveAll(w.dir))
		},
	}
	for name, vanish := range goes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, map[string]string{"a.yaml": service("a", 1), "b.yaml": service("b", 1), "sub/c.yaml": service("c", 1)}, newWatcher)
			w.awaitSynced()
			w.atOnce(func() { vanish(w) })
			w.awaitProblem("cannot be read any more")
			w.write("../manifests.away/a.yaml", service("a", 2))
			w.must(os.Remove(w.dir + ".away/b.yaml"))
			if w.port("a") != 1 || w.port("b") != 1 || w.port("c") != 1 {
				t.Errorf("something changed: %v", w.objects)
			}
			w.must(os.Rename(w.dir+".away", w.dir))
			w.awaitPort("a", 2)
			w.awaitPort("b", 0)
			w.awaitNoProblem()
			w.write("sub/c.yaml", service("c", 2))
			w.awaitPort("c", 2)
			w.neverDeleted("a")
			w.neverDeleted("c")
		})
	}
}

func TestDirectoryThatComesBackEmptyDeletesNothing(t *testing.T) {
	t.Parallel()
	w := start(t, map[string]string{"a.yaml": service("a", 1)}, newWatcher)
	w.awaitSynced()
	w.atOnce(func() { w.must(os.RemoveAll(w.dir)) })
	w.awaitProblem("cannot be read any more")
	w.must(os.Mkdir(w.dir, 0o755))
	w.awaitProblem("was gone and lacks files now")
	if w.port("a") != 1 {
		t.Error("an empty directory deleted an object")
	}
	w.write("a.yaml", service("a", 2))
	w.awaitPort("a", 2)
	w.awaitNoProblem()
	w.neverDeleted("a")
}

func TestMissingDirectoryIsNotSyncedUntilItIsThere(t *testing.T) {
	w := start(t, nil, newWatcher)
	w.stop()
	w.must(os.Remove(w.dir))
	w.run(newWatcher)
	w.awaitProblem("Create it or make it readable")
	if w.synced {
		t.Error("synced without a directory")
	}
	w.write("a.yaml", service("a", 1))
	w.awaitSynced()
	w.awaitPort("a", 1)
	w.awaitNoProblem()
}

// TestConfigMapVolume: kubelet swaps a whole directory by one rename of a link, which the files' own names do not tell.
func TestConfigMapVolume(t *testing.T) {
	t.Parallel()
	bothWatchers(t, func(t *testing.T, watch func(*news) (watcher, error)) {
		w := start(t, map[string]string{"..v1/a.yaml": service("a", 1)}, watch)
		w.must(os.Symlink("..v1", w.path("..data")))
		w.must(os.Symlink("..data/a.yaml", w.path("a.yaml")))
		w.awaitPort("a", 1)
		w.write("..v2/a.yaml", service("a", 2))
		w.must(os.Symlink("..v2", w.path("..data_tmp")))
		w.must(os.Rename(w.path("..data_tmp"), w.path("..data")))
		w.awaitPort("a", 2)
		w.neverDeleted("a")
	})
}

// TestIdentities: uid, time and generation come from the identifier, and what a manifest says about them is ignored.
func TestIdentities(t *testing.T) {
	route := func(created, path, label string) string {
		return fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop, uid: forged, generation: 7, creationTimestamp: %q, labels: {l: %s}}\n"+
			"spec: {rules: [{matches: [{path: {value: %s}}]}]}\n", created, label, path)
	}
	w := start(t, map[string]string{"a.yaml": route("2001-01-01T00:00:00Z", "/a", "x")}, newWatcher)
	w.awaitSynced()
	get := func() *gatewayv1.HTTPRoute {
		return w.objects[objectKey{"HTTPRoute", "shop", "r"}].(*gatewayv1.HTTPRoute)
	}
	first := get()
	if first.UID == "forged" || first.Generation != 1 || first.CreationTimestamp.Unix() < 1_000_000 || first.CreationTimestamp.Unix() > 1_000_100 {
		t.Errorf("identity: %+v", first.ObjectMeta)
	}
	w.ids.mu.Lock()
	asked := w.ids.asked
	w.ids.mu.Unlock()
	w.write("a.yaml", route("1999-01-01T00:00:00Z", "/a", "z"))
	w.await("the label", func() bool { return get().Labels["l"] == "z" })
	if o := get(); o.Generation != 1 || o.UID != first.UID || !o.CreationTimestamp.Equal(&first.CreationTimestamp) {
		t.Errorf("after a label: %+v", o.ObjectMeta)
	}
	w.ids.mu.Lock()
	if w.ids.asked != asked {
		t.Error("a label asked for an identity")
	}
	w.ids.mu.Unlock()
	w.write("a.yaml", route("1999-01-01T00:00:00Z", "/b", "z"))
	w.await("the path", func() bool { return get().Generation == 2 })
	w.must(os.Remove(w.path("a.yaml")))
	w.await("gone", func() bool { return len(w.objects) == 0 })
	w.write("a.yaml", route("1999-01-01T00:00:00Z", "/b", "z"))
	w.await("back", func() bool { return len(w.objects) > 0 })
	if o := get(); o.UID == first.UID || o.Generation != 1 {
		t.Errorf("a new object has the old identity: %+v", o.ObjectMeta)
	}
}

// TestIdentitiesThatCannotBeHad: nothing is delivered without identity, nothing is lost, and it goes on by itself.
func TestIdentitiesThatCannotBeHad(t *testing.T) {
	t.Parallel()
	w := start(t, map[string]string{"a.yaml": service("a", 1)}, newWatcher)
	w.awaitSynced()
	w.ids.failWith(errors.New("no quorum"))
	w.write("a.yaml", service("a", 2))
	w.write("b.yaml", service("b", 1))
	w.write("c.yaml", "{broken")
	w.awaitProblem("c.yaml")
	if w.port("a") != 1 || w.port("b") != 0 {
		t.Error("delivered without identity")
	}
	w.ids.failWith(nil)
	w.awaitPort("a", 2)
	w.awaitPort("b", 1)
}

// TestFollowerMissesAVersion: the leader read the file before and after a version that this replica saw, and so never commits it.
func TestFollowerMissesAVersion(t *testing.T) {
	t.Parallel()
	w := start(t, map[string]string{"a.yaml": service("a", 1)}, newWatcher)
	w.awaitSynced()
	missed := parseFile("a", []byte(service("a", 2))).entries[0].specHash
	w.ids.mu.Lock()
	w.ids.waiting = make(chan struct{}, 100)
	w.ids.never = func(o store.IdentityObservation) bool {
		return o.Name == "a" && (o.SpecHash == missed || o.SpecHash == "")
	}
	w.ids.mu.Unlock()
	w.write("a.yaml", service("a", 2))
	<-w.ids.waiting
	w.write("b.yaml", "{broken")
	w.awaitProblem("b.yaml") // seen although an answer is outstanding
	w.write("a.yaml", service("a", 3))
	w.awaitPort("a", 3)
	w.must(os.Remove(w.path("a.yaml")))
	<-w.ids.waiting
	w.write("a.yaml", service("a", 4))
	w.awaitPort("a", 4)
}

func TestNamespaces(t *testing.T) {
	w := start(t, map[string]string{"a.yaml": service("a", 1)}, newWatcher)
	w.awaitSynced()
	labels := func() map[string]string {
		ns, ok := w.objects[objectKey{"Namespace", "", "shop"}].(*corev1.Namespace)
		if !ok {
			return nil
		}
		return ns.Labels
	}
	if labels()[namespaceNameLabel] != "shop" {
		t.Errorf("labels %v", labels())
	}
	w.write("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: blue}}\n")
	w.await("the label", func() bool { return labels()["team"] == "blue" && labels()[namespaceNameLabel] == "shop" })
	w.must(os.Remove(w.path("ns.yaml")))
	w.await("no label", func() bool { return labels() != nil && labels()["team"] == "" })
	w.neverDeleted("shop")
}

func TestStatus(t *testing.T) {
	w := start(t, map[string]string{"a.yaml": service("a", 1)}, newWatcher)
	w.awaitSynced()
	ctx, key := t.Context(), Status{Kind: "Service", Namespace: "shop", Name: "a"}
	read := func() (string, string) {
		status, version, err := w.source.ReadStatus(ctx, key.Kind, key.Namespace, key.Name)
		w.must(err)
		return string(status), version
	}
	if s, v := read(); s != "null" || v != "0" {
		t.Errorf("before any: %s at %s", s, v)
	}
	write := func(status, expect string) (string, error) {
		s := key
		s.Status, s.ResourceVersion = []byte(status), expect
		return w.source.WriteStatus(ctx, s)
	}
	v1, err := write(`{"conditions":[{"type":"X"}]}`, "0")
	w.must(err)
	if s, v := read(); s != `{"conditions":[{"type":"X"}]}` || v != v1 || v == "0" {
		t.Errorf("after a write: %s at %s", s, v)
	}
	if _, err := write(`{}`, "0"); !errors.Is(err, ErrConflict) {
		t.Errorf("a stale write: %v", err)
	}
	if same, err := write(`{"conditions": [{"type": "X"}]}`, ""); err != nil || same != v1 {
		t.Errorf("writing the same made %s of %s: %v", same, v1, err)
	}
	if _, err := write(`{`, ""); err == nil {
		t.Error("a status that is no JSON was written")
	}
	wrong := key
	wrong.UID, wrong.Status = "another", []byte(`{}`)
	if _, err := w.source.WriteStatus(ctx, wrong); !errors.Is(err, ErrNotFound) {
		t.Errorf("a write for another uid: %v", err)
	}
	file := filepath.Join(filepath.Dir(w.dir), "status", "Service", "shop", "a.yaml")
	data, err := os.ReadFile(file)
	w.must(err)
	if !strings.Contains(string(data), "kind: Service") || !strings.Contains(string(data), "generation: 1") {
		t.Errorf("the file says:\n%s", data)
	}
	w.must(os.Remove(w.path("a.yaml")))
	w.awaitPort("a", 0)
	if _, err := write(`{}`, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("a write for what is gone: %v", err)
	}
	w.await("the status goes with its object", func() bool { _, err := os.Stat(file); return errors.Is(err, os.ErrNotExist) })
}

// TestStatusOfWhatWentWhileNobodyLooked is removed at the start.
func TestStatusOfWhatWentWhileNobodyLooked(t *testing.T) {
	w := start(t, map[string]string{"a.yaml": service("a", 1), "b.yaml": service("b", 1)}, newWatcher)
	w.awaitSynced()
	for _, name := range []string{"a", "b"} {
		_, err := w.source.WriteStatus(t.Context(), Status{Kind: "Service", Namespace: "shop", Name: name, Status: []byte(`{}`)})
		w.must(err)
	}
	w.stop()
	w.must(os.Remove(w.path("a.yaml")))
	w.run(newWatcher)
	w.awaitSynced()
	file := filepath.Join(filepath.Dir(w.dir), "status", "Service", "shop", "a.yaml")
	w.await("removed", func() bool { _, err := os.Stat(file); return errors.Is(err, os.ErrNotExist) })
	if s, _, err := w.source.ReadStatus(t.Context(), "Service", "shop", "b"); err != nil || string(s) != "{}" {
		t.Errorf("the other's status: %s %v", s, err)
	}
}

// TestStatusOfManyWriters: with a precondition, of writers that race for one version exactly one wins each time.
func TestStatusOfManyWriters(t *testing.T) {
	dir := t.TempDir()
	object := &corev1.Service{}
	object.UID = "u"
	key := objectKey{"Service", "shop", "a"}
	const writers, rounds = 4, 25
	var wg sync.WaitGroup
	for i := range writers {
		replica := &statusDir{dir: dir} // each its own, as in another process
		wg.Go(func() {
			for won := 0; won < rounds; {
				f, err := replica.read(key, "u")
				if err != nil {
					t.Error(err)
					return
				}
				_, err = replica.write(key, object, fmt.Appendf(nil, `{"by":"%d-%d"}`, i, won), f.Metadata.ResourceVersion)
				switch {
				case err == nil:
					won++
				case !errors.Is(err, ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	f, err := (&statusDir{dir: dir}).read(key, "u")
	if err != nil || f.Metadata.ResourceVersion != fmt.Sprint(writers*rounds) {
		t.Errorf("%d writes made version %s: %v", writers*rounds, f.Metadata.ResourceVersion, err)
	}
}

// BenchmarkChange is the time from a file's close to the sink, in a directory of 1,000 objects. Only the changed file may be parsed.
func BenchmarkChange(b *testing.B) {
	files := map[string]string{}
	for i := range 1000 {
		files[fmt.Sprintf("%d/s%d.yaml", i%10, i)] = service(fmt.Sprintf("s%d", i), 80)
	}
	w := start(b, files, newWatcher)
	w.awaitSynced()
	port := 0
	for b.Loop() {
		port = port%60000 + 1
		w.write("7/s7.yaml", service("s7", port))
		for w.port("s7") != int32(port) {
			w.apply(<-w.told)
		}
	}
}

// TestRestartWhileAFileIsBroken: what was good before the restart stays, and a duplicate does not take over.
func TestRestartWhileAFileIsBroken(t *testing.T) {
	t.Parallel()
	w := start(t, map[string]string{"b.yaml": service("a", 1) + "---\n" + service("b", 1), "big.yaml": service("big", 1), "gone.yaml": service("gone", 1)}, newWatcher)
	w.awaitSynced()
	w.write("a.yaml", service("b", 7))
	w.awaitProblem("b.yaml:6 (document 2) already")
	w.write("c.yaml", service("c", 1))
	w.awaitPort("c", 1)
	w.stop()
	w.write("b.yaml", service("a", 2)+"---\n"+strings.Replace(service("b", 2), "port:", "prot:", 1))
	w.write("big.yaml", strings.Repeat("#", 2<<20))
	w.must(os.Remove(w.path("gone.yaml")))
	w.run(newWatcher)
	w.awaitSynced()
	if w.port("a") != 2 || w.port("b") != 1 || w.port("big") != 1 || w.port("c") != 1 || w.port("gone") != 0 {
		t.Errorf("a %d, b %d, big %d, c %d, gone %d", w.port("a"), w.port("b"), w.port("big"), w.port("c"), w.port("gone"))
	}
	w.awaitProblem("prot: unknown field")
	w.write("gone.yaml", "{broken")
	w.awaitProblem("gone.yaml")
	if w.port("gone") != 0 {
		t.Error("a broken file brought back what had been deleted")
	}
}

func TestSecretsAreNotKeptElsewhere(t *testing.T) {
	w := start(t, map[string]string{"a.yaml": "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {k: marker}\n"}, newWatcher)
	w.awaitSynced()
	w.stop()
	err := filepath.WalkDir(filepath.Join(filepath.Dir(w.dir), "status"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if data, err := os.ReadFile(path); err != nil || strings.Contains(string(data), "marker") {
			t.Errorf("%s holds the secret (%v)", path, err)
		}
		return nil
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// TestPipeDoesNotHangTheSource: a named pipe called like a manifest is a fault, not the end.
func TestPipeDoesNotHangTheSource(t *testing.T) {
	w := start(t, map[string]string{"a.yaml": service("a", 1)}, newWatcher)
	w.must(syscall.Mkfifo(w.path("pipe.yaml"), 0o600))
	w.awaitProblem("is no regular file")
	w.write("a.yaml", service("a", 2))
	w.awaitPort("a", 2)
}

// TestEndpointSlicesWaitForNoIdentity though a question for another object's identity is never answered: without a quorum they must get through.
func TestEndpointSlicesWaitForNoIdentity(t *testing.T) {
	slice := func(port int) string {
		return fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: d, labels: {v: p%d}}\naddressType: IPv4\nports: [{port: %d}]\nendpoints: []\n", port, port)
	}
	w := start(t, map[string]string{"slice.yaml": slice(1)}, newWatcher)
	w.awaitSynced()
	w.ids.mu.Lock()
	w.ids.waiting = make(chan struct{}, 1000)
	w.ids.never = func(o store.IdentityObservation) bool { return o.Kind == "Namespace" }
	w.ids.mu.Unlock()
	w.write("namespace.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: late}\n")
	<-w.ids.waiting
	w.write("slice.yaml", slice(2))
	w.await("the changed EndpointSlice", func() bool {
		for _, o := range w.objects {
			if o.GetName() == "s" && o.GetLabels()["v"] == "p2" {
				return true
			}
		}
		return false
	})
}
