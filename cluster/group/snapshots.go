package group

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/hashicorp/raft"
)

// snapshots shows the store to Raft as if it were a snapshot that is always current: Raft then replays only what the store lacks, and
// a follower that is far behind gets a copy of the store.
type snapshots struct {
	dir     *directory
	machine *machine
	logs    raft.LogStore
}

// Names of the two snapshots that can be opened.
const (
	current  = "store"    // the store as it is
	incoming = "incoming" // what a leader sent, before it is restored
)

// received is what is remembered of a snapshot that a leader sent: the log that knew its term is gone.
type received struct {
	Index, Term uint64
}

// List implements raft.SnapshotStore.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	index := s.machine.store.Applied()
	if index == 0 {
		return nil, nil
	}
	meta, err := s.meta(index)
	if err != nil {
		return nil, err
	}
	return []*raft.SnapshotMeta{meta}, nil
}

func (s *snapshots) meta(index uint64) (*raft.SnapshotMeta, error) {
	term, err := s.term(index)
	if err != nil {
		return nil, err
	}
	c, ok := s.machine.configAt(index)
	if !ok {
		return nil, fmt.Errorf("%w: the store holds index %d without the group's configuration: empty the data directory; the replica then joins anew", ErrDamaged, index)
	}
	return &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, ID: current, Index: index, Term: term,
		Configuration: raft.Configuration{Servers: c.Servers}, ConfigurationIndex: c.Index}, nil
}

// term is the term of an applied entry: from the log, or from the snapshot that brought it.
func (s *snapshots) term(index uint64) (uint64, error) {
	var l raft.Log
	logErr := s.logs.GetLog(index, &l)
	if logErr == nil {
		return l.Term, nil
	}
	for _, r := range s.received() {
		if r.Index == index {
			return r.Term, nil
		}
	}
	return 0, fmt.Errorf("%w: neither log nor snapshot knows the term of index %d (%v): empty the data directory; the replica then joins anew", ErrDamaged, index, logErr)
}

// received are the last snapshots that came in, oldest first.
func (s *snapshots) received() (all []received) {
	raw, err := os.ReadFile(s.dir.file("received.json"))
	if err != nil || json.Unmarshal(raw, &all) != nil {
		return nil
	}
	return all
}

// Open implements raft.SnapshotStore. The current store is copied to a file first, because Raft wants its size before its bytes.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if id == incoming {
		f, err := os.Open(s.dir.file("snapshot.incoming"))
		if err != nil {
			return nil, nil, err
		}
		info, err := f.Stat()
		if err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
		return &raft.SnapshotMeta{ID: incoming, Size: info.Size()}, &spool{f}, nil
	}
	f, err := os.CreateTemp(s.dir.path, "snapshot.out-*")
	if err != nil {
		return nil, nil, fmt.Errorf("spooling a snapshot: %w", err)
	}
	meta, err := s.spool(f)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("spooling a snapshot: %w", err), (&spool{f}).Close())
	}
	return meta, &spool{f}, nil
}

func (s *snapshots) spool(f *os.File) (*raft.SnapshotMeta, error) {
	w := bufio.NewWriterSize(f, 1<<20)
	index, err := s.machine.store.WriteSnapshot(w)
	if err = errors.Join(err, w.Flush()); err != nil {
		return nil, err
	}
	meta, err := s.meta(index)
	if err != nil {
		return nil, err
	}
	if meta.Size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return meta, err
}

// spool is a file that goes when it is closed.
type spool struct{ *os.File }

func (s *spool) Close() error { return errors.Join(s.File.Close(), os.Remove(s.Name())) }

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(_ raft.SnapshotVersion, index, term uint64, _ raft.Configuration, _ uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &arrival{s: s, at: received{Index: index, Term: term}}, nil
}

// arrival takes a snapshot that a leader sends. A replica's own snapshot writes nothing into it: the store is that snapshot.
type arrival struct {
	s    *snapshots
	at   received
	file *os.File
}

func (a *arrival) ID() string {
	if a.file == nil {
		return current
	}
	return incoming
}

func (a *arrival) Write(p []byte) (int, error) {
	if a.file == nil {
		f, err := os.Create(a.s.dir.file("snapshot.incoming"))
		if err != nil {
			return 0, err
		}
		a.file = f
	}
	return a.file.Write(p)
}

// Close makes the snapshot durable, and its term before it: once the store is replaced the log is emptied.
func (a *arrival) Close() error {
	if a.file == nil {
		return nil
	}
	all := slices.DeleteFunc(a.s.received(), func(r received) bool { return r.Index != a.s.machine.store.Applied() })
	raw, err := json.Marshal(append(all, a.at)) // what the store holds counts until this one is restored, which may fail any number of times
	if err != nil {
		return err
	}
	return errors.Join(a.file.Sync(), a.file.Close(), writeDurably(a.s.dir.file("received.json"), raw))
}

func (a *arrival) Cancel() error {
	if a.file == nil {
		return nil
	}
	return errors.Join(a.file.Close(), os.Remove(a.file.Name()))
}
