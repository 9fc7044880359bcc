package loadtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/fleetgate/fleetgate/loadtest/freeport"
)

// serving is the settings of one `fleetgate serve` that is a group of its own; a case breaks one of them.
type serving struct {
	t              *testing.T
	dir            string
	pod            string
	peers, proxies *pki.Authority
	flags          map[string]string
	cmd            *exec.Cmd
	out            *lockedBuffer
	exited         <-chan error
}

func newServing(t *testing.T) *serving {
	t.Helper()
	s := &serving{t: t, dir: t.TempDir(), pod: "replica-1"}
	s.peers, s.proxies = authority(t, s.dir, "peers"), authority(t, s.dir, "proxies")
	raft, xds, admin := freeport.Address(t), freeport.Address(t), freeport.Address(t)
	seal := filepath.Join(s.dir, "seal.key")
	if err := os.WriteFile(seal, bytes.Repeat([]byte("ab"), 32), 0o600); err != nil {
		t.Fatal(err)
	}
	s.flags = map[string]string{"data-dir": filepath.Join(s.dir, "data"), "pod": s.pod, "advertise": raft, "raft-listen": raft, "xds-listen": xds,
		"admin-listen": admin, "seal-key-file": seal, "peer-ca": s.peers.CertFile(), "proxy-ca": s.proxies.CertFile()}
	s.certificate("peer", s.peers, []string{"127.0.0.1"}, []string{pki.ReplicaURI(s.pod)}, true, true)
	s.certificate("proxy", s.proxies, []string{"xds.fleetgate"}, nil, false, true)
	return s
}

func authority(t *testing.T, dir, name string) *pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// certificate issues the "peer" or "proxy" certificate anew.
func (s *serving) certificate(which string, by *pki.Authority, hosts, uris []string, client, server bool) {
	s.t.Helper()
	cert, key, err := by.Issue(filepath.Join(s.dir, "certs"), which, hosts, uris, client, server)
	if err != nil {
		s.t.Fatal(err)
	}
	s.flags[which+"-cert"], s.flags[which+"-key"] = cert, key
}

// begin starts the process; it is killed at the end of the test if it still runs.
func (s *serving) begin() {
	s.t.Helper()
	bin, err := build()
	if err != nil {
		s.t.Fatal(err)
	}
	args := []string{"serve"}
	for name, value := range s.flags {
		args = append(args, "--"+name, value)
	}
	s.cmd = exec.Command(bin, args...)
	s.out = &lockedBuffer{}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, exited := s.cmd, make(chan error, 1)
	s.exited = exited
	go func() { exited <- cmd.Wait(); close(exited) }()
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); <-exited })
}

// up waits until the replica takes part in a group that has a leader.
func (s *serving) up() {
	s.t.Helper()
	for begin := time.Now(); time.Since(begin) < soon; time.Sleep(10 * time.Millisecond) { // another process sends no events
		resp, err := client.Get("http://" + s.flags["admin-listen"] + "/readyz")
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
	}
	s.t.Fatalf("the replica is not up within a minute:\n%s", tail(s.out.String(), 3000))
}

// stop ends the process in order, so that its directory can be used.
func (s *serving) stop() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	if err := <-s.exited; err != nil {
		s.t.Fatalf("serve ended with %v:\n%s", err, tail(s.out.String(), 3000))
	}
}

// ends waits until it ends by itself.
func (s *serving) ends() {
	s.t.Helper()
	select {
	case <-time.After(3 * time.Minute): // a hang fails here; how fast it ends depends on the machine, and on how long its name servers take
		s.t.Fatalf("it goes on:\n%s", tail(s.out.String(), 3000))
	case <-s.exited:
	}
}

// grown runs a replica until it has a group, and stops it: its data directory is a real one.
func grown(t *testing.T) *serving {
	t.Helper()
	s := newServing(t)
	s.begin()
	s.up()
	s.founded()
	s.stop()
	return s
}

// founded waits until the group's id is committed: before that a directory belongs to no group.
func (s *serving) founded() {
	s.t.Helper()
	for begin := time.Now(); time.Since(begin) < soon; time.Sleep(10 * time.Millisecond) { // another process sends no events
		if v, err := viewOf(s.flags["admin-listen"]); err == nil && v.ClusterID != "" {
			return
		}
	}
	s.t.Fatalf("no group was founded within a minute:\n%s", tail(s.out.String(), 3000))
}

