package assemble

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/fleetgate/fleetgate/loadtest/freeport"
	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

var (
	treeWords   = []string{"a", "b", "ab", "abc", "a.b", "B"}
	treeRegexes = []string{"/a.*", "/a/(b|ab)", "/(a|b)/.+", ".*", "/ab?/b", "(?i)/A/b", "/a|/b", "/ab/[ab]+/?"}
)

func randomPath(r *rand.Rand) string {
	path := ""
	for range pick(r, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4) {
		path += "/" + pick(r, treeWords...)
	}
	return path
}

// treeItem makes a random match that answers with its own name.
func treeItem(t *testing.T, r *rand.Rand, n int) *item {
	t.Helper()
	path := randomPath(r)
	sort := &record.SortKey{Path: path, GRPC: r.IntN(12) == 0}
	var match *routev3.RouteMatch
	switch r.IntN(40) {
	case 0:
		sort.PathKind, sort.Path = pathRegex, pick(r, treeRegexes...)
		match = envoy.RegexPath(sort.Path)
	case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16:
		sort.PathKind, sort.Path = pathExact, path+pick(r, "", "/")
		if sort.Path == "" {
			sort.Path = "/"
		}
		match = envoy.ExactPath(sort.Path)
	default:
		sort.PathKind = pathPrefix
		if path == "" {
			sort.Path = "/"
		}
		match = envoy.PrefixPath(sort.Path)
	}
	sort.PathLength = len(sort.Path)
	if r.IntN(3) > 0 {
		sort.Headers = 1
		match.Headers = []*routev3.HeaderMatcher{envoy.HeaderIs("x-test", pick(r, "1", "2", "3"))}
	}
	name := fmt.Sprint("r", n)
	b, err := envoy.Marshal(&routev3.Route{Name: name, Match: match, Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: 200, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: name}}}}})
	if err != nil {
		t.Fatal(err)
	}
	s := &served{id: name, key: record.Key{Name: name}, route: &record.Route{Created: epoch}}
	return &item{route: s, original: pick(r, "x.org", "x.org", "*.org"), sort: sort, key: keyOf(sort.PathKind, sort.Path), bytes: b}
}

// twoHosts makes random routes as a list and as a tree.
func twoHosts(t *testing.T, r *rand.Rand) (list, tree *routev3.VirtualHost) {
	t.Helper()
	var items []*item
	for i := range listBelow + 1 + r.IntN(60) {
		items = append(items, treeItem(t, r, i))
	}
	slices.SortFunc(items, compare)
	leaves, otherwise, ok := treeOf(slices.SortedFunc(slices.Values(items), compareKeys))
	if !ok {
		return nil, nil
	}
	return openHost(t, envoy.VirtualHostBytes("list", []string{"list"}, bytesOf(items))), openHost(t, envoy.VirtualHostTreeBytes("tree", []string{"tree"}, leaves, otherwise))
}

func openHost(t *testing.T, b []byte) *routev3.VirtualHost {
	t.Helper()
	v := &routev3.VirtualHost{}
	if err := proto.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
	if err := v.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	return v
}

// listOf gives the routes that Envoy tries for a path (with its query).
func listOf(t testing.TB, v *routev3.VirtualHost, path string) []*routev3.Route {
	t.Helper()
	if v.Matcher == nil {
		return v.Routes
	}
	best, outcome := "", v.Matcher.OnNoMatch
	for key, m := range v.Matcher.GetMatcherTree().GetPrefixMatchMap().GetMap() {
		if strings.HasPrefix(path, key) && len(key) > len(best) {
			best, outcome = key, m
		}
	}
	if outcome == nil {
		return nil
	}
	list := &routev3.RouteList{}
	if err := outcome.GetAction().TypedConfig.UnmarshalTo(list); err != nil {
		t.Fatal(err)
	}
	return list.Routes
}

func winner(t *testing.T, v *routev3.VirtualHost, path, header string) string {
	t.Helper()
	plain, _, _ := strings.Cut(path, "?")
	for _, r := range listOf(t, v, path) {
		if matchesRequest(r.Match, plain, map[string]string{"x-test": header}) {
			return r.Name
		}
	}
	return "404"
}

