package assemble

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/fleetgate/fleetgate/translate/envoy"
)

const (
	// listBelow is the number of routes up to which a virtual host is a plain list, which Envoy passes over from the front. A tree costs it three times as much to
	// take in, so it pays only where a list is slow to match: of 10,000 routes the last one takes 4 ms from a list and 0.3 ms from a tree.
	listBelow = 64
	// treeGrowth bounds how many times more routes a tree may hold than there are, since each leaf repeats what is above it.
	treeGrowth = 8
)

// treeOf indexes routes by the beginning of their paths, without a say in precedence: a leaf holds, in order, all routes that can match a path that begins
// with its key and with no longer one, so that the first that fits is the one of the whole list; last are the routes of what fits none. byKey is ordered by compareKeys.
// It says false where a list is better.
func treeOf(byKey []*item, last ...[]byte) (leaves []envoy.Leaf, otherwise [][]byte, ok bool) {
	var above [][]*item // the groups whose keys the one at hand begins with
	routes := make([][]byte, 0, 2*len(byKey))
	for rest := byKey; len(rest) > 0; {
		key, end := rest[0].key, 1
		for end < len(rest) && rest[end].key == key {
			end++
		}
		for len(above) > 0 && !strings.HasPrefix(key, above[len(above)-1][0].key) {
			above = above[:len(above)-1]
		}
		from := len(routes)
		for _, it := range leafOf(rest[:end], above, key) {
			routes = append(routes, it.bytes)
		}
		routes = append(routes, last...)
		if len(routes) > treeGrowth*len(byKey) {
			return nil, nil, false
		}
		if key == "" {
			otherwise = routes[from:]
		} else {
			leaves = append(leaves, envoy.Leaf{Key: key, Routes: routes[from:len(routes):len(routes)]})
		}
		above, rest = append(above, rest[:end]), rest[end:]
	}
	if otherwise == nil {
		otherwise = last
	}
	return leaves, otherwise, true
}

// leafOf gives, in order, the routes of a key and those of the keys above it that can match below it.
func leafOf(own []*item, above [][]*item, key string) []*item {
	out := own[:len(own):len(own)]
	for _, group := range above {
		for _, it := range group {
			if it.reaches(key) {
				out = append(out, it)
			}
		}
	}
	if len(out) > len(own) {
		slices.SortFunc(out, compare)
	}
	return out
}

// compareKeys groups items by key, each group in the order of precedence.
func compareKeys(a, b *item) int { return cmp.Or(strings.Compare(a.key, b.key), compare(a, b)) }

// keyOf is what each path begins with that an item matches: its path, or what is fixed at the front of its regex.
func keyOf(kind uint8, path string) string {
	if kind != pathRegex {
		return path
	}
	r, err := regexp.Compile(path)
	if err != nil {
		return "" // RE2 may know what we do not: then any path may match
	}
	prefix, _ := r.LiteralPrefix()
	return prefix
}

// reaches tells whether an item can match paths that begin with key, which is longer than its own and begins with it. Keys hold no query.
func (i *item) reaches(key string) bool {
	switch i.sort.PathKind {
	case pathExact:
		return false
	case pathPrefix:
		return i.key == "/" || strings.HasPrefix(key, i.key+"/")
	}
	return true
}
