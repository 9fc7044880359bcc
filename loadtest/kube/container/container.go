// SPDX-License-Identifier: Apache-2.0

// Package container runs one container: a process in namespaces of its own (mounts, processes, host name), in the network namespace of its pod, with a root
// file system put together by mounts.
//
// A container is its process number 1. When that ends, or is killed, the kernel kills all else that ran in it: nothing is left to hunt for. The same holds
// for whoever started it: every container dies with the process that started it, also by kill -9.
//
// Namespaces, mounts and users are properties of threads, which a Go program moves about between. So the set-up happens in a fresh process: Start runs this
// very program again under another name (see child.go), which prepares everything on its first thread and then becomes the container by exec. Whatever
// program imports this package can therefore start containers, tests included.
//
// An ordinary user has a user namespace with one user in it, for mapping more takes newuidmap and ranges that root has given out. Containers there run as that user, whatever user they
// name, with the capabilities that they are allowed; see OneUser.
package container

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spec says what runs, and on what file system.
type Spec struct {
	// Root is a directory whose files the container sees and may change without changing the directory. Empty stands for the machine's own programs and
	// libraries (/usr, /bin, /lib), read-only, with everything else fresh.
	Root string
	// Scratch is an existing directory of this container's own to mount on; nothing is written to it.
	Scratch string
	// Mounts are applied by order of target.
	Mounts []Mount
	// ReadOnlyRoot makes everything but the mounts read-only.
	ReadOnlyRoot bool
	Hostname     string
	// Sealed stops programs from gaining privileges by exec.
	Sealed bool
	Process
}

// Process says what a process in a container runs as.
type Process struct {
	// Args is the command line; a first word without a slash is looked up in PATH of Env, inside the container.
	Args, Env []string
	// Dir is the working directory, made where missing; empty is the root.
	Dir      string
	UID, GID uint32
	Groups   []uint32
	// Capabilities is what the process and all that it starts may have at most, as numbers (unix.CAP_*).
	Capabilities []int
}

// OneUser says that this process knows one user and one group only, number 0, as in a user namespace that an ordinary user made without help. Everything then runs as that user, whatever
// it asks for, and nothing can be given to another.
var OneUser = sync.OnceValue(func() bool {
	mapped, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && oneUser(string(mapped))
})

// oneUser reads a uid_map: lines of a first number inside, one outside, and how many (user_namespaces(7)).
func oneUser(mapped string) bool {
	fields := strings.Fields(mapped)
	return len(fields) == 3 && fields[0] == "0" && fields[2] == "1"
}

// Mount shows a file or a directory of the machine at a path inside the container.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// Stdio are the files that a process gets; nil is /dev/null.
type Stdio struct {
	In, Out, Err *os.File
	// Terminal says that all three are one terminal that the process shall control.
	Terminal bool
}

// Running is a started process: a container, or a further command in one.
type Running struct {
	cmd  *exec.Cmd
	spec Spec
	done chan struct{}
	exit Exit
}

// Exit says how a process ended.
type Exit struct {
	// Code is the exit code, 128 plus the signal where one ended it.
	Code int
	// Signal is what ended the process, or 0.
	Signal int
}

// order is what the child process is told.
type order struct {
	Spec Spec
	// Join is the process whose container the command shall run in; 0 makes a new container.
	Join int
	// Inside says that the process is in its container already.
	Inside bool
}

// Start starts a container in a network namespace and returns once its program runs.
func Start(spec Spec, network *os.File, stdio Stdio) (*Running, error) {
	return start(order{Spec: spec}, network, stdio, unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC)
}

// Exec starts a command in the running container and returns once it runs. The command ends at the latest with the container.
func (r *Running) Exec(args []string, stdio Stdio) (*Running, error) {
	spec := r.spec
	spec.Args = args
	return start(order{Spec: spec, Join: r.PID()}, nil, stdio, 0)
}

func start(o order, network *os.File, stdio Stdio, flags uintptr) (*Running, error) {
	input, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("describing a container: %w", err)
	}
	orders, tell, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe for a container: %w", err)
	}
	hear, failures, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a pipe for a container: %w", err), orders.Close(), tell.Close())
	}
	cmd := command(flags, stdio)
	cmd.ExtraFiles = []*os.File{orders, failures}
	if network != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, network)
	}
	err = fork(cmd)
	_ = orders.Close()
	_ = failures.Close()
	defer func() { _ = hear.Close() }()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting a container process: %w", err), tell.Close())
	}
	r := &Running{cmd: cmd, spec: o.Spec, done: make(chan struct{})}
	go r.wait()
	// A child that dies early closes its ends: writing fails, reading ends, and its exit says why.
	_, writeErr := tell.Write(input)
	_ = tell.Close()
	report, readErr := io.ReadAll(hear)
	if len(report) == 0 && writeErr == nil && readErr == nil {
		return r, nil
	}
	r.Kill()
	<-r.done
	if len(report) > 0 {
		return nil, errors.New(string(bytes.TrimSpace(report)))
	}
	return nil, fmt.Errorf("preparing a container: exit code %d: %w", r.exit.Code, errors.Join(writeErr, readErr))
}

func command(flags uintptr, stdio Stdio) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{childName}
	cmd.Env = []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}
	// A nil *os.File must stay a nil interface.
	if stdio.In != nil {
		cmd.Stdin = stdio.In
	}
	if stdio.Out != nil {
		cmd.Stdout = stdio.Out
	}
	if stdio.Err != nil {
		cmd.Stderr = stdio.Err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL, Setsid: true, Setctty: stdio.Terminal}
	return cmd
}

// forks is where processes are started: one thread that never ends, because a child gets its Pdeathsig when the thread that forked it ends.
var forks = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
})

func fork(cmd *exec.Cmd) error {
	done := make(chan error)
	forks() <- func() { done <- cmd.Start() }
	return <-done
}

func (r *Running) wait() {
	_ = r.cmd.Wait() // the state says all
	status := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	r.exit = Exit{Code: status.ExitStatus()}
	if status.Signaled() {
		r.exit = Exit{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}
	}
	close(r.done)
}

// PID is the number of the process outside of the container.
func (r *Running) PID() int { return r.cmd.Process.Pid }

// Done is closed when the process has ended and, for a container, everything in it.
func (r *Running) Done() <-chan struct{} { return r.done }

// Exit waits for the end and says how it came.
func (r *Running) Exit() Exit {
	<-r.done
	return r.exit
}

// Signal sends a signal to the process; one that has ended gets none.
func (r *Running) Signal(s syscall.Signal) { _ = r.cmd.Process.Signal(s) }

// Kill ends the process, and for a container everything in it, without asking.
func (r *Running) Kill() { r.Signal(syscall.SIGKILL) }
