package member

import (
	"fmt"

	"github.com/fsnotify/fsnotify"
)

// portable is a watcher for systems that do not tell when a writer closes its file: all it can say is that somebody is
// writing, so that a change takes effect when the file has been quiet for a moment.
type portable struct {
	inner *fsnotify.Watcher
	news  *news
	done  chan struct{}
}

func newPortableWatcher(news *news) (watcher, error) {
	inner, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("starting to watch files: %w", err)
	}
	w := &portable{inner, news, make(chan struct{})}
	go w.read()
	return w, nil
}

func (w *portable) add(dir string) error {
	if err := w.inner.Add(dir); err != nil {
		return fmt.Errorf("watching %s: %w", dir, err)
	}
	return nil
}

func (w *portable) close() error {
	err := w.inner.Close()
	<-w.done
	return err
}

func (w *portable) read() {
	defer close(w.done)
	for {
		select {
		case e, ok := <-w.inner.Events:
			if !ok {
				return
			}
			w.event(e)
		case _, ok := <-w.inner.Errors:
			if !ok {
				return
			}
			w.news.put("", lost)
		}
	}
}

func (w *portable) event(e fsnotify.Event) {
	switch {
	case e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename):
		w.news.put(e.Name, removed)
	case e.Has(fsnotify.Create) || e.Has(fsnotify.Write):
		w.news.put(e.Name, writing)
	}
}
