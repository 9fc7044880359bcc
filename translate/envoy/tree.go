package envoy

// Field numbers of VirtualHost.matcher and of what is below it; TestVirtualHostTree holds them against the protos.
const (
	vhostMatcher = 21

	matcherTree, matcherOtherwise  = 2, 3
	treeInput, treePrefixes        = 1, 3
	mapEntry, entryKey, entryValue = 1, 1, 2
	onMatchAction                  = 2
	extensionName, extensionConfig = 1, 2
	anyURL, anyValue               = 1, 2
	listRoutes                     = 1
	headerInputName                = 1
	headerInputURL                 = "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
	routeListURL                   = "type.googleapis.com/envoy.config.route.v3.RouteList"
)

// Leaf is the routes, marshalled and in their order, of requests whose path (with query) begins with Key and with no longer key.
type Leaf struct {
	Key    string
	Routes [][]byte
}

// VirtualHostTreeBytes is VirtualHostBytes with an index: Envoy finds the leaf of the longest key that the path begins with, in a radix tree, and tries its
// routes only. A leaf whose routes all miss answers 404: it must list those of shorter keys too that can match. otherwise are the routes of paths that
// begin with no key.
func VirtualHostTreeBytes(name string, domains []string, leaves []Leaf, otherwise [][]byte) []byte {
	var entries []byte
	for _, l := range leaves {
		entries = appendBytes(entries, mapEntry, appendBytes(appendBytes(nil, entryKey, l.Key), entryValue, takeFrom(l.Routes)))
	}
	tree := appendBytes(nil, treeInput, extension("path", headerInputURL, appendBytes(nil, headerInputName, ":path")))
	matcher := appendBytes(nil, matcherTree, appendBytes(tree, treePrefixes, entries))
	if len(otherwise) > 0 {
		matcher = appendBytes(matcher, matcherOtherwise, takeFrom(otherwise))
	}
	return appendBytes(VirtualHostBytes(name, domains, nil), vhostMatcher, matcher)
}

// takeFrom is the outcome of a match (OnMatch) that takes the first fitting route of a list.
func takeFrom(routes [][]byte) []byte {
	var list []byte
	for _, r := range routes {
		list = appendBytes(list, listRoutes, r)
	}
	return appendBytes(nil, onMatchAction, extension("routes", routeListURL, list))
}

// extension is a TypedExtensionConfig.
func extension(name, url string, config []byte) []byte {
	return appendBytes(appendBytes(nil, extensionName, name), extensionConfig, appendBytes(appendBytes(nil, anyURL, url), anyValue, config))
}
