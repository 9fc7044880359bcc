package store

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// memory is what is kept in memory beside bbolt, rebuilt by one scan at open (D9). It is changed only by the goroutine that applies, under Store.mu.
type memory struct {
	exists     map[Key]bool
	referrers  map[Key]map[Key]int // referee -> referrer -> how many of its contents (1 or 2) name it
	version    uint64              // of the table
	rows       map[uint64]Row
	epoch      uint64              // highest epoch ever given
	lastSeq    map[uint64]seqValue // row -> the newest epoch that wrote, and its last sequence
	replicas   map[string]Replica
	fleets     map[string]Fleet
	pins       map[Key]Pin
	identities map[identityKey]Identity
	clusterID  string
	hash       [32]byte
	applied    uint64
	recent     []hashedIndex // the newest state hashes, oldest first
}

// hashedIndex is the state hash at an index.
type hashedIndex struct {
	index uint64
	hash  string
}

// recentHashes is how many state hashes are kept for checks that come late.
const recentHashes = 256

type identityKey struct{ Cluster, Kind, Namespace, Name string }

func (k identityKey) stored() []byte {
	return Key{Cluster: k.Cluster, Namespace: k.Namespace, Kind: k.Kind, Name: k.Name}.encode()
}

func newMemory() *memory {
	return &memory{exists: map[Key]bool{}, referrers: map[Key]map[Key]int{}, rows: map[uint64]Row{}, lastSeq: map[uint64]seqValue{},
		replicas: map[string]Replica{}, fleets: map[string]Fleet{}, pins: map[Key]Pin{}, identities: map[identityKey]Identity{}}
}

// index adds (or with n = -1 takes away) a record's references.
func (m *memory) index(r *Record, n int) {
	for _, c := range []*Content{&r.Cur, r.Prev} {
		if c == nil {
			continue
		}
		for _, ref := range c.Refs {
			by := m.referrers[ref]
			if by == nil {
				by = map[Key]int{}
				m.referrers[ref] = by
			}
			if by[r.Key] += n; by[r.Key] <= 0 {
				delete(by, r.Key)
			}
			if len(by) == 0 {
				delete(m.referrers, ref)
			}
		}
	}
}

// remember keeps the state hash at the applied index.
func (m *memory) remember() {
	m.recent = append(m.recent, hashedIndex{m.applied, fmt.Sprintf("%x", m.hash[:8])})
	if len(m.recent) >= 2*recentHashes {
		m.recent = slices.Clone(m.recent[recentHashes:])
	}
}

// hashAt gives the state hash at an index, if it is still known.
func (m *memory) hashAt(index uint64) (hash string, ok bool) {
	i, ok := slices.BinarySearchFunc(m.recent, index, func(h hashedIndex, index uint64) int { return cmp.Compare(h.index, index) })
	if !ok {
		return "", false
	}
	return m.recent[i].hash, true
}

// live tells whether a content may be served: all that it names exists, and it is not pinned away. A pin's hash may carry a suffix after "/",
// the form of the content that was rejected: a rejected form rejects the content.
func (m *memory) live(k Key, c *Content) bool {
	if pin, ok := m.pins[k]; ok {
		if hash, _, _ := strings.Cut(pin.Hash, "/"); hash == c.Hash {
			return false
		}
	}
	return !slices.ContainsFunc(c.Refs, func(ref Key) bool { return !m.exists[ref] })
}

// covers tells whether a row covers a key.
func (r Row) covers(k Key) bool {
	h := Hash(k.Namespace)
	return r.Cluster == k.Cluster && h >= r.From && (r.To == 0 || h < r.To)
}

func (m *memory) sortedRows() []Row {
	out := slices.Collect(maps.Values(m.rows))
	slices.SortFunc(out, func(a, b Row) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
