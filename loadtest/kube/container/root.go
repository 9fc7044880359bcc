// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// old is where the machine's files are while the root is being built.
const old = "/.machine"

// buildRoot makes the container's file system and moves into it.
//
// Mounts are made after the move, with the machine's files still at hand below old: so a link inside an image, such as /var/run, leads where the container
// would go, and never out into the machine.
func buildRoot(s Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	root, err := lowerRoot(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, old), 0o700); err != nil {
		return fmt.Errorf("making room for the old root: %w", err)
	}
	if err := unix.PivotRoot(root, filepath.Join(root, old)); err != nil {
		return fmt.Errorf("changing the root to %s: %w", root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	steps := []func() error{func() error { return base(s.Root == "") }, kernelFiles, devices, func() error { return volumes(s.Mounts) }, leaveOld}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(workingDir(s), 0o755); err != nil {
		return fmt.Errorf("making the working directory: %w", err)
	}
	if s.ReadOnlyRoot {
		return remountReadOnly("/")
	}
	return nil
}

// lowerRoot mounts an empty root, or one that shows s.Root and keeps changes in memory, and returns its place.
func lowerRoot(s Spec) (string, error) {
	if err := unix.Mount("tmpfs", s.Scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return "", fmt.Errorf("mounting a tmpfs on %s: %w", s.Scratch, err)
	}
	if s.Root == "" {
		return s.Scratch, nil
	}
	upper, work, merged := filepath.Join(s.Scratch, "upper"), filepath.Join(s.Scratch, "work"), filepath.Join(s.Scratch, "root")
	for _, dir := range []string{upper, work, merged} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", fmt.Errorf("making an overlay: %w", err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", s.Root, upper, work)
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_NODEV, options); err != nil {
		return "", fmt.Errorf("mounting an overlay of %s (the kernel needs overlayfs): %w", s.Root, err)
	}
	return merged, nil
}

// base makes the directories that programs expect; a fresh root also gets the machine's programs and a few files in /etc.
func base(fresh bool) error {
	for dir, mode := range map[string]fs.FileMode{
		"/tmp": 0o777 | fs.ModeSticky, "/run": 0o755, "/var/tmp": 0o777 | fs.ModeSticky, "/var/log": 0o755, "/var/lib": 0o755, "/var/cache": 0o755,
		"/etc": 0o755, "/root": 0o700, "/dev": 0o755, "/proc": 0o555, "/sys": 0o555,
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	if err := os.Symlink("../run", "/var/run"); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making /var/run: %w", err)
	}
	if !fresh {
		return nil
	}
	return machinePrograms()
}

func machinePrograms() error {
	for _, name := range []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "etc/ssl", "etc/ca-certificates", "etc/pki", "etc/alternatives", "etc/ld.so.cache", "etc/localtime", "etc/mime.types", "etc/services", "etc/protocols"} {
		source, target := filepath.Join(old, name), filepath.Join("/", name)
		info, err := os.Lstat(source)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking at the machine's %s: %w", name, err)
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			err = copyLink(source, target)
		} else {
			err = bind(Mount{Source: source, Target: target, ReadOnly: true})
		}
		if err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"/etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/usr/sbin/nologin\n",
		"/etc/group":         "root:x:0:\nnogroup:x:65534:\nnonroot:x:65532:\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

func copyLink(source, target string) error {
	to, err := os.Readlink(source)
	if err != nil {
		return fmt.Errorf("reading the machine's link %s: %w", target, err)
	}
	if err := os.Symlink(to, target); err != nil {
		return fmt.Errorf("copying the machine's link %s: %w", target, err)
	}
	return nil
}

func kernelFiles() error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", plain, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	// The parameters of the machine are not a container's to change.
	if err := bind(Mount{Source: "/proc/sys", Target: "/proc/sys", ReadOnly: true}); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", plain|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mounting /sys: %w", err)
	}
	return nil
}

func devices() error {
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("mounting /dev: %w", err)
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := bind(Mount{Source: filepath.Join(old, "dev", name), Target: filepath.Join("/dev", name)}); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(to, filepath.Join("/dev", name)); err != nil {
			return fmt.Errorf("making /dev/%s: %w", name, err)
		}
	}
	for _, m := range []struct{ dir, kind, options string }{{"/dev/shm", "tmpfs", "mode=1777"}, {"/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620"}} {
		if err := os.Mkdir(m.dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", m.dir, err)
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", m.dir, err)
		}
	}
	return nil
}

func volumes(mounts []Mount) error {
	sorted := slices.Clone(mounts)
	slices.SortStableFunc(sorted, func(a, b Mount) int { return strings.Compare(filepath.Clean(a.Target), filepath.Clean(b.Target)) })
	for _, m := range sorted {
		m.Source = filepath.Join(old, m.Source)
		if err := bind(m); err != nil {
			return err
		}
	}
	return nil
}

// bind shows a file or directory at another place, which is made where missing.
func bind(m Mount) error {
	info, err := os.Stat(m.Source)
	if err != nil {
		return fmt.Errorf("mounting on %s: %w", m.Target, err)
	}
	if err := makeTarget(m.Target, info.IsDir()); err != nil {
		return fmt.Errorf("mounting on %s: %w", m.Target, err)
	}
	if err := unix.Mount(m.Source, m.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mounting on %s: %w", m.Target, err)
	}
	if m.ReadOnly {
		return remountReadOnly(m.Target)
	}
	return nil
}

func makeTarget(path string, dir bool) error {
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if errors.Is(err, fs.ErrPermission) {
		if _, statErr := os.Stat(path); statErr == nil {
			return nil
		}
	}
	if err != nil {
		return err
	}
	return file.Close()
}

// remountReadOnly keeps the flags that the mount has already, which a user namespace would not be allowed to take away.
func remountReadOnly(path string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return fmt.Errorf("making %s read-only: %w", path, err)
	}
	kept := uintptr(stat.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME)
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|kept, ""); err != nil {
		return fmt.Errorf("making %s read-only: %w", path, err)
	}
	return nil
}

func leaveOld() error {
	if err := unix.Unmount(old, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the machine's files: %w", err)
	}
	if err := os.Remove(old); err != nil {
		return fmt.Errorf("leaving the machine's files: %w", err)
	}
	return nil
}
