package loadtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetgate/fleetgate/loadtest/freeport"
)

// signer signs certificates for the hosts of a test.
type signer struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	a := &signer{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "loadtest"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = a.sign(template, template, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *signer) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// pair makes a certificate of a serial number with a key of its own, both in PEM.
func (a *signer) pair(serial int64, hosts ...string) (cert, key []byte) {
	a.t.Helper()
	k := newKey(a.t)
	c := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: hosts[0]}, DNSNames: hosts, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, k)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// secret is a Secret with a certificate.
func (a *signer) secret(name string, serial int64, hosts ...string) string {
	a.t.Helper()
	cert, key := a.pair(serial, hosts...)
	return fmt.Sprintf("---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: %s, namespace: default}\ndata: {tls.crt: %s, tls.key: %s}\n", name,
		base64.StdEncoding.EncodeToString(cert), base64.StdEncoding.EncodeToString(key))
}

func (a *signer) trust() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// soon is how long a change may take on a machine that is busy with other things.
const soon = time.Minute

// Hosts of what stays.
const (
	webHost  = "web.keep.example"
	callHost = "call.keep.example"
)

// churn changes an installation in every way that a person can, beside what is kept.
type churn struct {
	*rig
	ca         *signer
	securePort int // of the HTTPS listener that is kept
	streamPort int // of the TCP listener that is kept
	other      [4]int
	webPorts   [2]int
	streams    [2]int
	tlsBackend int

	texts       map[string]string
	generations map[string]int64
	gateway     int64
	lists       []string // listeners of the Gateway beside those that are kept
}

// newChurn starts an installation with Gateway gw (HTTP, HTTPS and TCP listeners that are kept) and the routes that change.
func newChurn(t *testing.T) *churn {
	t.Helper()
	c := &churn{ca: newSigner(t), securePort: freeport.Take(t), streamPort: freeport.Take(t), texts: map[string]string{}, generations: map[string]int64{}}
	for i := range c.other {
		c.other[i] = freeport.Take(t)
	}
	for i := range 2 {
		c.webPorts[i], c.streams[i] = answerWeb(t, fmt.Sprintf("server-%d", i)), answerStreams(t)
	}
	c.tlsBackend = c.answerTLS(t)
	files := map[string]string{
		"class.yaml":    "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: envoy}\nspec: {controllerName: fleetgate.io/gatewayclass-controller}\n",
		"gateway.yaml":  c.gatewayText("PORT"),
		"cert.yaml":     c.ca.secret("kept", 1, "*.keep.example"),
		"other.yaml":    c.ca.secret("other", 1, "*.other.example"),
		"services.yaml": service("web", "", c.webPorts[0]) + service("call", "kubernetes.io/h2c", answerGRPC(t)) + service("stream", "", c.streams[0]) + service("stream-2", "", c.streams[1]) + service("a", "", c.webPorts[0]) + service("b", "", c.webPorts[1]) + service("secure", "", c.tlsBackend),
		"moving.yaml":   serviceOf("moving", "") + endpoint("moving", c.webPorts[0]),
		"protocol.yaml": service("protocol", "", c.webPorts[0]),
		"ca.yaml": fmt.Sprintf("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: authority, namespace: default}\ndata:\n  ca.crt: |\n    %s\n",
			strings.ReplaceAll(strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.cert.Raw}))), "\n", "\n    ")),
		"web.yaml":      c.webRoute(0),
		"call.yaml":     object("GRPCRoute", "call", "parentRefs: [{name: gw}]\nhostnames: ["+callHost+"]\nrules: [{backendRefs: [{name: call, port: 8080}]}]"),
		"stream.yaml":   c.streamRoute(1),
		"rules.yaml":    c.rulesRoute(0),
		"filtered.yaml": c.filteredRoute(0),
		"split.yaml":    httpRoute("split", "/split", "", "a=1", "b=1"),
		"swap.yaml":     httpRoute("swap", "/swap", "", "a=1"),
		"moved.yaml":    httpRoute("moved", "/moving", "", "moving=1") + httpRoute("spoken", "/protocol", "", "protocol=1") + httpRoute("trusted", "/secure", "", "secure=1"),
	}
	c.rig = start(t, files)
	for name, text := range files {
		c.texts[name] = strings.ReplaceAll(text, "PORT", fmt.Sprint(c.port))
	}
	c.gateway = 1
	for _, name := range []string{"web", "call", "stream", "rules", "filtered", "split", "swap"} {
		c.generations[name+".yaml"] = 1
		c.waitLive("default", name, 1, soon)
	}
	return c
}

