// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// file is one file of a volume that the kubelet writes.
type file struct {
	data []byte
	mode fs.FileMode
}

const dataLink = "..data"

// writeFiles makes dir hold exactly these files (paths relative, with slashes). A reader sees all of the old or all of the new ones: the files stand in a directory
// that ..data points to, each name in dir is a link through ..data, and ..data is replaced by a rename. The files
// belong to the group, unless it is -1.
func writeFiles(dir string, files map[string]file, group int) error {
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err == nil && same(filepath.Join(dir, current), files) {
		return nil
	}
	next, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return fmt.Errorf("writing a volume: %w", err)
	}
	if err := fill(next, files, group); err != nil {
		return fmt.Errorf("writing a volume: %w", err)
	}
	link := filepath.Join(dir, "..data_tmp")
	if err := errors.Join(os.RemoveAll(link), os.Symlink(filepath.Base(next), link), os.Rename(link, filepath.Join(dir, dataLink))); err != nil {
		return fmt.Errorf("replacing a volume: %w", err)
	}
	if err := linkNames(dir, files); err != nil {
		return fmt.Errorf("replacing a volume: %w", err)
	}
	if current != "" {
		return os.RemoveAll(filepath.Join(dir, current))
	}
	return nil
}

func fill(dir string, files map[string]file, group int) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return err
		}
		if err := errors.Join(os.Chown(path, -1, group), os.Chmod(path, f.mode)); err != nil { // whatever the umask
			return err
		}
	}
	return nil
}

// linkNames makes a link for each first part of a path, and removes links that no longer lead anywhere.
func linkNames(dir string, files map[string]file) error {
	wanted := map[string]bool{}
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		wanted[first] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if !wanted[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
		delete(wanted, e.Name())
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		err = errors.Join(err, os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)))
	}
	return err
}

// same says whether a directory holds exactly these files.
func same(dir string, files map[string]file) bool {
	found := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, ok := files[filepath.ToSlash(name)]
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil || !ok || !bytes.Equal(data, want.data) || info.Mode().Perm() != want.mode.Perm() {
			return errors.Join(err, fs.ErrInvalid)
		}
		found++
		return nil
	})
	return err == nil && found == len(files)
}
