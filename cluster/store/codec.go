package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"

	"github.com/fxamacker/cbor/v2"
)

// commandVersion is the version of commands that this build writes; it reads that and older ones.
const commandVersion = 1

// Errors that callers branch on.
var (
	ErrUnknownCommand = errors.New("a command that this version does not know")
	ErrCorrupt        = errors.New("a stored value fails its checksum")
	ErrInUse          = errors.New("the store is in use by another process")
	ErrNewer          = errors.New("the store was written by a newer version")
	ErrDiverged       = errors.New("this replica's state differs from the group's")
)

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, MaxArrayElements: 1 << 24}.DecMode())
	crcPoly = crc32.MakeTable(crc32.Castagnoli)
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options: cannot fail
	}
	return v
}

// Hash is where a namespace stands in the hash space: FNV-1a-64 of its name, as in the API server's own shard selector (KEP-5866). Frozen by
// golden vectors. What has no namespace hashes as "".
func Hash(namespace string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(namespace))
	return h.Sum64()
}

// EncodeCommand gives a command's bytes for the log.
func EncodeCommand(c Command) ([]byte, error) {
	c.Version = commandVersion
	b, err := encMode.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding a command: %w", err)
	}
	return b, nil
}

// DecodeCommand reads a command. What it does not know it refuses with ErrUnknownCommand: skipping would let replicas differ.
func DecodeCommand(b []byte) (Command, error) {
	var c Command
	if err := decMode.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%w: %w", ErrUnknownCommand, err)
	}
	if c.Version < 1 || c.Version > commandVersion {
		return c, fmt.Errorf("%w: version %d, this build knows up to %d; install the newer version here too", ErrUnknownCommand, c.Version, commandVersion)
	}
	if n := c.fields(); n != 1 {
		return c, fmt.Errorf("%w: %d fields set, want 1", ErrUnknownCommand, n)
	}
	return c, nil
}

func (c Command) fields() int {
	n := 0
	for _, set := range []bool{c.Put != nil, c.Table != nil, c.Replica != nil, c.Identity != nil, c.Fleet != nil, c.Pin != nil, c.Unpin != nil, c.Bootstrap != nil, c.Check != nil} {
		if set {
			n++
		}
	}
	return n
}

// frame puts a checksum before an encoded value.
func frame(v any) ([]byte, error) {
	b, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, len(b)+4), crc32.Checksum(b, crcPoly)), b...), nil
}

// unframe checks the checksum and decodes a copy.
func unframe(name string, b []byte, v any) error {
	if len(b) < 4 || binary.BigEndian.Uint32(b) != crc32.Checksum(b[4:], crcPoly) {
		return corrupt(name)
	}
	if err := decMode.Unmarshal(b[4:], v); err != nil {
		return fmt.Errorf("%s: %w: %w", name, ErrCorrupt, err)
	}
	return nil
}

func corrupt(name string) error {
	return fmt.Errorf("%s: %w; stop this replica, move its data directory away and start it: it fetches the state from the others", name, ErrCorrupt)
}

// encode makes a key's bytes: each part is length-prefixed, so that a-b/c never equals a/b-c, and records of one namespace of one cluster are neighbours.
func (k Key) encode() []byte {
	var out []byte
	for _, part := range []string{k.Cluster, k.Namespace, k.Kind, k.Name} {
		out = binary.AppendUvarint(out, uint64(len(part)))
		out = append(out, part...)
	}
	return out
}

func (k Key) String() string {
	return fmt.Sprintf("%s %s/%s of cluster %s", k.Kind, k.Namespace, k.Name, k.Cluster)
}

// contentHash is the short content hash of a payload.
func contentHash(b []byte) string {
	s := sha256.Sum256(b)
	return fmt.Sprintf("%x", s[:8])
}
