package translate

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fleetgate/fleetgate/translate/record"
)

// Object is a typed Kubernetes object (same as member.Object).
type Object interface {
	metav1.Object
	runtime.Object
}

// Event is one change of one object; Object nil = deleted.
type Event struct {
	Kind            string // as in member.Event
	Namespace, Name string
	Object          Object
	Unknown, Denied bool // as in member.Event
}

// Config is what a Compiler must know besides objects.
type Config struct {
	Cluster         string   // the member cluster's name
	ControllerNames []string // GatewayClasses with these are ours
	// Owns tells whether this compiler's row covers a namespace (cluster-scoped kinds hash as namespace "").
	Owns func(namespace string) bool
	// Asked says that objects that are read by name (ByName) are told of only when they are asked for: until then nobody knows whether one is there.
	Asked bool
	// SlicesFollow says that a controller makes EndpointSlices for every Service with a selector, one without endpoints where no pod is ready, as Kubernetes' own does.
	// A Service that has none yet is then one of whose endpoints nothing is known: nothing is compiled of them, and a route that names it waits (D13) instead of answering 503.
	SlicesFollow bool
	// Seal encrypts the plain bytes of a secret with additional data (SecretContext), and Version gives their HMAC (D14). Seal must be
	// deterministic (a nonce derived from its input), or every recompile writes every secret anew.
	Seal    func(plain, additional []byte) ([]byte, error)
	Version func(plain []byte) string
	// Last gives the committed payload of a record, nil where there is none: what is kept of an object that made the compiler panic and that it
	// has not compiled before, and of one that needs something unknown. So a restart keeps the last good bytes. May be nil.
	Last func(record.Key) []byte
}

// Put is one record to write.
type Put struct {
	Key     record.Key
	Payload []byte
	Refs    []record.Key
}

// Output is what changed. Same input, same output; puts are sorted by key and hold only records that differ from what this compiler put out before.
type Output struct {
	Puts     []Put
	Deletes  []record.Key
	Compiled int // number of routes compiled by this call, for tests and metrics
	// Quarantined are the objects that made the compiler panic in this call. Their records are the last good ones with a problem added;
	// where there is no last good one, none is put, and the sweep must not delete what the store has (see Compiler.Quarantined).
	Quarantined []record.Object
	// Doubted says that what is unknown has changed: the sweep has to be done again.
	Doubted bool
}
