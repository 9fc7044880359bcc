// SPDX-License-Identifier: Apache-2.0

package container_test

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fleetgate/fleetgate/loadtest/kube/container"
	"github.com/fleetgate/fleetgate/loadtest/kube/link"
)

// shell is a container that runs a script on the machine's own programs.
func shell(t *testing.T, script string) container.Spec {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root (or a user namespace that the caller made)")
	}
	return container.Spec{
		Scratch: t.TempDir(), Hostname: "pod-1",
		Process: container.Process{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "GREETING=hello"}, Dir: "/work/here"},
	}
}

func network(t *testing.T) *link.Namespace {
	t.Helper()
	ns, err := link.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// output runs the container to its end.
func output(t *testing.T, spec container.Spec) (string, container.Exit) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := container.Start(spec, network(t).File(), container.Stdio{Out: w, Err: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), c.Exit()
}

func TestContainerSeesWhatItsSpecSays(t *testing.T) {
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "token"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		script, want string
		change       func(*container.Spec)
	}{
		"environment is not passed":    {script: "echo $GREETING", want: "hello"},
		"working directory is missing": {script: "pwd", want: "/work/here"},
		"host name is the machine's":   {script: "cat /proc/sys/kernel/hostname", want: "pod-1"},
		"other processes are visible":  {script: "echo $$", want: "1"},
		"links in the image leave the root": {script: "cat /run/secrets/here/token", want: "secret", change: func(s *container.Spec) {
			s.Mounts = []container.Mount{{Source: volume, Target: "/var/run/secrets/here"}}
		}},
		"a read-only volume is writable": {script: "touch /v/x 2>/dev/null || echo refused", want: "refused", change: func(s *container.Spec) { s.Mounts = []container.Mount{{Source: volume, Target: "/v", ReadOnly: true}} }},
		"a read-only root is writable":   {script: "touch /x 2>/dev/null || echo refused", want: "refused", change: func(s *container.Spec) { s.ReadOnlyRoot = true }},
		"files cannot be mounted": {script: "cat /etc/hosts", want: "secret", change: func(s *container.Spec) {
			s.Mounts = []container.Mount{{Source: filepath.Join(volume, "token"), Target: "/etc/hosts"}}
		}},
		"user is not changed":          {script: "id -u; id -g; id -G; grep CapEff /proc/self/status", want: "65532\n7\n7 9\nCapEff:\t0000000000000000", change: func(s *container.Spec) { s.UID, s.GID, s.Groups = 65532, 7, []uint32{9} }},
		"capabilities are not limited": {script: "grep CapEff /proc/self/status", want: "CapEff:\t0000000000000400", change: func(s *container.Spec) { s.Capabilities = []int{unix.CAP_NET_BIND_SERVICE} }},
		"a root keeps no changes":      {script: "echo new >/file; cat /file", want: "new", change: func(s *container.Spec) { s.Root = "/" }},
	} {
		t.Run(name, func(t *testing.T) {
			spec := shell(t, c.script)
			if c.change != nil {
				c.change(&spec)
			}
			if got, exit := output(t, spec); got != c.want || exit.Code != 0 {
				t.Errorf("got %q, exit %+v, want %q", got, exit, c.want)
			}
		})
	}
	if _, err := os.Stat("/file"); err == nil {
		t.Error("a container wrote into the machine's root")
	}
}

func TestExitTellsCodeAndSignal(t *testing.T) {
	if _, exit := output(t, shell(t, "exit 7")); exit != (container.Exit{Code: 7}) {
		t.Errorf("exit 7: %+v", exit)
	}
	c, err := container.Start(shell(t, "sleep 1000 & wait"), network(t).File(), container.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	c.Kill()
	if exit := c.Exit(); exit != (container.Exit{Code: 137, Signal: 9}) {
		t.Errorf("killed: %+v", exit)
	}
}

func TestUnknownProgramIsToldByName(t *testing.T) {
	spec := shell(t, "")
	spec.Args = []string{"no-such-program"}
	_, err := container.Start(spec, network(t).File(), container.Stdio{})
	if want := `exec: "no-such-program": executable file not found in $PATH`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestExecJoinsTheContainer(t *testing.T) {
	spec := shell(t, "echo inside >/tmp/file; echo ready; sleep 1000")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c, err := container.Start(spec, network(t).File(), container.Stdio{Out: w})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Kill()
	if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	command, err := c.Exec([]string{"sh", "-c", "cat /tmp/file; cat /proc/1/comm; exit 3"}, container.Stdio{Out: w, Err: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("inside\nsh\n"))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "inside\nsh\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if exit := command.Exit(); exit.Code != 3 {
		t.Errorf("exit %+v, want 3", exit)
	}
	left, err := c.Exec([]string{"sleep", "1000"}, container.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	c.Signal(syscall.SIGKILL)
	if exit := left.Exit(); exit.Signal == 0 && exit.Code != 137 {
		t.Errorf("a command outlived its container: %+v", exit)
	}
}

func TestPodIsReachedOverItsRoute(t *testing.T) {
	spec := shell(t, "")
	outer := network(t)
	node, pod := netip.MustParseAddr("10.245.0.1"), netip.MustParseAddr("10.244.0.2")
	inner := network(t)
	if err := outer.Do(func() error {
		if err := link.AddAddress(node); err != nil {
			return err
		}
		return link.Connect(inner, "veth1", pod, node)
	}); err != nil {
		t.Fatal(err)
	}
	spec.Args = []string{"ip", "route", "get", "10.96.0.1"}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := container.Start(spec, inner.File(), container.Stdio{Out: w, Err: w}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	out, _ := io.ReadAll(r)
	if want := "via 10.245.0.1 dev eth0 src 10.244.0.2"; !strings.Contains(string(out), want) {
		t.Errorf("got %s, want %s", out, want)
	}
	if err := outer.Do(func() error { return link.Remove("veth1") }); err != nil {
		t.Error(err)
	}
}
