package headless

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"

	"github.com/fleetgate/fleetgate/cluster/keep"
)

// Cluster is a member cluster as a Keeper needs it.
type Cluster interface {
	// FollowHeadless keeps a view of the Services that this package made until ctx ends. It returns when the view is complete; changed is told which XBackends' changed since.
	FollowHeadless(ctx context.Context, changed func(namespace, xbackend string)) (Services, error)
}

// Services are those of a cluster that this package made.
type Services interface {
	// Of gives those of an XBackend, and of earlier ones of its name.
	Of(namespace, xbackend string) []*corev1.Service
	// Create makes one, which Of gives from when it returns.
	Create(ctx context.Context, s *corev1.Service) error
	// Change writes labels, selector and ports.
	Change(ctx context.Context, s *corev1.Service) error
	Delete(ctx context.Context, s *corev1.Service) error
}

// Config is a member cluster and what is to be found in it.
type Config struct {
	Cluster Cluster
	// Wanted gives what an XBackend selects, nil = nothing; known is false where that cannot be told, or nobody needs it: then what is there stays.
	Wanted func(namespace, xbackend string) (s *Selection, known bool)
	// All are the XBackends of the cluster.
	All func() [][2]string
	// Tell passes on what keeps the pods of a selection from being found, "" = nothing any more.
	Tell func(s Selection, problem string)
	Log  *slog.Logger
}

// Keeper keeps the Services of one member cluster as they should be. It runs on the leader alone.
type Keeper struct {
	Config
	*keep.Queue
}

// NewKeeper does nothing before Run.
func NewKeeper(c Config) *Keeper { return &Keeper{c, keep.NewQueue()} }

// Run keeps the Services until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	services, err := k.Cluster.FollowHeadless(ctx, k.Touch)
	if err != nil {
		return fmt.Errorf("following the Services of XBackends: %w", err)
	}
	for _, x := range k.All() {
		k.Touch(x[0], x[1])
	}
	k.Work(ctx, func(id keep.ID) { k.keep(ctx, services, id) })
	return nil
}

// keep makes the Service of one XBackend what it should be.
func (k *Keeper) keep(ctx context.Context, services Services, id [2]string) {
	want, known := k.Wanted(id[0], id[1])
	if !known {
		k.Note(keep.Attempt{Of: id}, nil)
		return
	}
	err := k.follow(ctx, services, plan(want, services.Of(id[0], id[1])))
	if ctx.Err() != nil {
		return
	}
	news, problem := k.Note(keep.Attempt{Of: id}, err), ""
	if news && err != nil {
		problem = err.Error()
		k.Log.Warn("the pods of an XBackend cannot be found; it is tried again", "namespace", id[0], "xbackend", id[1], "err", err)
	}
	if news && want != nil {
		k.Tell(*want, problem)
	}
}

func (k *Keeper) follow(ctx context.Context, services Services, s steps) error {
	if s.create != nil {
		k.Log.Info("making the Service of an XBackend", "namespace", s.create.Namespace, "xbackend", OwnerOf(s.create).Name)
		return services.Create(ctx, s.create)
	}
	if s.change != nil {
		k.Log.Info("changing the Service of an XBackend", "namespace", s.change.Namespace, "xbackend", OwnerOf(s.change).Name)
		if err := services.Change(ctx, s.change); err != nil {
			return fmt.Errorf("changing Service %s: %w", s.change.Name, err)
		}
	}
	var errs []error
	for _, old := range s.remove {
		k.Log.Info("removing a Service that no XBackend needs", "namespace", old.Namespace, "service", old.Name)
		if err := services.Delete(ctx, old); err != nil {
			errs = append(errs, fmt.Errorf("removing Service %s: %w", old.Name, err))
		}
	}
	return errors.Join(errs...)
}
