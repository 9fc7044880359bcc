package member

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tree is the files of all directories: what is known of each, and what has to be read again and when. It reads files, and
// has no clock and no goroutine of its own.
type tree struct {
	roots     []*root
	skip      string // the status directory, should it lie inside
	maxFile   int64
	inventory *inventory
	known     map[place]known
	pending   map[place]pending
	first     map[place]bool // found by the first look at its directory, and not read yet
	watched   map[string]bool
	unwatched []string       // found, and to be watched by the caller
	blind     map[place]bool // broken since they were seen first, and not remembered: what they held before is unknown
	memory    *memory
	good      map[place][]byte // contents without fault that the memory does not have yet; nil = the file is gone
}

// root is one of the directories.
type root struct {
	path  string
	state rootState
	ino   uint64 // of the directory as last seen
	fault error  // why it cannot be read
	// returned is when a directory that had vanished was last seen to change after it came back; zero = what it lacks is deleted.
	returned    time.Time
	lastRemoval time.Time
	lookAgain   time.Time // when the whole directory is looked at again although nothing happens; zero = never
}

type rootState uint8

const (
	unseen  rootState = iota // never read completely
	present                  // read
	absent                   // was read, and cannot be now: nothing in it is taken for deleted
)

// known is what a file was like when it was last read.
type known struct {
	modified time.Time
	size     int64
	ino      uint64
	hash     string // "" = it could not be read
	settled  bool   // its content was taken in
}

// pending is a file that is to be read again.
type pending struct {
	what  happened
	since time.Time // of the first event
	at    time.Time // of the last event
	ready time.Time // zero = decided by what
}

// newTree makes a tree of directories. status is the status directory, which is no place for manifests.
func newTree(dirs []string, status string, maxFile int64) *tree {
	t := &tree{
		memory: &memory{dir: filepath.Join(status, ".last-good")}, good: map[place][]byte{},
		skip: absolute(status), maxFile: maxFile, inventory: newInventory(), known: map[place]known{}, pending: map[place]pending{},
		first: map[place]bool{}, blind: map[place]bool{}, watched: map[string]bool{},
	}
	for _, dir := range dirs {
		t.roots = append(t.roots, &root{path: filepath.Clean(dir)})
	}
	t.inventory.holder = t.memory.holders()
	return t
}

// absolute makes paths comparable; where even that fails there is no working directory, and nothing can be read anyway.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return filepath.Clean(path)
}

// complete tells whether every directory was read once, and every file that was in it then.
func (t *tree) complete() bool {
	for _, r := range t.roots {
		if r.state == unseen {
			return false
		}
	}
	return len(t.first) == 0
}

// look takes in what happened and reads what is due. It returns directories that are not watched yet, and the objects that may have
// changed.
func (t *tree) look(now time.Time, what map[string]happened) (unwatched []string, changed []objectKey) {
	everything := false
	for _, path := range slices.Sorted(maps.Keys(what)) {
		if what[path] == lost {
			clear(t.watched)
			everything = true
			continue
		}
		t.note(now, path, what[path])
	}
	for i, r := range t.roots {
		if everything || !r.lookAgain.IsZero() && !r.lookAgain.After(now) {
			t.scanRoot(now, i)
		}
	}
	t.readDue(now)
	unwatched, t.unwatched = t.unwatched, nil
	if len(t.first) > 0 { // who holds what is decided once all files of the first look are known
		return unwatched, nil
	}
	return unwatched, t.inventory.settle()
}

// note takes in what happened to one path.
func (t *tree) note(now time.Time, path string, what happened) {
	i, ok := t.rootOf(path)
	if !ok {
		return
	}
	if r := t.roots[i]; !r.returned.IsZero() {
		r.returned, r.lookAgain = now, now.Add(returning)
	}
	switch {
	case isSwap(path): // a ConfigMap's files change by one rename of ..data, which their own names do not tell
		t.scanRoot(now, i)
	case what == noticed:
		t.scanBelow(now, i, path)
	case what == removed && !IsManifest(path):
		t.removeBelow(now, i, path)
	case !IsManifest(path):
		if what != removed && isDir(path) { // a link to a directory, or a watcher that does not tell
			t.scanBelow(now, i, path)
		}
	default:
		t.pend(now, place{i, path}, what)
	}
}

