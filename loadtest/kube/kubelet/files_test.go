// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestFilesAreReplacedAtOnce(t *testing.T) {
	dir := t.TempDir()
	write := func(files map[string]file) {
		t.Helper()
		if err := writeFiles(dir, files, -1); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "missing"
		}
		return string(data)
	}
	write(map[string]file{"a": {data: []byte("1"), mode: 0o644}, "sub/b": {data: []byte("1"), mode: 0o600}})
	first, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil {
		t.Fatal(err)
	}
	write(map[string]file{"a": {data: []byte("1"), mode: 0o644}, "sub/b": {data: []byte("1"), mode: 0o600}})
	if again, _ := os.Readlink(filepath.Join(dir, dataLink)); again != first {
		t.Error("the same files were written anew: programs that watch would read them again")
	}
	open, err := os.Open(filepath.Join(dir, dataLink))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	write(map[string]file{"a": {data: []byte("2"), mode: 0o400}, "c": {data: []byte("2"), mode: 0o644}})
	if got := read("a") + read("c") + read("sub/b"); got != "22missing" {
		t.Errorf("after a change: %s", got)
	}
	if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("mode of a: %v, %v", info, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") || e.Name() == dataLink {
			names = append(names, e.Name())
		}
	}
	if want := []string{"..data", "a", "c"}; !slices.Equal(names, want) || len(entries) != 4 {
		t.Errorf("left are %v (%d)", names, len(entries))
	}
}

func TestSubPathStaysInTheVolume(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if got, err := subPath(dir, "out"); err == nil {
		t.Errorf("a link out of the volume is followed to %s", got)
	}
	if got, err := subPath(dir, "../../etc"); err != nil || !strings.HasPrefix(got, dir) {
		t.Errorf("got %s, %v", got, err)
	}
}

// fixed is a set of objects.
type fixed struct{}

var errMissing = errors.New("not found")

func (fixed) configMap(_, name string) (*v1.ConfigMap, error) {
	if name != "settings" {
		return nil, errMissing
	}
	return &v1.ConfigMap{Data: map[string]string{"one": "1", "not a name": "x"}}, nil
}

func (fixed) secret(_, name string) (*v1.Secret, error) {
	if name != "hidden" {
		return nil, errMissing
	}
	return &v1.Secret{Data: map[string][]byte{"key": []byte("value")}}, nil
}

func (fixed) services(namespace string) ([]*v1.Service, error) {
	named := func(name, ip string) *v1.Service {
		return &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.ServiceSpec{ClusterIP: ip, Ports: []v1.ServicePort{{Name: "https", Port: 443, Protocol: v1.ProtocolTCP}}}}
	}
	if namespace == "default" {
		return []*v1.Service{named("kubernetes", "10.96.0.1"), named("other", "10.96.0.2")}, nil
	}
	return []*v1.Service{named("my-db", "10.96.0.3"), named("headless", v1.ClusterIPNone)}, nil
}

func TestEnvironment(t *testing.T) {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "shop", Labels: map[string]string{"app": "x"}}, Status: v1.PodStatus{PodIP: "10.244.0.2"}}
	optional := true
	from := func(s v1.EnvVarSource) *v1.EnvVarSource { return &s }
	key := func(name, key string, optional *bool) *v1.SecretKeySelector {
		return &v1.SecretKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: name}, Key: key, Optional: optional}
	}
	c := &v1.Container{Name: "c",
		EnvFrom: []v1.EnvFromSource{{Prefix: "S_", ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "settings"}}}},
		Env: []v1.EnvVar{
			{Name: "IP", ValueFrom: from(v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "status.podIP"}})},
			{Name: "APP", ValueFrom: from(v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}})},
			{Name: "HIDDEN", ValueFrom: from(v1.EnvVarSource{SecretKeyRef: key("hidden", "key", nil)})},
			{Name: "NONE", ValueFrom: from(v1.EnvVarSource{SecretKeyRef: key("none", "key", &optional)})},
			{Name: "URL", Value: "http://$(IP):$(S_one)/$$(IP)$(UNKNOWN)$"},
			{Name: "IMAGE", Value: "own"},
		}}
	lines, err := environment(pod, c, Image{Env: []string{"IMAGE=image", "KEPT=yes"}}, fixed{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"IP=10.244.0.2", "APP=x", "HIDDEN=value", "URL=http://10.244.0.2:1/$(IP)$(UNKNOWN)$", "IMAGE=own", "KEPT=yes", "HOSTNAME=p",
		"KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT_HTTPS=443", "MY_DB_SERVICE_HOST=10.96.0.3", "MY_DB_PORT=tcp://10.96.0.3:443",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%s is missing in %v", want, lines)
		}
	}
	for _, line := range lines {
		for _, unwanted := range []string{"NONE=", "S_not", "OTHER_", "HEADLESS_"} {
			if strings.HasPrefix(line, unwanted) {
				t.Errorf("unwanted %s", line)
			}
		}
	}
	c.Env = []v1.EnvVar{{Name: "X", ValueFrom: from(v1.EnvVarSource{SecretKeyRef: key("hidden", "nokey", nil)})}}
	if _, err := environment(pod, c, Image{}, fixed{}); err == nil || !strings.Contains(err.Error(), "nokey") {
		t.Errorf("a missing key: %v", err)
	}
}

