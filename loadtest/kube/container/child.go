// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// childName is the name under which this program runs as the set-up of a container.
const childName = "kube-container"

// The files of the child beside standard input, output and error.
const (
	ordersFD = 3 + iota
	failuresFD
	networkFD
)

// A package's init runs on the process's first thread before anything else does, and imports nothing that is slow to initialize.
func init() {
	if len(os.Args) == 1 && os.Args[0] == childName {
		child()
	}
}

// child prepares and becomes what it is ordered to; it never returns. A failure goes to whoever ordered, an empty report is success.
func child() {
	failures := os.NewFile(failuresFD, "failures")
	unix.CloseOnExec(failuresFD)
	err := obey(failures)
	_, _ = fmt.Fprintln(failures, err)
	os.Exit(128)
}

func obey(failures *os.File) error {
	var o order
	orders := os.NewFile(ordersFD, "orders")
	if err := json.NewDecoder(orders).Decode(&o); err != nil {
		return fmt.Errorf("reading what to run: %w", err)
	}
	_ = orders.Close()
	if o.Join != 0 {
		return join(o, failures)
	}
	if o.Inside {
		unix.CloseOnExec(networkFD)
		return become(o.Spec)
	}
	if err := unix.Setns(networkFD, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the pod's network: %w", err)
	}
	_ = unix.Close(networkFD)
	if err := unix.Sethostname([]byte(o.Spec.Hostname)); err != nil {
		return fmt.Errorf("setting the host name %q: %w", o.Spec.Hostname, err)
	}
	if err := buildRoot(o.Spec); err != nil {
		return err
	}
	return become(o.Spec)
}

// become turns this process into the container's program.
func become(s Spec) error {
	path, err := prepare(s)
	if err != nil {
		return err
	}
	if err := setUser(s.Process); err != nil {
		return err
	}
	if s.Sealed {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("forbidding new privileges: %w", err)
		}
	}
	// A change of user clears it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("tying the container to its keeper: %w", err)
	}
	return fmt.Errorf("exec: %q: %w", path, syscall.Exec(path, s.Args, s.Env))
}

// prepare finds the program and goes to its working directory.
func prepare(s Spec) (string, error) {
	if len(s.Args) == 0 {
		return "", errors.New("no command: neither the pod nor the image names one")
	}
	if err := os.Chdir(workingDir(s)); err != nil {
		return "", fmt.Errorf("entering the working directory: %w", err)
	}
	if err := dropCapabilities(s.Capabilities); err != nil {
		return "", err
	}
	return lookPath(s.Args[0], s.Env)
}

func workingDir(s Spec) string {
	if s.Dir == "" {
		return "/"
	}
	return s.Dir
}

// lookPath is exec.LookPath with the container's PATH.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if _, err := os.Stat(name); err != nil {
			return "", fmt.Errorf("exec: %q: no such file in the container", name)
		}
		return name, nil
	}
	for _, dir := range filepath.SplitList(variable(env, "PATH")) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

func variable(env []string, name string) string {
	value := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v // the last one counts
		}
	}
	return value
}

func dropCapabilities(keep []int) error {
	kept := map[int]bool{}
	for _, c := range keep {
		kept[c] = true
	}
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if kept[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: the kernel is older than the capability
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	return nil
}

func setUser(p Process) error {
	if OneUser() {
		return nil
	}
	groups := make([]int, len(p.Groups))
	for i, g := range p.Groups {
		groups[i] = int(g)
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("setting groups %v: %w", groups, err)
	}
	if err := syscall.Setgid(int(p.GID)); err != nil {
		return fmt.Errorf("becoming group %d: %w", p.GID, err)
	}
	if err := syscall.Setuid(int(p.UID)); err != nil {
		return fmt.Errorf("becoming user %d: %w", p.UID, err)
	}
	return nil
}

// join runs a command in a running container. The process namespace counts for children only, so this process stays outside, starts itself once more inside,
// waits, and ends as the command does.
func join(o order, failures *os.File) error {
	self, err := os.Open("/proc/self/exe") // inside, this process has no entry in /proc
	if err != nil {
		return fmt.Errorf("opening this program: %w", err)
	}
	if err := enter(o.Join); err != nil {
		return err
	}
	orders, tell, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe for a command: %w", err)
	}
	cmd := &exec.Cmd{Path: fmt.Sprintf("/proc/self/fd/%d", networkFD), Args: []string{childName}, Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	cmd.ExtraFiles = []*os.File{orders, failures, self}
	if err := cmd.Start(); err != nil { // with a Pdeathsig, Go would take the invisible parent for a dead one
		return fmt.Errorf("starting a command: %w", err)
	}
	_ = orders.Close()
	if err := json.NewEncoder(tell).Encode(order{Spec: o.Spec, Inside: true}); err != nil {
		return fmt.Errorf("ordering a command: %w", err)
	}
	_ = tell.Close()
	_ = failures.Close()
	_ = cmd.Wait() // the state says all
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		os.Exit(128 + int(status.Signal()))
	}
	os.Exit(status.ExitStatus())
	panic("unreachable")
}

// enter joins all namespaces of a process.
func enter(pid int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // shared among threads, the root could not change
		return fmt.Errorf("leaving the shared root: %w", err)
	}
	spaces := []string{"net", "uts", "ipc", "pid", "mnt"}
	files := make([]*os.File, len(spaces))
	for i, name := range spaces {
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		if err != nil {
			return fmt.Errorf("the container is gone: %w", err)
		}
		files[i] = file
	}
	for i, file := range files {
		if err := unix.Setns(int(file.Fd()), 0); err != nil {
			return fmt.Errorf("entering the container's namespace %s: %w", spaces[i], err)
		}
		_ = file.Close()
	}
	return nil
}
