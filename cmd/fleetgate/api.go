package main

import "github.com/fleetgate/fleetgate/xds"

// apiVersion names the schema of everything that the admin API and -o json print.
const apiVersion = "fleetgate.io/v1alpha1"

// view is what one replica answers to GET /v1/view: all that the list commands, status, wait and dev print.
type view struct {
	APIVersion   string            `json:"apiVersion"`
	Kind         string            `json:"kind"` // View
	ClusterID    string            `json:"clusterID"`
	Index        uint64            `json:"index"`
	StateHash    string            `json:"stateHash"`
	Leader       string            `json:"leader"` // "" = none: changes cannot be accepted
	Notice       string            `json:"notice,omitempty"`
	Replicas     []replicaView     `json:"replicas"`
	Gateways     []gatewayView     `json:"gateways"`
	ListenerSets []listenerSetView `json:"listenerSets"`
	Routes       []routeView       `json:"routes"`
	Policies     []policyView      `json:"policies"`
	Proxies      []xds.Report      `json:"proxies"`
	Rows         []rowView         `json:"rows"`
	Problems     []problemView     `json:"problems,omitempty"`
	Clusters     []memberCluster   `json:"clusters"`
}

type replicaView struct {
	ID      string `json:"id"`
	Role    string `json:"role"` // Leader, Follower, Nonvoter (it has not caught up yet and counts for no majority), Unreachable
	Raft    string `json:"raft"`
	XDS     string `json:"xds"`
	Admin   string `json:"admin"`
	Applied uint64 `json:"applied"`
	Rows    int    `json:"rows"`
	Proxies int    `json:"proxies"`
	Version string `json:"version"`
	Live    bool   `json:"live"`
}

type gatewayView struct {
	Cluster    string          `json:"cluster"`
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	Class      string          `json:"class"`
	Addresses  []string        `json:"addresses"`
	Programmed string          `json:"programmed"` // True, False, Unknown
	Reason     string          `json:"reason"`
	Message    string          `json:"message"`
	Created    int64           `json:"created"` // Unix seconds
	Generation int64           `json:"generation"`
	Index      uint64          `json:"index"`
	Proxies    int             `json:"proxies"`      // that count
	Acked      int             `json:"proxiesAcked"` // of those, that ACKed Index
	Listeners  []listenerView  `json:"listeners"`
	Conditions []conditionView `json:"conditions"`
	Where      string          `json:"where,omitempty"` // file:line
}

type listenerSetView struct {
	Cluster    string          `json:"cluster"`
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	Gateway    string          `json:"gateway"` // namespace/name
	Created    int64           `json:"created"` // Unix seconds
	Generation int64           `json:"generation"`
	Index      uint64          `json:"index"`
	Listeners  []listenerView  `json:"listeners"`
	Conditions []conditionView `json:"conditions"`
	Where      string          `json:"where,omitempty"` // file:line
}

// policyView is a policy; what it comes to is said for each of its ancestors, the Gateways with routes to what it names.
type policyView struct {
	Cluster    string       `json:"cluster"`
	Kind       string       `json:"kind"`
	Namespace  string       `json:"namespace"`
	Name       string       `json:"name"`
	Created    int64        `json:"created"` // Unix seconds
	Generation int64        `json:"generation"`
	Ancestors  []parentView `json:"ancestors"`
	Where      string       `json:"where,omitempty"` // file:line
}

type listenerView struct {
	Name           string          `json:"name"`
	Port           int32           `json:"port"`
	Protocol       string          `json:"protocol"`
	Hostname       string          `json:"hostname,omitempty"`
	AttachedRoutes int32           `json:"attachedRoutes"`
	Conditions     []conditionView `json:"conditions"`
}

type routeView struct {
	Cluster    string       `json:"cluster"`
	Kind       string       `json:"kind"`
	Namespace  string       `json:"namespace"`
	Name       string       `json:"name"`
	Hostnames  []string     `json:"hostnames"`
	Created    int64        `json:"created"`
	Generation int64        `json:"generation"`
	Index      uint64       `json:"index"`
	Where      string       `json:"where,omitempty"` // file:line
	Parents    []parentView `json:"parents"`
}

type parentView struct {
	Parent     string          `json:"parent"`
	Conditions []conditionView `json:"conditions"`
}

type conditionView struct {
	Type               string `json:"type"`
	Status             string `json:"status"`
	Reason             string `json:"reason"`
	Message            string `json:"message"`
	ObservedGeneration int64  `json:"observedGeneration"`
}

type rowView struct {
	ID      uint64 `json:"id"`
	Cluster string `json:"cluster"`
	From    string `json:"from"` // 16 hex digits
	To      string `json:"to"`
	Owner   string `json:"owner"`
	Epoch   uint64 `json:"epoch"`
	Next    string `json:"next,omitempty"` // who gets it when its owner has drained it
}

type memberCluster struct {
	Name   string `json:"name"`
	Synced bool   `json:"synced"`
}

type problemView struct {
	Cluster  string `json:"cluster"`
	File     string `json:"file"`
	Document int    `json:"document,omitempty"`
	Line     int    `json:"line,omitempty"`
	Object   string `json:"object,omitempty"`
	Field    string `json:"field,omitempty"`
	Message  string `json:"message"`
}
