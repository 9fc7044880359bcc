package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"
	"sync"
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
	Logger *slog.Logger  // nil = silent
	Visit  func(*Record) // nil, or called by Open with each record that it reads anyway: who starts by wanting them all needs no second scan
}

// initialMap is address space, not memory: while the file fits, growing it never has to wait for readers to leave.
const initialMap = 1 << 30

// errClosed answers readers that come after Close.
var errClosed = errors.New("the store is closed")

// Store is a replica's copy of the replicated state. All methods may be called from any goroutine.
//
// No lock that a reader takes is held while the disk works: a slow or hung disk stops the log, never the answers (D4). What is in memory may
// therefore be ahead of the file for as long as a commit lasts; Applied, WaitApplied and events speak of what is in the file.
type Store struct {
	path string
	log  *slog.Logger

	writing sync.Mutex // held by whoever changes the file; taken before mu
	failed  error      // guarded by writing: the memory may be ahead of the file for good, so nothing more is applied

	open    sync.RWMutex // guards handle and closed; held for moments
	handle  *handle
	closed  bool
	closing sync.WaitGroup // replaced files that still have readers

	mu      sync.RWMutex // guards what follows
	mem     *memory
	applied uint64 // the newest index that is in the file
	subs    map[*subscription]bool
	change  chan struct{} // closed and replaced at every step
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
	s := &Store{path: filepath.Join(dir, "store.db"), log: opts.Logger, subs: map[*subscription]bool{}, change: make(chan struct{})}
	if err := checkPages(s.path); err != nil {
		return nil, err
	}
	db, err := openFile(s.path)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(s.restorePath()); err != nil && !errors.Is(err, os.ErrNotExist) { // left by a crash during Restore
		return nil, errors.Join(fmt.Errorf("removing an unfinished snapshot: %w", err), db.Close())
	}
	err = guarded(s.path, func() (err error) { s.mem, err = load(db, opts.Visit); return err })
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.handle, s.applied = &handle{db: db}, s.mem.applied
	return s, nil
}

func (s *Store) restorePath() string { return s.path + ".restore" }

// checkPages reads every key of a file that is there. bbolt looks at all pages when it opens a file for writing, but in a goroutine of its own, where a damaged one ends
// the process with a trace that names neither the file nor what to do.
func checkPages(path string) error {
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		return nil // there is nothing yet, or opening it will say why it cannot be read
	}
	return guarded(path, func() error {
		db, err := openBolt(path, &bolt.Options{Timeout: time.Second, ReadOnly: true})
		if err != nil {
			return err
		}
		err = db.View(func(tx *bolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
				var last []byte
				return b.ForEach(func(k, v []byte) error {
					if bytes.Compare(last, k) >= 0 || v == nil { // no bucket here has buckets in it
						return corrupt(fmt.Sprintf("%s: bucket %s after %q", path, name, last))
					}
					last = k
					return nil
				})
			})
		})
		return errors.Join(err, db.Close())
	})
}

// guarded turns what bbolt does about a damaged page, a panic or a read beyond the file, into an error.
func guarded(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = corrupt(fmt.Sprintf("%s: %v", path, p))
		}
	}()
	return f()
}

func openBolt(path string, o *bolt.Options) (*bolt.DB, error) {
	db, err := bolt.Open(path, 0o600, o)
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%s: %w; stop that process first, or choose another --data-dir", path, ErrInUse)
	}
	if errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) {
		return nil, corrupt(fmt.Sprintf("%s: %v", path, err))
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return db, nil
}

