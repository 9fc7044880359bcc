package envoy

import "google.golang.org/protobuf/encoding/protowire"

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
	routesName                     = "routes"
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
	entries, rest := 0, 0
	for _, l := range leaves {
		entries += field(field(len(l.Key)) + field(sizeOfTake(l.Routes)))
	}
	input := extension("path", headerInputURL, appendBytes(nil, headerInputName, ":path"))
	tree := field(len(input)) + field(entries)
	if len(otherwise) > 0 {
		rest = field(sizeOfTake(otherwise))
	}
	head := VirtualHostBytes(name, domains, nil)
	b := append(make([]byte, 0, len(head)+rest+field(field(tree))+16), head...)
	b = appendHead(b, vhostMatcher, field(tree)+rest)
	b = appendHead(b, matcherTree, tree)
	b = appendBytes(b, treeInput, input)
	b = appendHead(b, treePrefixes, entries)
	for _, l := range leaves {
		size := sizeOfTake(l.Routes)
		b = appendHead(b, mapEntry, field(len(l.Key))+field(size))
		b = appendBytes(b, entryKey, l.Key)
		b = appendTake(appendHead(b, entryValue, size), l.Routes)
	}
	if len(otherwise) > 0 {
		b = appendTake(appendHead(b, matcherOtherwise, sizeOfTake(otherwise)), otherwise)
	}
	return b
}

// field is the size of a length-delimited field of one of the low numbers here, tag included.
func field(length int) int { return 1 + protowire.SizeBytes(length) }

func appendHead(b []byte, number protowire.Number, length int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.BytesType), uint64(length))
}

// appendTake writes the outcome of a match (OnMatch) that takes the first fitting route of a list. Sizes are reckoned first, so that routes are copied once.
func appendTake(b []byte, routes [][]byte) []byte {
	list := sizeOfList(routes)
	b = appendHead(b, onMatchAction, sizeOfExtension(list))
	b = appendBytes(b, extensionName, routesName)
	b = appendHead(b, extensionConfig, sizeOfAny(list))
	b = appendBytes(b, anyURL, routeListURL)
	b = appendHead(b, anyValue, list)
	for _, r := range routes {
		b = appendBytes(b, listRoutes, r)
	}
	return b
}

func sizeOfTake(routes [][]byte) int { return field(sizeOfExtension(sizeOfList(routes))) }
func sizeOfExtension(list int) int   { return field(len(routesName)) + field(sizeOfAny(list)) }
func sizeOfAny(list int) int         { return field(len(routeListURL)) + field(list) }

func sizeOfList(routes [][]byte) (n int) {
	for _, r := range routes {
		n += field(len(r))
	}
	return n
}

// extension is a TypedExtensionConfig.
func extension(name, url string, config []byte) []byte {
	return appendBytes(appendBytes(nil, extensionName, name), extensionConfig, appendBytes(appendBytes(nil, anyURL, url), anyValue, config))
}
