package loadtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fleetgate/fleetgate/loadtest/freeport"
)

// full tells whether everything is measured, or a tenth as a test.
var full = os.Getenv("FLEETGATE_MEASURE") == "1"

// long skips what takes too long for the inner loop.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("short: make test runs it")
	}
}

// times gives n, or a tenth of it.
func times(n int) int {
	if full {
		return n
	}
	return max(1, n/10)
}

// binDir is where build put the program, "" = no test needed it.
var binDir string

// TestMain takes the program away again: ten runs of it fill a gibibyte.
func TestMain(m *testing.M) {
	code := m.Run()
	if binDir != "" {
		_ = os.RemoveAll(binDir)
	}
	os.Exit(code)
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fleetgate-bin")
	if err != nil {
		return "", err
	}
	binDir = dir
	out := filepath.Join(dir, "fleetgate")
	cmd := exec.Command("go", "build", "-o", out, "../cmd/fleetgate")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, b)
	}
	return out, nil
})

// rig is one installation.
type rig struct {
	t          *testing.T
	dir, state string
	port       int
	cmd        *exec.Cmd
	out        *lockedBuffer
	admins     []string
	exited     chan error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// the parts of a view that are looked at here.
type replicaView struct {
	ID      string `json:"id"`
	Admin   string `json:"admin"`
	Role    string `json:"role"`
	Live    bool   `json:"live"`
	Applied uint64 `json:"applied"`
}

type view struct {
	ClusterID string        `json:"clusterID"`
	Index     uint64        `json:"index"`
	Leader    string        `json:"leader"`
	Notice    string        `json:"notice"`
	Replicas  []replicaView `json:"replicas"`
	Gateways  []struct {
		Name, Programmed, Reason, Message string
		Generation                        int64
		Index                             uint64
		Proxies                           int
		ProxiesAcked                      int
	} `json:"gateways"`
	Routes []struct {
		Namespace, Name string
		Generation      int64
		Index           uint64
		Parents         []struct {
			Conditions []struct{ Type, Status, Reason, Message string } `json:"conditions"`
		} `json:"parents"`
	} `json:"routes"`
	Proxies []struct {
		Proxy     string `json:"proxy"`
		Acked     uint64 `json:"acked"`
		Connected bool   `json:"connected"`
	} `json:"proxies"`
	Rows []struct {
		Cluster, From, To, Owner, Next string
		Epoch                          uint64
	} `json:"rows"`
	Problems []struct{ File, Message string } `json:"problems"`
}

// start runs `fleetgate dev` with these manifests and waits until the Gateway is programmed.
func start(t *testing.T, manifests map[string]string, args ...string) *rig {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: filepath.Join(t.TempDir(), "manifests"), state: filepath.Join(t.TempDir(), "state"), out: &lockedBuffer{}, exited: make(chan error, 1)}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.port = freeport.Take(t)
	for name, text := range manifests {
		r.save(name, strings.ReplaceAll(text, "PORT", strconv.Itoa(r.port)))
	}
	r.run(bin, args...)
	t.Cleanup(r.stop)
	r.programmed()
	return r
}

// run runs `fleetgate dev`, anew after stop.
func (r *rig) run(bin string, args ...string) {
	r.t.Helper()
	r.cmd = exec.Command(bin, append([]string{"dev", "--dir", r.dir, "--state", r.state}, args...)...)
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	r.cmd.Env = append(os.Environ(), "CI=true")
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	cmd := r.cmd
	go func() { r.exited <- cmd.Wait() }()
}

func (r *rig) programmed() {
	r.t.Helper()
	r.until("the Gateway is programmed", soon, func() bool {
		v, err := r.view()
		return err == nil && len(v.Gateways) > 0 && v.Gateways[0].Programmed == "True" && v.Gateways[0].ProxiesAcked == 2
	})
}

