package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// formatVersion is the version of the file's layout; a newer one is refused.
const formatVersion = 1

var (
	bucketMeta       = []byte("meta")
	bucketRecords    = []byte("records")
	bucketEndpoints  = []byte("endpoints") // a bucket of their own: they alone may run ahead of the log (D18)
	bucketRows       = []byte("rows")
	bucketSeqs       = []byte("seqs")
	bucketReplicas   = []byte("replicas")
	bucketFleets     = []byte("fleets")
	bucketPins       = []byte("pins")
	bucketIdentities = []byte("identities")

	// dataBuckets are what the full hash covers.
	dataBuckets = [][]byte{bucketRecords, bucketEndpoints, bucketRows, bucketSeqs, bucketReplicas, bucketFleets, bucketPins, bucketIdentities}

	metaState  = []byte("state")
	metaConfig = []byte("config")
	metaFormat = []byte("format")
)

// metaValue is the applied index and what goes with it, written in every transaction.
type metaValue struct {
	Applied      uint64
	Hash         []byte
	TableVersion uint64
	Epoch        uint64
	ClusterID    string
}

type seqValue struct{ Epoch, Seq uint64 }

type identityValue struct {
	Key   identityKey
	Value Identity
}

// Options are a store's settings.
type Options struct {
	Logger *slog.Logger // nil = silent
}

// Store is a replica's copy of the replicated state. All methods may be called from any goroutine.
type Store struct {
	path   string
	log    *slog.Logger
	handle atomic.Pointer[handle]

	mu     sync.RWMutex // guards mem, hashes, subs, changed
	mem    *memory
	hashes map[uint64]string // the newest state hashes by index
	subs   map[*subscription]bool
	change chan struct{} // closed and replaced at every step
}

// handle is an open file with its readers; it is closed when the last of them leaves, so that a restore blocks nobody
// (bbolt's own Close waits for readers and keeps new ones out meanwhile).
type handle struct {
	db      *bolt.DB
	readers sync.WaitGroup
}

// Open opens or creates the store in dir. It returns ErrInUse, ErrNewer or ErrCorrupt.
func Open(dir string, opts Options) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the store directory: %w", err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{path: filepath.Join(dir, "store.db"), log: opts.Logger, hashes: map[uint64]string{}, subs: map[*subscription]bool{}, change: make(chan struct{})}
	db, err := openFile(s.path)
	if err != nil {
		return nil, err
	}
	if s.mem, err = load(db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.handle.Store(&handle{db: db})
	s.remember(s.mem.applied)
	return s, nil
}

func openFile(path string) (*bolt.DB, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, InitialMmapSize: 64 << 20})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%s: %w; stop that process first, or choose another --data-dir", path, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, b := range append([][]byte{bucketMeta}, dataBuckets...) {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return fmt.Errorf("making bucket %s: %w", b, err)
			}
		}
		return checkFormat(tx)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	return db, nil
}

func checkFormat(tx *bolt.Tx) error {
	b := tx.Bucket(bucketMeta)
	v := b.Get(metaFormat)
	if v == nil {
		return b.Put(metaFormat, []byte{formatVersion})
	}
	if len(v) != 1 || v[0] > formatVersion {
		return fmt.Errorf("%w (format %v, this build knows %d); start the version of Fleetgate that wrote it, or a newer one", ErrNewer, v, formatVersion)
	}
	return nil
}

// load rebuilds the memory by one scan.
func load(db *bolt.DB) (*memory, error) {
	m := newMemory()
	err := db.View(func(tx *bolt.Tx) error {
		if v := tx.Bucket(bucketMeta).Get(metaState); v != nil {
			var meta metaValue
			if err := unframe("applied index", v, &meta); err != nil {
				return err
			}
			m.applied, m.version, m.epoch, m.clusterID = meta.Applied, meta.TableVersion, meta.Epoch, meta.ClusterID
			copy(m.hash[:], meta.Hash)
		}
		for _, b := range [][]byte{bucketRecords, bucketEndpoints} {
			if err := each(tx, b, func(_ []byte, r *Record) { m.exists[r.Key] = true; m.index(r, 1) }); err != nil {
				return err
			}
		}
		return errors.Join(
			each(tx, bucketRows, func(_ []byte, r *Row) { m.rows[r.ID] = *r }),
			each(tx, bucketSeqs, func(k []byte, v *seqValue) { m.lastSeq[[2]uint64{binary.BigEndian.Uint64(k), v.Epoch}] = v.Seq }),
			each(tx, bucketReplicas, func(_ []byte, r *Replica) { m.replicas[r.ID] = *r }),
			each(tx, bucketFleets, func(_ []byte, f *Fleet) { m.fleets[f.Name] = *f }),
			each(tx, bucketPins, func(_ []byte, p *Pin) { m.pins[p.Key] = *p }),
			each(tx, bucketIdentities, func(_ []byte, v *identityValue) { m.identities[v.Key] = v.Value }),
		)
	})
	return m, err
}

