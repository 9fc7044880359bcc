package main

import (
	"context"

	"github.com/fleetgate/fleetgate/cluster/headless"
	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/record"
)

// selectPods has all clusters that have an API server find the pods that XBackends select, while this replica leads. In a directory nobody finds pods: whoever writes it writes EndpointSlices.
func (r *replica) selectPods(ctx context.Context) {
	made := map[string]*headless.Keeper{}
	for name, cluster := range r.infrastructure {
		made[name] = headless.NewKeeper(headless.Config{
			Cluster: cluster, Log: r.log.With("cluster", name),
			Wanted: func(namespace, xbackend string) (*headless.Selection, bool) {
				return r.selection(name, namespace, xbackend)
			},
			All:  func() [][2]string { return r.selectionsOf(name) },
			Tell: func(s headless.Selection, problem string) { r.tellSelection(name, s, problem) },
		})
	}
	r.keepers.Store(&made)
	defer r.keepers.Store(nil)
	runAll(ctx, r.log, made, "the pods of XBackends are not looked for")
}

// touchSelections has changed XBackends looked at, where this replica leads.
func (r *replica) touchSelections(keys []record.Key) {
	made := r.keepers.Load()
	if made == nil {
		return
	}
	for _, k := range keys {
		if _, namespace, name := translate.ObjectOf(k); (*made)[k.Cluster] != nil {
			(*made)[k.Cluster].Touch(namespace, name)
		}
	}
}

func (r *replica) selectionsOf(cluster string) [][2]string {
	var out [][2]string
	for _, k := range r.pipe.selections() {
		if _, namespace, name := translate.ObjectOf(k); k.Cluster == cluster {
			out = append(out, [2]string{namespace, name})
		}
	}
	return out
}

func (r *replica) selection(cluster, namespace, name string) (*headless.Selection, bool) {
	s, known := r.pipe.Selection(record.Key{Cluster: cluster, Namespace: namespace, Kind: record.KindPolicy, Name: record.Join(headless.OwnerKind, name)})
	if s == nil {
		return nil, known
	}
	return &headless.Selection{Namespace: namespace, Name: name, UID: s.Object.UID, Labels: s.Pods.Labels, Port: s.Pods.Port}, known
}

// tellSelection leaves an event on an XBackend whose pods cannot be found, or can be again: its status speaks of what is in it.
func (r *replica) tellSelection(cluster string, s headless.Selection, problem string) {
	to, ok := r.sources[cluster].(member.Telling)
	if !ok {
		return
	}
	n := member.Notice{Kind: headless.OwnerKind, Namespace: s.Namespace, Name: s.Name, UID: s.UID, Reason: "PodsSelected", Text: "its pods are found by a headless Service"}
	if problem != "" {
		n.Warning, n.Reason = true, "PodsNotSelected"
		n.Text = "the headless Service by which its pods are found is not as it should be, and is tried again: " + problem
	}
	to.Tell(n)
}
