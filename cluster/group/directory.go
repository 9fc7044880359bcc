package group

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"
)

// formatVersion is the version of the directory's layout.
const formatVersion = 1

// server is a member as it is written down.
type server struct {
	ID      string `json:"id"`
	Address string `json:"address"` // host:port#incarnation
}

// membership is what a replica remembers of the group, in the file group.json.
type membership struct {
	Version   int      `json:"version"`
	ClusterID string   `json:"clusterID,omitempty"`
	Candidate string   `json:"candidate,omitempty"` // the id that this replica put into a Marker's contest
	Initial   []server `json:"initial,omitempty"`   // the voters that the group began with, known to those who began it
	Joined    bool     `json:"joined"`              // this disk holds a member's memory: it may vote
}

// directory is a replica's own directory, locked for as long as it is open.
type directory struct {
	path string
	lock *os.File
}

func openDirectory(path string) (*directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the data directory: %w: choose one that this user may write", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the data directory: %w: choose one that this user may write", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("%s: %w: stop that process, or choose another data directory", path, ErrInUse)
	}
	d := &directory{path: path, lock: lock}
	if err := d.sweep(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// sweep removes copies of the store that were on their way to or from another replica when this one was killed.
func (d *directory) sweep() error {
	all, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("looking for unfinished snapshots: %w", err)
	}
	for _, e := range all {
		if !strings.HasPrefix(e.Name(), "snapshot.") {
			continue
		}
		if err := os.Remove(d.file(e.Name())); err != nil {
			return fmt.Errorf("removing an unfinished snapshot: %w", err)
		}
	}
	return nil
}

func (d *directory) close() error { return d.lock.Close() }

func (d *directory) file(name string) string { return filepath.Join(d.path, name) }

// incarnation is the first eight hex digits of a UUID that lives as long as this disk does.
func (d *directory) incarnation() (string, error) {
	file := d.file("incarnation")
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		raw = []byte(uuid.NewString())
		err = writeDurably(file, raw)
	}
	if err != nil {
		return "", fmt.Errorf("incarnation of the data directory: %w", err)
	}
	id, err := uuid.Parse(strings.TrimSpace(string(raw)))
	if err != nil {
		return "", fmt.Errorf("%w: %s: %v: empty the data directory; the replica then joins the group anew", ErrDamaged, file, err)
	}
	return id.String()[:8], nil
}

func (d *directory) membership() (membership, error) {
	m := membership{Version: formatVersion}
	raw, err := os.ReadFile(d.file("group.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("reading what is known of the group: %w", err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%w: %s: %v: empty the data directory; the replica then joins the group anew", ErrDamaged, d.file("group.json"), err)
	}
	if m.Version > formatVersion {
		return m, fmt.Errorf("%s: %w: it has format %d, this build knows up to %d: run the newer version here", d.path, ErrNewer, m.Version, formatVersion)
	}
	return m, nil
}

func (d *directory) save(m membership) error {
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := writeDurably(d.file("group.json"), raw); err != nil {
		return fmt.Errorf("writing down what is known of the group: %w", err)
	}
	return nil
}

// writeDurably replaces a file so that after a crash either the old or the new content is there.
func writeDurably(file string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
