package member

import (
	"os"
	"strings"
	"testing"
)

// doubted is what the sink was told last of what may be there.
func (w *world) doubted(key objectKey) bool {
	last := false
	for _, e := range w.events {
		if e.Kind == key.kind && e.Namespace == key.namespace && e.Name == key.name {
			last = e.Unknown
		}
	}
	return last
}

// TestFileBrokenFromTheFirstIsUnknown: what a file that was never seen good held before is unknown, not absent, until it is mended.
func TestFileBrokenFromTheFirstIsUnknown(t *testing.T) {
	everything, b := objectKey{}, objectKey{"Service", "shop", "b"}
	bad := strings.Replace(service("b", 1), "port:", "prot:", 1)
	bothWatchers(t, func(t *testing.T, watch func(*news) (watcher, error)) {
		w := start(t, map[string]string{"a.yaml": service("a", 1), "broken.yaml": "{broken"}, watch)
		w.awaitSynced()
		if !w.doubted(everything) || w.port("a") != 1 {
			t.Fatalf("the first view does not say that anything may be in the broken file: %v", w.events)
		}
		w.write("broken.yaml", bad)
		w.await("only what the file names is unknown", func() bool { return w.doubted(b) && !w.doubted(everything) })
		w.write("broken.yaml", service("b", 2))
		w.awaitPort("b", 2)
		if w.doubted(b) || w.doubted(everything) {
			t.Errorf("something is unknown after the file was mended: %v", w.events)
		}
		w.neverDeleted("b")

		w.write("broken.yaml", bad) // now it is remembered, also over a restart
		w.awaitProblem("Service shop/b")
		w.run(watch)
		w.awaitSynced()
		if w.port("b") != 2 || w.doubted(b) {
			t.Errorf("after a restart b is %d, unknown %v", w.port("b"), w.doubted(b))
		}
	})
}

// TestBrokenFileThatIsDeletedIsAbsent: whoever deletes the file says what he wants.
func TestBrokenFileThatIsDeletedIsAbsent(t *testing.T) {
	bothWatchers(t, func(t *testing.T, watch func(*news) (watcher, error)) {
		w := start(t, map[string]string{"broken.yaml": "{broken"}, watch)
		w.awaitSynced()
		w.must(os.Remove(w.path("broken.yaml")))
		w.await("nothing is unknown any more", func() bool { return !w.doubted(objectKey{}) })
	})
}
