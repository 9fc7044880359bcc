package loadtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetgate/fleetgate/loadtest/freeport"
)

// The Gateway of the inputs: a listener for everybody, one for its own namespace.
const inputsGateway = `apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: envoy}
spec: {controllerName: fleetgate.io/gatewayclass-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: default}
spec:
  gatewayClassName: envoy
  listeners:
  - {name: http, protocol: HTTP, port: PORT, allowedRoutes: {namespaces: {from: All}}}
  - {name: own, protocol: HTTP, port: PORT, hostname: own.example, allowedRoutes: {namespaces: {from: Same}}}
`

// badInput is one thing that people get wrong. The author must find one finding of `fleetgate status` that holds all of says; the file is
// named bad.yaml, and the object bad.
type badInput struct {
	name, text string
	says       []string
}

func badRoute(spec string) string {
	return "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: bad, namespace: default}\nspec:\n  parentRefs: [{name: gw}]\n" + spec
}

func badInputs() []badInput {
	rules := func(rest string) string { return "  rules:\n  - matches: [{path: {value: /bad}}]\n" + rest }
	web := "    backendRefs: [{name: web, port: 8080}]\n"
	listeners := func(class, rest string) string {
		return "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: bad, namespace: default}\nspec:\n  gatewayClassName: " + class + "\n  listeners:\n" + rest
	}
	return append(refusedInputs(rules, web), []badInput{
		{"unknown GatewayClass", listeners("envoi", "  - {name: http, protocol: HTTP, port: 20001}\n"),
			[]string{"bad.yaml", "Gateway default/bad", "spec.gatewayClassName", `"envoi" does not exist`, "name one that exists: envoy"}},
		{"missing parent", strings.Replace(badRoute(rules(web)), "{name: gw}", "{name: gone}", 1),
			[]string{"bad.yaml:1", "HTTPRoute default/bad", "default/gone", "does not exist", "create it or correct parentRefs"}},
		{"namespace not allowed", strings.NewReplacer("namespace: default", "namespace: other", "{name: gw}", "{name: gw, namespace: default, sectionName: own}").Replace(badRoute(rules("")) + "    filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example}}]\n"),
			[]string{"bad.yaml:1", "HTTPRoute other/bad", "NotAllowedByListeners", "default/gw/own", "widen allowedRoutes"}},
		{"backend that does not exist", badRoute(rules("    backendRefs: [{name: gone, port: 8080}]\n")),
			[]string{"bad.yaml:1", "HTTPRoute default/bad", "BackendNotFound", "rule 0", "Service default/gone does not exist", "create it, or name another"}},
		{"backend of a wrong kind", badRoute(rules("    backendRefs: [{kind: ConfigMap, name: web, port: 8080}]\n")),
			[]string{"bad.yaml:1", "HTTPRoute default/bad", "InvalidKind", "rule 0", "web", "Service"}},
		{"weights that sum to zero", badRoute(rules("    backendRefs: [{name: web, port: 8080, weight: 0}]\n")),
			[]string{"bad.yaml:1", "HTTPRoute default/bad", "spec.rules[0].backendRefs", "answers 500", "Give one of them a weight above 0"}},
		{"regex that RE2 refuses", badRoute("  rules:\n  - matches: [{path: {type: RegularExpression, value: '/(?=bad)'}}]\n" + web),
			[]string{"bad.yaml:1", "HTTPRoute default/bad", "rule 0", "(?=", "correct it"}},
	}...)
}

// refusedInputs are those that an API server would not take.
func refusedInputs(rules func(string) string, web string) []badInput {
	return []badInput{
		{"broken YAML", badRoute(rules(web)) + "  what: [is, this\n", []string{"bad.yaml:8", "broken YAML", "Correct the syntax"}},
		{"unknown field", badRoute(rules(web + "    timeout: 10s\n")), []string{"bad.yaml:9", "HTTPRoute default/bad", "spec.rules[0].timeout", `"timeouts"`}},
		{"wrong type", badRoute(rules("    backendRefs: [{name: web, port: http}]\n")), []string{"bad.yaml:8", "HTTPRoute default/bad", "spec.rules[0].backendRefs[0].port", "integer"}},
		{"CEL violation", badRoute(rules(web + "    filters: [{type: RequestRedirect}]\n")), []string{"bad.yaml:9", "HTTPRoute default/bad", "spec.rules[0].filters[0]", "requestRedirect must be specified"}},
		{"wrong kind", strings.Replace(badRoute(rules(web)), "HTTPRoute", "HTTPRouts", 1), []string{"bad.yaml:2", "HTTPRouts", "kind", `"HTTPRoute"`}},
		{"duplicate object", strings.Replace(badRoute(rules(web)), "name: bad", "name: steady", 1), []string{"bad.yaml:1", "HTTPRoute default/steady", "routes.yaml", "Remove or rename one of the two"}},
		{"file of 2 MB", "# " + strings.Repeat("x", 2<<20) + "\n" + badRoute(rules(web)), []string{"bad.yaml", "1048576", "Split it into smaller files"}},
	}
}