func (t *tree) pend(now time.Time, at place, what happened) {
	since := now
	if p, already := t.pending[at]; already {
		since = p.since
	}
	if what == removed {
		t.roots[at.dir].lastRemoval = now
	}
	t.pending[at] = pending{what: what, since: since, at: now}
}

// rootOf finds the directory that a path is in, the innermost where they are nested.
func (t *tree) rootOf(path string) (found int, ok bool) {
	for i, r := range t.roots {
		if within(path, r.path) && (!ok || len(r.path) > len(t.roots[found].path)) {
			found, ok = i, true
		}
	}
	return found, ok
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") || dir == "." && !filepath.IsAbs(path)
}

// IsManifest tells by its name whether a directory source reads a file: what is hidden, or an editor's copy, is none.
func IsManifest(path string) bool {
	base := filepath.Base(path)
	if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "#") || strings.HasSuffix(base, "~") {
		return false
	}
	switch filepath.Ext(base) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func isSwap(path string) bool { return filepath.Base(path) == "..data" }

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir() && !strings.HasPrefix(filepath.Base(path), ".")
}

// scanRoot looks at a whole directory. What it lacks is pending as removed, unless the directory itself is in doubt.
func (t *tree) scanRoot(now time.Time, i int) {
	r := t.roots[i]
	r.lookAgain = time.Time{}
	info, err := os.Stat(r.path)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory", r.path)
	}
	if err != nil {
		t.vanish(now, i, err)
		return
	}
	if r.state == absent || r.state == present && r.ino != inode(info) {
		r.returned = now
		t.unwatch(r.path)
	}
	r.ino = inode(info)
	w := &walk{tree: t, now: now, dir: i, first: r.state == unseen, seen: map[place]bool{}}
	w.visit(r.path, 0)
	r.fault = errors.Join(w.failed...)
	if r.fault != nil {
		r.lookAgain = now.Add(returning)
		if r.state == unseen {
			return
		}
	}
	r.state = present
	if !r.returned.IsZero() && !t.settledAgain(now, r, len(w.seen)) {
		return
	}
	t.missing(now, i, w)
}

// settledAgain tells whether a directory that had vanished may be believed in what it lacks: something is in it again, and nobody has
// been filling it for a while.
func (t *tree) settledAgain(now time.Time, r *root, files int) bool {
	if until := r.returned.Add(returning); files == 0 || now.Before(until) {
		if files > 0 {
			r.lookAgain = until
		}
		return false
	}
	r.returned = time.Time{}
	return true
}

// vanish notes that a directory cannot be read: everything in it stays as it is.
func (t *tree) vanish(now time.Time, i int, err error) {
	r := t.roots[i]
	r.fault = err
	r.lookAgain = now.Add(absentPoll)
	if r.state == present {
		r.state = absent
	}
	for at := range t.pending {
		if at.dir == i {
			delete(t.pending, at)
		}
	}
}

// missing makes the files that a look at the whole directory did not find pending as removed.
func (t *tree) missing(now time.Time, i int, w *walk) {
	for at := range t.known {
		if at.dir == i && !w.seen[at] && !w.unknown(at.path) {
			if p, already := t.pending[at]; !already || p.what != removed {
				t.pend(now, at, removed)
			}
		}
	}
}

func inode(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Ino)
	}
	return 0
}

// scanBelow looks at a directory inside of another.
func (t *tree) scanBelow(now time.Time, i int, path string) {
	if strings.HasPrefix(filepath.Base(path), ".") && path != t.roots[i].path {
		return
	}
	w := &walk{tree: t, now: now, dir: i, seen: map[place]bool{}}
	w.visit(path, 0)
}

// removeBelow makes all files below a directory pending as removed.
func (t *tree) removeBelow(now time.Time, i int, path string) {
	t.unwatch(path)
	for at := range t.known {
		if at.dir == i && within(at.path, path) {
			t.pend(now, at, removed)
		}
	}
}

func (t *tree) unwatch(path string) {
	for dir := range t.watched {
		if within(dir, path) {
			delete(t.watched, dir)
		}
	}
}

// walk is one look at a directory and all below it.
type walk struct {
	tree   *tree
	now    time.Time
	dir    int
	first  bool
	seen   map[place]bool
	failed []error
	blind  []string // directories that could not be read
}

// deepest bounds the walk where links make a circle.
const deepest = 16

