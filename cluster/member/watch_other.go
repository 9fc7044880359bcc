//go:build !linux

package member

func newWatcher(news *news) (watcher, error) { return newPortableWatcher(news) }
