package main

import (
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/shard"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

// view is what this replica knows; on the leader that is all there is to know.
func (r *replica) view() view {
	index, hash := r.db.StateHash()
	v := view{APIVersion: apiVersion, Kind: "View", ClusterID: r.db.ClusterID(), Index: index, StateHash: hash,
		Replicas: []replicaView{}, Gateways: []gatewayView{}, ListenerSets: []listenerSetView{}, Routes: []routeView{}, Policies: []policyView{}, Rows: []rowView{}, Clusters: []memberCluster{}}
	v.Proxies = r.acks.all()
	if r.joined() {
		v.Leader = r.leaderID()
	}
	if v.Leader == "" {
		v.Notice = noLeader
		v.Proxies = r.xds.Proxies()
	}
	r.viewGroup(&v)
	gateways, routes := r.pipe.keys()
	for _, k := range gateways {
		if g, ok := r.viewGateway(k); ok {
			v.Gateways = append(v.Gateways, g)
		}
	}
	for _, k := range routes {
		if rt, ok := r.viewRoute(k); ok {
			v.Routes = append(v.Routes, rt)
		}
	}
	for _, k := range r.pipe.attached() {
		if l, ok := r.viewListenerSet(k); ok {
			v.ListenerSets = append(v.ListenerSets, l)
		}
		if p, ok := r.viewPolicy(k); ok {
			v.Policies = append(v.Policies, p)
		}
	}
	return v
}

// withoutLeader says what a view is that a follower answers with because the leader's was not to be had: only the leader hears of all proxies, and of all replicas.
func (v view) withoutLeader(why error, own []xds.Report) view {
	v.Proxies = own
	v.Notice = fmt.Sprintf("the leader did not tell what it knows, so the proxies are those of one replica, and other replicas are shown as unreachable: ask again, or name the leader's admin address with --server (%v)", why)
	return v
}

func (r *replica) viewGroup(v *view) {
	live, votes := map[string]shard.Heartbeat{}, map[string]bool{}
	if r.joined() {
		for s, b := range r.leader.Live() {
			live[shard.ReplicaOf(s)] = b
		}
		for _, m := range r.group.Members() {
			votes[m.ID] = m.Voter
		}
	}
	for _, rep := range r.db.Replicas() {
		b, ok := live[rep.ID]
		out := replicaView{ID: rep.ID, Raft: rep.Raft, XDS: rep.XDS, Admin: rep.Admin, Version: rep.Version, Role: "Follower", Live: ok, Applied: b.Applied, Rows: b.Rows, Proxies: b.Proxies}
		switch {
		case rep.ID == v.Leader:
			out.Role, out.Live = "Leader", true
		case !ok:
			out.Role = "Unreachable"
		case !votes[rep.ID]:
			out.Role = "Nonvoter"
		}
		v.Replicas = append(v.Replicas, out)
	}
	_, rows := r.db.Table()
	for _, row := range rows {
		v.Rows = append(v.Rows, rowView{ID: row.ID, Cluster: row.Cluster, From: fmt.Sprintf("%016x", row.From), To: fmt.Sprintf("%016x", row.To), Owner: shard.ReplicaOf(row.Owner), Epoch: row.Epoch, Next: shard.ReplicaOf(row.Next)})
	}
	for _, c := range r.cfg.Clusters {
		synced := r.manager != nil && r.joined() && r.manager.Synced(c.Name)
		v.Clusters = append(v.Clusters, memberCluster{Name: c.Name, Synced: synced})
		if synced {
			if why := r.manager.Held(c.Name); why != "" {
				v.Problems = append(v.Problems, problemView{Cluster: c.Name, Object: "member cluster " + c.Name, Message: "deletions held: " + why})
			}
		}
		if src, ok := r.sources[c.Name]; ok {
			for _, p := range src.Problems() {
				v.Problems = append(v.Problems, viewProblem(c.Name, p))
			}
		}
	}
}

func viewProblem(cluster string, p member.Problem) problemView {
	return problemView{Cluster: cluster, File: p.File, Document: p.Document, Line: p.Line, Object: p.Object, Field: p.Field, Message: p.Message}
}

// written reads the status as it stands in the member cluster: what kubectl would print.
func (r *replica) written(cluster string, o record.Object, into any) {
	src := r.Source(cluster)
	if src == nil {
		return
	}
	b, _, err := src.ReadStatus(context.Background(), o.Kind, o.Namespace, o.Name)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		r.log.Debug("no status to show", "object", o, "err", err)
	}
}

// where is the place of an object in a member cluster that has places: file:line in a directory.
func (r *replica) where(cluster string, o record.Object) string {
	if src, ok := r.Source(cluster).(interface {
		Where(kind, namespace, name string) string
	}); ok {
		return src.Where(o.Kind, o.Namespace, o.Name)
	}
	return ""
}

func (r *replica) created(cluster, kind, namespace, name string) int64 {
	id, _ := r.db.Identity(cluster, kind, namespace, name)
	return id.Created
}