// findings are what `fleetgate status` tells a person.
func (r *rig) findings() []string {
	bin, err := build()
	if err != nil {
		r.t.Fatal(err)
	}
	out, _ := exec.Command(bin, "status", "-o", "json", "--server", r.adminAddresses()[0]).Output() // exit code 2 says that there are some
	var report struct{ Findings []string }
	if json.Unmarshal(out, &report) != nil {
		return []string{"no status: " + string(out)}
	}
	return report.Findings
}

// found tells whether one finding holds all of these.
func found(findings, says []string) bool {
	for _, f := range findings {
		all := true
		for _, s := range says {
			all = all && strings.Contains(f, s)
		}
		if all {
			return true
		}
	}
	return false
}

// waitFindings waits until the findings are so.
func (r *rig) waitFindings(what string, ok func([]string) bool) {
	r.t.Helper()
	var last []string
	for begin := time.Now(); time.Since(begin) < soon; time.Sleep(50 * time.Millisecond) { // another process sends no events
		if last = r.findings(); ok(last) {
			return
		}
	}
	r.t.Errorf("%s; the findings are:\n%s", what, strings.Join(last, "\n"))
}

// steady asks for one route again and again, and notes every answer that is not the first one.
type steady struct {
	mu      sync.Mutex
	more    *sync.Cond // there is another answer
	sent    int
	strange []string
	stop    chan struct{}
	work    sync.WaitGroup
}

func watchSteady(r *rig) *steady {
	s := &steady{stop: make(chan struct{})}
	s.more = sync.NewCond(&s.mu)
	_, want := steadyAnswer(r)
	s.work.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
			code, got := steadyAnswer(r)
			s.mu.Lock()
			if s.sent++; code != http.StatusOK || got != want {
				s.strange = append(s.strange, fmt.Sprintf("%d %s", code, got))
			}
			s.more.Broadcast()
			s.mu.Unlock()
		}
	})
	return s
}

// steadyAnswer is the whole answer but for the request's own id.
func steadyAnswer(r *rig) (int, string) {
	code, body := r.get("/steady")
	var answer struct {
		Pod, Namespace, Version, Method, Host, Path string
		Headers                                     http.Header
	}
	if json.Unmarshal([]byte(body), &answer) != nil {
		return code, body
	}
	answer.Headers.Del("X-Request-Id")
	b, err := json.Marshal(answer)
	if err != nil {
		return code, err.Error()
	}
	return code, string(b)
}

// check waits for ten answers since it was asked last, and fails where one of them all was strange.
func (s *steady) check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.sent < 10 {
		s.more.Wait()
	}
	if len(s.strange) > 0 {
		t.Errorf("the other route was disturbed: %d of %d answers, the first: %s", len(s.strange), s.sent, strings.Join(s.strange[:min(1, len(s.strange))], ""))
	}
	s.sent, s.strange = 0, nil
}

// TestBadInputs: what people get wrong is told where they look, with file, object, field and remedy, and disturbs nobody else's traffic.
func TestBadInputs(t *testing.T) {
	r := start(t, map[string]string{"gateway.yaml": inputsGateway, "backends.yaml": backend("default", "web"), "routes.yaml": route("default", "steady", "/steady", "web")})
	r.waitLive("default", "steady", 1, soon)
	r.until("traffic flows", soon, func() bool { code, _ := r.get("/steady"); return code == http.StatusOK })
	r.waitFindings("something is wrong at the start", func(f []string) bool { return len(f) == 0 })
	s := watchSteady(r)
	defer func() { close(s.stop); s.work.Wait() }()
	for _, c := range badInputs() {
		t.Run(c.name, func(t *testing.T) {
			r.save("bad.yaml", c.text)
			r.expect(t, s, c.says)
			if err := os.Remove(filepath.Join(r.dir, "bad.yaml")); err != nil {
				t.Fatal(err)
			}
			r.calm(t, s)
		})
	}
	t.Run("listener conflict", func(t *testing.T) { r.listenerConflict(t, s) })
	t.Run("forged creationTimestamp", func(t *testing.T) { r.forgedStamp(t, s) })
	t.Run("directory that disappears", func(t *testing.T) { r.vanish(t, s) })
}

