// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/fleetgate/fleetgate/loadtest/kube/controlplane"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// controller answers the control socket.
type controller struct {
	planes map[string]*controlplane.ControlPlane
	log    *slog.Logger
}

func (s *controller) serve(ctx context.Context, l *net.UnixListener) error {
	context.AfterFunc(ctx, func() { _ = l.Close() })
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return errors.Join(ctx.Err(), fmt.Errorf("accept on the control socket: %w", err))
		}
		go func() {
			defer func() { _ = c.Close() }()
			if err := s.answer(ctx, c); err != nil {
				s.log.Warn("a request failed", "error", err)
			}
		}()
	}
}

// answer handles one connection, which carries one request.
func (s *controller) answer(ctx context.Context, c *net.UnixConn) error {
	var q rig.Request
	files, err := rig.ReceivePacket(c, &q)
	if err != nil {
		return fmt.Errorf("receive a request: %w", err)
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	reply, attach := s.do(ctx, c, q, files)
	if attach != nil {
		defer func() { _ = attach.Close() }()
		return rig.SendPacket(c, reply, attach)
	}
	return rig.SendPacket(c, reply)
}

func (s *controller) do(ctx context.Context, c *net.UnixConn, q rig.Request, files []*os.File) (rig.Reply, *os.File) {
	var attach *os.File
	var exit int
	var err error
	switch q.Op {
	case rig.OpDial:
		attach, err = dial(ctx, q)
	case rig.OpRun:
		exit, err = run(ctx, c, q, files)
	case rig.OpStop, rig.OpStart:
		err = s.component(ctx, q)
	default:
		err = fmt.Errorf("the supervisor does not know the request %q (is it of another version? `down` and `up` again)", q.Op)
	}
	if err != nil {
		return rig.Reply{Error: err.Error()}, nil
	}
	return rig.Reply{Exit: exit}, attach
}

func (s *controller) component(ctx context.Context, q rig.Request) error {
	plane, ok := s.planes[q.Cluster]
	if !ok {
		return fmt.Errorf("there is no cluster %q", q.Cluster)
	}
	if q.Op == rig.OpStop {
		return plane.Stop(ctx, q.Component)
	}
	return plane.Start(ctx, q.Component)
}

// dial returns a connected socket of this network.
func dial(ctx context.Context, q rig.Request) (*os.File, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, q.Network, q.Address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	filer, ok := c.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("a connection of network %s cannot be passed on", q.Network)
	}
	return filer.File()
}

// run runs a command with the caller's files until it ends, or until the caller goes.
func run(ctx context.Context, c *net.UnixConn, q rig.Request, files []*os.File) (int, error) {
	if len(q.Args) == 0 || len(files) != 3 {
		return 0, errors.New("a command and three files are needed")
	}
	cmd := &exec.Cmd{Path: q.Path, Args: q.Args, Env: q.Env, Dir: q.Dir, Stdin: files[0], Stdout: files[1], Stderr: files[2]}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("run %s: %w", q.Args[0], err)
	}
	group := &processGroup{id: cmd.Process.Pid}
	defer context.AfterFunc(ctx, func() { group.signal(syscall.SIGKILL) })()
	go passSignals(c, group)
	err := cmd.Wait()
	group.forget()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("run %s: %w", q.Args[0], err)
	}
	return cmd.ProcessState.ExitCode(), nil
}

// processGroup is a command and what it started, as long as the command lives: afterwards its number may come to mean others.
type processGroup struct {
	mu sync.Mutex
	id int // 0 once the command has ended; guarded by mu
}

func (g *processGroup) signal(s syscall.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.id != 0 {
		_ = syscall.Kill(-g.id, s) // one that has just ended needs no signal
	}
}

func (g *processGroup) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.id = 0
}

// passSignals sends what the caller sends to the command and its children, and kills them when the caller goes.
func passSignals(c *net.UnixConn, group *processGroup) {
	for {
		var q rig.Request
		if _, err := rig.ReceivePacket(c, &q); err != nil {
			group.signal(syscall.SIGKILL)
			return
		}
		group.signal(syscall.Signal(q.Signal))
	}
}
