// Package record holds the model of compiled things: what translate writes, the store keeps as opaque bytes,
// and assemble reads. It is plain data and a codec.
//
// A record carries Envoy bytes that were marshalled once, by the owner of its namespace, and beside them all
// that is needed to order, index and explain them, so that nobody unmarshals an Envoy proto to decide anything.
//
// Records are stored, and what is stored has a hash: a field that comes later is omitted while it is empty, so that a new version rewrites nothing.
package record

import (
	"cmp"
	"time"
)

// Kind names a kind of record. The values are stored: never renumber or reuse one.
type Kind string

// The kinds of records.
const (
	KindClass     Kind = "class"     // a GatewayClass that one of our controller names claims
	KindGateway   Kind = "gateway"   // a Gateway: listeners, chains, allowedRoutes, outcome
	KindNamespace Kind = "namespace" // a Namespace: its labels
	KindRoute     Kind = "route"     // a route of any kind, compiled once for all its parents
	KindBackend   Kind = "backend"   // an Envoy Cluster
	KindEndpoints Kind = "endpoints" // a ClusterLoadAssignment
	KindSecret    Kind = "secret"    // a sealed TLS secret

	KindListenerSet Kind = "listenerset" // a ListenerSet: further listeners of a Gateway
	KindTrust       Kind = "trust"       // certificates of authorities, from a ConfigMap
	KindPolicy      Kind = "policy"      // a policy on backends: what its status says
)

// Key names a record. Namespace is empty for a thing without namespace (class, namespace records have the
// namespace's own name in both Namespace and Name, so that they hash with it). Its fields and their order are those of store.Key,
// so that one converts to the other without copying.
type Key struct {
	Cluster   string
	Namespace string
	Kind      Kind
	Name      string // route: "HTTPRoute/name"; backend and endpoints: "service/port/consumer", "XBackend:name/0/consumer"; else the object's name
}

// Compare orders keys by cluster, namespace, kind and name: the order of everything that is listed or proposed.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Cluster, o.Cluster), cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Name, o.Name))
}

// LogSize is about how many bytes a key takes in the log, where many long ones are more than what they name.
func (k Key) LogSize() int { return len(k.Cluster) + len(k.Namespace) + len(k.Kind) + len(k.Name) + 48 }

// Object names the Kubernetes object that a record, a condition or a problem speaks of.
type Object struct {
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	UID        string `json:"uid,omitempty"`
	Generation int64  `json:"generation,omitempty"`
}

// Problem is a user's mistake as a value (STYLE 16): it becomes a condition in translate/assemble/status.go and nowhere else.
type Problem struct {
	Condition string `json:"condition"` // Accepted, ResolvedRefs, ... that this makes False
	Reason    string `json:"reason"`    // CamelCase, from the Gateway API types where one exists
	Message   string `json:"message"`   // ends with what to do
	Rule      int    `json:"rule"`      // index of the rule, -1 where it concerns the whole object
}

// Class is a GatewayClass.
type Class struct {
	Object         Object
	ControllerName string
	Bundle         string // releases of the Gateway API that the cluster's CRDs are of, "" = nobody says
	Experimental   bool   `json:",omitempty"` // these CRDs are all of the experimental channel
	TrustBundles   bool   `json:",omitempty"` // the cluster serves ClusterTrustBundles
	Problems       []Problem
}