func (r *rig) expect(t *testing.T, s *steady, says []string) {
	t.Helper()
	in := *r
	in.t = t
	in.waitFindings(fmt.Sprintf("no finding has all of %q", says), func(f []string) bool { return found(f, says) })
	s.check(t)
}

func (r *rig) calm(t *testing.T, s *steady) {
	t.Helper()
	in := *r
	in.t = t
	in.waitFindings("the findings stay", func(f []string) bool { return len(f) == 0 })
	s.check(t)
}

// listenerConflict adds listeners to the Gateway in use that cannot share their port.
func (r *rig) listenerConflict(t *testing.T, s *steady) {
	good := strings.ReplaceAll(inputsGateway, "PORT", fmt.Sprint(r.port))
	port := freeport.Take(t)
	r.save("gateway.yaml", good+fmt.Sprintf("  - {name: plain, protocol: HTTP, port: %d}\n  - {name: secure, protocol: HTTPS, port: %d, tls: {certificateRefs: [{name: none}]}}\n", port, port))
	r.expect(t, s, []string{"gateway.yaml:6", "Gateway default/gw", "listener plain: ProtocolConflict", `listener "secure"`, "give one of them another port"})
	r.save("gateway.yaml", good)
	r.calm(t, s)
}

// forgedStamp adds a route that claims to be older than the one in use, for the same requests.
func (r *rig) forgedStamp(t *testing.T, s *steady) {
	forged := strings.Replace(route("default", "abad", "/steady", "gone"), "namespace: default}", "namespace: default, creationTimestamp: \"2001-01-01T00:00:00Z\"}", 1)
	r.save("bad.yaml", forged)
	r.expect(t, s, []string{"bad.yaml:1", "HTTPRoute default/abad", "BackendNotFound"}) // it is compiled, and comes second
	in := *r
	in.t = t
	in.waitLive("default", "abad", 1, 10*time.Second)
	s.check(t)
	if err := os.Remove(filepath.Join(r.dir, "bad.yaml")); err != nil {
		t.Fatal(err)
	}
	r.calm(t, s)
}

// vanish takes the directory away and brings it back.
func (r *rig) vanish(t *testing.T, s *steady) {
	away := r.dir + ".away"
	if err := os.Rename(r.dir, away); err != nil {
		t.Fatal(err)
	}
	r.expect(t, s, []string{filepath.Base(r.dir), "cannot be read any more", "Everything stays as it was; bring the directory back"})
	if err := os.Rename(away, r.dir); err != nil {
		t.Fatal(err)
	}
	r.calm(t, s)
	r.save("routes.yaml", route("default", "steady", "/steady", "web=7"))
	in := *r
	in.t = t
	in.waitLive("default", "steady", 2, 20*time.Second) // and it is watched again
	s.check(t)
}

// TestFileBrokenBeforeTheStart: replicas that start while a file is broken, and that do not remember what it was, do not take its objects for deleted.
func TestFileBrokenBeforeTheStart(t *testing.T) {
	good := route("default", "steady", "/steady", "web")
	r := start(t, map[string]string{"gateway.yaml": inputsGateway, "backends.yaml": backend("default", "web"), "routes.yaml": good})
	r.waitLive("default", "steady", 1, soon)
	r.stop()
	if err := os.RemoveAll(filepath.Join(r.state, "status", ".last-good")); err != nil {
		t.Fatal(err)
	}
	r.save("routes.yaml", good+"  {broken")
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	r.run(bin)
	r.programmed()
	r.waitFindings("the broken file is not told of", func(f []string) bool { return found(f, []string{"routes.yaml", "broken YAML"}) })
	r.save("more.yaml", route("default", "more", "/more", "web")) // goes the whole way: every row of it was swept before
	r.waitLive("default", "more", 1, soon)
	r.until("the route in the broken file is served", soon, func() bool { code, _ := r.get("/steady"); return code == http.StatusOK })
	r.save("routes.yaml", strings.Replace(good, "weight: 1", "weight: 2", 1))
	r.waitLive("default", "steady", 2, 20*time.Second)
	if err := os.Remove(filepath.Join(r.dir, "routes.yaml")); err != nil {
		t.Fatal(err)
	}
	r.until("the deleted route is gone", 20*time.Second, func() bool { code, _ := r.get("/steady"); return code == http.StatusNotFound })
}
