// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Request is what the supervisor is asked over its socket: one packet, with files attached to it.
type Request struct {
	// Op is one of OpRun, OpDial, OpStop, OpStart.
	Op string `json:"op"`
	// Run: the command's standard input, output and error are attached.
	Path string   `json:"path,omitempty"`
	Args []string `json:"args,omitempty"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	// Dial: what net.Dial takes.
	Network string `json:"network,omitempty"`
	Address string `json:"address,omitempty"`
	// Stop and Start.
	Cluster   string `json:"cluster,omitempty"`
	Component string `json:"component,omitempty"`
	// Signal is for the command that this connection runs.
	Signal int `json:"signal,omitempty"`
}

// Operations of a Request.
const (
	OpRun   = "run"
	OpDial  = "dial"
	OpStop  = "stop"
	OpStart = "start"
	// OpSignal passes a signal on to the command that the same connection runs.
	OpSignal = "signal"
)

// Reply is the supervisor's answer; for OpDial the socket is attached to it.
type Reply struct {
	Error string `json:"error,omitempty"`
	// Exit is the exit code of the command, 128 and the signal when a signal ended it.
	Exit int `json:"exit"`
}

// MaxPacket bounds a request or reply: an environment of a shell fits.
const MaxPacket = 1 << 20

// SocketPath is where the supervisor of the rig in dir listens.
func SocketPath(dir string) string { return filepath.Join(dir, "control.sock") }

// short names the same socket in at most 108 bytes, however deep dir lies; the file must stay open as long as the name is used.
func short(socket string) (string, *os.File, error) {
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return "", nil, fmt.Errorf("find the supervisor's socket: %w", err)
	}
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(socket), dir, nil
}

// listenControl makes the socket that the supervisor inherits.
func listenControl(dir string) (*os.File, error) {
	name, at, err := short(SocketPath(dir))
	if err != nil {
		return nil, err
	}
	defer func() { _ = at.Close() }()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: name, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen on the supervisor's socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }()
	return l.File()
}

func (r *Rig) connect(ctx context.Context) (*net.UnixConn, error) {
	name, at, err := short(SocketPath(r.state.Dir))
	if err != nil {
		return nil, err
	}
	defer func() { _ = at.Close() }()
	c, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", name)
	if err != nil {
		return nil, fmt.Errorf("reach the supervisor of the clusters in %s: %w (is it up? see `status`)", r.state.Dir, err)
	}
	return c.(*net.UnixConn), nil
}

// SendPacket writes v with files attached.
func SendPacket(c *net.UnixConn, v any, files ...*os.File) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > MaxPacket {
		return fmt.Errorf("a message of %d bytes is above the limit of %d", len(data), MaxPacket)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(data, oob, nil)
	return err
}

// ReceivePacket reads what SendPacket wrote; the caller closes the files.
func ReceivePacket(c *net.UnixConn, v any) ([]*os.File, error) {
	data, oob := make([]byte, MaxPacket), make([]byte, unix.CmsgSpace(8*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, err
	}
	files, err := received(oob[:oobn])
	if err == nil && n == 0 {
		err = net.ErrClosed
	}
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("a message was cut off")
	}
	if err == nil {
		err = json.Unmarshal(data[:n], v)
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func received(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials and the like, which nobody asked for
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// ask sends one request and waits for its reply.
func (r *Rig) ask(ctx context.Context, q Request) ([]*os.File, error) {
	c, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := SendPacket(c, q); err != nil {
		return nil, fmt.Errorf("ask the supervisor: %w", err)
	}
	var reply Reply
	files, err := ReceivePacket(c, &reply)
	if err != nil {
		return nil, errors.Join(ctx.Err(), fmt.Errorf("hear from the supervisor: %w", err))
	}
	if reply.Error != "" {
		closeAll(files)
		return nil, errors.New(reply.Error)
	}
	return files, nil
}

// Dial connects from inside the rig's network, where pods, Services and load balancers have their addresses; the connection itself belongs to the caller. It fits http.Transport.DialContext.
func (r *Rig) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	files, err := r.ask(ctx, Request{Op: OpDial, Network: network, Address: address})
	if err != nil {
		return nil, fmt.Errorf("dial %s in the clusters' network: %w", address, err)
	}
	defer closeAll(files)
	if len(files) != 1 {
		return nil, fmt.Errorf("dial %s in the clusters' network: the supervisor sent %d sockets", address, len(files))
	}
	return net.FileConn(files[0])
}

// Stop ends a component of a cluster ("etcd", "kube-apiserver", "kube-controller-manager" or "kube-scheduler") by SIGKILL and keeps it down until Start.
func (r *Rig) Stop(ctx context.Context, cluster, component string) error {
	_, err := r.ask(ctx, Request{Op: OpStop, Cluster: cluster, Component: component})
	return err
}

// Start brings a stopped component back; it returns when the component is started, not when it is ready.
func (r *Rig) Start(ctx context.Context, cluster, component string) error {
	_, err := r.ask(ctx, Request{Op: OpStart, Cluster: cluster, Component: component})
	return err
}

// Command is a process to run inside the rig's network.
type Command struct {
	Args, Env []string
	Dir       string
	// Stdin, Stdout and Stderr belong to the process itself; nil is the null device.
	Stdin, Stdout, Stderr *os.File
	// Signals are passed on to the process. May be nil.
	Signals <-chan os.Signal
}

// Run runs a command inside the rig's network and returns its exit code, 128+n when signal n ended it. It and what it started are killed when ctx ends.
func (r *Rig) Run(ctx context.Context, cmd Command) (int, error) {
	path, err := r.lookPath(cmd.Args[0])
	if err != nil {
		return 0, err
	}
	c, err := r.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	files, opened, err := standardFiles(cmd)
	if err != nil {
		return 0, err
	}
	err = SendPacket(c, Request{Op: OpRun, Path: path, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir}, files...)
	closeAll(opened)
	if err != nil {
		return 0, fmt.Errorf("run %s in the clusters' network: %w", cmd.Args[0], err)
	}
	done := make(chan struct{})
	defer close(done)
	go forwardSignals(c, cmd.Signals, done)
	var reply Reply
	if _, err := ReceivePacket(c, &reply); err != nil {
		return 0, errors.Join(ctx.Err(), fmt.Errorf("run %s in the clusters' network: %w", cmd.Args[0], err))
	}
	if reply.Error != "" {
		return 0, errors.New(reply.Error)
	}
	return reply.Exit, nil
}

// lookPath finds a program: kubectl and its like are the rig's own.
func (r *Rig) lookPath(name string) (string, error) {
	if path, err := exec.LookPath(filepath.Join(r.state.Binaries, name)); err == nil && filepath.Base(name) == name {
		return path, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find the program to run: %w", err)
	}
	return filepath.Abs(path)
}

// standardFiles returns the three files of a command, and those among them that were opened here.
func standardFiles(cmd Command) (files, opened []*os.File, err error) {
	for _, f := range []*os.File{cmd.Stdin, cmd.Stdout, cmd.Stderr} {
		if f == nil {
			if f, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				closeAll(opened)
				return nil, nil, fmt.Errorf("open the null device: %w", err)
			}
			opened = append(opened, f)
		}
		files = append(files, f)
	}
	return files, opened, nil
}

func forwardSignals(c *net.UnixConn, signals <-chan os.Signal, done <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			n, ok := s.(syscall.Signal)
			if !ok || SendPacket(c, Request{Op: OpSignal, Signal: int(n)}) != nil {
				return
			}
		case <-done:
			return
		}
	}
}
