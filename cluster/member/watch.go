package member

import "sync"

// happened is what befell a path. The last thing that befell it counts.
type happened uint8

const (
	written happened = iota // complete: the writer closed it, or it was moved here
	writing                 // somebody may still be writing
	removed                 // deleted, moved away, or never there
	noticed                 // a directory: look at it and all below it
	lost                    // events were lost, or a watched directory went: look at everything
)

// watcher tells what happens in directories. It is told directories one by one; adding one again is harmless.
type watcher interface {
	add(dir string) error
	close() error
}

// news collects what happened until the reader takes it. It holds each path once, so that a reader who is busy for long (no
// quorum) finds no backlog.
type news struct {
	mu    sync.Mutex
	paths map[string]happened
	ready chan struct{} // holds a token while there is something
}

func newNews() *news { return &news{paths: map[string]happened{}, ready: make(chan struct{}, 1)} }

func (n *news) put(path string, what happened) {
	n.mu.Lock()
	n.paths[path] = what
	n.mu.Unlock()
	select {
	case n.ready <- struct{}{}:
	default:
	}
}

func (n *news) take() map[string]happened {
	n.mu.Lock()
	defer n.mu.Unlock()
	taken := n.paths
	n.paths = map[string]happened{}
	return taken
}
