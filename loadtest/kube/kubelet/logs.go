// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxLine and maxSegment bound what a container can make the kubelet hold in memory and on disk: a log is its last one or two segments.
const (
	maxLine    = 16 << 10
	maxSegment = 16 << 20
)

// containerLog is what one run of a container wrote, one line each: time, stream, F (or P, where a line was cut), text, as container runtimes write it.
type containerLog struct {
	path string

	mu       sync.Mutex
	file     *os.File      // nil once closed
	segments int           // how many there were before this one; path.N is the file of segment N
	size     int64         // of the current segment
	changed  chan struct{} // closed and replaced with each change
	writers  sync.WaitGroup
}

func newLog(path string) (*containerLog, error) {
	l := &containerLog{path: path, changed: make(chan struct{})}
	f, err := os.Create(l.segment(0))
	if err != nil {
		return nil, fmt.Errorf("making a container's log: %w", err)
	}
	l.file = f
	return l, nil
}

func (l *containerLog) segment(n int) string { return fmt.Sprintf("%s.%d", l.path, n) }

// pipe gives the write end for a container's stream; what arrives is logged until all its writers have closed.
func (l *containerLog) pipe(stream string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a container's %s: %w", stream, err)
	}
	l.writers.Go(func() {
		defer func() { _ = r.Close() }()
		lines := bufio.NewReaderSize(r, maxLine)
		for {
			text, err := lines.ReadSlice('\n')
			if len(text) > 0 {
				l.write(time.Now(), stream, text)
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
		}
	})
	return w, nil
}

func (l *containerLog) write(now time.Time, stream string, text []byte) {
	tag := "P"
	if text[len(text)-1] == '\n' {
		tag, text = "F", text[:len(text)-1]
	}
	line := fmt.Appendf(nil, "%s %s %s %s\n", now.Format(time.RFC3339Nano), stream, tag, text)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(line)) > maxSegment {
		l.rotate()
	}
	n, _ := l.file.Write(line) // a full disk loses log lines, not containers
	l.size += int64(n)
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *containerLog) rotate() {
	next, err := os.Create(l.segment(l.segments + 1))
	if err != nil {
		return // go on with the long one
	}
	_ = l.file.Close()
	if l.segments > 0 {
		_ = os.Remove(l.segment(l.segments - 1)) // what stays only takes room
	}
	l.file, l.size = next, 0
	l.segments++
}

// close waits for what the container has written last.
func (l *containerLog) close() {
	l.writers.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.file.Close()
	l.file = nil
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *containerLog) remove() {
	for n := max(0, l.segments-1); n <= l.segments; n++ {
		_ = os.Remove(l.segment(n)) // what stays goes with the pod
	}
}

// state says how far the log goes: segment, its size, whether more can come, and what is closed with the next change.
func (l *containerLog) state() (segment int, size int64, open bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.segments, l.size, l.file != nil, l.changed
}

// read calls f with each line, from the oldest kept one on, and with follow until the container ends or ctx does.
func (l *containerLog) read(ctx context.Context, follow bool, f func(line string) error) error {
	last, _, _, _ := l.state()
	for n := max(0, last-1); ; n++ {
		more, err := l.readSegment(ctx, n, follow, f)
		if err != nil || !more {
			return err
		}
	}
}

// readSegment reads one segment to its end and says whether there is a next one.
func (l *containerLog) readSegment(ctx context.Context, n int, follow bool, f func(line string) error) (bool, error) {
	file, err := os.Open(l.segment(n))
	if err != nil {
		return false, fmt.Errorf("reading a container's log: %w", err)
	}
	defer func() { _ = file.Close() }()
	var offset int64
	for {
		segment, size, open, changed := l.state()
		if segment > n {
			info, err := file.Stat()
			if err != nil {
				return false, fmt.Errorf("reading a container's log: %w", err)
			}
			size = info.Size()
		}
		if err := eachLine(io.NewSectionReader(file, offset, size-offset), f); err != nil {
			return false, err
		}
		offset = size
		if segment > n {
			return true, nil
		}
		if !follow || !open {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-changed:
		}
	}
}

func eachLine(r io.Reader, f func(string) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 2*maxLine)
	for lines.Scan() {
		if err := f(lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// logOptions are the options of `kubectl logs` as they come in a request.
type logOptions struct {
	follow, timestamps, previous bool
	since                        time.Time
	tail, limit                  int64 // -1: no limit
}

func parseLogOptions(q url.Values, now time.Time) (logOptions, error) {
	o := logOptions{follow: q.Get("follow") == "true", timestamps: q.Get("timestamps") == "true", previous: q.Get("previous") == "true", tail: -1, limit: -1}
	for name, into := range map[string]*int64{"tailLines": &o.tail, "limitBytes": &o.limit} {
		if s := q.Get(name); s != "" {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil || n < 0 {
				return o, fmt.Errorf("%s=%q is not a number", name, s)
			}
			*into = n
		}
	}
	if s := q.Get("sinceSeconds"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return o, fmt.Errorf("sinceSeconds=%q is not a number", s)
		}
		o.since = now.Add(-time.Duration(n) * time.Second)
	}
	if s := q.Get("sinceTime"); s != "" {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return o, fmt.Errorf("sinceTime=%q is not a time", s)
		}
		o.since = t
	}
	return o, nil
}

var errEnough = errors.New("enough")

// send writes the log as the options ask for it.
func (l *containerLog) send(ctx context.Context, w io.Writer, o logOptions) error {
	skip, err := l.toSkip(ctx, o)
	if err != nil {
		return err
	}
	err = l.read(ctx, o.follow, func(line string) error {
		if !o.wants(line) {
			return nil
		}
		if skip > 0 {
			skip--
			return nil
		}
		return o.writeLine(w, line)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// toSkip counts the lines before the last ones that were asked for.
func (l *containerLog) toSkip(ctx context.Context, o logOptions) (int64, error) {
	if o.tail < 0 {
		return 0, nil
	}
	count := int64(0)
	err := l.read(ctx, false, func(line string) error {
		if o.wants(line) {
			count++
		}
		return nil
	})
	return max(0, count-o.tail), err
}

func (o *logOptions) wants(line string) bool {
	if o.since.IsZero() {
		return true
	}
	stamp, _, _ := strings.Cut(line, " ")
	t, err := time.Parse(time.RFC3339Nano, stamp)
	return err == nil && !t.Before(o.since)
}

// writeLine writes one line and counts it against the limit.
func (o *logOptions) writeLine(w io.Writer, line string) error {
	parts := strings.SplitN(line, " ", 4)
	if len(parts) < 4 {
		return nil
	}
	text := parts[3]
	if parts[2] == "F" {
		text += "\n"
	}
	if o.timestamps {
		text = parts[0] + " " + text
	}
	if o.limit >= 0 {
		text = text[:min(int64(len(text)), o.limit)]
		o.limit -= int64(len(text))
	}
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("sending a log: %w", err)
	}
	if o.follow {
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
	}
	if o.limit == 0 {
		return errEnough
	}
	return nil
}