// each decodes every value of a bucket, in key order.
func each[T any](tx *bolt.Tx, bucket []byte, f func(key []byte, v *T)) error {
	return tx.Bucket(bucket).ForEach(func(k, b []byte) error {
		v := new(T)
		if err := unframe(fmt.Sprintf("%s %q", bucket, k), b, v); err != nil {
			return err
		}
		f(k, v)
		return nil
	})
}

func putMeta(tx *bolt.Tx, m *memory) error {
	b, err := frame(metaValue{Applied: m.applied, Hash: m.hash[:], TableVersion: m.version, Epoch: m.epoch, ClusterID: m.clusterID})
	if err != nil {
		return err
	}
	return tx.Bucket(bucketMeta).Put(metaState, b)
}

func seqKey(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

func bucketOf(kind string) []byte {
	if kind == "endpoints" {
		return bucketEndpoints
	}
	return bucketRecords
}

func readRecord(tx *bolt.Tx, k Key) (*Record, error) {
	b := tx.Bucket(bucketOf(k.Kind)).Get(k.encode())
	if b == nil {
		return nil, nil
	}
	r := &Record{}
	return r, unframe(k.String(), b, r)
}

// db is the present file; only the goroutine that applies may use it without view.
func (s *Store) db() *bolt.DB { return s.handle.Load().db }

// view runs a read transaction on the present file, holding it open.
func (s *Store) view(f func(*bolt.Tx) error) error {
	s.mu.RLock()
	h := s.handle.Load()
	h.readers.Add(1)
	s.mu.RUnlock()
	defer h.readers.Done()
	return h.db.View(f)
}

// Close closes the file when its readers have left.
func (s *Store) Close() error {
	h := s.handle.Load()
	s.mu.Lock()
	for sub := range s.subs {
		sub.close()
	}
	s.mu.Unlock()
	h.readers.Wait()
	if err := h.db.Close(); err != nil {
		return fmt.Errorf("closing the store: %w", err)
	}
	return nil
}

// Get reads one record, nil if there is none.
func (s *Store) Get(k Key) (*Record, error) {
	var r *Record
	err := s.view(func(tx *bolt.Tx) (err error) { r, err = readRecord(tx, k); return err })
	return r, err
}

// Scan calls f for every record, in key order, all at one index. It returns ErrCorrupt for a value that fails its checksum.
func (s *Store) Scan(f func(*Record) error) error {
	return s.view(func(tx *bolt.Tx) error { return scan(tx, f) })
}

func scan(tx *bolt.Tx, f func(*Record) error) error {
	var failed error
	for _, b := range [][]byte{bucketRecords, bucketEndpoints} {
		if err := each(tx, b, func(_ []byte, r *Record) {
			if failed == nil {
				failed = f(r)
			}
		}); err != nil {
			return err
		}
	}
	return failed
}

// Snapshot reads every record at one index, and gives that index: a reader of one Gateway filters it.
func (s *Store) Snapshot(f func(*Record) error) (index uint64, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		if v := tx.Bucket(bucketMeta).Get(metaState); v != nil {
			var meta metaValue
			if err := unframe("applied index", v, &meta); err != nil {
				return err
			}
			index = meta.Applied
		}
		return scan(tx, f)
	})
	return index, err
}

// List reads the records of one kind, of one cluster or ("") of all.
func (s *Store) List(kind, cluster string) ([]*Record, error) {
	var out []*Record
	err := s.Scan(func(r *Record) error {
		if r.Key.Kind == kind && (cluster == "" || r.Key.Cluster == cluster) {
			out = append(out, r)
		}
		return nil
	})
	return out, err
}

// Referrers lists the records that name a key.
func (s *Store) Referrers(k Key) []Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return sortKeys(slices.Collect(maps.Keys(s.mem.referrers[k])))
}

