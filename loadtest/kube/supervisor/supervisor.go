// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fleetgate/fleetgate/loadtest/kube/controlplane"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// Run is the second process; its arguments and files are those that rig.Up gives to the first. It returns when the rig should end.
func Run(args []string) error {
	if len(args) != 2 {
		return errors.New("the supervisor is started by `up`, not by hand")
	}
	detached, err := strconv.ParseBool(args[1])
	if err != nil {
		return fmt.Errorf("read the supervisor's arguments: %w", err)
	}
	state, err := rig.Load(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if !detached {
		go endWith(os.NewFile(rig.FileLife, "life"), cancel)
	}
	s := &supervisor{state: state, start: time.Now(), events: os.NewFile(rig.FileEvents, "events"), log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	err = s.run(ctx)
	if ctx.Err() != nil {
		return nil // the starter has gone, and so the rig goes
	}
	s.tell(rig.Event{Error: err.Error()})
	return err
}

// endWith waits until the starter's end of the pipe is closed, by itself or by the kernel.
func endWith(life io.Reader, end func()) {
	_, _ = io.Copy(io.Discard, life) // nobody writes: whatever returns means that the starter has gone
	end()
}

type supervisor struct {
	state  rig.State
	start  time.Time
	log    *slog.Logger
	mu     sync.Mutex
	events *os.File // guarded by mu
}

// tell reports a step to the starter, which may have gone.
func (s *supervisor) tell(e rig.Event) {
	e.After = time.Since(s.start)
	s.log.Info("step", "cluster", e.Cluster, "text", e.Text, "after", e.After, "ready", e.Ready, "error", e.Error)
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = json.NewEncoder(s.events).Encode(e) // a starter that has gone reads no steps
	if e.Ready {
		_ = s.events.Close()
	}
}

func (s *supervisor) run(ctx context.Context) error {
	if err := makeNetwork(s.state.Clusters); err != nil {
		return err
	}
	planes, err := s.makePlanes()
	if err != nil {
		return err
	}
	control, err := controlListener()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return (&controller{planes: planes, log: s.log}).serve(ctx, control) })
	ups, upCtx := errgroup.WithContext(ctx)
	for i, c := range s.state.Clusters {
		log := s.log.With("cluster", c.Name)
		outside, err := inheritedListener(rig.FileListeners + i)
		if err != nil {
			return err
		}
		if err := forward(ctx, c, outside, log); err != nil {
			return err
		}
		g.Go(func() error { return planes[c.Name].Run(ctx) })
		ups.Go(func() error { return s.bringUp(upCtx, ctx, g, c, planes[c.Name]) })
	}
	g.Go(func() error {
		if err := ups.Wait(); err != nil {
			return err
		}
		s.tell(rig.Event{Ready: true, Text: "ready"})
		return nil
	})
	return g.Wait()
}

func (s *supervisor) makePlanes() (map[string]*controlplane.ControlPlane, error) {
	planes := map[string]*controlplane.ControlPlane{}
	for _, c := range s.state.Clusters {
		plane, err := controlplane.New(c, s.state.Binaries, s.state.Audit, s.log.With("cluster", c.Name))
		if err != nil {
			return nil, err
		}
		planes[c.Name] = plane
	}
	return planes, controlplane.MergeKubeconfigs(s.state.Kubeconfig, s.state.Clusters)
}

// bringUp takes one cluster to the point where pods can run. What goes on running is added to g and lives as long as life.
func (s *supervisor) bringUp(ctx, life context.Context, g *errgroup.Group, c rig.Cluster, plane *controlplane.ControlPlane) error {
	if err := plane.AwaitReady(ctx); err != nil {
		return err
	}
	s.tell(rig.Event{Cluster: c.Name, Text: "API server ready"})
	s.startNode(life, g, c, plane)
	steps, ctx := errgroup.WithContext(ctx)
	steps.Go(func() error {
		if err := awaitNode(ctx, c, plane); err != nil {
			return err
		}
		s.tell(rig.Event{Cluster: c.Name, Text: "node ready"})
		return nil
	})
	steps.Go(func() error {
		if err := plane.Install(ctx, s.state.CRDs); err != nil || len(s.state.CRDs) == 0 {
			return err
		}
		s.tell(rig.Event{Cluster: c.Name, Text: fmt.Sprintf("CRDs of the %s channel established", s.state.Channel)})
		return nil
	})
	return steps.Wait()
}

// inheritedListener takes over a listening socket that was made in the machine's network, where it goes on listening.
func inheritedListener(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over a listener: %w", err)
	}
	return l, nil
}

func controlListener() (*net.UnixListener, error) {
	l, err := inheritedListener(rig.FileControl)
	if err != nil {
		return nil, err
	}
	unix, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.New("take over the control socket: it is not a unix socket")
	}
	return unix, nil
}