func openFile(path string) (db *bolt.DB, err error) {
	err = guarded(path, func() (err error) {
		db, err = openBolt(path, &bolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, InitialMmapSize: initialMap})
		return err
	})
	if err != nil {
		return nil, err
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
func load(db *bolt.DB, visit func(*Record)) (*memory, error) {
	m := newMemory()
	err := db.View(func(tx *bolt.Tx) error {
		meta, err := readMeta(tx)
		if err != nil {
			return err
		}
		m.applied, m.version, m.epoch, m.clusterID = meta.Applied, meta.TableVersion, meta.Epoch, meta.ClusterID
		copy(m.hash[:], meta.Hash)
		m.remember()
		for _, b := range [][]byte{bucketRecords, bucketEndpoints} {
			err := each(tx, b, recordKey, func(_ []byte, r *Record) {
				m.exists[r.Key] = true
				m.index(r, 1)
				if visit != nil {
					visit(r)
				}
			})
			if err != nil {
				return err
			}
		}
		return errors.Join(
			each(tx, bucketRows, func(r *Row) []byte { return seqKey(r.ID) }, func(_ []byte, r *Row) { m.rows[r.ID] = *r }),
			each(tx, bucketSeqs, nil, func(k []byte, v *seqValue) { m.lastSeq[binary.BigEndian.Uint64(k)] = *v }),
			each(tx, bucketReplicas, func(r *Replica) []byte { return []byte(r.ID) }, func(_ []byte, r *Replica) { m.replicas[r.ID] = *r }),
			each(tx, bucketFleets, func(f *Fleet) []byte { return []byte(f.Name) }, func(_ []byte, f *Fleet) { m.fleets[f.Name] = *f }),
			each(tx, bucketPins, func(p *Pin) []byte { return p.Key.encode() }, func(_ []byte, p *Pin) { m.pins[p.Key] = *p }),
			each(tx, bucketIdentities, func(v *identityValue) []byte { return v.Key.stored() }, func(_ []byte, v *identityValue) { m.identities[v.Key] = v.Value }),
		)
	})
	return m, err
}

func recordKey(r *Record) []byte { return r.Key.encode() }

// each decodes every value of a bucket, in key order. at gives the key under which a value belongs, nil where it does not say: the checksum is of the value alone.
func each[T any](tx *bolt.Tx, bucket []byte, at func(*T) []byte, f func(key []byte, v *T)) error {
	return tx.Bucket(bucket).ForEach(func(k, b []byte) error {
		v, name := new(T), fmt.Sprintf("%s %q", bucket, k)
		if err := unframe(name, b, v); err != nil {
			return err
		}
		if at != nil && !bytes.Equal(at(v), k) {
			return corrupt(name)
		}
		f(k, v)
		return nil
	})
}

// readMeta reads the applied index and what goes with it; a file that nothing was applied to has none.
func readMeta(tx *bolt.Tx) (metaValue, error) {
	var meta metaValue
	v := tx.Bucket(bucketMeta).Get(metaState)
	if v == nil {
		return meta, nil
	}
	return meta, unframe("applied index", v, &meta)
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
	if err := unframe(k.String(), b, r); err != nil {
		return nil, err
	}
	if r.Key != k {
		return nil, corrupt(k.String())
	}
	return r, nil
}

// db is the present file; only a holder of writing may use it without view.
func (s *Store) db() *bolt.DB {
	s.open.RLock()
	defer s.open.RUnlock()
	return s.handle.db
}

// view runs a read transaction on the present file, holding it open.
func (s *Store) view(f func(*bolt.Tx) error) error {
	s.open.RLock()
	if s.closed {
		s.open.RUnlock()
		return errClosed
	}
	h := s.handle
	h.readers.Add(1)
	s.open.RUnlock()
	defer h.readers.Done()
	return h.db.View(f)
}

// Close ends subscriptions and closes the file when its readers have left. Closing again does nothing.
func (s *Store) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.open.Lock()
	h, again := s.handle, s.closed
	s.closed = true
	s.open.Unlock()
	if again {
		return nil
	}
	s.failed = errClosed
	s.mu.Lock()
	for sub := range s.subs {
		sub.close()
	}
	s.subs = nil
	s.mu.Unlock()
	h.readers.Wait()
	s.closing.Wait()
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
		if err := each(tx, b, recordKey, func(_ []byte, r *Record) {
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
		meta, err := readMeta(tx)
		if err != nil {
			return err
		}
		index = meta.Applied
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

// Identities lists the objects of a member cluster that have an identity, in no order.
func (s *Store) Identities(cluster string) []Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Key
	for k := range s.mem.identities {
		if k.Cluster == cluster {
			out = append(out, Key{Cluster: k.Cluster, Namespace: k.Namespace, Kind: k.Kind, Name: k.Name})
		}
	}
	return out
}

// ClusterID is the group's id, "" before bootstrap.
func (s *Store) ClusterID() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.clusterID
}

// Applied is the index of the last entry that is in the file.
func (s *Store) Applied() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.applied
}

// Config gives the newest configuration blob that came with an entry, nil if none did.
func (s *Store) Config() ([]byte, error) {
	var out []byte
	err := s.view(func(tx *bolt.Tx) error { out = slices.Clone(tx.Bucket(bucketMeta).Get(metaConfig)); return nil })
	return out, err
}

// SetConfig keeps a configuration blob that came without an entry.
func (s *Store) SetConfig(b []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.db().Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(metaConfig, b) })
}

// StateHash is the rolling hash at the applied index: equal on any two replicas at one index.
func (s *Store) StateHash() (index uint64, hash string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	hash, _ = s.mem.hashAt(s.applied)
	return s.applied, hash
}

// FullHash hashes everything that is replicated by a full scan, the local configuration blob excepted: equal on any two replicas at one index.
func (s *Store) FullHash() (hash string, err error) {
	err = s.view(func(tx *bolt.Tx) (err error) { hash, err = fullHash(tx); return err })
	return hash, err
}

func fullHash(tx *bolt.Tx) (string, error) {
	meta, err := readMeta(tx)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d %d %q", meta.TableVersion, meta.Epoch, meta.ClusterID)
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
	if errors.Is(err, berrors.ErrTimeout) {
		return 0, "", fmt.Errorf("%s: %w; stop that process first", path, ErrInUse)
	}
	if err != nil {
		return 0, "", fmt.Errorf("opening %s: %w", path, err)
	}
	defer func() { _ = db.Close() }()
	err = db.View(func(tx *bolt.Tx) (err error) {
		if tx.Bucket(bucketMeta) == nil {
			return fmt.Errorf("%s: %w: it is not a route store", path, ErrCorrupt)
		}
		meta, err := readMeta(tx)
		if err != nil {
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
		applied, change := s.applied, s.change
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
