// Package seal keeps secrets unreadable in the log, the store, snapshots and backups (D14): the owner seals before it proposes, a replica opens
// only to serve. The version of a secret is an HMAC, so that a version tells nothing about weak contents.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// KeySize is the size of a key in bytes; a key file holds it as hex.
const KeySize = 32

// ErrOpen says that a sealed value does not open under this key, or was tampered with or moved to another name.
var ErrOpen = errors.New("the sealed value does not open under this key")

// Key seals and opens.
type Key struct {
	aead cipher.AEAD
	mac  []byte
}

// Load reads a key file: 64 hex digits.
func Load(file string) (*Key, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the seal key: %w; make one with: head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > FILE", err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(raw) != KeySize {
		return nil, fmt.Errorf("seal key %s: want %d hex digits; every replica of a group needs the same file", file, 2*KeySize)
	}
	return New(raw)
}

// Create makes a key file readable by its owner only; an existing one is left as it is.
func Create(file string) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	raw := make([]byte, KeySize)
	if _, err := rand.Read(raw); err != nil {
		return fmt.Errorf("making a seal key: %w", err)
	}
	if err := os.WriteFile(file, []byte(hex.EncodeToString(raw)+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the seal key: %w", err)
	}
	return nil
}

// New derives the sealing and the version key from raw.
func New(raw []byte) (*Key, error) {
	enc, err := hkdf.Key(sha256.New, raw, nil, "fleetgate seal", KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the sealing key: %w", err)
	}
	mac, err := hkdf.Key(sha256.New, raw, nil, "fleetgate version", KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the version key: %w", err)
	}
	block, err := aes.NewCipher(enc)
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	return &Key{aead: aead, mac: mac}, nil
}

// Seal encrypts plain, bound to additional. The nonce is the HMAC of both, cut short: equal input gives equal bytes, so that an owner that compiles
// again proposes nothing new, and no nonce is used for two different messages (the idea of RFC 5297).
func (k *Key) Seal(plain, additional []byte) ([]byte, error) {
	h := hmac.New(sha256.New, k.mac)
	h.Write(additional)
	h.Write([]byte{0})
	h.Write(plain)
	nonce := h.Sum(nil)[:k.aead.NonceSize()]
	return k.aead.Seal(nonce, nonce, plain, additional), nil
}

// Open decrypts what Seal made, with the same additional data. It returns ErrOpen.
func (k *Key) Open(sealed, additional []byte) ([]byte, error) {
	n := k.aead.NonceSize()
	if len(sealed) < n {
		return nil, ErrOpen
	}
	plain, err := k.aead.Open(nil, sealed[:n], sealed[n:], additional)
	if err != nil {
		return nil, ErrOpen
	}
	return plain, nil
}

// Version is the HMAC of plain: 16 hex digits.
func (k *Key) Version(plain []byte) string {
	h := hmac.New(sha256.New, k.mac)
	h.Write(plain)
	return hex.EncodeToString(h.Sum(nil)[:8])
}
