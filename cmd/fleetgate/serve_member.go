package main

import (
	"context"
	"fmt"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/cluster/member/kube"
	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/record"
)

// openSources makes the source of every member cluster, before anybody asks for one; none connects yet.
func (r *replica) openSources() error {
	for _, c := range r.cfg.Clusters {
		src, err := r.source(c)
		if err != nil {
			return fmt.Errorf("member cluster %s: %w", c.Name, err)
		}
		r.sources[c.Name] = src
	}
	return nil
}

// source is a directory of manifests, the API server that a kubeconfig names, or that of the cluster in which this runs.
func (r *replica) source(c clusterConfig) (member.Source, error) {
	if len(c.Dirs) > 0 {
		return member.NewDirectory(member.DirectoryConfig{Name: c.Name, Dirs: c.Dirs, StatusDir: c.StatusDir, Identifier: identifier{r}, Logger: r.log})
	}
	connect := kube.InCluster
	if !c.InCluster {
		connect = kube.File(c.Kubeconfig, c.Context)
	}
	to, err := connect()
	if err != nil {
		return nil, err
	}
	config := kube.Config{Name: c.Name, Connect: to, Replica: r.cfg.Pod, Logger: r.log, Hold: r.hold()}
	if r.infrastructure[c.Name], err = kube.NewInfrastructure(config); err != nil {
		return nil, err
	}
	return kube.New(config)
}

// want gives how to say which Secrets and ConfigMaps of a cluster are wanted; nil where its source delivers every object unasked.
func (r *replica) want(cluster string) func([]translate.Ref) {
	asked, ok := r.sources[cluster].(member.Asked)
	if !ok {
		return nil
	}
	return func(refs []translate.Ref) {
		out := make([]member.Ref, len(refs))
		for i, ref := range refs {
			out[i] = member.Ref(ref)
		}
		asked.Want(out)
	}
}

// slicesFollow tells whether a cluster makes EndpointSlices itself: one with an API server does, a directory holds what somebody wrote.
func (r *replica) slicesFollow(cluster string) bool {
	_, isDirectory := r.sources[cluster].(*member.Directory)
	return !isDirectory
}

// follow runs a member cluster's source until ctx ends.
func (r *replica) follow(ctx context.Context, cluster string) error {
	src := r.sources[cluster]
	_, isDirectory := src.(*member.Directory)
	live, pruned := map[store.Key]bool{}, !isDirectory // only directory objects have their identities from us
	err := src.Run(ctx, func(events []member.Event, synced bool) {
		out := make([]translate.Event, len(events))
		var keys []record.Key
		for i, e := range events {
			out[i] = translate.Event{Kind: e.Kind, Namespace: e.Namespace, Name: e.Name, Unknown: e.Unknown, Denied: e.Denied}
			if e.Object != nil {
				out[i].Object = e.Object
			}
			if k, ok := translate.RecordOf(cluster, out[i]); ok {
				keys = append(keys, k)
			}
		}
		r.manager.Observe(cluster, out, synced)
		if !isDirectory {
			r.status.Touch(keys) // somebody else may have changed the status
			return
		}
		observe(live, events)
		if synced && !pruned && r.group.IsLeader() && len(src.Problems()) == 0 {
			pruned = identifier{r}.prune(ctx, cluster, live)
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}