// edit changes a file.
func edit(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, change(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// occupy holds an address that a case wants taken.
func occupy(t *testing.T, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

// expired issues a certificate that was valid until an hour ago, by the key in an authority's directory.
func expired(t *testing.T, s *serving) {
	t.Helper()
	caFile := s.peers.CertFile()
	ca, err := x509.ParseCertificate(pemOf(t, caFile))
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := x509.ParsePKCS8PrivateKey(pemOf(t, strings.TrimSuffix(caFile, ".crt")+".key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "late"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	cert, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{s.flags["peer-cert"]: {Type: "CERTIFICATE", Bytes: cert}, s.flags["peer-key"]: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func pemOf(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	return block.Bytes
}

// newerStore marks a store as written by a later version.
func newerStore(t *testing.T, data string) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(data, "store", "store.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("format"), []byte{99}) })
	if err != nil || db.Close() != nil {
		t.Fatal("the store was not marked", err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// refusal is one way in which a replica cannot work: it must end by itself, and its last words must hold all of says.
type refusal struct {
	name string
	make func(t *testing.T) *serving
	says []string
}

// broken takes a fresh replica and breaks it.
func broken(how func(*serving)) func(*testing.T) *serving {
	return func(t *testing.T) *serving {
		s := newServing(t)
		how(s)
		return s
	}
}

func refusals() []refusal {
	all := append(directoryRefusals(), certificateRefusals()...)
	for _, port := range []string{"admin-listen", "xds-listen", "raft-listen"} {
		all = append(all, refusal{"port in use: " + port, broken(func(s *serving) { occupy(s.t, s.flags[port]) }), []string{"--" + port, "stop", "choose another"}})
	}
	for _, port := range []string{"admin-listen", "xds-listen", "raft-listen"} {
		all = append(all, refusal{"port of no address here: " + port, broken(func(s *serving) { s.flags[port] = "nowhere.invalid:7000" }),
			[]string{"--" + port, "nowhere.invalid", "choose an address of this machine"}})
	}
	return append(all, refusal{"advertised address does not resolve", broken(func(s *serving) {
		s.flags["advertise"] = "nowhere.invalid:7000"
		s.certificate("peer", s.peers, []string{"nowhere.invalid"}, nil, true, true)
	}), []string{"--advertise", "nowhere.invalid", "does not resolve", "give it a name that they can look up"}})
}

func directoryRefusals() []refusal {
	return []refusal{
		{"data directory of another group: the store", func(t *testing.T) *serving {
			a, b := grown(t), grown(t)
			copyFile(t, filepath.Join(b.flags["data-dir"], "store", "store.db"), filepath.Join(a.flags["data-dir"], "store", "store.db"))
			return a
		}, []string{"belongs to another group", "give this replica the right directory"}},
		{"data directory of another group: the marker", func(t *testing.T) *serving {
			s := grown(t)
			s.flags["marker-file"] = filepath.Join(s.dir, "founded")
			if err := os.WriteFile(s.flags["marker-file"], []byte("0a6d3f0e-0000-4000-8000-000000000000"), 0o600); err != nil {
				t.Fatal(err)
			}
			return s
		}, []string{"belongs to another group", "0a6d3f0e-0000-4000-8000-000000000000", "give this replica the right directory"}},
		{"data directory of a newer version: what it knows of the group", func(t *testing.T) *serving {
			s := grown(t)
			edit(t, filepath.Join(s.flags["data-dir"], "raft", "group.json"), func(b []byte) []byte { return bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 99`), 1) })
			return s
		}, []string{"newer version", "run the newer version here"}},
		{"data directory of a newer version: the store", func(t *testing.T) *serving {
			s := grown(t)
			newerStore(t, s.flags["data-dir"])
			return s
		}, []string{"newer version", "start the version of Fleetgate that wrote it"}},
		{"data directory in use", func(t *testing.T) *serving {
			living := newServing(t)
			living.begin()
			living.up()
			s := newServing(t)
			s.flags["data-dir"] = living.flags["data-dir"]
			return s
		}, []string{"in use by another process", "stop that process", "--data-dir"}},
	}
}

func certificateRefusals() []refusal {
	return []refusal{
		{"peer certificate of another authority", broken(func(s *serving) {
			s.certificate("peer", authority(s.t, s.t.TempDir(), "strangers"), []string{"127.0.0.1"}, nil, true, true)
		}), []string{"--peer-cert", "does not vouch", "issue the certificate with this authority"}},
		{"peer certificate for another address", broken(func(s *serving) {
			s.certificate("peer", s.peers, []string{"elsewhere.example"}, nil, true, true)
		}), []string{"certificate does not fit", "peers look for 127.0.0.1", "issue it with that name"}},
		{"peer certificate of another replica", broken(func(s *serving) {
			s.certificate("peer", s.peers, []string{"127.0.0.1"}, []string{pki.ReplicaURI("replica-2")}, true, true)
		}), []string{"replica-2", "give this replica its own certificate"}},
		{"peer certificate that may not dial", broken(func(s *serving) {
			s.certificate("peer", s.peers, []string{"127.0.0.1"}, nil, false, true)
		}), []string{"--peer-cert", "clientAuth", "issue it with that extended key usage"}},
		{"xDS certificate that may not serve", broken(func(s *serving) {
			s.certificate("proxy", s.proxies, []string{"xds.fleetgate"}, nil, true, false)
		}), []string{"--proxy-cert", "serverAuth", "issue it with that extended key usage"}},
		{"key of another certificate", broken(func(s *serving) { s.flags["peer-key"] = s.flags["proxy-key"] }),
			[]string{"--peer-cert", "does not fit", "give the PEM files that were issued together"}},
		{"expired certificate", broken(func(s *serving) { expired(s.t, s) }), []string{"--peer-cert", "is valid from", "renew it"}},
		{"proxy certificate as peer's", broken(func(s *serving) {
			s.flags["peer-cert"], s.flags["peer-key"] = s.flags["proxy-cert"], s.flags["proxy-key"]
		}), []string{"--peer-cert", "does not vouch", "issue the certificate with this authority"}},
		{"proxy certificate as peer's, and its authority", broken(func(s *serving) {
			s.flags["peer-ca"] = filepath.Join(s.dir, "copy.crt")
			copyFile(s.t, s.proxies.CertFile(), s.flags["peer-ca"])
			s.certificate("peer", s.proxies, []string{"127.0.0.1"}, nil, true, true)
		}), []string{"--peer-ca", "--proxy-ca", "use one authority for replicas and another one for proxies"}},
		{"certificate file that is not there", broken(func(s *serving) { s.flags["peer-cert"] = filepath.Join(s.dir, "none.crt") }),
			[]string{"--peer-cert", "none.crt", "check that the path is right"}},
	}
}

// TestServeRefuses: a replica that cannot work ends by itself, with an error that says what to do; it does not try again for ever.
func TestServeRefuses(t *testing.T) {
	for _, c := range refusals() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := c.make(t)
			s.begin()
			s.ends()
			if code := s.cmd.ProcessState.ExitCode(); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			lines := strings.Split(strings.TrimSpace(s.out.String()), "\n")
			last := lines[len(lines)-1]
			for _, want := range c.says {
				if !strings.Contains(last, want) {
					t.Errorf("the last line lacks %q:\n%s", want, last)
				}
			}
		})
	}
}

// TestServeRefusesToStayAmongStrangers: a replica that comes to the peers of another group with its directory would wait for a leader for ever.
func TestServeRefusesToStayAmongStrangers(t *testing.T) {
	theirs, mine := newServing(t), newServing(t)
	third := newServing(t)
	peers := strings.Join([]string{theirs.flags["advertise"], mine.flags["advertise"], third.flags["advertise"]}, ",")
	mine.begin() // a group of its own
	mine.up()
	mine.stop()
	theirs.begin()
	theirs.up()
	third.joinGroupOf(theirs)
	mine.trust(theirs)
	mine.flags["peers"] = peers
	mine.begin()
	mine.ends()
	if code := mine.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(mine.out.String(), "give this replica the right directory") {
		t.Errorf("exit code %d:\n%s", code, tail(mine.out.String(), 2000))
	}
}

// trust makes this replica one of another's installation, in what it is and whom it trusts.
func (s *serving) trust(other *serving) {
	s.t.Helper()
	s.peers, s.flags["peer-ca"] = other.peers, other.peers.CertFile()
	s.certificate("peer", other.peers, []string{"127.0.0.1"}, nil, true, true)
}

// joinGroupOf starts this replica as a second one of another's group.
func (s *serving) joinGroupOf(other *serving) {
	s.t.Helper()
	s.trust(other)
	s.flags["pod"] = "replica-3"
	s.flags["peers"] = other.flags["advertise"] + "," + s.flags["advertise"]
	s.begin()
	s.up()
}