func randomRequest(r *rand.Rand) (path, header string) {
	if path = randomPath(r) + pick(r, "", "", "/", "b", "?q=/a/b", "/?x"); !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return path, pick(r, "1", "2", "3", "4")
}

// TestTreeAgainstList holds the tree against the list that it indexes, by a model of Envoy.
func TestTreeAgainstList(t *testing.T) {
	rounds, trees := 300, 0
	if testing.Short() {
		rounds = 40
	}
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 3))
		list, tree := twoHosts(t, r)
		if list == nil {
			continue
		}
		trees++
		for range 200 {
			path, header := randomRequest(r)
			if want, got := winner(t, list, path, header), winner(t, tree, path, header); got != want {
				t.Fatalf("seed %d: %s x-test:%s: the tree gives %s, the list %s", seed, path, header, got, want)
			}
		}
	}
	if trees < rounds/2 {
		t.Errorf("only %d of %d were trees", trees, rounds)
	}
}

// TestTreeInRealEnvoy asks the real binary for the same requests of the list and of the tree.
func TestTreeInRealEnvoy(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	list, tree := twoHosts(t, r)
	for list == nil {
		list, tree = twoHosts(t, r)
	}
	url := serve(t, &routev3.RouteConfiguration{Name: "rc", VirtualHosts: []*routev3.VirtualHost{list, tree}})
	found := 0
	for range 300 {
		path, header := randomRequest(r)
		want, got := get(t, url+path, "list", header), get(t, url+path, "tree", header)
		if got != want || want != winner(t, list, path, header) {
			t.Errorf("%s x-test:%s: the tree gives %q, the list %q, the model %q", path, header, got, want, winner(t, list, path, header))
		}
		if want != "404" {
			found++
		}
	}
	if found < 30 {
		t.Errorf("only %d requests met a route", found)
	}
}

func get(t *testing.T, url, host, header string) string {
	t.Helper()
	q, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Host = host
	q.Header.Set("x-test", header)
	a, err := http.DefaultTransport.RoundTrip(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	if a.StatusCode != http.StatusOK {
		return fmt.Sprint(a.StatusCode)
	}
	return string(b)
}

// serve runs the real binary with one RouteConfiguration.
func serve(t *testing.T, rc *routev3.RouteConfiguration) (url string) {
	t.Helper()
	port := freeport.Take(t)
	l, err := plainListener(port, rc)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	config := fmt.Sprintf(`{"node": {"id": "n", "cluster": "c"}, "static_resources": {"listeners": [%s]}}`, protojson.Format(l))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(realEnvoy(t), "--disable-hot-restart", "--concurrency", "1", "-l", "info", "-c", file)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines, said := bufio.NewScanner(log), ""
	for lines.Scan() {
		if said += lines.Text() + "\n"; strings.Contains(lines.Text(), "starting main dispatch loop") {
			go func() { _, _ = io.Copy(io.Discard, log) }()
			return fmt.Sprintf("http://127.0.0.1:%d", port)
		}
	}
	t.Fatalf("envoy ended:\n%s", said)
	return ""
}

func plainListener(port int, rc *routev3.RouteConfiguration) (*listenerv3.Listener, error) {
	hcm, err := envoy.HTTPConnectionManager("p", "rc", envoy.AccessLog{}, nil)
	if err != nil {
		return nil, err
	}
	hcm.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: rc}
	chain, err := envoy.HTTPChain("http", hcm)
	if err != nil {
		return nil, err
	}
	return envoy.Listener("l", "127.0.0.1", int32(port), false, nil, chain)
}

// realEnvoy finds the real binary; without it what these tests are for would go untested.
func realEnvoy(t *testing.T) string {
	t.Helper()
	if binary := os.Getenv("FLEETGATE_ENVOY"); binary != "" {
		return binary
	}
	binary, err := exec.LookPath("envoy")
	if err != nil {
		t.Fatal("no Envoy: run the tests by make, put envoy on PATH, or name one in FLEETGATE_ENVOY")
	}
	return binary
}
