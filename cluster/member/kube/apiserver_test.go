package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/deploy"
	"github.com/fleetgate/fleetgate/loadtest/freeport"
)

// apiServer is a real kube-apiserver with a real etcd: both are killed with the test.
type apiServer struct {
	t    *testing.T
	dir  string
	ca   []byte // PEM of the authority
	host string
	etcd string
	keep *exec.Cmd // etcd
	run  *exec.Cmd
	args []string
	// applied are the paths of what a part of a test made, where it was lent the API server.
	applied *[]string
}

// TestOneAPIServer runs what can share an API server, for it leaves that and its definitions alone.
func TestOneAPIServer(t *testing.T) {
	t.Parallel()
	s := startAPIServer(t)
	s.installCRDs()
	s.installXBackends()
	for _, part := range []struct {
		name string
		run  func(*testing.T, *apiServer)
	}{
		{"Delivers", delivers},
		{"StatusOfOthersSurvives", statusOfOthersSurvives},
		{"BackendBeforeItsRoute", backendBeforeItsRoute},
		{"Tells", tells},
		{"RightsSuffice", rightsSuffice},
		{"KubernetesFindsThePodsOfXBackends", kubernetesFindsThePodsOfXBackends},
		{"Infrastructure", infrastructure},
		{"InstallIsHeldNoLongerThanItsClasses", installIsHeldNoLongerThanItsClasses},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, s.lend(t)) })
	}
}

// lend gives the API server to a part of a test; what is applied there is removed when that ends.
func (s *apiServer) lend(t *testing.T) *apiServer {
	lent := *s
	lent.t, lent.applied = t, new([]string)
	t.Cleanup(func() {
		for _, path := range slices.Backward(*lent.applied) {
			if err := lent.do("DELETE", path+"?gracePeriodSeconds=0", "", "", nil); err != nil && !strings.Contains(err.Error(), "404") {
				t.Error(err)
			}
		}
	})
	return &lent
}

// binaries finds the directory of etcd and kube-apiserver.
func binaries(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a Kubernetes API server: run without -short")
	}
	pattern := os.Getenv("FLEETGATE_KUBE")
	if pattern == "" {
		pattern = filepath.Join("..", "..", "..", ".cache", "kube", "*")
	}
	found, _ := filepath.Glob(filepath.Join(pattern, "kube-apiserver")) // the pattern is valid
	if len(found) == 0 {
		t.Fatal("no kube-apiserver: run the tests by make, or name a directory with etcd and kube-apiserver in FLEETGATE_KUBE")
	}
	dir, err := filepath.Abs(filepath.Dir(found[len(found)-1]))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// startAPIServer starts an empty cluster.
