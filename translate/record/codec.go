package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// encMode is core deterministic CBOR (RFC 8949 4.2.1): equal values give equal bytes on every replica.
var encMode = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, Time: cbor.TimeUnix}.EncMode())

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Marshal gives the deterministic bytes of a record's payload.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// Unmarshal reads what Marshal wrote.
func Unmarshal(b []byte, v any) error {
	if err := cbor.Unmarshal(b, v); err != nil {
		return fmt.Errorf("record: %T: %w", v, err)
	}
	return nil
}

// Hash is the short content hash that serves as version everywhere: 16 hex digits of SHA-256.
func Hash(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:8])
}

// Equal tells whether two payloads are the same bytes.
func Equal(a, b []byte) bool { return bytes.Equal(a, b) }

// Join makes an injective name (D14): the parts are escaped so that a/b + c never equals a + b/c.
func Join(parts ...string) string {
	out := make([]string, len(parts))
	for i, p := range parts {
		out[i] = escape.Replace(p)
	}
	return strings.Join(out, "/")
}

// escape is built once: making it costs more than using it.
var escape = strings.NewReplacer("%", "%25", "/", "%2F")

// FleetName names the fleet of a Gateway.
func FleetName(cluster, namespace, gateway string) string { return Join(cluster, namespace, gateway) }

// ClusterName names the Envoy cluster of a backend record.
func ClusterName(k Key) string { return Join(k.Cluster, k.Namespace) + "/" + k.Name }
