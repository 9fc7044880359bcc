package assemble

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetgate/fleetgate/translate/record"
)

// TestPrecedenceAgainstOracle asks for the winner of requests twice: of the assembled bytes, read as Envoy reads them, and of the records, by the
// words of the Gateway API: the most specific listener, then the most specific hostname, then the best match.
func TestPrecedenceAgainstOracle(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 60
	}
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 2))
		w := newWorld(t)
		g := gatewayKey("infra", "gw")
		hosts := slices.Clone(randomHosts)
		r.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
		gw := gatewayRecord(g, "one")
		for i := range 1 + r.IntN(4) {
			gw.Listeners = append(gw.Listeners, httpListener(fmt.Sprintf("l%d", i), hosts[i], 80))
		}
		s := New(testConfig)
		b := serviceKey("a", "s1")
		s.Apply(append(w.service(b), w.put(classKey("one"), class("one", ours)), w.put(g, gw)))
		routes := map[record.Key]record.Route{}
		for i := range 1 + r.IntN(6) {
			k := routeKey(pick(r, "a", "b", "a-b"), fmt.Sprintf("r%d", i))
			rec := oracleRoute(r, t, k, g, b)
			routes[k] = rec
			s.Apply([]Change{w.put(k, rec, refsOf(b)...)})
		}
		c := routeConfig(t, s, "c/infra/gw/80")
		for range 60 {
			host := pick(r, "foo.example.com", "bar.example.com", "x.foo.example.com", "y.x.foo.example.com", "example.com", "a.com", "other.org", "else.net")
			path := pick(r, "/", "/a", "/a/b", "/ab", "/a/b/c", "/z")
			headers := map[string]string{"x-test": pick(r, "yes", "no"), ":method": pick(r, "GET", "POST")}
			want := oracle(gw, routes, host, path, headers)
			if got := answer(c, host, path, headers); got != want {
				t.Fatalf("seed %d: %s%s %v: got %s, want %s", seed, host, path, headers, got, want)
			}
		}
	}
}

func oracleRoute(r *rand.Rand, t *testing.T, k, g, b record.Key) record.Route {
	var hosts []string
	for range r.IntN(3) {
		if h := pick(r, randomHosts...); h != "" {
			hosts = append(hosts, h)
		}
	}
	p := parentOf(g)
	p.SectionName = pick(r, "", "", "l0", "l1")
	var rules []record.Rule
	for i := range 1 + r.IntN(3) {
		var matches []string
		for range 1 + r.IntN(2) {
			matches = append(matches, pick(r, "exact", "prefix", "prefix", "header", "method")+" "+pick(r, "/", "/a", "/a/b", "/ab"))
		}
		rules = append(rules, rule(t, k, i, b, matches...))
	}
	out := routeRecord(k, hosts, []record.Parent{p}, rules...)
	out.Created = epoch.Add(time.Duration(r.IntN(2)) * time.Second)
	return out
}

func hostMatches(pattern, host string) bool {
	if pattern == "" {
		return true
	}
	if rest, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(host, rest) && len(host) > len(rest)
	}
	return pattern == host
}

// rank is a number for a hostname's specificity.
func rank(pattern string) int {
	switch {
	case pattern == "":
		return 0
	case pattern[0] == '*':
		return len(pattern)
	}
	return 1000 + len(pattern)
}

type candidate struct {
	route      record.Route
	host, orig string
	rule, n    int
	match      record.Match
}

// oracle finds the winner by brute force.
func oracle(g record.Gateway, routes map[record.Key]record.Route, host, path string, headers map[string]string) string {
	owner := record.Listener{}
	for _, l := range g.Listeners {
		if hostMatches(l.Hostname, host) && (owner.Name == "" || rank(l.Hostname) > rank(owner.Hostname)) {
			owner = l
		}
	}
	if owner.Name == "" {
		return "404"
	}
	var all []candidate
	for _, r := range routes {
		if p := r.Parents[0]; p.SectionName != "" && p.SectionName != owner.Name {
			continue
		}
		hosts := r.Hostnames
		if len(hosts) == 0 {
			hosts = []string{""}
		}
		for _, h := range hosts {
			both := h
			if rank(owner.Hostname) > rank(h) {
				both = owner.Hostname
			}
			if !hostMatches(h, host) {
				continue
			}
			for i, rule := range r.Rules {
				for j, m := range rule.Matches {
					all = append(all, candidate{r, both, h, i, j, m})
				}
			}
		}
	}
	// A virtual host is chosen before its routes: only the most specific hostname counts.
	best := -1
	for _, c := range all {
		best = max(best, rank(c.host))
	}
	winner := (*candidate)(nil)
	for i := range all {
		c := &all[i]
		if rank(c.host) == best && sortMatches(c.match, path, headers) && (winner == nil || wins(c, winner)) {
			winner = c
		}
	}
	if winner == nil {
		return "404"
	}
	return winner.match.Name
}