func startAPIServer(t *testing.T) *apiServer {
	t.Helper()
	bin := binaries(t)
	s := &apiServer{t: t, dir: t.TempDir()}
	s.pki()
	port := fmt.Sprint(freeport.Take(t))
	s.etcd = s.startEtcd("etcd")
	s.host = "https://127.0.0.1:" + port
	s.args = []string{filepath.Join(bin, "kube-apiserver"), "--etcd-servers=" + s.etcd, "--bind-address=127.0.0.1", "--secure-port=" + port, "--advertise-address=127.0.0.1",
		"--tls-cert-file=" + s.path("server.crt"), "--tls-private-key-file=" + s.path("server.key"), "--token-auth-file=" + s.path("tokens.csv"), "--anonymous-auth=false",
		"--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + s.path("sa.key"),
		"--service-account-signing-key-file=" + s.path("sa.key"), "--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none",
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition,DefaultStorageClass,StorageObjectInUseProtection,PodSecurity", "--profiling=false"}
	s.up()
	s.waitFor("the namespace default", func() bool { return s.do("GET", "/api/v1/namespaces/default", "", "", nil) == nil })
	return s
}

// startEtcd starts an etcd, an empty one where nothing has its name, and gives its address.
func (s *apiServer) startEtcd(name string) string {
	s.t.Helper()
	client, peer := fmt.Sprint(freeport.Take(s.t)), fmt.Sprint(freeport.Take(s.t))
	at := "http://127.0.0.1:" + client
	s.keep = s.start(exec.Command(filepath.Join(binaries(s.t), "etcd"), "--name=e", "--data-dir="+s.path(name), "--listen-client-urls="+at, "--advertise-client-urls="+at,
		"--listen-peer-urls=http://127.0.0.1:"+peer, "--initial-advertise-peer-urls=http://127.0.0.1:"+peer, "--initial-cluster=e=http://127.0.0.1:"+peer, "--unsafe-no-fsync", "--log-level=error"))
	return at
}

// become has the API server answer for what another etcd holds: it is another cluster then, at the same address.
func (s *apiServer) become(etcd string) {
	s.t.Helper()
	s.down()
	s.args[slices.Index(s.args, "--etcd-servers="+s.etcd)] = "--etcd-servers=" + etcd
	s.etcd = etcd
	s.up()
}

// backUp copies what etcd holds, to start another one with.
func (s *apiServer) backUp(name string) {
	s.t.Helper()
	s.down()
	_ = s.keep.Process.Kill()
	_ = s.keep.Wait()
	if err := os.CopyFS(s.path(name), os.DirFS(s.path("etcd"))); err != nil {
		s.t.Fatal(err)
	}
	s.become(s.startEtcd("etcd"))
}

// up starts the API server, and waits until it is ready.
func (s *apiServer) up() {
	s.t.Helper()
	s.run = s.start(exec.Command(s.args[0], s.args[1:]...))
	s.waitFor("the API server", func() bool { return s.do("GET", "/readyz", "", "", nil) == nil })
}

// down kills the API server; etcd stays.
func (s *apiServer) down() {
	s.t.Helper()
	_ = s.run.Process.Kill()
	_ = s.run.Wait()
}

func (s *apiServer) start(c *exec.Cmd) *exec.Cmd {
	s.t.Helper()
	log, err := os.OpenFile(s.path(filepath.Base(c.Path)+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	c.Stdout, c.Stderr, c.SysProcAttr = log, log, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if s.t.Failed() {
			if b, err := os.ReadFile(log.Name()); err == nil {
				s.t.Logf("%s: %s", filepath.Base(log.Name()), b[max(0, len(b)-2000):])
			}
		}
	})
	return c
}

func (s *apiServer) path(name string) string { return filepath.Join(s.dir, name) }

// config is how to reach it with a token of tokens.csv.
func (s *apiServer) config(token string) *rest.Config {
	return &rest.Config{Host: s.host, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: s.ca}}
}

// tokens of users: the first may do everything, the second what a test grants it.
const (
	adminToken     = "admin-token"
	fleetgateToken = "fleetgate-token"
)

