package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// process is a program that dev keeps running until it is told to stop.
type process struct {
	name           string
	path           string
	args           []string
	env            []string
	dir            string // working directory, and where its output goes
	stdout, stderr string // files in dir; equal names share one file, "" = our own
	stop           context.CancelFunc
	done           chan struct{}
}

// supervisor starts processes, starts them again when they end, and ends them all. Every child is started from one thread that lives as long as dev:
// PDEATHSIG is bound to the thread that forked, so a child started from any other thread of the Go runtime could be killed while dev is well.
type supervisor struct {
	say     func(format string, args ...any)
	changed func(pids map[string]int)

	mu       sync.Mutex
	pids     map[string]int
	children []*process
	kill     context.CancelFunc // ends all at once
	killed   context.Context
	starts   chan startRequest
}

type startRequest struct {
	cmd  *exec.Cmd
	done chan error
}

func newSupervisor(say func(string, ...any), changed func(map[string]int)) *supervisor {
	s := &supervisor{say: say, changed: changed, pids: map[string]int{}, starts: make(chan startRequest)}
	s.killed, s.kill = context.WithCancel(context.Background())
	go s.fork()
	return s
}

// fork starts children, on one thread. It ends with the program.
func (s *supervisor) fork() {
	runtime.LockOSThread()
	for r := range s.starts {
		r.done <- r.cmd.Start()
	}
}

// keep runs p until ctx or p.stop ends it.
func (s *supervisor) keep(ctx context.Context, p *process) {
	ctx, p.stop = context.WithCancel(ctx)
	p.done = make(chan struct{})
	s.mu.Lock()
	s.children = append(s.children, p)
	s.mu.Unlock()
	go func() {
		defer close(p.done)
		pause := backoff{}
		for ctx.Err() == nil {
			began := time.Now()
			err := s.once(ctx, p)
			if ctx.Err() != nil {
				return
			}
			wait := pause.next(time.Since(began))
			s.say("%s ended (%v); starting it again in %s; its log is %s", p.name, err, wait, filepath.Join(p.dir, p.stderr))
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
	}()
}

// backoff gives pauses from 100 ms to 5 s; whoever lived for 10 s begins anew.
type backoff struct{ pause time.Duration }

func (b *backoff) next(lived time.Duration) time.Duration {
	if lived >= 10*time.Second || b.pause == 0 {
		b.pause = 100 * time.Millisecond
		return b.pause
	}
	b.pause = min(2*b.pause, 5*time.Second)
	return b.pause
}

// once runs p from start to end. When ctx ends it is asked to stop, after stopPatience it is killed.
func (s *supervisor) once(ctx context.Context, p *process) error {
	cmd := exec.Command(p.path, p.args...)
	cmd.Dir, cmd.Env = p.dir, p.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	closeFiles, err := redirect(cmd, p)
	if err != nil {
		return err
	}
	defer closeFiles()
	r := startRequest{cmd: cmd, done: make(chan error, 1)}
	s.starts <- r
	if err := <-r.done; err != nil {
		return fmt.Errorf("starting %s: %w", p.path, err)
	}
	s.note(p.name, cmd.Process.Pid)
	defer s.note(p.name, 0)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return s.end(cmd.Process.Pid, ended)
	}
}

const stopPatience = 15 * time.Second

// end asks a process group to stop, and kills it when it takes too long or dev is told to hurry.
func (s *supervisor) end(pid int, ended <-chan error) error {
	_ = syscall.Kill(-pid, syscall.SIGTERM)
	_ = syscall.Kill(-pid, syscall.SIGCONT) // a stopped process cannot stop
	select {
	case err := <-ended:
		return err
	case <-s.killed.Done():
	case <-time.After(stopPatience):
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	return <-ended
}

func redirect(cmd *exec.Cmd, p *process) (closeFiles func(), err error) {
	if p.stdout == "" {
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return func() {}, nil
	}
	out, err := openLog(filepath.Join(p.dir, p.stdout))
	if err != nil {
		return nil, err
	}
	errFile := out
	if p.stderr != p.stdout {
		if errFile, err = openLog(filepath.Join(p.dir, p.stderr)); err != nil {
			return nil, errors.Join(err, out.Close())
		}
	}
	cmd.Stdout, cmd.Stderr = out, errFile
	return func() { _ = out.Close(); _ = errFile.Close() }, nil
}

func openLog(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening a log: %w", err)
	}
	return f, nil
}

// note keeps the list of what runs; pid 0 = it ended.
func (s *supervisor) note(name string, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pid == 0 {
		delete(s.pids, name)
	} else {
		s.pids[name] = pid
	}
	s.changed(s.pids)
}

// forget ends one process for good.
func (s *supervisor) forget(p *process) {
	p.stop()
	<-p.done
	s.mu.Lock()
	defer s.mu.Unlock()
	s.children = slices.DeleteFunc(s.children, func(c *process) bool { return c == p })
}

// stopAll ends the processes whose names match, together, and waits for them.
func (s *supervisor) stopAll(match func(name string) bool) {
	s.mu.Lock()
	children := slices.Clone(s.children)
	s.mu.Unlock()
	var ending []*process
	for _, p := range children {
		if match(p.name) {
			p.stop()
			ending = append(ending, p)
		}
	}
	for _, p := range ending {
		<-p.done
	}
}