// Namespace is a Namespace with the labels that allowedRoutes selectors read.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Gateway is a Gateway with its listeners. Envoy listener bytes are made at assembly, since they depend on which listeners
// share a port; what is decided here is each listener's own outcome.
type Gateway struct {
	Object    Object
	Class     string
	Listeners []Listener
	Problems  []Problem // of the Gateway as a whole
	// Scope is that of the routes which it takes though they do not name it (GEP-3793): All, "" = it takes none such.
	Scope string `json:",omitempty"`
	// AllowedListeners says which ListenerSets may add listeners, nil = none.
	AllowedListeners *Allowed  `json:",omitempty"`
	Frontend         *Frontend `json:",omitempty"`
	// Client is the SDS name of the certificate that the Gateway shows to backends which it reaches by TLS, "" = none; ClientKey is its record.
	Client    string `json:",omitempty"`
	ClientKey *Key   `json:",omitempty"`
	// Infrastructure is what the Gateway asks of its fleet, nil = nothing.
	Infrastructure *Infrastructure `json:",omitempty"`
	// Tracing is how its requests are traced, nil = not at all.
	Tracing *Tracing `json:",omitempty"`
}

// Tracing reports the spans of a Gateway's requests.
type Tracing struct {
	Collector    Key    // the backend that takes OTLP
	Authority    string `json:",omitempty"` // that it is called by; "" in records of before: by the name of its cluster
	Headers      []Pair `json:",omitempty"` // of the reports
	ServiceName  string
	SpanName     string      `json:",omitempty"` // "" = Envoy's own
	Rate         Rate        // of the traces that begin here
	IgnoreParent bool        `json:",omitempty"` // a caller's decision does not count, and Rate is of all traces
	Attributes   []Attribute `json:",omitempty"` // of each span
}

// Pair is a name with a value.
type Pair struct{ Name, Value string }

// Rate is a fraction of at most 1.
type Rate struct{ Numerator, Denominator int32 }

// Attribute is an attribute of a span; exactly one of the three gives its value.
type Attribute struct {
	Name    string
	Header  string `json:",omitempty"` // of the request
	Literal string `json:",omitempty"`
	Format  string `json:",omitempty"` // a line of Envoy's format
}

// Infrastructure is what a Gateway and its class ask of the fleet that runs it.
type Infrastructure struct {
	Labels, Annotations map[string]string `json:",omitempty"` // of everything that the fleet consists of
	Addresses           []Address         `json:",omitempty"` // that the Gateway asks to be reached at
	Parameters          string            `json:",omitempty"` // JSON of the EnvoyFleetSpec, the class's and the Gateway's merged; "" = all defaults
	Invalid             bool              `json:",omitempty"` // the parameters are wrong: the fleet stays as it is
	AccessLog           *AccessLog        `json:",omitempty"` // nil = the installation's
}

// Address is an address that a Gateway asks for.
type Address struct {
	Type        string
	Value       string `json:",omitempty"` // "" = any
	Routability string `json:",omitempty"` // from where it has to be reached (GEP-5093), "" = as the fleet is reached anyway
	Refused     string `json:",omitempty"` // why it cannot be had anywhere, "" = where the fleet runs, this shows
}

// AccessLog is the access log of a fleet's HTTP listeners.
type AccessLog struct {
	Type   string            // Text, JSON, OTLP, Off
	Format string            `json:",omitempty"` // of Text, "" = our own
	Fields map[string]string `json:",omitempty"` // of JSON and OTLP, none = our own
}

// Frontend says on which ports clients must show certificates.
type Frontend struct {
	Default *ClientValidation // nil = none
	PerPort []PortValidation  // these ports do not have the default
}

// PortValidation is how clients of one port are validated; Clients nil = not at all.
type PortValidation struct {
	Port    int32
	Clients *ClientValidation
}

// ClientValidation validates the certificates of clients.
type ClientValidation struct {
	Trust         []Key // records of the authorities that may have signed them
	AllowInsecure bool  // a client without a valid certificate is let in all the same
	Problems      []Problem
}

// Trust holds certificates of authorities, in PEM. They are public, so they are not sealed.
type Trust struct {
	PEM     []byte
	Problem *Problem
}

// ListenerSet is a ListenerSet: listeners that its Gateway has besides its own, if it allows them (assembly decides that).
type ListenerSet struct {
	Object    Object
	Created   time.Time // seconds, UTC; older ones come first where listeners conflict
	Parent    Parent    // a Gateway
	Listeners []Listener
	Problems  []Problem
}

