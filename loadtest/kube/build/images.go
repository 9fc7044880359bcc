// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/fleetgate/fleetgate/loadtest/kube/kubelet"
)

// Images builds what the images of this repository and of the conformance suite stand for: `fleetgate`, which holds fleetgate and Envoy and nothing else of the machine's, nginx, a gRPC server
// and the suite's echo server. What is up to date is not built again.
func Images(ctx context.Context, progress io.Writer) (kubelet.Images, error) {
	root, err := fleetgateRoot(ctx)
	if err != nil {
		return nil, err
	}
	echo, err := ofModule(ctx, conformanceModule, "echo-basic", "sigs.k8s.io/gateway-api-conformance-images/echo-basic")
	if err != nil {
		return nil, err
	}
	nginx, err := nginxImage(ctx, progress)
	if err != nil {
		return nil, err
	}
	calls, err := Own(ctx, "loadtest/kube/calls", "calls")
	if err != nil {
		return nil, err
	}
	return kubelet.Images{
		"nginx":      nginx,
		"fleetgate":  {Root: root, Entrypoint: []string{"/usr/local/bin/fleetgate"}, User: nonroot, Group: nonroot},
		"grpc-app":   {Binary: calls, Entrypoint: []string{"/grpc-app"}},
		"echo-basic": {Binary: echo, Entrypoint: []string{"/echo-basic"}},
	}, nil
}

// nonroot is the user of images without a distribution.
const nonroot = 65532

// ConformanceTest builds the program that runs the Gateway API's conformance suite.
func ConformanceTest(ctx context.Context, progress io.Writer) (string, error) {
	return inBin(ctx, "conformance.test", func(root, path string) error {
		_, _ = fmt.Fprintln(progress, "build: the conformance suite (the first time takes some minutes)")
		_, err := output(ctx, filepath.Join(root, conformanceModule), "go", "test", "-c", "-o", path, ".")
		return err
	})
}

// fleetgateRoot assembles the file system of the image: the two programs, the libraries that Envoy is linked to, the machine's certificate authorities, and a user.
func fleetgateRoot(ctx context.Context) (string, error) {
	program, err := Own(ctx, "cmd/fleetgate", "fleetgate")
	if err != nil {
		return "", err
	}
	envoy, err := envoyProgram(ctx)
	if err != nil {
		return "", err
	}
	libraries, err := needs(envoy)
	if err != nil {
		return "", err
	}
	root, err := cache(ctx, "images", "fleetgate")
	if err != nil {
		return "", err
	}
	files := map[string]string{"/usr/local/bin/fleetgate": program, "/usr/local/bin/envoy": envoy}
	for _, l := range libraries {
		files[l] = l
	}
	const authorities = "/etc/ssl/certs/ca-certificates.crt"
	if _, err := os.Stat(authorities); err == nil {
		files[authorities] = authorities
	}
	return root, assemble(root, files)
}

// assemble puts files, by their places in the image, and a user into it, while no other process does.
func assemble(root string, files map[string]string) error {
	unlock, err := lock(filepath.Dir(root))
	if err != nil {
		return err
	}
	defer unlock()
	for to, from := range files {
		if err := place(from, filepath.Join(root, to)); err != nil {
			return err
		}
	}
	users := fmt.Sprintf("root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:%d:%d:nonroot:/home/nonroot:/sbin/nologin\n", nonroot, nonroot)
	if err := os.WriteFile(filepath.Join(root, "etc", "passwd"), []byte(users), 0o644); err != nil {
		return fmt.Errorf("assemble the image: %w", err)
	}
	return nil
}

// envoyProgram finds Envoy where the Makefile has it.
func envoyProgram(ctx context.Context) (string, error) {
	if path := os.Getenv("FLEETGATE_ENVOY"); path != "" {
		return path, nil
	}
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	if path := filepath.Join(root, ".cache", "envoy", "envoy"); present(filepath.Dir(path), "envoy") {
		return path, nil
	}
	path, err := exec.LookPath("envoy")
	if err != nil {
		return "", fmt.Errorf("find Envoy: %w (`make .cache/envoy/envoy`, or set FLEETGATE_ENVOY)", err)
	}
	return path, nil
}

// libraryDirs are where the loader looks.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// needs lists the loader and the shared libraries that a program and its libraries are linked to.
func needs(program string) ([]string, error) {
	seen := map[string]bool{}
	var all []string
	queue := []string{program}
	for len(queue) > 0 {
		next := queue[0]
		queue = queue[1:]
		paths, err := linked(next)
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			if !seen[p] {
				seen[p] = true
				all, queue = append(all, p), append(queue, p)
			}
		}
	}
	return all, nil
}

// linked lists what one file names itself.
func linked(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read which libraries %s needs: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read which libraries %s needs: %w", path, err)
	}
	var paths []string
	for _, name := range names {
		found, err := library(name)
		if err != nil {
			return nil, fmt.Errorf("assemble the image: %s: %w", path, err)
		}
		paths = append(paths, found)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		loader, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, fmt.Errorf("read which loader %s needs: %w", path, err)
		}
		paths = append(paths, string(loader[:len(loader)-1])) // it ends with a zero byte
	}
	return paths, nil
}

func library(name string) (string, error) {
	for _, dir := range libraryDirs {
		if present(dir, name) {
			return filepath.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("there is no library %s in %v", name, libraryDirs)
}

// place puts a file into an image in one step, as a link where that is possible, else as a copy.
func place(from, to string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return fmt.Errorf("assemble the image: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("assemble the image: %w", err)
	}
	fresh := to + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("assemble the image: %w", err)
	}
	if os.Link(from, fresh) != nil {
		if err := copyFile(from, fresh); err != nil {
			return fmt.Errorf("assemble the image: %w", err)
		}
	}
	return os.Rename(fresh, to)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
