package assemble

import (
	"fmt"
	"strings"

	"github.com/fleetgate/fleetgate/translate/record"
)

// PartID names a record in Resource.Parts.
func PartID(k record.Key) string { return record.Join(k.Cluster, k.Namespace, string(k.Kind), k.Name) }

// ParsePart is the inverse of PartID.
func ParsePart(id string) (record.Key, error) {
	parts := strings.Split(id, "/")
	if len(parts) != 4 {
		return record.Key{}, fmt.Errorf("assemble: part %q: want cluster/namespace/kind/name, as PartID writes it", id)
	}
	for i, p := range parts {
		parts[i] = unescape.Replace(p)
	}
	return record.Key{Cluster: parts[0], Namespace: parts[1], Kind: record.Kind(parts[2]), Name: parts[3]}, nil
}

var unescape = strings.NewReplacer("%2F", "/", "%25", "%")

// degradedSuffix marks in Resource.Parts, and so in a pin made from it, the form of a route that answers 500 because its own bytes are pinned. A pin
// of that form says that even its matches are rejected (a regex that this Envoy refuses): then the route is left out.
const degradedSuffix = "/500"
