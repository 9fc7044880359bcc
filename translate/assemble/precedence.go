package assemble

import (
	"cmp"
	"strings"

	"github.com/fleetgate/fleetgate/translate/record"
)

// item is one match of one route in one virtual host.
type item struct {
	route    *served
	original string // the route's own hostname, before intersection
	rule     int
	match    int
	sort     *record.SortKey
	key      string // what the paths that it matches begin with
	bytes    []byte
}

// compare is the precedence within a virtual host, a total order; lower is tried first. The route's own hostname comes first
// (GatewayRouteHostnameIntersectionPrecedence), then gRPC before HTTP, then the match as the HTTPRoute docs and GEP-1364 have it, then age, then
// "{namespace}/{name}", then the place in the route. The Gateway API leaves regexes to us: like Envoy Gateway and Contour, they
// come after exact paths and before prefixes, since "/" would hide them otherwise.
func compare(a, b *item) int {
	if c := compareSpecificity(a.original, b.original); c != 0 {
		return c
	}
	if c := compareMatch(a.sort, b.sort); c != 0 {
		return c
	}
	if c := compareRoute(a.route, b.route); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.rule, b.rule), cmp.Compare(a.match, b.match))
}

func compareMatch(a, b *record.SortKey) int {
	return cmp.Or(
		trueFirst(a.GRPC, b.GRPC),
		cmp.Compare(pathRank(a), pathRank(b)),
		cmp.Compare(b.PathLength, a.PathLength),
		trueFirst(a.Method, b.Method),
		cmp.Compare(b.Headers, a.Headers),
		cmp.Compare(b.Queries, a.Queries),
	)
}

func compareRoute(a, b *served) int {
	if a == b {
		return 0
	}
	return cmp.Or(
		a.route.Created.Compare(b.route.Created),
		strings.Compare(a.id, b.id),
		strings.Compare(a.key.Name, b.key.Name),
		strings.Compare(a.key.Cluster, b.key.Cluster),
	)
}

// Path kinds of record.SortKey.
const (
	pathExact  = 0
	pathPrefix = 1
	pathRegex  = 2
)

// pathRank orders kinds of path. For gRPC the service counts before the method: a service's prefix comes before a method of any service (a
// regex), and that before everything ("/").
func pathRank(k *record.SortKey) int {
	switch {
	case k.PathKind == pathExact:
		return 0
	case k.GRPC && k.PathKind == pathPrefix && k.PathLength > 1:
		return 1
	case k.PathKind == pathRegex:
		return 2
	}
	return 3
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
