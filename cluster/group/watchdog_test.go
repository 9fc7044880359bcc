package group

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// TestLogThatCannotBeginItsNextFile: a full disk comes to light there first, because the log takes the space of a whole file at once. raft-wal does not try again, so a replica that went
// on would stay behind for ever, and answer proxies as if it did not.
func TestLogThatCannotBeginItsNextFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	open := func() *wal.WAL {
		w, err := wal.Open(dir, wal.WithSegmentSize(64<<10), wal.WithLogger(bridge(slog.New(slog.DiscardHandler))))
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	died := make(chan error, 100)
	entry := func(index uint64) *raft.Log { return &raft.Log{Index: index, Term: 1, Data: make([]byte, 4<<10)} }
	w := open()
	logs := &watchedLogs{LogStore: w, watchdog: watchdog{time.Minute, func(err error) { died <- err }}}
	if err := errors.Join(logs.StoreLog(entry(1)), os.Rename(dir, dir+".away")); err != nil { // nothing can be made in it any more; what is open is written on
		t.Fatal(err)
	}
	index := uint64(2)
	for ; index < 1000; index++ {
		if err := logs.StoreLog(entry(index)); err != nil {
			break
		}
	}
	select {
	case err := <-died:
		if !errors.Is(err, wal.ErrSealed) {
			t.Errorf("died of %v", err)
		}
	default:
		t.Errorf("entry %d was refused, and the replica goes on", index)
	}
	if err := errors.Join(w.Close(), os.Rename(dir+".away", dir)); err != nil {
		t.Fatal(err)
	}
	logs.LogStore = open()
	if err := logs.StoreLog(entry(index)); err != nil {
		t.Errorf("after a start: %v", err)
	}
	if last, err := logs.LastIndex(); err != nil || last != index {
		t.Errorf("the log ends at %d, want %d (%v)", last, index, err)
	}
	if err := logs.LogStore.(*wal.WAL).Close(); err != nil {
		t.Error(err)
	}
}

// fullDisk is a stable store that cannot write.
type fullDisk struct{ raft.StableStore }

func (fullDisk) SetUint64([]byte, uint64) error { return syscall.ENOSPC }

// TestTermThatCannotBeWritten: Raft panics then, with a trace that names no volume.
func TestTermThatCannotBeWritten(t *testing.T) {
	var died error
	s := watchedStable{fullDisk{}, watchdog{time.Minute, func(err error) { died = err }}}
	if err := s.SetUint64([]byte("CurrentTerm"), 2); !errors.Is(err, syscall.ENOSPC) || !errors.Is(died, syscall.ENOSPC) {
		t.Errorf("%v, died of %v", err, died)
	}
}
