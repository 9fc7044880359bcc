package seal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testKey(t *testing.T, fill byte) *Key {
	t.Helper()
	k, err := New(bytes.Repeat([]byte{fill}, KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOpensOnlyUnderSameKeyAndName(t *testing.T) {
	k := testKey(t, 1)
	sealed, err := k.Seal([]byte("private"), []byte("a/b"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("private")) {
		t.Fatal("the plain text stands in the sealed bytes")
	}
	if got, err := k.Open(sealed, []byte("a/b")); err != nil || string(got) != "private" {
		t.Fatalf("Open = %q, %v", got, err)
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	for name, try := range map[string]func() ([]byte, error){
		"other key":   func() ([]byte, error) { return testKey(t, 2).Open(sealed, []byte("a/b")) },
		"other name":  func() ([]byte, error) { return k.Open(sealed, []byte("a/c")) },
		"flipped bit": func() ([]byte, error) { return k.Open(flipped, []byte("a/b")) },
		"cut short":   func() ([]byte, error) { return k.Open(sealed[:5], []byte("a/b")) },
	} {
		if _, err := try(); !errors.Is(err, ErrOpen) {
			t.Errorf("%s: err = %v, want ErrOpen", name, err)
		}
	}
}

func TestEqualInputGivesEqualBytes(t *testing.T) {
	k := testKey(t, 1)
	a, _ := k.Seal([]byte("x"), []byte("n"))
	b, _ := k.Seal([]byte("x"), []byte("n"))
	c, _ := k.Seal([]byte("x"), []byte("m"))
	if !bytes.Equal(a, b) || bytes.Equal(a[:12], c[:12]) {
		t.Fatal("sealing must be a function of key, name and text, with another nonce for each name")
	}
}

func TestKeyFileThatIsNoKeySaysWhatToDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), "make one with") {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(file, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), "64 hex digits") {
		t.Errorf("short file: %v", err)
	}
	made := file + "2"
	if err := Create(made); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(made); err != nil {
		t.Fatal(err)
	}
}
