// Package assemble is the pure function from committed records to what fleets run and what status says (D1).
//
// Attachment, hostname intersection, listener isolation, precedence and conflicts are decided here and nowhere else, from records
// alone: no clock, no ACK, no Kubernetes object, and no Envoy proto is ever parsed. Every replica calls it with the same committed
// changes and gets the same bytes and the same conditions, so no two replicas can disagree about who serves a request. It is
// incremental (a changed route redoes that route and the virtual hosts that it is in) and yet depends only on the set of records: the
// tests hold every Apply against a State that was given all records at once.
//
// A plaintext port has one RouteConfiguration, whatever its size, and it comes in pieces so that a change costs the same among a thousand routes and among ten
// thousand. Buckets of hosts by SRDS would cost Envoy less, but it chooses a bucket by a header, which it cannot compute from a host as it matches domains: CEL neither
// lowers case nor cuts off a port. With range cuts TEAM.example, and web:80 where a cut lies between web and web:80, answered 404 on the real binary, a change of the
// cuts drains the listener, and every wildcard would be in every bucket.
package assemble

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// Content is one version of a record.
type Content struct {
	Hash    string
	Payload []byte
	Refs    []record.Key
	Index   uint64 // at which it was written
}

// Change is one committed change of a record: Cur nil = deleted. PinnedHash names a content hash that must not be used ("" = none).
type Change struct {
	Key        record.Key
	Cur, Prev  *Content
	PinnedHash string
	PinReason  string
}

// ResourceType is the kind of an Envoy resource, in the order of xds.Type.
type ResourceType uint8

// The types of resources, in the order of xds.Type.
const (
	TypeSecret ResourceType = iota
	TypeCluster
	TypeEndpoints
	TypeListener
	TypeRoute
)

// Resource is one named Envoy resource of a fleet; see xds.Resource for the fields. Bytes, whose concatenation is the message, and Parts come in
// pieces, because a RouteConfiguration of ten thousand routes shares most of them with the one before; no Bytes = removed.
// A secret's Bytes are the sealed bytes: who serves it opens them.
type Resource struct {
	Type    ResourceType
	Name    string
	Version string
	Bytes   [][]byte
	Index   uint64
	Uses    []string
	Parts   []map[string]string
	Plain   bool // of a secret: its Bytes are not sealed, for they hold only certificates of authorities
}

// FleetDelta is what changed for the fleet of one Gateway. A new fleet is told of even when it has nothing to run: its proxies wait until they hear that there is nothing.
type FleetDelta struct {
	Fleet     string
	Gateway   record.Key
	Gone      bool
	Resources []Resource
}

// Delta is the outcome of one Apply.
type Delta struct {
	Fleets []FleetDelta // sorted by fleet
	Status []record.Key // records of objects whose GatewayStatus or RouteStatus may differ now
	// Selections are the policy records of XBackends whose Selection may differ now.
	Selections []record.Key
}

// GatewayStatus is what committed records say of a Gateway; Programmed is added by the status writer from ACKs (Index says what must be ACKed).
type GatewayStatus struct {
	Object     record.Object
	Class      string
	Index      uint64 // highest index that its own listeners depend on: gateway record, secrets; never routes
	Valid      bool   // at least one listener can be programmed, and nothing keeps the Gateway as a whole from being accepted
	Pending    string // why the newest content is not live, "" = it is; all else here speaks of what is live
	Conditions []metav1.Condition
	Listeners  []gatewayv1.ListenerStatus
	// AttachedListenerSets counts the ListenerSets that are accepted.
	AttachedListenerSets int32
	Requested            []record.Address // addresses that it asks for
	Routability          bool             // it is to say of each address from where it is reached: its cluster has the experimental channel
	Ports                []int32          // that are served, those of ListenerSets too
	Facts                []ListenerFacts  // in the order of Listeners
}

// ListenerFacts are what a view shows of a listener beside its status.
type ListenerFacts struct {
	Port               int32
	Protocol, Hostname string // Hostname "" = any
}

// ListenerSetStatus is what committed records say of a ListenerSet whose Gateway is ours; Programmed is added as to a Gateway's.
type ListenerSetStatus struct {
	Object     record.Object
	Fleet      string
	Gateway    record.Key
	Index      uint64 // that of its Gateway
	Valid      bool   // at least one listener can be programmed
	Pending    string // why the newest content is not live, "" = it is
	Conditions []metav1.Condition
	Listeners  []gatewayv1.ListenerEntryStatus
	Facts      []ListenerFacts // in the order of Listeners
}

// RouteStatus is what committed records say of a route.
type RouteStatus struct {
	Object    record.Object
	Hostnames []string
	Index     uint64 // index at which its live content was written or went live
	Pending   string // why the newest content is not live yet, "" = it is
	Rejected  bool   // because proxies rejected it
	Parents   []ParentStatus
	// MissingParents are the Gateways and ListenerSets that parentRefs name and that do not exist, as "namespace/name": no controller can report these in a status.
	MissingParents []string
}

// ClassStatus is what committed records say of a GatewayClass of ours.
type ClassStatus struct {
	Object     record.Object
	Controller string
	Conditions []metav1.Condition // Accepted, SupportedVersion
	Used       bool               // a Gateway names it

	Experimental bool // the CRDs of its cluster have the fields of the experimental channel
	TrustBundles bool // its cluster serves ClusterTrustBundles
}

// ParentStatus is one parentRef of a route whose Gateway is ours.
type ParentStatus struct {
	Ref        gatewayv1.ParentReference
	Controller string
	Fleet      string             // "" where it did not attach
	Attached   bool               // it got the route into the fleet's configuration
	Overruled  string             // which routes are served in this one's place, "" = none: of TCPRoutes on one listener the oldest is, and all are accepted
	Conditions []metav1.Condition // Accepted, ResolvedRefs (fleetgate.io/Programmed is the status writer's)
}