// Listener is one listener of a Gateway.
type Listener struct {
	Name     string
	Hostname string // "" = all
	Port     int32
	Protocol string // HTTP, HTTPS, TLS, TCP, UDP
	// Passthrough says of a TLS listener that it leaves TLS to the backends.
	Passthrough bool `json:",omitempty"`
	// Secrets are the SDS names of the certificates, in the order of certificateRefs; SecretKeys are their records.
	Secrets    []string
	SecretKeys []Key
	Allowed    Allowed
	Kinds      []string  // route kinds supported after intersecting with the protocol's: "HTTPRoute", "GRPCRoute"
	Problems   []Problem // ResolvedRefs / Accepted / ... problems of this listener; conflicts are found at assembly
	// Filters are run on each request before a route is chosen (GEP-5224), nil = there are none.
	Filters *Filters `json:",omitempty"`
}

// Filters are those of a listener. One that has problems with them is there all the same and answers 500: without it another listener might take its hosts.
type Filters struct {
	Run      []Filter  `json:",omitempty"` // in this order; none where there are problems
	Problems []Problem `json:",omitempty"`
}

// Filter is one filter.
type Filter struct {
	Config  []byte // google.protobuf.Any of what Envoy's filter is told
	Backend Key    // that it names
}

// Allowed says from where routes may attach.
type Allowed struct {
	From string // Same, All, Selector, None
	// Selector is the label selector in the canonical string form of k8s.io/apimachinery labels.Selector ("" with From Selector selects nothing).
	Selector string
}

// Route is an HTTPRoute or a GRPCRoute (lowered to the same shape), or a route of streams, compiled once, without knowing its parents.
type Route struct {
	Object    Object
	Created   time.Time // from the API server or the identity record, second precision, UTC
	Hostnames []string  // as written, lower case, deduplicated; empty = all
	Parents   []Parent
	Rules     []Rule
	Problems  []Problem // independent of the parent: ResolvedRefs and the like, with their rule
	// Scope is that of the Gateways which it asks for without naming them (GEP-3793): All, "" = it asks for none such.
	Scope string `json:",omitempty"`
}

// Parent is one parentRef, defaulted.
type Parent struct {
	Group, Kind, Namespace, Name string
	SectionName                  string
	Port                         int32 // 0 = any
	// Local says that the parentRef names no namespace: Namespace is the referrer's own. A status repeats a parentRef as it was written.
	Local bool `json:",omitempty"`
}

// Rule is one rule; Name is the rule's optional name.
type Rule struct {
	Name    string
	Matches []Match // of an HTTPRoute or GRPCRoute
	// Stream is where a TLSRoute, TCPRoute or UDPRoute sends connections or datagrams, in the order of backendRefs.
	Stream []Share `json:",omitempty"`
}

// Share is one backend's part of what a rule forwards.
type Share struct {
	Backend *Key   `json:",omitempty"` // nil: its part is refused
	Weight  uint32 // above 0
}

// Match is one match of one rule: an Envoy route.
type Match struct {
	Sort SortKey
	// Name is the Envoy route's name: kind/namespace/name/rule/match (D14).
	Name string
	// Bytes is the marshalled envoy.config.route.v3.Route; where what a listener adds (redirect port) matters there is a variant for each.
	Bytes []byte
	// Variants are other bytes for listeners of that (scheme, port), key "http/8080"; used instead of Bytes when the key fits.
	Variants map[string][]byte
	// Backends are the records that must exist before the bytes may be served.
	Backends []Key
}

// SortKey is everything but (created, namespace, name, rule, match), which the assembler takes from the Route.
// Lower sorts first. GEP-1364 and the HTTPRoute docs: exact path, longest prefix, method, most headers, most query parameters.
type SortKey struct {
	PathKind   uint8  // 0 exact, 1 prefix, 2 regex
	PathLength int    // characters of the path value; longer first
	Path       string // index key for a matcher tree
	Method     bool   // true first
	Headers    int    // more first
	Queries    int    // more first
	GRPC       bool   // gRPC routes are tried before HTTP routes of one hostname
}

