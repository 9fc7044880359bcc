// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// restartPause keeps a component that cannot start from taking a whole core.
const restartPause = time.Second

// process keeps one component running: what ends unasked is started again, what is stopped stays down.
type process struct {
	name, program, logPath string
	args                   []string
	log                    *slog.Logger

	mu      sync.Mutex
	wanted  bool          // guarded by mu
	running *os.Process   // nil between two runs; guarded by mu
	changed chan struct{} // closed and replaced whenever wanted or running changes; guarded by mu
	exits   int           // unasked ends; guarded by mu
}

func newProcess(name, program, logPath string, args []string, log *slog.Logger) *process {
	return &process{name: name, program: program, logPath: logPath, args: args, log: log, wanted: true, changed: make(chan struct{})}
}

// run keeps the component up until ctx ends.
func (p *process) run(ctx context.Context) error {
	for {
		if err := p.await(ctx, func() bool { return p.wanted }); err != nil {
			return err
		}
		if err := p.once(ctx); err != nil {
			return err
		}
		select {
		case <-time.After(restartPause):
		case <-p.change():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// once runs the component to its end. Its error is for what no second try mends.
func (p *process) once(ctx context.Context) error {
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", p.name, err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(ctx, p.program, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.set(func() {
		p.running = cmd.Process
		if !p.wanted { // stopped between the decision to start and now
			_ = cmd.Process.Kill()
		}
	})
	err = cmd.Wait()
	p.set(func() {
		p.running = nil
		if p.wanted && ctx.Err() == nil {
			p.exits++
			p.log.Error("a component ended and is started again", "component", p.name, "how", err, "log", p.logPath)
		}
	})
	return nil
}

func (p *process) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *process) change() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// await returns once the condition, which is evaluated under the lock, holds.
func (p *process) await(ctx context.Context, condition func() bool) error {
	for {
		p.mu.Lock()
		holds, changed := condition(), p.changed
		p.mu.Unlock()
		if holds {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stop kills the component and keeps it down.
func (p *process) stop(ctx context.Context) error {
	var err error
	p.set(func() {
		p.wanted = false
		if p.running != nil {
			err = p.running.Kill()
		}
	})
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	return p.await(ctx, func() bool { return p.running == nil })
}

func (p *process) start(ctx context.Context) error {
	p.set(func() { p.wanted = true })
	return p.await(ctx, func() bool { return p.running != nil })
}

// failure is what is known of a component that ended unasked; nil when it never did.
func (p *process) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exits == 0 {
		return nil
	}
	return fmt.Errorf("%s ended %d times; its log %s ends with: %s", p.name, p.exits, p.logPath, tail(p.logPath))
}

// tail returns the last 600 bytes of a file.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > 600 {
		if _, err := f.Seek(-600, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
