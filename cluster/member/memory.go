package member

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// memory keeps, across restarts, what files were when they were last without fault, and who holds objects that several files claim:
// a replica that starts while a file is broken must serve what the others serve. Files with a Secret are not kept: a secret has
// one place on disk. Everything in here may be deleted at any time.
type memory struct {
	dir  string
	held map[objectKey]place // as last written
}

const holdersFile = "holders.json"

func (m *memory) path(file string) string {
	return filepath.Join(m.dir, shortHash([]byte(absolute(file)))+".good")
}

// remember keeps a file's good content; nil forgets it.
func (m *memory) remember(file string, content []byte) error {
	path := m.path(file)
	if content == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forgetting the last good content of %s: %w", file, err)
		}
		return nil
	}
	if before, err := os.ReadFile(path); err == nil && bytes.Equal(before, content) {
		return nil
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("keeping the last good content of %s: %w", file, err)
	}
	return replaceFile(path, content, 0o600)
}

// recall gives a file's last good content, nil where there is none.
func (m *memory) recall(file string) []byte {
	content, err := os.ReadFile(m.path(file))
	if err != nil {
		return nil
	}
	return content
}

// sweep forgets files that are not there any more.
func (m *memory) sweep(there map[place]known) {
	keep := map[string]bool{}
	for at := range there {
		keep[m.path(at.path)] = true
	}
	kept, _ := filepath.Glob(filepath.Join(m.dir, "*.good")) // the pattern is valid
	for _, path := range kept {
		if !keep[path] {
			_ = os.Remove(path) // the next start tries again
		}
	}
}

// holder is one line of the file of holders.
type holder struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Directory int    `json:"directory"`
	File      string `json:"file"`
}

// holders reads who held contested objects.
func (m *memory) holders() map[objectKey]place {
	held := map[objectKey]place{}
	data, err := os.ReadFile(filepath.Join(m.dir, holdersFile))
	var list []holder
	if err != nil || json.Unmarshal(data, &list) != nil {
		return held
	}
	for _, h := range list {
		held[objectKey{h.Kind, h.Namespace, h.Name}] = place{h.Directory, h.File}
	}
	m.held = maps.Clone(held)
	return held
}

func (m *memory) rememberHolders(held map[objectKey]place) error {
	if maps.Equal(held, m.held) {
		return nil
	}
	list := make([]holder, 0, len(held))
	for key, at := range held {
		list = append(list, holder{key.kind, key.namespace, key.name, at.dir, at.path})
	}
	slices.SortFunc(list, func(a, b holder) int {
		return strings.Compare(a.Kind+"/"+a.Namespace+"/"+a.Name, b.Kind+"/"+b.Namespace+"/"+b.Name)
	})
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("keeping who holds contested objects: %w", err)
	}
	if err := replaceFile(filepath.Join(m.dir, holdersFile), data, 0o600); err != nil {
		return fmt.Errorf("keeping who holds contested objects: %w", err)
	}
	m.held = maps.Clone(held)
	return nil
}
