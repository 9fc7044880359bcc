// Package member is what Fleetgate knows of a member cluster: objects as a stream of events, and their status written back.
// A member cluster is an API server or, for a laptop, a directory of manifests; whoever compiles cannot tell which (D12).
//
// A directory has nobody who refuses a bad object at the door, so this package is that door: a manifest meets the schemas,
// defaults and CEL rules that an API server would hold against it, and what an API server would refuse becomes a Problem that
// names file, document, line, object, field and remedy, while the object keeps its last good state (D10).
package member

import (
	"context"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fleetgate/fleetgate/cluster/store"
)

// Object is a typed Kubernetes object: *gatewayv1.Gateway, *corev1.Service and so on. Handed-out objects are read only.
type Object interface {
	metav1.Object
	runtime.Object
}

// Event is one change of one object in a member cluster. Kind is set on Object's TypeMeta too.
type Event struct {
	Cluster         string
	Kind            string // GatewayClass, Gateway, HTTPRoute, Service and so on
	Namespace, Name string
	Object          Object // nil = deleted
	// Unknown says, where Object is nil, that it cannot be told whether the object is there: a file that was broken when it was seen first may hold
	// it. Kind "" stands for all objects that are not there, and Name "" for all of a kind that the cluster does not serve. A later event of the same name ends it.
	Unknown bool
	// Denied says of an unknown object that was asked for by name (Asked) that the cluster forbids us to read it.
	Denied bool
}

// Source is a member cluster as a stream of events.
type Source interface {
	// Name is the member cluster's name.
	Name() string
	// Run delivers all objects, then changes, until ctx ends. sink is called from one goroutine, with everything that one scan
	// found, in one call. synced is true from the first call on that completes a view of every kind (unknown is not absent, D10).
	// Run returns only when ctx ends or on a mistake that waiting cannot mend.
	Run(ctx context.Context, sink func(events []Event, synced bool)) error
	// WriteStatus replaces the status of an object, if its resourceVersion is still the given one ("" = whatever); other writers' entries are
	// the caller's to keep. It returns the new resourceVersion; ErrConflict when it changed, ErrNotFound when it is gone.
	WriteStatus(ctx context.Context, s Status) (resourceVersion string, err error)
	// ReadStatus gives the object's present status as JSON ("null" where there is none) and its resourceVersion.
	ReadStatus(ctx context.Context, kind, namespace, name string) (status []byte, resourceVersion string, err error)
	// Problems are faults of the source itself that no object's status can carry: a broken file, an unreadable directory.
	Problems() []Problem
}

// Ref names an object that is only read because something refers to it.
type Ref struct{ Kind, Namespace, Name string }

// Asked is a Source that does not read every object: Secrets and ConfigMaps only when something refers to them.
type Asked interface {
	// Want says which objects are wanted from now on, all of them. Each is answered by an event, at once or as soon as the cluster says; Object is nil
	// where it does not exist, and where nobody can say there is no event (unknown is not absent), or one that is Denied. It never blocks.
	Want(refs []Ref)
}

// Finalizing is a Source whose objects can be kept from vanishing.
type Finalizing interface {
	// Finalizer puts a finalizer on an object, or takes it away; it changes nothing where it is so already.
	Finalizer(ctx context.Context, kind, namespace, name, finalizer string, present bool) error
}

// Telling is a Source whose users can be told what has become of an object, beside its status: by events, where it is an API server.
type Telling interface {
	// Tell leaves a notice on an object. It never blocks; a notice that cannot be delivered for minutes is dropped.
	Tell(n Notice)
}

// Notice is news of an object, for whoever describes it.
type Notice struct {
	Kind, Namespace, Name, UID string
	Part                       string // of the object, such as spec.listeners{https}; "" = all of it
	Warning                    bool   // something is wrong, as against right again
	Reason                     string // one word in CamelCase
	Text                       string
}

// Errors of WriteStatus and ReadStatus.
var (
	ErrConflict = errors.New("the object changed meanwhile: read its status again and decide anew")
	ErrNotFound = errors.New("the object is gone")
)

// Status is one status write.
type Status struct {
	Kind, Namespace, Name string
	UID                   string
	ResourceVersion       string
	Status                []byte // JSON of the status stanza
}

// Problem is a fault in a manifest or a directory: where and what to do.
type Problem struct {
	File     string `json:"file"`
	Document int    `json:"document,omitempty"` // 1-based, 0 = the whole file
	Line     int    `json:"line,omitempty"`     // 1-based
	Object   string `json:"object,omitempty"`   // Kind namespace/name
	Field    string `json:"field,omitempty"`
	Message  string `json:"message"` // ends with what to do
}

// String is the problem as a compiler would print it: file:line first, so that editors and terminals can jump there.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Document > 0 {
		fmt.Fprintf(&b, " (document %d)", p.Document)
	}
	for _, part := range []string{p.Object, p.Field, p.Message} {
		if part == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(part)
	}
	return b.String()
}

// Identifier gives identities to objects that no API server gave one (D12). It blocks until the replicated identity of each
// observed object carries the observed spec hash, or ctx ends.
type Identifier interface {
	Identify(ctx context.Context, cluster string, seen []store.IdentityObservation) ([]store.Identity, error)
}