// answerTLS is a web server that speaks TLS, with a certificate of the signer.
func (c *churn) answerTLS(t *testing.T) (port int) {
	t.Helper()
	cert, key := c.ca.pair(2, "secure.example")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l := listenLoopback(t)
	s := &http.Server{Handler: answerer("secure"), ReadHeaderTimeout: 10 * time.Second, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		ErrorLog: quiet}
	serveUntilEnd(t, func() error { return s.ServeTLS(l, "", "") }, func() { _ = s.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// gatewayText is the Gateway with the kept listeners first and the others after them.
func (c *churn) gatewayText(port string) string {
	return object("Gateway", "gw", fmt.Sprintf(`gatewayClassName: envoy
allowedListeners: {namespaces: {from: Same}}
listeners:
- {name: http, protocol: HTTP, port: %s}
- {name: https, protocol: HTTPS, port: %d, hostname: "*.keep.example", tls: {certificateRefs: [{name: kept}]}}
- {name: tcp, protocol: TCP, port: %d}
%s`, port, c.securePort, c.streamPort, strings.Join(c.lists, "\n")))
}

// httpRoute sends a prefix to weighted backends; filter is one more line of the rule, "" = none.
func httpRoute(name, prefix, filter string, backends ...string) string {
	rule := "- matches: [{path: {value: " + prefix + "}}]\n"
	if filter != "" {
		rule += "  filters: [" + filter + "]\n"
	}
	return object("HTTPRoute", name, "parentRefs: [{name: gw, sectionName: http}, {name: gw, sectionName: https}]\nhostnames: ["+webHost+"]\nrules:\n"+rule+"  backendRefs: ["+refs(backends)+"]")
}

func refs(backends []string) string {
	var out []string
	for _, b := range backends {
		name, weight, _ := strings.Cut(b, "=")
		out = append(out, fmt.Sprintf("{name: %s, port: 8080, weight: %s}", name, weight))
	}
	return strings.Join(out, ", ")
}

// turned is a filter that says in an answer's header which turn it is of.
func turned(turn int) string {
	return fmt.Sprintf("{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Turn, value: %q}]}}", fmt.Sprint("t", turn))
}

// webRoute is the route of the connections that are kept.
func (c *churn) webRoute(turn int) string { return httpRoute("web", "/", turned(turn), "web=1") }

func (c *churn) filteredRoute(turn int) string {
	return httpRoute("filtered", "/filtered", turned(turn), "a=1")
}

func (c *churn) streamRoute(weight int) string {
	return object("TCPRoute", "stream", fmt.Sprintf("parentRefs: [{name: gw, sectionName: tcp}]\nrules: [{backendRefs: [{name: stream, port: 8080, weight: %d}, {name: stream-2, port: 8080, weight: %d}]}]", weight, weight%5))
}

// rulesRoute has other rules in another order at each turn.
func (c *churn) rulesRoute(turn int) string {
	var rules []string
	for i := range 1 + turn%4 {
		rules = append(rules, fmt.Sprintf("- matches: [{path: {value: /rules/%d}, headers: [{name: x-turn, value: %q}]}, {path: {value: /rules/%d/%d}}]\n  backendRefs: [%s]", i, fmt.Sprint("t", turn), i, turn, refs([]string{"a=1"})))
	}
	if turn%2 == 1 {
		slices.Reverse(rules)
	}
	return object("HTTPRoute", "rules", "parentRefs: [{name: gw}]\nhostnames: ["+webHost+"]\nrules:\n"+strings.Join(rules, "\n"))
}

// kinds are the changes of one turn in their order; each returns when proxies serve it.
var kinds = []struct {
	name string
	do   func(c *churn, turn int)
}{
	{"rules", func(c *churn, turn int) { c.change("rules", c.rulesRoute(turn)) }},
	{"filter", func(c *churn, turn int) {
		c.change("filtered", c.filteredRoute(turn))
		c.sees("the new header", "/filtered", "X-Turn", fmt.Sprint("t", turn))
	}},
	{"weights", func(c *churn, turn int) {
		c.change("split", httpRoute("split", "/split", "", fmt.Sprint("a=", turn), "b=3"))
	}},
	{"backend", func(c *churn, turn int) {
		c.change("swap", httpRoute("swap", "/swap", "", []string{"a=1", "b=1"}[turn%2]))
		c.sees("the new backend", "/swap", serverHeader, fmt.Sprint("server-", turn%2))
	}},
	{"endpoints of a backend", func(c *churn, turn int) {
		c.put("moving.yaml", serviceOf("moving", "")+endpoint("moving", c.webPorts[turn%2]))
		c.sees("the new endpoint", "/moving", serverHeader, fmt.Sprint("server-", turn%2))
	}},
	{"protocol of a backend", func(c *churn, turn int) {
		c.put("protocol.yaml", service("protocol", []string{"", "kubernetes.io/h2c"}[turn%2], c.webPorts[0]))
		c.sees("the new protocol", "/protocol", protoHeader, []string{"HTTP/1.1", "HTTP/2.0"}[turn%2])
	}},
	{"listener added", func(c *churn, turn int) {
		c.lists = append(c.lists, []string{
			fmt.Sprintf("- {name: more, protocol: HTTP, port: %d}", c.other[0]),
			fmt.Sprintf("- {name: more, protocol: HTTPS, port: %d, tls: {certificateRefs: [{name: other}]}}", c.other[0]),
			fmt.Sprintf("- {name: more, protocol: TCP, port: %d}", c.other[0]),
			fmt.Sprintf("- {name: more, protocol: TLS, port: %d, tls: {mode: Passthrough}}", c.other[0]),
		}[turn%4])
		c.changeGateway()
		c.opens(c.other[0], true)
	}},
	{"certificate of the listener in use", func(c *churn, turn int) {
		c.put("cert.yaml", c.ca.secret("kept", int64(turn+1), "*.keep.example"))
		c.shows(c.securePort, webHost, int64(turn+1))
	}},
	{"ListenerSet added", func(c *churn, _ int) {
		c.put("set.yaml", object("ListenerSet", "set", fmt.Sprintf("parentRef: {name: gw}\nlisteners:\n- {name: plain, protocol: HTTP, port: %d}\n- {name: beside, protocol: HTTPS, port: %d, hostname: \"*.other.example\", tls: {certificateRefs: [{name: other}]}}",
			c.other[1], c.securePort)))
		c.opens(c.other[1], true)
		c.shows(c.securePort, "x.other.example", -1)
	}},
	{"routes and Service added", func(c *churn, turn int) {
		name := fmt.Sprint("new-", turn)
		c.put("new.yaml", service(name, "", c.webPorts[1])+httpRoute(name, "/"+name, "", name+"=1")+
			object("GRPCRoute", name+"-call", "parentRefs: [{name: gw}]\nhostnames: ["+callHost+"]\nrules: [{matches: [{method: {service: other.Service}}], backendRefs: [{name: call, port: 8080}]}]")+
			object("TCPRoute", name+"-stream", "parentRefs: [{name: gw, sectionName: tcp}]\nrules: [{backendRefs: [{name: stream-2, port: 8080}]}]"))
		c.sees("the new route", "/"+name, serverHeader, "server-1")
	}},
	{"policy added", func(c *churn, _ int) {
		c.put("policy.yaml", object("BackendTLSPolicy", "secure", "targetRefs: [{group: \"\", kind: Service, name: secure}]\nvalidation: {hostname: secure.example, caCertificateRefs: [{group: \"\", kind: ConfigMap, name: authority}]}"))
		c.sees("an answer over TLS", "/secure", serverHeader, "secure")
	}},
	{"route in use", func(c *churn, turn int) {
		c.change("web", c.webRoute(turn))
		c.sees("the header", "/talk", "X-Turn", fmt.Sprint("t", turn))
	}},
	{"weights of the TCPRoute in use", func(c *churn, turn int) { c.change("stream", c.streamRoute(turn+1)) }},
	{"certificate of another listener", func(c *churn, turn int) {
		c.put("other.yaml", c.ca.secret("other", int64(turn+1), "*.other.example"))
		c.shows(c.securePort, "x.other.example", int64(turn+1))
	}},
	{"listener removed", func(c *churn, _ int) {
		c.lists = nil
		c.changeGateway()
		c.opens(c.other[0], false)
	}},
	{"routes and Service removed", func(c *churn, turn int) {
		c.remove("new.yaml")
		c.sees("nothing any more", fmt.Sprint("/new-", turn), "X-Turn", fmt.Sprint("t", turn)) // the route in use takes it
	}},
	{"ListenerSet removed", func(c *churn, _ int) {
		c.remove("set.yaml")
		c.opens(c.other[1], false)
	}},
	{"policy removed", func(c *churn, _ int) {
		c.remove("policy.yaml")
		c.sees("no answer without TLS", "/secure", serverHeader, "")
	}},
}

// put writes a file that holds more than one route, or none.
func (c *churn) put(file, text string) {
	c.t.Helper()
	c.save(file, text)
	c.texts[file] = text
}

func (c *churn) remove(file string) {
	c.t.Helper()
	delete(c.texts, file)
	if err := os.Remove(filepath.Join(c.dir, file)); err != nil {
		c.t.Fatal(err)
	}
}

// change writes another version of a route, and waits until all proxies have it.
func (c *churn) change(route, text string) {
	c.t.Helper()
	file := route + ".yaml"
	if c.texts[file] == text {
		c.t.Fatalf("%s does not change", file)
	}
	c.put(file, text)
	c.generations[file]++
	c.waitLive("default", route, c.generations[file], soon)
}

func (c *churn) changeGateway() {
	c.t.Helper()
	c.put("gateway.yaml", c.gatewayText(fmt.Sprint(c.port)))
	c.gateway++
	c.until("the changed Gateway is programmed", soon, func() bool {
		v, err := c.view()
		return err == nil && v.Gateways[0].Generation == c.gateway && v.Gateways[0].Programmed == "True" && v.Gateways[0].ProxiesAcked == 2
	})
}

// asker asks on a new connection each time: the kernel chooses which Envoy takes it.
var asker = &http.Client{Timeout: sayWithin, Transport: &http.Transport{DisableKeepAlives: true}}

// sees waits until answers of a path have a header: four times in a row, so that both Envoys were asked in all likelihood.
func (c *churn) sees(what, path, header, value string) {
	c.t.Helper()
	seen := 0
	c.until(what+" at "+path, soon, func() bool {
		if c.header(path, header) == value {
			seen++
		} else {
			seen = 0
		}
		return seen == 4
	})
}

func (c *churn) header(path, header string) string {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", c.port, path), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	r.Host = webHost
	resp, err := asker.Do(r)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Header.Get(header)
}

// opens waits until a port takes connections, or does not any more.
func (c *churn) opens(port int, open bool) {
	c.t.Helper()
	c.until(fmt.Sprintf("port %d takes connections: %v", port, open), soon, func() bool {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = conn.Close()
		}
		return (err == nil) == open
	})
}

// shows waits until a port shows a certificate of a serial number (-1 = any) for a host: four times in a row.
func (c *churn) shows(port int, host string, serial int64) {
	c.t.Helper()
	trust, seen := c.ca.trust(), 0
	trust.ServerName = host
	c.until(fmt.Sprintf("port %d shows certificate %d of %s", port, serial, host), soon, func() bool {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), trust)
		if err != nil {
			seen = 0
			return false
		}
		defer func() { _ = conn.Close() }()
		if got := conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); got == serial || serial < 0 {
			seen++
		} else {
			seen = 0
		}
		return seen == 4
	})
}
