// SPDX-License-Identifier: Apache-2.0

// Package supervisor is the inside of a rig: it makes the network, runs the control planes, nodes and network planes of all clusters, forwards the API servers to the machine's
// loopback and answers the rig's control socket.
//
// It is two processes. The first is process 1 of the rig's PID namespace and does nothing but collect the dead, because a Go program cannot collect orphans and wait for its own
// children at once. The second does the work. If either ends, however it ends, the kernel kills all others.
package supervisor

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// Command is the argument that makes the program the second process.
const Command = "__supervise"

// Init is process 1; its arguments and files are those that rig.Up gives it. It returns the exit code.
func Init(args []string) (int, error) {
	if err := ownMounts(); err != nil {
		return 1, err
	}
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	for fd := rig.FileControl; ; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			break
		}
		files = append(files, os.NewFile(uintptr(fd), "inherited"))
	}
	child, err := os.StartProcess("/proc/self/exe", append([]string{os.Args[0], Command}, args...), &os.ProcAttr{Files: files})
	if err != nil {
		return 1, fmt.Errorf("start the supervisor: %w", err)
	}
	for _, f := range files[3:] {
		_ = f.Close()
	}
	return collect(child.Pid)
}

// ownMounts keeps mounts made in the rig from the machine, and shows the rig's own processes in /proc and its own network in /sys.
func ownMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount the rig's own /proc: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount the rig's own /sys: %w", err)
	}
	return nil
}

// collect waits for every process that ends here until the supervisor has.
func collect(supervisor int) (int, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait for the supervisor: %w", err)
		case pid == supervisor && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == supervisor:
			return status.ExitStatus(), nil
		}
	}
}
