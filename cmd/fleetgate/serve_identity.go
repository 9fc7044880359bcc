package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/cluster/store"
)

// identifier gives identities to directory objects: the leader proposes what it sees, the others wait until the same has been committed (D12).
type identifier struct{ r *replica }

// Identify implements member.Identifier.
func (i identifier) Identify(ctx context.Context, cluster string, seen []store.IdentityObservation) ([]store.Identity, error) {
	events, cancel := i.r.db.Subscribe()
	defer cancel()
	retry := time.NewTicker(250 * time.Millisecond)
	defer retry.Stop()
	for {
		ids, missing := i.known(cluster, seen)
		if len(missing) == 0 {
			return ids, nil
		}
		if i.r.group.IsLeader() {
			for part := range slices.Chunk(missing, 1000) {
				if _, err := i.r.group.Propose(ctx, store.Command{Identity: &store.IdentityCommand{Cluster: cluster, Now: time.Now().Unix(), Objects: part}}); err != nil && ctx.Err() != nil {
					return nil, ctx.Err()
				}
			}
			if _, missing = i.known(cluster, seen); len(missing) == 0 {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the identities of %d objects to be committed: %w", len(missing), ctx.Err())
		case <-events:
		case <-retry.C:
		}
	}
}

func (i identifier) known(cluster string, seen []store.IdentityObservation) ([]store.Identity, []store.IdentityObservation) {
	ids := make([]store.Identity, len(seen))
	var missing []store.IdentityObservation
	for n, o := range seen {
		id, ok := i.r.db.Identity(cluster, o.Kind, o.Namespace, o.Name)
		if o.SpecHash == "" && !i.r.group.IsLeader() {
			continue // a leader that never saw the object will not delete its identity: nobody may wait for that
		}
		if ok != (o.SpecHash != "") || id.SpecHash != o.SpecHash {
			missing = append(missing, o)
		}
		ids[n] = id
	}
	return ids, missing
}

// observe keeps the set of a cluster's objects up to date.
func observe(live map[store.Key]bool, events []member.Event) {
	for _, e := range events {
		k := store.Key{Cluster: e.Cluster, Namespace: e.Namespace, Kind: e.Kind, Name: e.Name}
		if e.Object == nil {
			delete(live, k)
		} else {
			live[k] = true
		}
	}
}

// prune has the identities of objects forgotten that went while no replica was looking; live is a complete view of the cluster. False: it is to be tried again.
func (i identifier) prune(ctx context.Context, cluster string, live map[store.Key]bool) bool {
	gone := unseen(i.r.db.Identities(cluster), live)
	for part := range slices.Chunk(gone, 1000) {
		if _, err := i.r.group.Propose(ctx, store.Command{Identity: &store.IdentityCommand{Cluster: cluster, Now: time.Now().Unix(), Objects: part}}); err != nil {
			i.r.log.Debug("identities of deleted objects were not forgotten; it is tried again", "cluster", cluster, "err", err)
			return false
		}
	}
	if len(gone) > 0 {
		i.r.log.Info("identities of objects that were deleted meanwhile are forgotten", "cluster", cluster, "objects", len(gone))
	}
	return true
}

// unseen gives, as observations of absence, the objects that have an identity and are not in the complete view.
func unseen(known []store.Key, live map[store.Key]bool) []store.IdentityObservation {
	var out []store.IdentityObservation
	for _, k := range known {
		if !live[k] {
			out = append(out, store.IdentityObservation{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name})
		}
	}
	return out
}