// Referenced lists the keys of one cluster that some record names.
func (s *Store) Referenced(cluster string) []Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Key
	for k := range s.mem.referrers {
		if k.Cluster == cluster {
			out = append(out, k)
		}
	}
	return sortKeys(out)
}

func sortKeys(keys []Key) []Key {
	sort.Slice(keys, func(i, j int) bool { return string(keys[i].encode()) < string(keys[j].encode()) })
	return keys
}

// Table gives the shard table with its version.
func (s *Store) Table() (version uint64, rows []Row) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.version, s.mem.sortedRows()
}

// Replicas lists the replicas, by id.
func (s *Store) Replicas() []Replica {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := slices.Collect(maps.Values(s.mem.replicas))
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// Fleets lists the fleets, by name.
func (s *Store) Fleets() []Fleet {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := slices.Collect(maps.Values(s.mem.fleets))
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Fleet gives one fleet.
func (s *Store) Fleet(name string) (Fleet, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f, ok := s.mem.fleets[name]
	return f, ok
}

// Pins lists the pins.
func (s *Store) Pins() []Pin {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := slices.Collect(maps.Values(s.mem.pins))
	sort.Slice(out, func(i, j int) bool { return string(out[i].Key.encode()) < string(out[j].Key.encode()) })
	return out
}

// Identity gives what the state machine gave an object of a directory cluster.
func (s *Store) Identity(cluster, kind, namespace, name string) (Identity, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	id, ok := s.mem.identities[identityKey{cluster, kind, namespace, name}]
	return id, ok
}

// ClusterID is the group's id, "" before bootstrap.
func (s *Store) ClusterID() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.clusterID
}

// Applied is the index of the last applied entry.
func (s *Store) Applied() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.applied
}

// Config gives the newest configuration blob that came with an entry, nil if none did.
func (s *Store) Config() ([]byte, error) {
	var out []byte
	err := s.view(func(tx *bolt.Tx) error { out = slices.Clone(tx.Bucket(bucketMeta).Get(metaConfig)); return nil })
	return out, err
}

// SetConfig keeps a configuration blob that came without an entry.
func (s *Store) SetConfig(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db().Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(metaConfig, b) })
}

// remember keeps the newest state hashes; the caller holds mu or is alone.
func (s *Store) remember(index uint64) {
	s.hashes[index] = fmt.Sprintf("%x", s.mem.hash[:8])
	delete(s.hashes, index-256)
}

// StateHash is the rolling hash at the applied index: equal on any two replicas at one index.
func (s *Store) StateHash() (index uint64, hash string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.applied, s.hashes[s.mem.applied]
}

// FullHash hashes everything that is replicated by a full scan: equal on any two replicas at one index.
func (s *Store) FullHash() (hash string, err error) {
	err = s.view(func(tx *bolt.Tx) (err error) { hash, err = fullHash(tx); return err })
	return hash, err
}

func fullHash(tx *bolt.Tx) (string, error) {
	h := sha256.New()
	for _, b := range dataBuckets {
		h.Write(b)
		err := tx.Bucket(b).ForEach(func(k, v []byte) error {
			h.Write(binary.AppendUvarint(nil, uint64(len(k))))
			h.Write(k)
			h.Write(binary.AppendUvarint(nil, uint64(len(v))))
			h.Write(v)
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("scanning %s: %w", b, err)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// FileHash is FullHash of a store that no process has open, with its applied index.
func FileHash(path string) (index uint64, hash string, err error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: true})
	if err != nil {
		return 0, "", fmt.Errorf("opening %s: %w", path, err)
	}
	defer func() { _ = db.Close() }()
	err = db.View(func(tx *bolt.Tx) (err error) {
		var meta metaValue
		if err := unframe("applied index", tx.Bucket(bucketMeta).Get(metaState), &meta); err != nil {
			return err
		}
		index = meta.Applied
		hash, err = fullHash(tx)
		return err
	})
	return index, hash, err
}

// WaitApplied waits until an index has been applied.
func (s *Store) WaitApplied(ctx context.Context, index uint64) error {
	for {
		s.mu.RLock()
		applied, change := s.mem.applied, s.change
		s.mu.RUnlock()
		if applied >= index {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return fmt.Errorf("waiting for index %d (applied: %d): %w", index, applied, ctx.Err())
		}
	}
}