func (s *apiServer) pki() {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	sa, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		s.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, content := range map[string][]byte{
		"server.crt": s.ca, "server.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
		"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(sa)}),
		"tokens.csv": []byte(adminToken + ",admin,admin,\"system:masters\"\n" + fleetgateToken + ",system:serviceaccount:fleetgate-system:fleetgate,fleetgate\n"),
	} {
		if err := os.WriteFile(s.path(name), content, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

// do sends a request as the administrator; answer, if given, gets the body.
func (s *apiServer) do(method, path, contentType, body string, answer *[]byte) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), time.Minute) // also while a test cleans up
	defer cancel()
	client, err := rest.HTTPClientFor(s.config(adminToken))
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, s.host+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if answer != nil {
		*answer = b
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	return err
}

// apply creates or changes an object by server-side apply, as somebody else.
func (s *apiServer) apply(path, object string) {
	s.t.Helper()
	if err := s.do("PATCH", path+"?fieldManager=somebody&force=true", "application/apply-patch+yaml", object, nil); err != nil {
		s.t.Fatal(err)
	}
	if s.applied != nil {
		*s.applied = append(*s.applied, path)
	}
}

func (s *apiServer) remove(path string) {
	s.t.Helper()
	if err := s.do("DELETE", path, "", "", nil); err != nil {
		s.t.Fatal(err)
	}
}

// read gives an object as JSON.
func (s *apiServer) read(path string) string {
	s.t.Helper()
	var b []byte
	if err := s.do("GET", path, "", "", &b); err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// patience is how long a test waits for what has to come: API servers start beside each other, on a machine that is busy with other things.
const patience = 4 * time.Minute

// waitFor polls what the API server gives no event for.
func (s *apiServer) waitFor(what string, done func() bool) {
	s.t.Helper()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-deadline:
			s.t.Fatalf("%s: not in %v", what, patience)
		case <-s.t.Context().Done():
			s.t.Fatalf("%s: %v", what, s.t.Context().Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// installCRDs installs the Gateway API's standard channel.
func (s *apiServer) installCRDs() {
	s.t.Helper()
	files, err := deploy.CRDs.ReadDir("crds")
	if err != nil {
		s.t.Fatal(err)
	}
	var installed []string
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), gatewayGroup) {
			continue
		}
		b, err := deploy.CRDs.ReadFile("crds/" + f.Name())
		if err != nil {
			s.t.Fatal(err)
		}
		resource := strings.TrimSuffix(strings.TrimPrefix(f.Name(), gatewayGroup+"_"), ".yaml")
		s.apply(crdPath(resource), string(b))
		installed = append(installed, resource)
	}
	for _, resource := range installed { // they are taken up in no order that anybody promises
		s.waitFor(resource, func() bool { return s.do("GET", gatewayPath("", resource), "", "", nil) == nil })
	}
}

func crdPath(resource string) string {
	return "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + resource + "." + gatewayGroup
}

// gatewayPath is where objects of the Gateway API are.
func gatewayPath(namespace, resource string, name ...string) string {
	path := "/apis/" + gatewayGroup + "/v1/"
	if namespace != "" {
		path += "namespaces/" + namespace + "/"
	}
	return path + strings.Join(append([]string{resource}, name...), "/")
}

// view is what a source has delivered.
type view struct {
	t    *testing.T
	mu   sync.Mutex
	last map[string]member.Event // by kind namespace/name
	all  []member.Event
	sync bool
	news chan struct{}
}

// follow runs a source until the test ends.
func follow(t *testing.T, c *rest.Config) (*Source, *view) {
	t.Helper()
	src, err := New(Config{Name: "c", Connect: c, Replica: "test"})
	if err != nil {
		t.Fatal(err)
	}
	v := &view{t: t, last: map[string]member.Event{}, news: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, v.take) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return src, v
}

func (v *view) take(events []member.Event, synced bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range events {
		v.last[e.Kind+" "+e.Namespace+"/"+e.Name] = e
	}
	v.all = append(v.all, events...)
	v.sync = v.sync || synced
	select {
	case v.news <- struct{}{}:
	default:
	}
}

// until waits until what was delivered is as it should be.
func (v *view) until(what string, done func() bool) {
	v.t.Helper()
	deadline := time.After(patience)
	for {
		v.mu.Lock()
		ok := done()
		v.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-v.news:
		case <-deadline:
			v.t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

func (v *view) synced() {
	v.t.Helper()
	v.until("a complete view", func() bool { return v.sync })
}

// there tells whether an object was delivered last as being there; until holds mu.
func (v *view) there(id string) bool { return v.last[id].Object != nil }

// gone tells whether an object was delivered as deleted, or as not existing; until holds mu.
func (v *view) gone(id string) bool {
	e, told := v.last[id]
	return told && e.Object == nil
}

// object is what was delivered last, for a test that does not wait.
func (v *view) object(id string) member.Object {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last[id].Object
}

// has is there, for a test that does not wait.
func (v *view) has(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.there(id)
}
