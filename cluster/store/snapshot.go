package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

// WriteSnapshot streams the whole file as it is at one index, followed by its SHA-256. It does not hold up the log; it gives the index.
func (s *Store) WriteSnapshot(w io.Writer) (index uint64, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		meta, err := readMeta(tx)
		if err != nil {
			return err
		}
		index = meta.Applied
		h := sha256.New()
		if _, err := tx.WriteTo(io.MultiWriter(w, h)); err != nil {
			return fmt.Errorf("streaming the store: %w", err)
		}
		if _, err := w.Write(h.Sum(nil)); err != nil {
			return fmt.Errorf("streaming the store: %w", err)
		}
		return nil
	})
	return index, err
}

// Restore replaces the state by a snapshot: the file is written and checked beside the present one, then swapped in. Readers of the old one are
// not held up and not cut off; it is closed when the last has left. Subscribers get one event with Reset.
func (s *Store) Restore(r io.Reader) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return s.failed
	}
	tmp := s.restorePath()
	if err := receive(tmp, r); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	db, m, err := openSnapshot(tmp)
	if err != nil {
		return errors.Join(fmt.Errorf("the received snapshot: %w", err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, s.path); err != nil {
		return errors.Join(fmt.Errorf("putting the snapshot in place: %w", err), db.Close())
	}
	s.swap(db, m)
	if err := syncDir(filepath.Dir(s.path)); err != nil {
		s.failed = err // the next start may find the old file: nothing must be built on the new one
		return err
	}
	return nil
}

func openSnapshot(path string) (*bolt.DB, *memory, error) {
	db, err := openFile(path)
	if err != nil {
		return nil, nil, err
	}
	m, err := load(db, nil)
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, m, nil
}

// swap puts another file and its memory in place, and closes the old file when its readers have left.
func (s *Store) swap(db *bolt.DB, m *memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open.Lock()
	old := s.handle
	s.handle = &handle{db: db}
	s.open.Unlock()
	s.closing.Go(func() {
		old.readers.Wait()
		if err := old.db.Close(); err != nil {
			s.log.Warn("closing the replaced store", "err", err)
		}
	})
	s.mem, s.applied = m, m.applied
	s.publish([]Event{{Index: m.applied, Reset: true, TableMoved: true, FleetMoved: true}})
}

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening %s to sync it: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

// receive writes everything but the trailing checksum to file, and compares it.
func receive(file string, r io.Reader) (err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("receiving a snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.Copy(f, r)
	if err != nil {
		return fmt.Errorf("receiving a snapshot: %w", err)
	}
	body := n - sha256.Size
	if body <= 0 {
		return fmt.Errorf("receiving a snapshot: %w: it has only %d bytes", ErrCorrupt, n)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, body)); err != nil {
		return fmt.Errorf("checking a snapshot: %w", err)
	}
	sum := make([]byte, sha256.Size)
	if _, err := f.ReadAt(sum, body); err != nil {
		return fmt.Errorf("checking a snapshot: %w", err)
	}
	if string(sum) != string(h.Sum(nil)) {
		return fmt.Errorf("the received snapshot: %w", ErrCorrupt)
	}
	if err := f.Truncate(body); err != nil {
		return fmt.Errorf("receiving a snapshot: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("receiving a snapshot: %w", err)
	}
	return nil
}
