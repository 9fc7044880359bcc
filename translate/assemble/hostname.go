package assemble

import "strings"

// Hostnames are lower case; "" stands for all hosts, "*.x" for all below x, at any depth, as the Gateway API and Envoy's domains have it.

// covers tells whether every host that b matches is matched by a.
func covers(a, b string) bool {
	switch {
	case a == "" || a == b:
		return true
	case !wildcard(a) || b == "":
		return false
	case wildcard(b):
		return strings.HasSuffix(b[1:], a[1:])
	}
	return strings.HasSuffix(b, a[1:]) && len(b) >= len(a)
}

func wildcard(h string) bool { return strings.HasPrefix(h, "*.") }

// intersect gives the hosts that both match: since hostnames are suffixes, that is the narrower of the two or nothing.
func intersect(a, b string) (string, bool) {
	if covers(a, b) {
		return b, true
	}
	return a, covers(b, a)
}

// compareSpecificity orders hostnames by precedence, the most specific first: more characters of an exact name, then more of a wildcard, then "".
func compareSpecificity(a, b string) int {
	if a == b {
		return 0
	}
	if ea, eb := a != "" && !wildcard(a), b != "" && !wildcard(b); ea != eb {
		if ea {
			return -1
		}
		return 1
	}
	return len(b) - len(a)
}

// moreSpecific tells whether listener hostname a takes the hosts of b that it covers.
func moreSpecific(a, b string) bool { return a != b && covers(b, a) }

// domain is Envoy's way to write a hostname.
func domain(h string) string {
	if h == "" {
		return "*"
	}
	return h
}

// anyHost reads "*" as "no hostname".
func anyHost(h string) string {
	if h == "*" {
		return ""
	}
	return strings.ToLower(h)
}
