package group

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// watchdog stops the process when a disk operation hangs, or has failed for good. A leader whose disk hangs keeps its office otherwise, because Raft sends
// heartbeats from goroutines of their own: in a trial of 10 s no write succeeded and no follower was elected.
type watchdog struct {
	limit time.Duration
	fatal func(error)
}

// watch begins an operation; the function that it returns ends it.
func (w watchdog) watch(what string) func() bool {
	return time.AfterFunc(w.limit, func() {
		w.fatal(fmt.Errorf("%s has taken longer than %s: the disk hangs; look at the volume of the data directory", what, w.limit))
	}).Stop
}

// watchedLogs is a log store under a watchdog that is never cut above what the state machine holds: the entry of the applied index
// stays, since it knows the term that a snapshot needs.
type watchedLogs struct {
	raft.LogStore
	watchdog
	applied func() uint64
}

// IsMonotonic says whether the store refuses gaps.
func (l *watchedLogs) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// StoreLog implements raft.LogStore.
func (l *watchedLogs) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore.
func (l *watchedLogs) StoreLogs(logs []*raft.Log) error {
	defer l.watch("writing the log")()
	err := l.LogStore.StoreLogs(logs)
	if errors.Is(err, wal.ErrSealed) { // raft-wal could not begin its next file, and tries again only when it is opened: waiting mends nothing
		l.fatal(fmt.Errorf("writing the log: its next file could not be begun, as when the disk is full: %w; free space on the volume of the data directory: with the next start the log goes on", err))
	}
	return err
}

// DeleteRange implements raft.LogStore.
func (l *watchedLogs) DeleteRange(from, to uint64) error {
	defer l.watch("cutting the log")()
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	if to < last { // the head is cut; else it is a conflicting tail, or everything after a snapshot came in
		if applied := l.applied(); to >= applied {
			if applied <= from {
				return nil
			}
			to = applied - 1
		}
	}
	return l.LogStore.DeleteRange(from, to)
}

// watchedStable is a stable store under a watchdog.
type watchedStable struct {
	raft.StableStore
	watchdog
}

// Set implements raft.StableStore.
func (s watchedStable) Set(key, value []byte) error {
	defer s.watch("writing a vote")()
	return s.StableStore.Set(key, value)
}

// SetUint64 implements raft.StableStore.
func (s watchedStable) SetUint64(key []byte, value uint64) error {
	defer s.watch("writing the term")()
	err := s.StableStore.SetUint64(key, value)
	if err != nil { // Raft panics
		s.fatal(fmt.Errorf("writing the term: %w: look at the volume of the data directory, whether it is full or broken; without a term that is written down this replica may not vote", err))
	}
	return err
}
