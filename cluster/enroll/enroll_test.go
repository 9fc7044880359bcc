package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/fleetgate/fleetgate/xds"
)

// world is a replica's certificate port with the API server behind it, and a pod.
type world struct {
	authority *pki.Authority
	address   string
	keeper    *Keeper
	review    func(cluster, token string) (Pod, error)
	asked     func(context.Context) // that the API server is asked

	mu  sync.Mutex
	now time.Time
}

func (w *world) clock() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now }

func (w *world) pass(d time.Duration) { w.mu.Lock(); defer w.mu.Unlock(); w.now = w.now.Add(d) }

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	a, err := pki.NewAuthority(dir, "proxies")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := a.Issue(dir, "xds", []string{"xds.fleetgate"}, nil, false, true)
	if err != nil {
		t.Fatal(err)
	}
	source, err := pki.Load(cert, key, a.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{authority: a, now: time.Now(), asked: func(context.Context) {}}
	w.review = func(cluster, token string) (Pod, error) {
		if cluster != "home" || token != "good" {
			return Pod{}, ErrDenied
		}
		return Pod{Namespace: "shop", ServiceAccount: "gw-envoy", UID: "u1"}, nil
	}
	server := httptest.NewUnstartedServer(&Server{
		Sign: a.Sign, Now: w.clock, Log: slog.New(slog.DiscardHandler),
		Review: func(ctx context.Context, cluster, token string) (Pod, error) {
			w.asked(ctx)
			return w.review(cluster, token)
		},
		Gateway: func(_, _, account string) (string, bool) {
			return strings.TrimSuffix(account, "-envoy"), account == "gw-envoy"
		},
	})
	server.TLS = TLS(source.ServerConfig())
	server.StartTLS()
	t.Cleanup(server.Close)
	w.address = server.Listener.Addr().String()
	w.keeper = w.pod(t, "good")
	return w
}

func (w *world) pod(t *testing.T, token string) *Keeper {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	trust, err := os.ReadFile(w.authority.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	authority := filepath.Join(dir, "authority.pem")
	if err := os.WriteFile(authority, trust, 0o600); err != nil {
		t.Fatal(err)
	}
	return &Keeper{Dir: filepath.Join(dir, "identity"), Log: slog.New(slog.DiscardHandler), Now: w.clock, Poll: time.Second,
		Client: &Client{Address: w.address, ServerName: "xds.fleetgate", Cluster: "home", Authority: authority, Token: file}}
}

func (w *world) get(t *testing.T, k *Keeper, have *tls.Certificate) (*tls.Certificate, error) {
	t.Helper()
	cert, key, err := k.Client.Get(context.Background(), have)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair, nil
}

func TestATokenBecomesACertificateForItsOwnGateway(t *testing.T) {
	w := newWorld(t)
	if err := w.keeper.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	have, err := w.keeper.load()
	if err != nil {
		t.Fatal(err)
	}
	who, err := xds.ParseIdentity(have.Leaf)
	want := xds.Identity{Cluster: "home", Namespace: "shop", Gateway: "gw", Proxy: "u1"}
	if err != nil || who != want {
		t.Errorf("%+v, %v; want %+v", who, err, want)
	}
	if until := have.Leaf.NotAfter.Sub(w.now).Round(time.Minute); until != Life {
		t.Errorf("valid for %s, want %s", until, Life)
	}
}

func TestWhoIsRefused(t *testing.T) {
	w := newWorld(t)
	first, err := w.get(t, w.keeper, nil)
	if err != nil {
		t.Fatal(err)
	}
	good := w.review
	for _, c := range []struct {
		failure string
		token   string
		have    *tls.Certificate
		review  func(string, string) (Pod, error)
		want    string
	}{
		{"a forged token", "forged", nil, good, "403"},
		{"a valid certificate makes good for a token that was denied", "forged", first, good, "403"},
		{"a token that is bound to no pod", "good", nil, func(string, string) (Pod, error) { return Pod{Namespace: "shop", ServiceAccount: "gw-envoy"}, nil }, "403"},
		{"another service account of the namespace", "good", nil, func(string, string) (Pod, error) {
			return Pod{Namespace: "shop", ServiceAccount: "default", UID: "u"}, nil
		}, "503"},
		{"the API server is away and there is nothing to renew", "good", nil, func(string, string) (Pod, error) { return Pod{}, errors.New("away") }, "503"},
	} {
		w.review = c.review
		_, err := w.get(t, w.pod(t, c.token), c.have)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.failure, err, c.want)
		}
	}
}

