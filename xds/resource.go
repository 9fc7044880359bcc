package xds

import "maps"

// Type is one of the resource types that Fleetgate serves, in the order in which a change is sent (make before break).
type Type uint8

// The types in sending order. SDS secrets go before clusters and listeners that name them.
const (
	Secret Type = iota
	Cluster
	Endpoints
	Listener
	Route
	NumTypes
)

// URLs are the xDS type URLs, indexed by Type.
var URLs = [NumTypes]string{
	Secret:    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
	Cluster:   "type.googleapis.com/envoy.config.cluster.v3.Cluster",
	Endpoints: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
	Listener:  "type.googleapis.com/envoy.config.listener.v3.Listener",
	Route:     "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
}

// Resource is one named resource of a fleet. All fields are read only once handed over.
type Resource struct {
	Type    Type
	Name    string
	Version string   // short content hash, equal on every replica (HMAC for secrets)
	Bytes   [][]byte // the marshalled message (the value of the Any), in pieces: what did not change need not be copied; none = remove
	Index   uint64   // the highest index of a record that went into it: ACKing it proves those records live
	Uses    []string // names of the clusters that it refers to (Listener, Route), or of the secrets: gates and removals follow these
	// Parts are the records that made it, for bisecting a rejection: part id -> hash of the content that was used. They come in pieces too.
	Parts Parts
}

// Parts maps part ids to hashes. It comes in pieces without a common key.
type Parts []map[string]string

// Hash gives the hash of a part, "" where there is none.
func (p Parts) Hash(id string) string {
	for _, piece := range p {
		if hash, ok := piece[id]; ok {
			return hash
		}
	}
	return ""
}

// All gives the parts as one map.
func (p Parts) All() map[string]string {
	out := map[string]string{}
	for _, piece := range p {
		maps.Copy(out, piece)
	}
	return out
}

// Update is one atomic step of one fleet.
type Update struct {
	Fleet     string
	Index     uint64 // the store index that it brings the fleet to
	Resources []Resource
	Gone      bool // the fleet itself is gone: all its resources are removed
}

// Report is what a replica knows of one proxy. A new Report is given for every change of Acked or Rejected, at most ten a second for each proxy, the first at once.
type Report struct {
	Fleet     string      `json:"fleet"`
	Proxy     string      `json:"proxy"` // identity from the certificate: pod uid
	Replica   string      `json:"replica"`
	Connected bool        `json:"connected"`
	Acked     uint64      `json:"acked"` // highest index up to which everything due is ACKed
	Waiting   []Exception `json:"waiting,omitempty"`
	Rejected  []Rejection `json:"rejected,omitempty"`
	SinceUnix int64       `json:"since"`
}

// Exception is a resource that is due but held back or not yet answered.
type Exception struct {
	Type  string `json:"type"`
	Name  string `json:"name"`
	Index uint64 `json:"index"`
	Why   string `json:"why"`
}

// Rejection is a resource version that this proxy NACKed, isolated as far as it could be.
type Rejection struct {
	Type    string            `json:"type"`
	Name    string            `json:"name"`
	Version string            `json:"version"`
	Message string            `json:"message"`
	Parts   map[string]string `json:"parts,omitempty"` // the suspects: part id -> content hash; one entry = found
}
