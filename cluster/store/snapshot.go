package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	bolt "go.etcd.io/bbolt"
)

// WriteSnapshot streams the whole file as it is at one index, followed by its SHA-256. It does not hold up the log; it gives the index.
func (s *Store) WriteSnapshot(w io.Writer) (index uint64, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		var meta metaValue
		if v := tx.Bucket(bucketMeta).Get(metaState); v != nil {
			if err := unframe("applied index", v, &meta); err != nil {
				return err
			}
		}
		index = meta.Applied
		h := sha256.New()
		if _, err := tx.WriteTo(io.MultiWriter(w, h)); err != nil {
			return fmt.Errorf("streaming the store: %w", err)
		}
		_, err := w.Write(h.Sum(nil))
		return err
	})
	return index, err
}

// Restore replaces the state by a snapshot: the file is written and checked beside the present one, then swapped in. Readers of the old one are
// not held up and not cut off; it is closed when the last has left. Subscribers get one event with Reset.
func (s *Store) Restore(r io.Reader) error {
	tmp := s.path + ".restore"
	if err := receive(tmp, r); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	db, err := openFile(tmp)
	if err != nil {
		return err
	}
	m, err := load(db)
	if err != nil {
		return errors.Join(fmt.Errorf("the received snapshot: %w", err), db.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(tmp, s.path); err != nil {
		return errors.Join(fmt.Errorf("putting the snapshot in place: %w", err), db.Close())
	}
	old := s.handle.Swap(&handle{db: db})
	go func() {
		old.readers.Wait()
		if err := old.db.Close(); err != nil {
			s.log.Warn("closing the replaced store", "err", err)
		}
	}()
	s.mem = m
	clear(s.hashes)
	s.remember(m.applied)
	s.publish([]Event{{Index: m.applied, Reset: true, TableMoved: true, FleetMoved: true}})
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