// Backend is an Envoy Cluster.
type Backend struct {
	Name  string // Envoy cluster name
	Bytes []byte // envoy.config.cluster.v3.Cluster
	// Missing says that the Service or port does not exist any more ("unresolved"): the cluster is not served, requests answer 500.
	Missing bool
	// TLS is how proxies speak TLS with it, nil = they do not. Assembly adds it to the bytes, for the certificate that the backend sees is the Gateway's.
	TLS *BackendTLS `json:",omitempty"`
	// Problem is why it is Missing where routes should say so.
	Problem *Problem `json:",omitempty"`
	// Named says that its endpoints, of the record of the same name, are names in DNS, which proxies look up: of a backend of streams, whose cluster is the listener's.
	Named bool `json:",omitempty"`
}

// ClientKey is the record of the certificate that proxies show the backend because it asks for one of its own, nil = it does not; of no backend either.
func (b *Backend) ClientKey() *Key {
	if b == nil || b.TLS == nil {
		return nil
	}
	return b.TLS.ClientKey
}

// BackendTLS is TLS towards a backend.
type BackendTLS struct {
	ServerName string        // SNI, and the name in the certificate where Names is empty
	Names      []SubjectName `json:",omitempty"` // one of these must be in the certificate
	Trust      []byte        `json:",omitempty"` // PEM of the authorities, nil = those of the proxy's system
	Protocols  []string      `json:",omitempty"` // ALPN
	// Own says that the backend's own object asks for TLS, not a policy: streams speak it too, wherever they come in, and of the certificate of the Gateway nothing is shown.
	Own bool `json:",omitempty"`
	// Client is the SDS name of the certificate that is shown, and ClientKey its record; only where Own is true. "" = none.
	Client    string `json:",omitempty"`
	ClientKey *Key   `json:",omitempty"`
}

// SubjectName is a subject alternative name.
type SubjectName struct {
	URI   bool `json:",omitempty"`
	Value string
}

// Policy is a policy, or an XBackend, that is attached to Services or Gateways of its own namespace: what it does is compiled into their backends, or into the Gateways.
type Policy struct {
	Object   Object
	Services []string // that it names
	Problems []Problem
	// Gateways are those that a policy on Gateways names.
	Gateways []string `json:",omitempty"`
	// Overruled are those of the Gateways that another policy comes first for, with what to say there.
	Overruled map[string]Problem `json:",omitempty"`
	// Pods are those that an XBackend sends to, nil = it selects none.
	Pods *Pods `json:",omitempty"`
	// Secret is the certificate that an XBackend shows, nil = none. The record of its backend names it too, where somebody uses it.
	Secret *Key `json:",omitempty"`
	// Collector is the backend that a policy on Gateways has spans reported to, nil = none.
	Collector *Key `json:",omitempty"`
}

// Pods are selected by an XBackend, in its own namespace.
type Pods struct {
	Labels   map[string]string // all of which they have; one at least
	Port     int32
	Backends []string // names of all records of backends that the XBackend may become
}

// Endpoints is the load assignment of a Backend of the same name.
type Endpoints struct {
	Name  string // = Backend.Name
	Bytes []byte // envoy.config.endpoint.v3.ClusterLoadAssignment; none where the cluster finds its endpoints itself
	// Problem says that endpoints were left out because the record would be too large.
	Problem *Problem
}

// Secret is a sealed TLS secret.
type Secret struct {
	Name    string // SDS name
	Version string // HMAC of the plain bytes
	Sealed  []byte // AEAD of envoy.extensions.transport_sockets.tls.v3.Secret, additional data = the key
	Problem *Problem
}
