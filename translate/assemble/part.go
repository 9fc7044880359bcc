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

// A record whose newest bytes are pinned is served in a lesser form, which these suffixes of its hash mark in Resource.Parts, and so in a pin made from it. A pin of a lesser form
// leads to the next one: the previous bytes are rejected too, so the route answers 500; even its matches are rejected (a regex that this Envoy refuses), so it is left out.
const (
	previousSuffix = "/previous"
	degradedSuffix = "/500"
)

// Rank orders the forms of one content, as Resource.Parts and pins name them: a pin of a form of a higher rank refuses more.
func Rank(form string) int {
	switch {
	case strings.HasSuffix(form, degradedSuffix):
		return 2
	case strings.HasSuffix(form, previousSuffix):
		return 1
	}
	return 0
}
