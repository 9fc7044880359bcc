package main

import (
	"context"
	"errors"
	"time"

	"github.com/fleetgate/fleetgate/cluster/member/kube"
)

// Times of letting go.
const (
	lookAgain   = 5 * time.Second  // how often the leader looks whether the install is being deleted
	askAtStop   = 3 * time.Second  // a stop for another reason waits no longer for an API server
	leaveWithin = 20 * time.Second // well within the minute for which an API server takes the token of a deleted service account
)

// openInstall finds what this replica was installed as, where it runs as a Pod.
func (r *replica) openInstall() error {
	if r.cfg.HomeNamespace == "" {
		return nil
	}
	home, err := r.cfg.home()
	if err != nil {
		return err
	}
	r.installed = home.Install(r.cfg.Pod)
	return nil
}

// hold is asked before a GatewayClass is kept from vanishing: nil where nobody has to be asked.
func (r *replica) hold() func(context.Context) (bool, error) {
	if r.installed == nil {
		return nil
	}
	return r.installed.Hold
}

// keepHold holds our rights while we hold a GatewayClass, and lets go of both when the install is being deleted, while this replica leads.
func (r *replica) keepHold(ctx context.Context) {
	if r.installed == nil {
		return
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		if err := r.holdOrRelease(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("what holds GatewayClasses is not as it should be, it is looked at again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *replica) holdOrRelease(ctx context.Context) error {
	stays, err := r.installed.Keep(ctx, r.holding())
	if err != nil || stays {
		return err
	}
	return r.letGo(ctx)
}

// clusters are the member clusters that have an API server.
func (r *replica) clusters() []*kube.Source {
	var out []*kube.Source
	for _, s := range r.sources {
		if s, ok := s.(*kube.Source); ok {
			out = append(out, s)
		}
	}
	return out
}

func (r *replica) holding() bool {
	for _, s := range r.clusters() {
		if s.Holding(r.cfg.ControllerNames) {
			return true
		}
	}
	return false
}

// letGo takes our finalizer off every GatewayClass, and then off what our rights come from.
func (r *replica) letGo(ctx context.Context) error {
	var errs []error
	for _, s := range r.clusters() {
		errs = append(errs, s.Release(ctx, r.cfg.ControllerNames))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return r.installed.Release(ctx)
}

// leave is the last that a replica does in its clusters before it ends: where the install is being deleted, nothing of it may hold anything. It does not ask who leads: all replicas of a deleted
// install are stopped at once, and what one has done the others find done. It comes after this replica has left the group, so that it holds nothing again.
func (r *replica) leave() {
	if r.installed == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveWithin)
	defer cancel()
	for ctx.Err() == nil {
		ask, done := context.WithTimeout(ctx, askAtStop)
		stays, err := r.installed.Stays(ask)
		done()
		if stays || err != nil { // an error: nobody can tell, or another replica has let go already, and our rights with it
			return
		}
		if err = r.letGo(ctx); err == nil {
			r.log.Info("the install is being deleted: nothing is held any more")
			return
		}
		r.log.Warn("the install is being deleted, and something is held still", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second / 2):
		}
	}
	last, done := context.WithTimeout(context.Background(), askAtStop)
	defer done()
	if err := r.installed.Release(last); err != nil { // a cluster that cannot be reached is no reason to keep this one
		r.log.Warn("the install is held still: take the finalizer off its service account and its binding fleetgate-release by hand", "err", err)
	}
}
