package member

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// inotify is a watcher that knows when a writer closed its file. fsnotify keeps that event to itself (v1.9), and without it there are
// only bad choices: read at the first write, and take a file that its editor has just truncated for a deletion of all its
// routes; or wait at every change until it has been quiet for a while, which D9 forbids.
type inotify struct {
	file *os.File
	news *news
	done chan struct{}

	mu   sync.Mutex
	dirs map[int32]string // by watch descriptor
}

const inotifyMask = unix.IN_CLOSE_WRITE | unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM |
	unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

func newWatcher(news *news) (watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("starting inotify: %w. Raise the sysctl fs.inotify.max_user_instances", err)
	}
	w := &inotify{file: os.NewFile(uintptr(fd), "inotify"), news: news, done: make(chan struct{}), dirs: map[int32]string{}}
	go w.read()
	return w, nil
}

func (w *inotify) add(dir string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	raw, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("watching %s: %w", dir, err)
	}
	var added int
	var failed error
	if err := raw.Control(func(fd uintptr) { added, failed = unix.InotifyAddWatch(int(fd), dir, inotifyMask) }); err != nil {
		failed = err
	}
	if failed != nil {
		if errors.Is(failed, unix.ENOSPC) {
			return fmt.Errorf("watching %s: %w. Raise the sysctl fs.inotify.max_user_watches", dir, failed)
		}
		return fmt.Errorf("watching %s: %w", dir, failed)
	}
	w.dirs[int32(added)] = dir
	return nil
}

func (w *inotify) close() error {
	err := w.file.Close()
	<-w.done
	return err
}

// read runs until the file is closed.
func (w *inotify) read() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(rest[0:4]))
			mask := binary.NativeEndian.Uint32(rest[4:8])
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:16]))
			name := string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:end], "\x00"))
			w.event(wd, mask, name)
			rest = rest[end:]
		}
	}
}

func (w *inotify) event(wd int32, mask uint32, name string) {
	w.mu.Lock()
	dir := w.dirs[wd]
	if mask&unix.IN_IGNORED != 0 {
		delete(w.dirs, wd)
	}
	w.mu.Unlock()
	path := filepath.Join(dir, name)
	switch {
	case mask&unix.IN_Q_OVERFLOW != 0:
		w.news.put("", lost)
	case dir == "":
	case mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0:
		w.news.put("", lost)
	case mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
		w.news.put(path, removed)
	case mask&unix.IN_ISDIR != 0 && mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		w.news.put(path, noticed)
	case mask&(unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO) != 0:
		w.news.put(path, written)
	case mask&(unix.IN_CREATE|unix.IN_MODIFY) != 0:
		w.news.put(path, writing)
	}
}