func (r *replica) viewGateway(k record.Key) (gatewayView, bool) {
	s, ok := r.pipe.Gateway(k)
	if !ok {
		return gatewayView{}, false
	}
	var st gatewayv1.GatewayStatus
	r.written(k.Cluster, s.Object, &st)
	c := r.Converged(record.FleetName(k.Cluster, k.Namespace, k.Name), s.Index, k)
	g := gatewayView{Cluster: k.Cluster, Namespace: k.Namespace, Name: k.Name, Class: s.Class, Addresses: []string{}, Programmed: "Unknown", Created: r.created(k.Cluster, "Gateway", k.Namespace, k.Name), Where: r.where(k.Cluster, s.Object),
		Generation: s.Object.Generation, Index: s.Index, Proxies: c.Counted, Acked: c.Acked, Conditions: viewConditions(st.Conditions)}
	for _, a := range st.Addresses {
		g.Addresses = append(g.Addresses, a.Value)
	}
	for _, cond := range st.Conditions {
		if cond.Type == string(gatewayv1.GatewayConditionProgrammed) {
			g.Programmed, g.Reason, g.Message = string(cond.Status), cond.Reason, cond.Message
		}
	}
	g.Listeners = viewListeners(s.Listeners, s.Facts, st.Listeners)
	return g, true
}

func (r *replica) viewListenerSet(k record.Key) (listenerSetView, bool) {
	s, ok := r.pipe.ListenerSet(k)
	if !ok {
		return listenerSetView{}, false
	}
	var st gatewayv1.ListenerSetStatus
	r.written(k.Cluster, s.Object, &st)
	return listenerSetView{Cluster: k.Cluster, Namespace: k.Namespace, Name: k.Name, Gateway: s.Gateway.Namespace + "/" + s.Gateway.Name, Created: r.created(k.Cluster, s.Object.Kind, k.Namespace, k.Name),
		Generation: s.Object.Generation, Index: s.Index, Listeners: viewListeners(ofEntries(s.Listeners), s.Facts, ofEntries(st.Listeners)), Conditions: viewConditions(st.Conditions), Where: r.where(k.Cluster, s.Object)}, true
}

func (r *replica) viewPolicy(k record.Key) (policyView, bool) {
	s, ok := r.pipe.Policy(k)
	if !ok {
		return policyView{}, false
	}
	var st gatewayv1.PolicyStatus
	r.written(k.Cluster, s.Object, &st)
	out := policyView{Cluster: k.Cluster, Kind: s.Object.Kind, Namespace: s.Object.Namespace, Name: s.Object.Name, Created: r.created(k.Cluster, s.Object.Kind, s.Object.Namespace, s.Object.Name),
		Generation: s.Object.Generation, Ancestors: []parentView{}, Where: r.where(k.Cluster, s.Object)}
	for _, a := range st.Ancestors {
		out.Ancestors = append(out.Ancestors, parentView{Parent: refName(a.AncestorRef, s.Object.Namespace), Conditions: viewConditions(a.Conditions)})
	}
	return out, true
}

// ofEntries gives the listeners of a ListenerSet the shape of a Gateway's.
func ofEntries(in []gatewayv1.ListenerEntryStatus) []gatewayv1.ListenerStatus {
	out := make([]gatewayv1.ListenerStatus, len(in))
	for i, l := range in {
		out[i] = gatewayv1.ListenerStatus(l)
	}
	return out
}

// viewListeners shows listeners with their facts, in the same order, and with the conditions that written says.
func viewListeners(listeners []gatewayv1.ListenerStatus, facts []assemble.ListenerFacts, written []gatewayv1.ListenerStatus) []listenerView {
	out := []listenerView{}
	for i, l := range listeners {
		v := listenerView{Name: string(l.Name), Port: facts[i].Port, Protocol: facts[i].Protocol, Hostname: facts[i].Hostname, AttachedRoutes: l.AttachedRoutes, Conditions: []conditionView{}}
		for _, w := range written {
			if w.Name == l.Name {
				v.Conditions = viewConditions(w.Conditions)
			}
		}
		out = append(out, v)
	}
	return out
}

func (r *replica) viewRoute(k record.Key) (routeView, bool) {
	s, ok := r.pipe.Route(k)
	if !ok {
		return routeView{}, false
	}
	var st gatewayv1.RouteStatus
	r.written(k.Cluster, s.Object, &st)
	out := routeView{Cluster: k.Cluster, Kind: s.Object.Kind, Namespace: s.Object.Namespace, Name: s.Object.Name, Hostnames: s.Hostnames, Generation: s.Object.Generation, Index: s.Index,
		Created: r.created(k.Cluster, s.Object.Kind, s.Object.Namespace, s.Object.Name), Where: r.where(k.Cluster, s.Object), Parents: []parentView{}}
	if out.Hostnames == nil {
		out.Hostnames = []string{}
	}
	for _, p := range st.Parents {
		out.Parents = append(out.Parents, parentView{Parent: refName(p.ParentRef, s.Object.Namespace), Conditions: viewConditions(p.Conditions)})
	}
	for _, p := range s.MissingParents {
		out.Parents = append(out.Parents, parentView{Parent: p, Conditions: []conditionView{{Type: "Accepted", Status: "False", Reason: "NoMatchingParent",
			Message: "Gateway " + p + " does not exist, or its class is not ours; create it or correct parentRefs", ObservedGeneration: s.Object.Generation}}})
	}
	return out, true
}

func refName(p gatewayv1.ParentReference, namespace string) string {
	if p.Namespace != nil {
		namespace = string(*p.Namespace)
	}
	name := namespace + "/" + string(p.Name)
	if p.SectionName != nil {
		name += "/" + string(*p.SectionName)
	}
	return name
}

func viewConditions(in []metav1.Condition) []conditionView {
	out := make([]conditionView, 0, len(in))
	for _, c := range in {
		out = append(out, conditionView{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message, ObservedGeneration: c.ObservedGeneration})
	}
	return out
}

// touchFleet has the statuses of a Gateway looked at again: which proxies count has changed.
func (r *replica) touchFleet(cluster, namespace, name string) {
	r.status.Touch(r.pipe.about(gatewayKey(cluster, namespace, name)))
}