func sortMatches(m record.Match, path string, headers map[string]string) bool {
	switch {
	case m.Sort.PathKind == pathExact && path != m.Sort.Path,
		m.Sort.Headers == 1 && headers["x-test"] != "yes",
		m.Sort.Method && headers[":method"] != "GET":
		return false
	case m.Sort.PathKind == pathExact || m.Sort.Path == "/":
		return true
	}
	return path == m.Sort.Path || strings.HasPrefix(path, m.Sort.Path+"/")
}

// wins says the criteria one after the other, as the docs of HTTPRouteRule.Matches list them.
func wins(a, b *candidate) bool {
	if x, y := rank(a.orig), rank(b.orig); x != y {
		return x > y
	}
	if x, y := a.match.Sort.PathKind == pathExact, b.match.Sort.PathKind == pathExact; x != y {
		return x
	}
	if x, y := len(a.match.Sort.Path), len(b.match.Sort.Path); x != y {
		return x > y
	}
	if x, y := a.match.Sort.Method, b.match.Sort.Method; x != y {
		return x
	}
	if x, y := a.match.Sort.Headers, b.match.Sort.Headers; x != y {
		return x > y
	}
	if !a.route.Created.Equal(b.route.Created) {
		return a.route.Created.Before(b.route.Created)
	}
	x, y := a.route.Object.Namespace+"/"+a.route.Object.Name, b.route.Object.Namespace+"/"+b.route.Object.Name
	if x != y {
		return x < y
	}
	if a.rule != b.rule {
		return a.rule < b.rule
	}
	return a.n < b.n
}

func TestMatchOrder(t *testing.T) {
	ordered := []record.SortKey{
		{GRPC: true, PathKind: pathExact, PathLength: 10},
		{GRPC: true, PathKind: pathPrefix, PathLength: 9},
		{GRPC: true, PathKind: pathPrefix, PathLength: 5},
		{GRPC: true, PathKind: pathRegex, PathLength: 20},
		{GRPC: true, PathKind: pathPrefix, PathLength: 1, Headers: 3},
		{PathKind: pathExact, PathLength: 2, Method: true},
		{PathKind: pathExact, PathLength: 2, Headers: 9},
		{PathKind: pathRegex, PathLength: 4},
		{PathKind: pathPrefix, PathLength: 40},
		{PathKind: pathPrefix, PathLength: 5, Headers: 2},
		{PathKind: pathPrefix, PathLength: 5, Headers: 1, Queries: 3},
		{PathKind: pathPrefix, PathLength: 5, Headers: 1},
		{PathKind: pathPrefix, PathLength: 1},
	}
	for i := range ordered {
		for j := range ordered {
			if got := compareMatch(&ordered[i], &ordered[j]); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("compare(%d, %d) = %d", i, j, got)
			}
		}
	}
}

// TestMergeAgainstSort holds the merge of few and of many new matches against sorting all of them.
func TestMergeAgainstSort(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	var all []*item
	for i := range 400 {
		k := routeKey("a", fmt.Sprintf("r%d", i))
		s := &served{key: k, id: fmt.Sprintf("a/r%d", i), route: &record.Route{Created: epoch}}
		all = append(all, &item{route: s, sort: &record.SortKey{PathKind: uint8(r.IntN(3)), PathLength: r.IntN(4)}})
	}
	want := slices.SortedFunc(slices.Values(all), compare)
	for _, n := range []int{0, 1, 3, 20, 30, 200, 399, 400} {
		ordered := slices.SortedFunc(slices.Values(all[n:]), compare)
		if got := merge(ordered, slices.Clone(all[:n]), compare); !slices.Equal(got, want) {
			t.Errorf("%d new matches end up in the wrong order", n)
		}
	}
}
