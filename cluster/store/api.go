// Package store is the replicated route store: commands, the state machine that applies them, and bbolt under it.
// It knows neither Raft nor the Gateway API: payloads are opaque bytes with the keys that they refer to.
package store

// Key names a record; see translate/record.Key for the meaning of the fields. Kind is opaque here.
type Key struct {
	Cluster   string
	Namespace string
	Kind      string
	Name      string
}

// Content is one version of a record's payload.
type Content struct {
	Hash    string // first 16 hex digits of SHA-256 of Payload
	Payload []byte
	Refs    []Key // records that must exist before this content goes live (D13)
}

// Record is one small replicated item. Cur is the newest content; Prev is the last content that was live, kept until Cur is
// live and not pinned. Live() picks.
type Record struct {
	Key      Key
	Row      uint64 // the row that wrote it
	Epoch    uint64
	Created  uint64 // index of first sight
	Modified uint64 // index at which Cur was written
	Cur      Content
	Prev     *Content
	PrevAt   uint64 // index at which Prev was written
}

// Op is one change of a batch: Content nil deletes.
type Op struct {
	Key     Key
	Content *Content
}

// Row is one row of the shard table: hashes From <= h < To (To 0 = end of the space) of one member cluster.
type Row struct {
	ID       uint64
	Cluster  string
	From, To uint64
	Owner    string // replica id, "" = nobody
	Epoch    uint64
	Next     string // planned new owner while draining
}

// Replica is a replica as the group knows it.
type Replica struct {
	ID        string // pod name + "-" + first 8 of the incarnation UUID
	Raft      string // addresses, host:port
	XDS       string
	Admin     string
	Version   string
	Compilers []int
}

// Identity is what the state machine gives to an object of a directory cluster (D12).
type Identity struct {
	UID        string
	Created    int64 // Unix seconds: the proposer's clock at first sight, kept for ever after
	Order      uint64
	Generation int64
	SpecHash   string
}

// Fleet says which proxies count for convergence.
type Fleet struct {
	Name    string // record.FleetName
	Proxies []string
	// Provisioned says that we run the fleet: then no proxy counts but these, even if there is none, and the fields below hold.
	Provisioned bool     `json:",omitempty"`
	Addresses   []string `json:",omitempty"` // at which it is reached
	ClusterIPs  []string `json:",omitempty"` // at which it is reached from inside its cluster, where that is asked for or is all that there is
	Refused     []string `json:",omitempty"` // addresses that its cluster refused, with the reason
	Problem     string   `json:",omitempty"` // why it is not as it should be, with what to do
}

// Pin keeps a record at its previous content because proxies rejected Hash.
type Pin struct {
	Key    Key
	Hash   string
	Reason string
	Fleet  string
}

// Command is what goes through the log. Exactly one field is set; a replica that meets a command of a version or kind that it does not
// know stops loudly rather than skip it.
type Command struct {
	Version   int `cbor:"v"`
	Put       *PutCommand
	Table     *TableCommand
	Replica   *Replica
	Identity  *IdentityCommand
	Fleet     *Fleet
	Pin       *Pin
	Unpin     *Pin
	Bootstrap *BootstrapCommand
	Check     *CheckCommand
}

// PutCommand writes records of one row. Retry is harmless by (Row, Epoch, Seq): a Seq at or below the last applied is answered as duplicate.
type PutCommand struct {
	Proposer string
	Row      uint64
	Epoch    uint64
	Seq      uint64
	Ops      []Op
}

// TableCommand replaces rows by compare-and-set on the table's version.
type TableCommand struct {
	Expect uint64 // table version that it was computed from
	Rows   []Row  // rows to upsert
	Delete []uint64
}

// IdentityCommand observes directory objects.
type IdentityCommand struct {
	Cluster string
	Now     int64 // the proposer's Unix seconds
	Objects []IdentityObservation
}

// IdentityObservation is one object as seen: SpecHash "" = gone.
type IdentityObservation struct {
	Kind, Namespace, Name string
	SpecHash              string
}

// BootstrapCommand fixes the group's id and generation; refused when one is there.
type BootstrapCommand struct {
	ClusterID string
}

// CheckCommand asserts the rolling state hash at an index.
type CheckCommand struct {
	Index uint64
	Hash  string
}

// Result is the typed answer to a command.
type Result struct {
	Index      uint64
	Code       string // "" = done; else one of the Code constants
	Message    string
	Identities []Identity // IdentityCommand: same order as Objects
	Table      uint64     // table version after a TableCommand
	Refused    []Key      // deletes that a reference forbids
}

// Result codes.
const (
	CodeFenced    = "Fenced"    // stale epoch, not the owner, or outside the row
	CodeDuplicate = "Duplicate" // Seq was applied before
	CodeConflict  = "Conflict"  // compare-and-set failed
	CodeTooLarge  = "TooLarge"  // a record above MaxRecord
)

// MaxRecord is the largest payload of one record in bytes.
const MaxRecord = 512 << 10

// Change is one effect of an applied batch, in the order of application. Record nil = deleted.
type Change struct {
	Index  uint64
	Key    Key
	Record *Record
}

// Event is what a subscriber gets after each applied batch; slices are shared: read only.
type Event struct {
	Index      uint64
	Changes    []Change
	Put        *PutCommand // what its owner wrote, whether or not that changed anything; nil = nothing
	TableMoved bool        // the shard table changed
	PinsMoved  []Key       // records whose pins changed; they are among Changes
	FleetMoved bool
	Reset      bool // everything may have changed (snapshot restored): read the store again
}
