// SPDX-License-Identifier: Apache-2.0

// Package build makes, once, what a rig runs: the programs of Kubernetes from their Go modules (ten minutes on two cores, then kept by version in .cache/kube), the program of the
// rig itself, and finds the Gateway API's CRDs in the module cache. It needs the go command and the repository, so it is for commands and tests that run from source.
package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// Version of Kubernetes.
const Version = "v1.37.2"

// links are the names by which the one file of Kubernetes is started.
var links = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"}

const (
	mainModule        = "github.com/fleetgate/fleetgate"
	binariesModule    = "loadtest/kube/binaries"
	conformanceModule = "loadtest/conformance"
)

// Root is the directory of the repository.
func Root(ctx context.Context) (string, error) {
	return output(ctx, "", "go", "list", "-m", "-f", "{{.Dir}}", mainModule)
}

// cache is a directory of the repository that is never committed.
func cache(ctx context.Context, elements ...string) (string, error) {
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(append([]string{root, ".cache", "kube"}, elements...)...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache of built programs: %w", err)
	}
	return filepath.EvalSymlinks(dir) // containers see these files, but not links that lead elsewhere in the machine
}

// Directory is where rigs are kept unless somebody says otherwise.
func Directory(ctx context.Context) (string, error) {
	dir, err := cache(ctx)
	return filepath.Join(dir, "rig"), err
}

// Kubernetes returns the directory of etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kubectl, and builds them when they are not there; progress hears that it will take a while.
func Kubernetes(ctx context.Context, progress io.Writer) (string, error) {
	dir, err := cache(ctx, Version)
	if err != nil {
		return "", err
	}
	unlock, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	module := filepath.Join(root, binariesModule)
	if !present(dir, "etcd") {
		_, _ = fmt.Fprintf(progress, "build: etcd for Kubernetes %s (once; about a minute)\n", Version)
		if err := goBuild(ctx, module, filepath.Join(dir, "etcd"), "", "go.etcd.io/etcd/server/v3"); err != nil {
			return "", err
		}
	}
	if !present(dir, "kubernetes") {
		_, _ = fmt.Fprintf(progress, "build: Kubernetes %s (once; about ten minutes on two cores)\n", Version)
		if err := goBuild(ctx, module, filepath.Join(dir, "kubernetes"), versionFlags(), "./kubernetes"); err != nil {
			return "", err
		}
	}
	for _, name := range links {
		if err := os.Symlink("kubernetes", filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("link %s: %w", name, err)
		}
	}
	return dir, nil
}

// versionFlags: clients refuse to talk to a server whose version they cannot parse.
func versionFlags() string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(Version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	const base = "k8s.io/component-base/version."
	var flags []string
	for _, f := range []string{
		base + "gitVersion=" + Version, base + "gitMajor=" + major, base + "gitMinor=" + minor, base + "gitTreeState=clean",
		"k8s.io/client-go/pkg/version.gitVersion=" + Version,
	} {
		flags = append(flags, "-X "+f)
	}
	return strings.Join(flags, " ")
}

// Program builds loadtest/kube itself.
func Program(ctx context.Context) (string, error) { return Own(ctx, "loadtest/kube", "kube") }

// Describe names the commit of the repository.
func Describe(ctx context.Context) (string, error) {
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	return output(ctx, root, "git", "describe", "--always", "--dirty", "--tags")
}

// Own builds a command of this repository under a name, without cgo, and returns its path. When nothing has changed this takes about a second.
func Own(ctx context.Context, pkg, name string) (string, error) {
	return ofModule(ctx, ".", name, "./"+pkg)
}

// ofModule does it for a package of a module, which is named by its folder.
func ofModule(ctx context.Context, module, name, pkg string) (string, error) {
	return inBin(ctx, name, func(root, path string) error {
		return goBuild(ctx, filepath.Join(root, module), path, "", pkg)
	})
}

// inBin has a program of the cache made, while no other process makes one there, and returns its path.
func inBin(ctx context.Context, name string, build func(root, path string) error) (string, error) {
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	dir, err := cache(ctx, "bin")
	if err != nil {
		return "", err
	}
	unlock, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	path := filepath.Join(dir, name)
	return path, build(root, path)
}

// goBuild builds pkg of a module directory into out in one step: nobody ever meets half a program, and one that runs is left alone.
func goBuild(ctx context.Context, module, out, ldflags, pkg string) error {
	fresh := out + ".new"
	if old, err := os.ReadFile(out); err == nil { // the go command leaves a file alone that is up to date
		if err := os.WriteFile(fresh, old, 0o755); err != nil {
			return fmt.Errorf("build %s: %w", pkg, err)
		}
	}
	_, err := output(ctx, module, "go", "build", "-ldflags=-s -w "+ldflags, "-o", fresh, pkg)
	if err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return os.Rename(fresh, out)
}

// CRDs returns the manifests of a channel of the Gateway API, in the version that the repository builds with.
func CRDs(ctx context.Context, channel string) ([]string, error) {
	if channel == "none" {
		return nil, nil
	}
	root, err := Root(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := output(ctx, root, "go", "mod", "download", "sigs.k8s.io/gateway-api"); err != nil {
		return nil, err
	}
	module, err := output(ctx, root, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api")
	if err != nil {
		return nil, err
	}
	// Not kustomization.yaml, which lies beside them and is no manifest.
	files, err := filepath.Glob(filepath.Join(module, "config", "crd", channel, "gateway.*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, errors.Join(err, fmt.Errorf("the Gateway API has no channel %q: choose standard, experimental or none", channel))
	}
	return files, nil
}

func present(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

// lock keeps two processes from building the same at once.
func lock(dir string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache of built programs: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the cache of built programs: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// output runs a command without cgo and returns its trimmed standard output.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Options completes o with what has to be built or found, the first time in about ten minutes.
func Options(ctx context.Context, o rig.Options, progress io.Writer) (rig.Options, error) {
	var err error
	if o.CRDs, err = CRDs(ctx, o.Channel); err != nil {
		return o, err
	}
	if o.Binaries, err = Kubernetes(ctx, progress); err != nil {
		return o, err
	}
	if o.Images == nil {
		if o.Images, err = Images(ctx, progress); err != nil {
			return o, err
		}
	}
	if o.Program == "" {
		o.Program, err = Program(ctx)
	}
	return o, err
}
