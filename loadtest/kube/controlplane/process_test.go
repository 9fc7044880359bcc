// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// startTestProcess keeps a shell command running until the test ends.
func startTestProcess(t *testing.T, script string) *process {
	t.Helper()
	p := newProcess("component", "/bin/sh", filepath.Join(t.TempDir(), "log"), []string{"-c", script}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return p
}

func TestAComponentThatEndsIsStartedAgainAndToldOf(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	p := startTestProcess(t, `if [ -e `+mark+` ]; then exec sleep 1000; fi; touch `+mark+`; echo broken >&2; exit 3`)
	if err := p.await(t.Context(), func() bool { return p.exits == 1 && p.running != nil }); err != nil {
		t.Fatal(err)
	}
	if err := p.failure(); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("what is told of it: %v", err)
	}
}

func TestAStoppedComponentStaysDownUntilItIsStarted(t *testing.T) {
	p := startTestProcess(t, `exec sleep 1000`)
	if err := p.await(t.Context(), func() bool { return p.running != nil }); err != nil {
		t.Fatal(err)
	}
	first := p.running
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.Signal(syscall.Signal(0)); err == nil {
		t.Error("the stopped process still runs")
	}
	if err := p.failure(); err != nil {
		t.Errorf("a stop is taken for a failure: %v", err)
	}
	if err := p.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.running == first {
		t.Error("start returned before there was a new process")
	}
}

func TestAComponentStoppedAtOnceDoesNotRun(t *testing.T) {
	p := startTestProcess(t, `exec sleep 1000`)
	for range 20 {
		if err := p.stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		running, wanted := p.running, p.wanted
		p.mu.Unlock()
		if running != nil || wanted {
			t.Fatalf("after stop: running %v, wanted %v", running, wanted)
		}
		if err := p.start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