func (r *rig) stop() {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-r.exited:
		if err != nil {
			r.t.Errorf("fleetgate dev ended with %v", err)
		}
	case <-time.After(soon):
		_ = r.cmd.Process.Kill()
		r.t.Error("fleetgate dev did not stop within a minute of SIGTERM")
	}
	if r.t.Failed() {
		r.t.Logf("output of dev:\n%s", tail(r.out.String(), 6000))
		logs, _ := filepath.Glob(filepath.Join(r.state, "*", "*", "*.log"))
		more, _ := filepath.Glob(filepath.Join(r.state, "*", "*.log"))
		for _, l := range append(logs, more...) {
			b, _ := os.ReadFile(l)
			r.t.Logf("%s:\n%s", l, tail(string(b), 3000))
		}
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// until polls other processes, which send no events; it fails the test when the limit is over.
func (r *rig) until(what string, limit time.Duration, ok func() bool) time.Duration {
	r.t.Helper()
	begin := time.Now()
	for time.Since(begin) < limit {
		if ok() {
			return time.Since(begin)
		}
		time.Sleep(2 * time.Millisecond)
	}
	r.t.Fatalf("not within %v: %s", limit, what)
	return 0
}

// save writes a manifest as a careful editor does: beside it, then renamed.
func (r *rig) save(name, text string) {
	r.t.Helper()
	tmp := filepath.Join(r.dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(r.dir, name)); err != nil {
		r.t.Fatal(err)
	}
}

// adminAddresses reads the replicas' admin ports from dev's state.
func (r *rig) adminAddresses() []string {
	if len(r.admins) > 0 {
		return r.admins
	}
	var s struct {
		Replicas []struct{ Admin string } `json:"replicas"`
	}
	b, err := os.ReadFile(filepath.Join(r.state, "dev.json"))
	if err != nil || json.Unmarshal(b, &s) != nil {
		return nil
	}
	for _, x := range s.Replicas {
		r.admins = append(r.admins, x.Admin)
	}
	return r.admins
}

// client asks replicas of which each can be asked in another one's place.
var client = &http.Client{Timeout: 3 * time.Second}

// patient asks where no answer is a wrong answer.
var patient = &http.Client{Timeout: sayWithin}

// view asks the first replica that answers with a leader.
func (r *rig) view() (*view, error) {
	for _, a := range r.adminAddresses() {
		if v, err := viewOf(a); err == nil && v.Leader != "" {
			return v, nil
		}
	}
	return nil, errors.New("no replica knows a leader")
}

func viewOf(admin string) (*view, error) {
	resp, err := client.Get("http://" + admin + "/v1/view")
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var v view
	return &v, json.NewDecoder(resp.Body).Decode(&v)
}

// route finds a route in a view.
func (v *view) live(namespace, name string, generation int64) bool {
	for _, rt := range v.Routes {
		if rt.Namespace != namespace || rt.Name != name || rt.Generation < generation {
			continue
		}
		n := 0
		for _, p := range v.Proxies {
			if p.Connected && p.Acked >= rt.Index {
				n++
			}
		}
		return n >= 2
	}
	return false
}

// pids gives the processes that dev runs, by name.
func (r *rig) pids() map[string]int {
	var out map[string]int
	b, err := os.ReadFile(filepath.Join(r.state, "processes.json"))
	if err != nil || json.Unmarshal(b, &out) != nil {
		return nil
	}
	return out
}

// pidsOf gives the processes whose names contain a word.
func (r *rig) pidsOf(word string) []int {
	var out []int
	for name, pid := range r.pids() {
		if strings.Contains(name, word) {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}

// load sends requests at a steady rate and counts what is not 200.
type load struct {
	mu      sync.Mutex
	sent    int
	bad     map[string]int
	stop    context.CancelFunc
	running sync.WaitGroup
}

// fire starts workers that together send about rps requests a second, half of them slow on the backend's side (ms in flight); rps 0 = as fast as they can.
func fire(port, workers, rps, slowMS int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{bad: map[string]int{}, stop: cancel}
	for w := range workers {
		l.running.Go(func() {
			c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: sayWithin}
			defer c.CloseIdleConnections()
			var tick *time.Ticker
			if rps > 0 {
				tick = time.NewTicker(time.Second * time.Duration(workers) / time.Duration(rps))
				defer tick.Stop()
			}
			for i := 0; ctx.Err() == nil; i++ {
				if tick != nil {
					select {
					case <-ctx.Done():
						return
					case <-tick.C:
					}
				}
				url := fmt.Sprintf("http://127.0.0.1:%d/load", port)
				if slowMS > 0 && (i+w)%2 == 0 {
					url += fmt.Sprintf("?delay=%dms", slowMS)
				}
				l.one(c, url)
			}
		})
	}
	return l
}

func (l *load) one(c *http.Client, url string) {
	what := ""
	resp, err := c.Get(url)
	if err != nil {
		what = err.Error()
	} else {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			what = fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("x-envoy-response-flags"))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent++
	if what != "" {
		l.bad[what]++
	}
}

// end stops the load and gives what it saw.
func (l *load) end() (sent, bad int, why map[string]int) {
	l.stop()
	l.running.Wait()
	for _, n := range l.bad {
		bad += n
	}
	return l.sent, bad, l.bad
}

// quantile of durations, q from 0 to 1.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Clone(d)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// row prints one line of the table.
func row(t *testing.T, name, format string, args ...any) {
	t.Helper()
	t.Logf("| %-34s | %s |", name, fmt.Sprintf(format, args...))
}