func TestImagesAreFoundByTheirNames(t *testing.T) {
	images := Images{"echo-basic": {Dir: "short"}, "registry.example/team/app:v2": {Dir: "exact"}, "registry.example/team/app": {Dir: "any"}}
	for name, want := range map[string]string{
		"echo-basic": "short", "echo-basic:v1": "short", "registry.k8s.io/gateway-api/conformance/echo-basic:v0.1.0": "short", "localhost:5000/echo-basic@sha256:00": "short",
		"registry.example/team/app:v2": "exact", "registry.example/team/app:v3": "any", "other/app": "",
	} {
		image, err := images.find(name)
		if image.Dir != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", name, image.Dir, err, want)
		}
	}
	if _, err := images.find("no/such"); !strings.Contains(err.Error(), "echo-basic") {
		t.Errorf("the error does not say what there is: %v", err)
	}
}

func TestAddressesAreGivenOnceAndReusedLate(t *testing.T) {
	a := newAddresses(netip.MustParsePrefix("10.0.0.0/30"))
	take := func() string {
		addr, err := a.take()
		if err != nil {
			return "none"
		}
		return addr.String()
	}
	if got := []string{take(), take(), take(), take()}; !slices.Equal(got, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "none"}) {
		t.Errorf("got %v", got)
	}
	a.giveBack(netip.MustParseAddr("10.0.0.2"))
	a.giveBack(netip.MustParseAddr("10.0.0.1"))
	if got := []string{take(), take(), take()}; !slices.Equal(got, []string{"10.0.0.1", "10.0.0.2", "none"}) {
		t.Errorf("got %v", got)
	}
}

func TestLogs(t *testing.T) {
	l, err := newLog(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"one\n", "two\n", "thr", "ee\n"} {
		l.write(now.Add(time.Duration(i)*time.Second), "stdout", []byte(text))
	}
	ask := func(query string) string {
		t.Helper()
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		options, err := parseLogOptions(q, now.Add(4*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if err := l.send(t.Context(), &out, options); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	for query, want := range map[string]string{
		"": "one\ntwo\nthree\n", "tailLines=3": "two\nthree\n", "tailLines=0": "", "limitBytes=5": "one\nt", "sinceSeconds=3": "two\nthree\n",
		"sinceTime=2026-01-02T03:04:07Z": "three\n", "timestamps=true&tailLines=1": "2026-01-02T03:04:08Z ee\n",
	} {
		if got := ask(query); got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
	if _, err := parseLogOptions(url.Values{"tailLines": {"many"}}, now); err == nil {
		t.Error("tailLines=many is taken")
	}
}

// A reader that follows sees each line once, across segments, and ends with the log.
func TestLogIsFollowedAcrossSegments(t *testing.T) {
	l, err := newLog(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string)
	go func() {
		defer close(seen)
		err := l.read(context.Background(), true, func(line string) error {
			seen <- line[strings.LastIndex(line, " ")+1:]
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}()
	for _, text := range []string{"a", "b", "c"} {
		l.write(now, "stdout", []byte(text+"\n"))
		if got := <-seen; got != text {
			t.Errorf("got %q, want %q", got, text)
		}
		l.mu.Lock()
		l.rotate()
		l.mu.Unlock()
	}
	l.close()
	if got, open := <-seen; open {
		t.Errorf("after the end: %q", got)
	}
	if _, err := os.Stat(l.segment(0)); err == nil {
		t.Error("old segments stay")
	}
}

func TestRunAsNonRootRefusesRoot(t *testing.T) {
	yes, user := true, int64(65532)
	pod, c := &v1.Pod{}, &v1.Container{SecurityContext: &v1.SecurityContext{RunAsNonRoot: &yes}}
	if _, err := secured(pod, c, Image{}); err == nil {
		t.Error("root is taken")
	}
	if _, err := secured(pod, c, Image{User: 1}); err != nil {
		t.Error(err)
	}
	pod.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: &user}
	if spec, err := secured(pod, c, Image{}); err != nil || spec.UID != 65532 {
		t.Errorf("got %d, %v", spec.UID, err)
	}
	c.SecurityContext.Capabilities = &v1.Capabilities{Drop: []v1.Capability{"ALL"}, Add: []v1.Capability{"NET_BIND_SERVICE"}}
	if spec, err := secured(pod, c, Image{}); err != nil || !slices.Equal(spec.Capabilities, []int{10}) {
		t.Errorf("got %v, %v", spec.Capabilities, err)
	}
}