func (w *walk) visit(path string, depth int) {
	if i, ok := w.tree.rootOf(path); !ok || i != w.dir || depth > deepest || absolute(path) == w.tree.skip {
		return
	}
	if !w.tree.watched[path] {
		w.tree.watched[path] = true
		w.tree.unwatched = append(w.tree.unwatched, path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		if depth == 0 || !errors.Is(err, fs.ErrNotExist) {
			w.failed = append(w.failed, err)
			w.blind = append(w.blind, path)
		}
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		w.entry(filepath.Join(path, e.Name()), e, depth)
	}
}

func (w *walk) entry(path string, e fs.DirEntry, depth int) {
	if e.IsDir() {
		w.visit(path, depth+1)
		return
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		w.visit(path, depth+1)
		return
	}
	if !IsManifest(path) || errors.Is(err, fs.ErrNotExist) {
		return
	}
	at := place{w.dir, path}
	w.seen[at] = true
	if err == nil && w.tree.known[at].same(info) {
		if p, waiting := w.tree.pending[at]; waiting && p.what == removed {
			delete(w.tree.pending, at)
		}
		return
	}
	if w.first {
		w.tree.first[at] = true
	}
	w.found(at, info)
}

// found makes a file pending that a look found changed. Nobody said that it is complete; what has been left alone for a while is.
func (w *walk) found(at place, info fs.FileInfo) {
	if p, already := w.tree.pending[at]; already && p.what != removed {
		return
	}
	p := pending{what: written, since: w.now, at: w.now}
	if info != nil {
		if age := w.now.Sub(info.ModTime()); age >= 0 && age < quiet {
			p.what = writing
			p.at = info.ModTime()
		}
	}
	w.tree.pending[at] = p
}

// unknown tells whether a path lies in a directory that could not be read.
func (w *walk) unknown(path string) bool {
	for _, dir := range w.blind {
		if within(path, dir) {
			return true
		}
	}
	return false
}

func (k known) same(info fs.FileInfo) bool {
	return k.settled && k.hash != "" && k.modified.Equal(info.ModTime()) && k.size == info.Size() && k.ino == inode(info)
}

// due is when a pending file is to be read.
func (t *tree) due(at place, p pending) time.Time {
	switch {
	case !p.ready.IsZero():
		return p.ready
	case p.what == writing && t.first[at]: // nothing is delivered before it is read: the wait has an end
		return earlier(p.at.Add(quiet), p.since.Add(longestGrace))
	case p.what == writing:
		return p.at.Add(quiet)
	case p.what == removed:
		due := p.at.Add(grace)
		if last := t.roots[at.dir].lastRemoval.Add(grace); last.After(due) {
			due = last
		}
		return earlier(due, p.since.Add(longestGrace))
	default:
		return p.at
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// nextDue is when look has something to do, although nothing happens; zero = never.
func (t *tree) nextDue() time.Time {
	var next time.Time
	consider := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	for at, p := range t.pending {
		consider(t.due(at, p))
	}
	for _, r := range t.roots {
		if !r.lookAgain.IsZero() {
			consider(r.lookAgain)
		}
	}
	return next
}

// readDue reads the files that are due, in order.
func (t *tree) readDue(now time.Time) {
	var due []place
	for at, p := range t.pending {
		if !t.due(at, p).After(now) {
			due = append(due, at)
		}
	}
	slices.SortFunc(due, comparePlaces)
	for _, at := range due {
		if p, still := t.pending[at]; still { // its directory may have turned out to be gone
			t.read(now, at, p)
		}
	}
}

// read takes a file in.
func (t *tree) read(now time.Time, at place, p pending) {
	delete(t.pending, at)
	content, info, err := t.load(at.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.absentFile(now, at, p)
		return
	case err != nil:
		t.recall(at)
		t.known[at] = known{}
		t.inventory.setProblems(at.path, []Problem{unreadable(at.path, err)})
		return
	case info.Size() > t.maxFile || int64(len(content)) > t.maxFile:
		t.recall(at)
		t.known[at] = stat(info, "too large", true)
		t.inventory.setProblems(at.path, []Problem{tooLarge(at.path, max(info.Size(), int64(len(content))), t.maxFile)})
		return
	}
	t.take(now, at, p, content, info)
}

func unreadable(path string, err error) Problem {
	return Problem{File: path, Message: fmt.Sprintf("the file cannot be read: %v. Its last good objects stay; make it readable, or delete it", err)}
}

// load reads a file, and no more of it than is allowed and a byte.
func (t *tree) load(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a named pipe must not hang the source
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no regular file", path)
	}
	content, err := io.ReadAll(io.LimitReader(f, t.maxFile+1))
	return content, info, err
}

func stat(info fs.FileInfo, hash string, settled bool) known {
	return known{info.ModTime(), info.Size(), inode(info), hash, settled}
}

// take parses a file's content and takes it in, now if it is good, and when it has been left alone for a while if it could be half a save.
func (t *tree) take(now time.Time, at place, p pending, content []byte, info fs.FileInfo) {
	hash := shortHash(content)
	before := t.known[at]
	if before.hash == hash && before.settled {
		t.known[at] = stat(info, hash, true)
		delete(t.first, at)
		return
	}
	file := parseFile(at.path, content)
	doubtful := len(file.problems) > 0 || len(file.entries) == 0 && len(t.inventory.files[at].entries) > 0
	if doubtful && p.ready.IsZero() && p.what != writing && !t.first[at] {
		t.known[at] = stat(info, hash, false)
		t.pending[at] = pending{what: written, since: p.since, at: now, ready: now.Add(quiet)}
		return
	}
	t.known[at] = stat(info, hash, true)
	if len(file.problems) > 0 {
		t.recall(at)
	} else {
		delete(t.blind, at)
		t.good[at] = content
		if holdsSecret(file) {
			t.good[at] = nil
		}
	}
	delete(t.first, at)
	t.inventory.set(at, file)
}

// recall takes in what a file was when it was last good, where this process never saw it so: it broke before the start.
func (t *tree) recall(at place) {
	if !t.first[at] {
		return
	}
	delete(t.first, at)
	if content := t.memory.recall(at.path); content != nil {
		before := parseFile(at.path, content)
		before.problems = nil
		t.inventory.set(at, before)
		return
	}
	t.blind[at] = true
}

// unknown are the objects of which nobody can tell whether they are there, and objectKey{} where every object may be: what a file that was broken
// from the first does not let one see is no proof of absence (D10).
func (t *tree) unknown() map[objectKey]bool {
	out := map[objectKey]bool{}
	for at := range t.blind {
		file, parsed := t.inventory.files[at]
		if !parsed || file.opaque {
			out[objectKey{}] = true
		}
		for key := range file.refused {
			out[key] = true
			if key.namespace != "" {
				out[objectKey{kind: "Namespace", name: key.namespace}] = true
			}
		}
	}
	for key := range out {
		if _, there := t.inventory.desired[key]; there {
			delete(out, key)
		}
	}
	return out
}

// holdsSecret tells whether a file may not be kept elsewhere too.
func holdsSecret(file parsed) bool {
	return slices.ContainsFunc(file.entries, func(e entry) bool { return e.key.kind == "Secret" })
}

// absentFile takes in that a file is not there: its objects are deleted, unless its whole directory is gone.
func (t *tree) absentFile(now time.Time, at place, p pending) {
	r := t.roots[at.dir]
	if info, err := os.Stat(r.path); err != nil || inode(info) != r.ino {
		t.scanRoot(now, at.dir)
		return
	}
	if p.what != removed { // it went between the event and now: a save may be under way
		t.pend(now, at, removed)
		return
	}
	delete(t.first, at)
	delete(t.known, at)
	delete(t.blind, at)
	t.good[at] = nil
	t.inventory.remove(at)
}

// problems lists everything that is wrong with files and directories.
func (t *tree) problems() []Problem {
	var all []Problem
	for _, r := range t.roots {
		switch {
		case r.fault != nil && r.state == unseen:
			all = append(all, Problem{File: r.path, Message: fmt.Sprintf("the directory of manifests cannot be read: %v. Create it or make it readable", r.fault)})
		case r.fault != nil:
			all = append(all, Problem{File: r.path, Message: fmt.Sprintf("the directory of manifests cannot be read any more: %v. Everything stays as it was; bring the directory back", r.fault)})
		case !r.returned.IsZero():
			all = append(all, Problem{File: r.path, Message: "the directory of manifests was gone and lacks files now. Their objects stay for the moment; if it stays empty, put the manifests back, or restart to accept that they are gone"})
		}
	}
	slices.SortFunc(all, func(a, b Problem) int { return cmp.Compare(a.File, b.File) })
	return append(all, sortProblems(append(t.inventory.allProblems(), t.inventory.advice()...))...)
}
