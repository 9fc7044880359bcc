// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fleetgate/fleetgate/loadtest/kube/kubelet"
)

const nginxProgram = "/usr/sbin/nginx"

// nginxConfig is what the image of the same name has: the welcome page of the package, on port 80.
const nginxConfig = `user root;
worker_processes 1;
error_log /dev/stderr notice;
pid /tmp/nginx.pid;
events {}
http {
    include /etc/nginx/mime.types;
    access_log /dev/stdout;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen 80;
        root /usr/share/nginx/html;
        index index.html;
    }
}
`

// nginxImage is nginx: that of Debian's package, without installing it; else the machine's own; else a page server, which progress hears of, and which says so on its page.
func nginxImage(ctx context.Context, progress io.Writer) (kubelet.Image, error) {
	foreground := []string{"-g", "daemon off;"}
	root, why := nginxRoot(ctx, progress)
	if why == nil {
		return kubelet.Image{Root: root, Entrypoint: []string{nginxProgram}, Cmd: foreground}, nil
	}
	if _, err := os.Stat(nginxProgram); err == nil {
		return kubelet.Image{Root: "/", Entrypoint: []string{nginxProgram}, Cmd: foreground}, nil
	}
	_, _ = fmt.Fprintf(progress, "build: nginx cannot be had here, so pods with its image get a page server that says so: %v\n", why)
	pages, err := Own(ctx, "loadtest/kube/pages", "pages")
	// Below /usr the container has the machine's programs, so the stand-in lies elsewhere.
	return kubelet.Image{Binary: pages, Entrypoint: []string{"/programs/nginx"}, Cmd: foreground, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/programs"}}, err
}

// nginxRoot is the file system of the image, from the cache, or made of Debian's packages where apt-get can download them.
func nginxRoot(ctx context.Context, progress io.Writer) (string, error) {
	images, err := cache(ctx, "images")
	if err != nil {
		return "", err
	}
	root := filepath.Join(images, "nginx")
	if present(root, "etc/nginx/nginx.conf") {
		return root, nil
	}
	unlock, err := lock(images)
	if err != nil {
		return "", err
	}
	defer unlock()
	if present(root, "etc/nginx/nginx.conf") {
		return root, nil
	}
	_, _ = fmt.Fprintln(progress, "build: nginx of Debian's package (once; nothing is installed)")
	fresh, err := os.MkdirTemp(images, "nginx-*")
	if err != nil {
		return "", fmt.Errorf("assemble the image of nginx: %w", err)
	}
	defer func() { _ = os.RemoveAll(fresh) }() // what is complete has another name by then
	if err := unpackNginx(ctx, fresh); err != nil {
		return "", err
	}
	if err := errors.Join(os.RemoveAll(root), os.Rename(filepath.Join(fresh, "root"), root)); err != nil {
		return "", fmt.Errorf("assemble the image of nginx: %w", err)
	}
	return root, nil
}

// unpackNginx makes dir/root.
func unpackNginx(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := downloadPackages(ctx, dir, "nginx", "nginx-common"); err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, p := range packages {
		if _, err := output(ctx, dir, "dpkg-deb", "--extract", p, root); err != nil {
			return err
		}
	}
	libraries, err := needs(filepath.Join(root, nginxProgram))
	if err != nil {
		return err
	}
	for _, l := range libraries {
		if err := place(l, filepath.Join(root, l)); err != nil {
			return err
		}
	}
	for _, d := range []string{"var/log/nginx", "var/lib/nginx"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return fmt.Errorf("assemble the image of nginx: %w", err)
		}
	}
	for name, content := range map[string]string{"passwd": "root:x:0:0:root:/root:/sbin/nologin\n", "group": "root:x:0:\n", "nginx/nginx.conf": nginxConfig} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("assemble the image of nginx: %w", err)
		}
	}
	return nil
}

// downloadPackages puts packages into dir, by the lists that the machine has or, where these name none or what is there no more, by lists of our own. It needs no rights.
func downloadPackages(ctx context.Context, dir string, names ...string) error {
	download := append([]string{"-q", "download"}, names...)
	_, first := output(ctx, dir, "apt-get", download...)
	if first == nil {
		return nil
	}
	own := []string{"-o", "Dir::State=" + filepath.Join(dir, "state"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "Dir::State::status=/var/lib/dpkg/status"}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("download packages: %w", err)
		}
	}
	if _, err := output(ctx, dir, "apt-get", append(own, "-q", "update")...); err != nil {
		return errors.Join(first, err)
	}
	_, err := output(ctx, dir, "apt-get", append(own, download...)...)
	return err
}
