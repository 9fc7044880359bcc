package group

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/hashicorp/raft"
)

// configuration is the blob that goes with a configuration entry into the store, so that the store is a whole snapshot.
type configuration struct {
	Index   uint64        `json:"index"`
	Servers []raft.Server `json:"servers"`
}

// machine is the thin adapter between Raft and the store.
type machine struct {
	store StateMachine
	watchdog

	mu      sync.Mutex
	broken  error           // set once the store failed: nothing is applied after it
	configs []configuration // the newest few, oldest first
}

// keptConfigs is how many configurations are remembered: a snapshot is taken at an index not much older than the newest.
const keptConfigs = 16

func newMachine(s StateMachine, w watchdog) (*machine, error) {
	m := &machine{store: s, watchdog: w}
	return m, m.reload()
}

// reload reads the configuration that the store holds.
func (m *machine) reload() error {
	raw, err := m.store.Config()
	if err != nil {
		return fmt.Errorf("reading the group's configuration from the store: %w", err)
	}
	if raw == nil {
		return nil
	}
	var c configuration
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("%w: the group's configuration in the store: %v", ErrDamaged, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.configs = []configuration{c}
	return nil
}

// configAt is the configuration that held at an index.
func (m *machine) configAt(index uint64) (configuration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := len(m.configs) - 1; i >= 0; i-- {
		if m.configs[i].Index <= index {
			return m.configs[i], true
		}
	}
	return configuration{}, false
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM: one transaction for all.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	results, err := m.apply(logs)
	for i := range out {
		if err != nil {
			out[i] = err
		} else {
			out[i] = results[i]
		}
	}
	return out
}

func (m *machine) apply(logs []*raft.Log) ([]store.Result, error) {
	m.mu.Lock()
	broken := m.broken
	m.mu.Unlock()
	if broken != nil {
		return nil, broken
	}
	entries := make([]store.Entry, len(logs))
	var configs []configuration
	for i, l := range logs {
		entries[i] = store.Entry{Index: l.Index, Term: l.Term}
		if l.Type != raft.LogConfiguration {
			entries[i].Data = l.Data
			continue
		}
		c := configuration{Index: l.Index, Servers: raft.DecodeConfiguration(l.Data).Servers}
		raw, err := json.Marshal(c)
		if err != nil {
			return nil, m.fail(err)
		}
		entries[i].Config = raw
		configs = append(configs, c)
	}
	// Before the store has them: a snapshot may be taken as soon as they are in the file.
	m.mu.Lock()
	m.configs = append(m.configs, configs...)
	m.configs = m.configs[max(0, len(m.configs)-keptConfigs):]
	m.mu.Unlock()
	done := m.watch("applying to the store")
	results, err := m.store.Apply(entries)
	done()
	if err != nil {
		return nil, m.fail(fmt.Errorf("the store refused committed entries %d to %d: %w", logs[0].Index, logs[len(logs)-1].Index, err))
	}
	return results, nil
}

func (m *machine) fail(err error) error {
	m.mu.Lock()
	first := m.broken == nil
	if first {
		m.broken = err
	}
	m.mu.Unlock()
	if first {
		m.fatal(err)
	}
	return err
}

// Snapshot implements raft.FSM: the store is durable with every batch, so there is nothing to write.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) { return nothing{}, nil }

// Restore implements raft.FSM.
func (m *machine) Restore(r io.ReadCloser) error {
	if err := m.store.Restore(r); err != nil {
		return fmt.Errorf("restoring the store from the leader's snapshot: %w", err)
	}
	return m.reload()
}

type nothing struct{}

func (nothing) Persist(raft.SnapshotSink) error { return nil }
func (nothing) Release()                        {}
