package member

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"sigs.k8s.io/yaml"
)

// statusDir holds the status of a directory's objects as an API server would: one file each, kind/namespace/name.yaml. Several replicas
// share it, so every change is made under a lock on the directory and by renaming a complete file.
type statusDir struct {
	dir string
	mu  sync.Mutex
}

// statusFile is what such a file says.
type statusFile struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   statusMetadata  `json:"metadata"`
	Status     json.RawMessage `json:"status"`
}

type statusMetadata struct {
	Name            string `json:"name"`
	Namespace       string `json:"namespace,omitempty"`
	UID             string `json:"uid,omitempty"`
	Generation      int64  `json:"generation,omitempty"`
	ResourceVersion string `json:"resourceVersion"`
}

func (s *statusDir) path(k objectKey) string {
	return filepath.Join(s.dir, k.kind, k.namespace, k.name+".yaml")
}

// locked runs f while no other replica changes the directory.
func (s *statusDir) locked(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("making the status directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("opening the lock of the status directory: %w", err)
	}
	defer func() { _ = lock.Close() }() // unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking the status directory: %w", err)
	}
	return f()
}

// read gives an object's status file; a file that is not there, or of an earlier object of that name, is an empty status. A file that
// cannot be understood is one too: status can be written anew at any time.
func (s *statusDir) read(k objectKey, uid string) (statusFile, error) {
	empty := statusFile{Status: json.RawMessage("null"), Metadata: statusMetadata{ResourceVersion: "0"}}
	data, err := os.ReadFile(s.path(k))
	if errors.Is(err, fs.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return empty, fmt.Errorf("reading the status of %s: %w", k, err)
	}
	var f statusFile
	if err := yaml.Unmarshal(data, &f); err != nil {
		return empty, nil
	}
	if f.Metadata.UID != uid {
		empty.Metadata.ResourceVersion = f.Metadata.ResourceVersion // it only ever grows
		return empty, nil
	}
	if len(f.Status) == 0 {
		f.Status = empty.Status
	}
	return f, nil
}

// write replaces an object's status. Writing what is there already changes nothing, as with API servers.
func (s *statusDir) write(k objectKey, o Object, status []byte, expect string) (resourceVersion string, err error) {
	uid := string(o.GetUID())
	err = s.locked(func() error {
		now, err := s.read(k, uid)
		if err != nil {
			return err
		}
		resourceVersion = now.Metadata.ResourceVersion
		if expect != "" && expect != resourceVersion {
			return fmt.Errorf("%s is at resourceVersion %s, not %s: %w", k, resourceVersion, expect, ErrConflict)
		}
		status, err := canonicalJSON(status)
		if err != nil {
			return fmt.Errorf("the status of %s is no JSON: %w", k, err)
		}
		before, _ := canonicalJSON(now.Status)
		if bytes.Equal(before, status) && now.Metadata.Generation == o.GetGeneration() {
			return nil
		}
		resourceVersion = next(resourceVersion)
		return s.replace(k, statusFile{
			APIVersion: kindByName(k.kind).apiVersion(), Kind: k.kind, Status: status,
			Metadata: statusMetadata{k.name, k.namespace, uid, o.GetGeneration(), resourceVersion},
		})
	})
	return resourceVersion, err
}

func canonicalJSON(b []byte) ([]byte, error) {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

func next(resourceVersion string) string {
	n, _ := strconv.ParseUint(resourceVersion, 10, 64) // what is no number starts anew
	return strconv.FormatUint(n+1, 10)
}

func (s *statusDir) replace(k objectKey, f statusFile) error {
	data, err := yaml.Marshal(f)
	if err != nil {
		return fmt.Errorf("writing the status of %s: %w", k, err)
	}
	path := s.path(k)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the status directory of %s: %w", k, err)
	}
	if err := replaceFile(path, data, 0o644); err != nil {
		return fmt.Errorf("writing the status of %s: %w", k, err)
	}
	return nil
}

// replaceFile writes a file so that readers see the old one or the new one, whole.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // fails once it is renamed
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// forget removes the status of an object that is gone, unless it belongs to a younger one of the same name already.
func (s *statusDir) forget(k objectKey, uid string) error {
	if _, err := os.Stat(s.path(k)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return s.locked(func() error {
		data, err := os.ReadFile(s.path(k))
		if err != nil {
			return nil // another replica removed it
		}
		var f statusFile
		if yaml.Unmarshal(data, &f) == nil && f.Metadata.UID != uid {
			return nil
		}
		if err := os.Remove(s.path(k)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the status of %s: %w", k, err)
		}
		return nil
	})
}

// list names the objects that have a status file.
func (s *statusDir) list() []objectKey {
	var keys []objectKey
	for _, k := range kinds {
		pattern := filepath.Join(s.dir, k.name, "*.yaml")
		if k.namespaced {
			pattern = filepath.Join(s.dir, k.name, "*", "*.yaml")
		}
		paths, _ := filepath.Glob(pattern) // the pattern is valid
		for _, p := range paths {
			key := objectKey{kind: k.name, name: strings.TrimSuffix(filepath.Base(p), ".yaml")}
			if k.namespaced {
				key.namespace = filepath.Base(filepath.Dir(p))
			}
			keys = append(keys, key)
		}
	}
	return keys
}