// TestRenewalWithoutAnAPIServerEnds: a stolen certificate must not live for ever, and a fleet must outlive a long outage.
func TestRenewalWithoutAnAPIServerEnds(t *testing.T) {
	w := newWorld(t)
	have, err := w.get(t, w.keeper, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.review = func(string, string) (Pod, error) { return Pod{}, errors.New("away") }
	end := have.Leaf.NotBefore.Add(Longest)
	began := have.Leaf.NotBefore
	for range 2 * int(Longest/Life) { // the server's clock goes on; TLS itself goes by the machine's
		w.pass(Life / 2)
		next, err := w.get(t, w.keeper, have)
		if err != nil {
			break
		}
		if !next.Leaf.NotBefore.Equal(began) || next.Leaf.NotAfter.After(end) {
			t.Fatalf("renewed for %s to %s, the token was of %s", next.Leaf.NotBefore, next.Leaf.NotAfter, began)
		}
		have = next
	}
	if !have.Leaf.NotAfter.Equal(end) {
		t.Errorf("renewed until %s, want %s", have.Leaf.NotAfter, end)
	}
	w.pass(Life)
	if _, err := w.get(t, w.keeper, have); err == nil || !strings.Contains(err.Error(), "takes a token now") {
		t.Errorf("after the last renewal: %v", err)
	}
}

// TestARenewalThatWinsNothingIsNotStored: near Longest a certificate ends when it ended before, however often it is renewed, and each one that is stored is loaded by Envoy.
func TestARenewalThatWinsNothingIsNotStored(t *testing.T) {
	w := newWorld(t)
	k := w.keeper
	if err := k.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.review = func(string, string) (Pod, error) { return Pod{}, errors.New("away") }
	for last := ""; ; {
		have, err := k.load()
		if err != nil {
			t.Fatal(err)
		}
		end := have.Leaf.NotBefore.Add(Longest)
		if err := k.get(t.Context(), have); err != nil {
			t.Fatal(err)
		}
		now, err := os.Readlink(filepath.Join(k.Dir, current))
		if err != nil {
			t.Fatal(err)
		}
		if have.Leaf.NotAfter.Equal(end) {
			if now != last {
				t.Error("it was stored")
			}
			return
		}
		last = now
		w.pass(Life / 2)
	}
}

// TestASilentAPIServerLeavesTimeToRenew: one behind a network that drops everything is away as well, and whoever waits for it must have its answer before the pod hangs up.
func TestASilentAPIServerLeavesTimeToRenew(t *testing.T) {
	w := newWorld(t)
	have, err := w.get(t, w.keeper, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.asked = func(ctx context.Context) {
		if until, ends := ctx.Deadline(); !ends || time.Until(until) > patience/2 {
			t.Errorf("it is waited for until %s (%t), the pod waits for %s", until, ends, patience)
		}
	}
	w.review = func(string, string) (Pod, error) { return Pod{}, context.DeadlineExceeded }
	if _, err := w.get(t, w.keeper, have); err != nil {
		t.Error(err)
	}
}

// once ends an attempt that is told of as failed.
type once context.CancelFunc

func (o once) Write(b []byte) (int, error) { o(); return len(b), nil }

// TestARenewalThatCameTooLate: a replica refuses the handshake of who shows a certificate that is not good any more. While no replica answered, the one to renew may have become so; the token is as good as ever.
func TestARenewalThatCameTooLate(t *testing.T) {
	w, before := newWorld(t), newWorld(t)
	who := xds.Identity{Cluster: "home", Namespace: "shop", Gateway: "gw", Proxy: "u1"}
	for _, c := range []struct {
		failure string
		by      *pki.Authority
		until   time.Time
	}{
		{"it has ended", w.authority, w.now.Add(-time.Hour)},
		{"its authority has been replaced", before.authority, w.now.Add(time.Hour)},
	} {
		have := certificate(t, c.by, who, c.until)
		ctx, cancel := context.WithCancel(t.Context())
		w.keeper.Log = slog.New(slog.NewTextHandler(once(cancel), nil))
		if err := os.MkdirAll(w.keeper.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := w.keeper.get(ctx, have); err != nil {
			t.Errorf("%s: %v", c.failure, err)
		}
		cancel()
	}
}

// certificate is one that was given to a pod long ago.
func certificate(t *testing.T, by *pki.Authority, who xds.Identity, until time.Time) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := by.Sign(key.Public(), who.URI(), until.Add(-Life), until)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key, Leaf: leaf}
}

func TestAStartOnAKeptVolumeNeedsNobody(t *testing.T) {
	w := newWorld(t)
	if err := w.keeper.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	again := *w.keeper
	again.Client = &Client{Address: "127.0.0.1:1", Authority: w.keeper.Client.Authority}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // it may ask nobody
	if err := again.Start(ctx); err != nil {
		t.Error(err)
	}
	w.pass(2 * Life)
	if err := again.Start(ctx); err == nil {
		t.Error("a certificate that has ended was taken")
	}
}

// TestAKeptVolumeAfterACrashOfItsNode: files of a generation that were not written out when the node crashed are there and empty.
func TestAKeptVolumeAfterACrashOfItsNode(t *testing.T) {
	for _, empty := range []string{certName, keyName, trustName} {
		w := newWorld(t)
		if err := w.keeper.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(w.keeper.Dir, current, empty), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := w.keeper.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.keeper.load(); err != nil || w.keeper.trustMoved() {
			t.Errorf("%s was empty, and after the start: %v; the trust is to be stored anew: %t", empty, err, w.keeper.trustMoved())
		}
	}
}

// TestAGenerationFitsTogether: certificate, key and trust change in one rename.
func TestAGenerationFitsTogether(t *testing.T) {
	w := newWorld(t)
	k := w.keeper
	if err := k.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	before, err := os.Readlink(filepath.Join(k.Dir, current))
	if err != nil {
		t.Fatal(err)
	}
	trust, err := os.ReadFile(k.Client.Authority)
	if err != nil {
		t.Fatal(err)
	}
	if k.trustMoved() {
		t.Error("the trust is the same")
	}
	if err := os.WriteFile(k.Client.Authority, append(trust, trust...), 0o600); err != nil {
		t.Fatal(err)
	}
	if !k.trustMoved() {
		t.Error("the trust has changed")
	}
	for range 3 {
		if err := k.restore(); err != nil {
			t.Fatal(err)
		}
	}
	after, err := os.Readlink(filepath.Join(k.Dir, current))
	if err != nil || after == before {
		t.Errorf("%s is still %s: %v", current, before, err)
	}
	if k.trustMoved() {
		t.Error("the new trust was not stored")
	}
	if _, err := k.load(); err != nil {
		t.Error(err)
	}
	if all, _ := filepath.Glob(filepath.Join(k.Dir, "*")); len(all) != 3 {
		t.Errorf("left are %v, want two generations and the link", all)
	}
}

// TestAnotherAuthorityMeansAnotherCertificate: a pod that outlived the install that made it is taken in by the next one.
func TestAnotherAuthorityMeansAnotherCertificate(t *testing.T) {
	old, next := newWorld(t), newWorld(t)
	k := old.keeper
	if err := k.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	have, err := k.load()
	if err != nil {
		t.Fatal(err)
	}
	trust, err := os.ReadFile(next.authority.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(k.Client.Authority)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.Client.Authority, append(trust, before...), 0o600); err != nil || k.outlived(have.Leaf) {
		t.Fatalf("one of two authorities has signed it (%v)", err)
	}
	if err := os.WriteFile(k.Client.Authority, trust, 0o600); err != nil || !k.outlived(have.Leaf) {
		t.Fatalf("its authority is gone (%v)", err)
	}
	k.Client.Address = next.address
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() { k.Run(ctx); close(done) }()
	for deadline := time.After(time.Minute); ; {
		if have, err = k.load(); err == nil && !k.outlived(have.Leaf) {
			break
		}
		select {
		case <-deadline:
			t.Fatal("no certificate of the new authority in a minute")
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	<-done
}

func TestOnlyOnePathIsAnswered(t *testing.T) {
	rec := httptest.NewRecorder()
	(&Server{}).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, Path, nil))
	if rec.Code != http.StatusNotFound {
		t.Errorf("GET: %d", rec.Code)
	}
}
