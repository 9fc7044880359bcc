package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/fleetgate/fleetgate/cluster/seal"
	"github.com/fleetgate/fleetgate/cluster/store"
)

// devOptions are what `fleetgate dev` can be told.
type devOptions struct {
	dir, state, listen string
	replicas, envoys   int
	re2Program         int // lowered by a test that wants a real rejection
	fresh              bool
	executable         string
	serveSettings      []string // name=value for every replica's serve.yaml; tests shorten time-outs with it
}

// devCluster is the name of the member cluster that the directory plays.
const devCluster = "dev"

// newDevCommand is `fleetgate dev`: a whole installation on a laptop.
func newDevCommand(t terminal) *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run replicas, Envoys and demo backends for a directory of manifests",
		Long: "Run a group of replicas, a fleet of Envoys for every Gateway in a directory of manifests, and small backends that play the pods of its\n" +
			"Deployments. Editing a manifest takes effect at once. Ctrl-C stops everything that it started; running it again finds its state.",
		Args: cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.StringVar(&o.dir, "dir", filepath.Join("deploy", "examples", "dev"), "directory of manifests")
	fs.StringVar(&o.state, "state", defaultState, "directory for state and logs")
	fs.StringVar(&o.listen, "listen-address", "127.0.0.1", "address that Envoys listen at; 0.0.0.0 lets other machines in")
	fs.IntVar(&o.replicas, "replicas", 0, "number of replicas (default 3, or what the state has)")
	fs.IntVar(&o.envoys, "envoys", 2, "number of Envoys for each Gateway")
	fs.BoolVar(&o.fresh, "fresh", false, "forget the state of earlier runs")
	fs.StringVar(&o.executable, "executable", "", "program to run replicas with")
	fs.StringArrayVar(&o.serveSettings, "set", nil, "NAME=VALUE: a setting of fleetgate serve for every replica")
	fs.IntVar(&o.re2Program, "test-re2-program", 0, "largest regular expression program that the Envoys take")
	_ = fs.MarkHidden("executable")
	_ = fs.MarkHidden("test-re2-program")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.check(); err != nil {
			return usageError{err}
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		return runDev(ctx, o, t)
	}
	return cmd
}

func (o *devOptions) check() error {
	var errs []error
	if o.replicas < 0 || o.replicas > 9 {
		errs = append(errs, fmt.Errorf("--replicas %d: want 1 to 9", o.replicas))
	}
	if o.envoys < 0 || o.envoys > 50 {
		errs = append(errs, fmt.Errorf("--envoys %d: want 0 to 50", o.envoys))
	}
	if info, err := os.Stat(o.dir); err != nil || !info.IsDir() {
		errs = append(errs, fmt.Errorf("--dir %s is not a directory; name one with Gateway API manifests, such as deploy/examples/dev", o.dir))
	}
	if readsAlso(o.dir, o.state) {
		errs = append(errs, fmt.Errorf("--state %s lies in --dir %s, where it would be read as manifests; name one elsewhere, or one that begins with a dot", o.state, o.dir))
	}
	if net.ParseIP(o.listen) == nil {
		errs = append(errs, fmt.Errorf("--listen-address %q is not an IP address", o.listen))
	}
	for _, s := range o.serveSettings {
		if !strings.Contains(s, "=") {
			errs = append(errs, fmt.Errorf("--set %q: want NAME=VALUE", s))
		}
	}
	return errors.Join(errs...)
}

// readsAlso tells whether a directory of manifests holds another one, of which a directory source would read the files: it skips what is hidden.
func readsAlso(dir, other string) bool {
	below, err := filepath.Rel(mustAbs(dir), mustAbs(other))
	return err == nil && (below == "." || !strings.HasPrefix(below, ".") && !strings.Contains(below, "/."))
}

// dev is a running installation.
type dev struct {
	devOptions
	terminal
	saved  *devState
	mu     sync.Mutex // guards screen and saving
	screen *screen
	sup    *supervisor
	certs  *devCerts
	fleets *fleets
	pods   *pods
	asking *asking
}

// runDev runs everything until ctx ends; a second signal ends it at once.
func runDev(ctx context.Context, o devOptions, t terminal) error {
	d, err := prepareDev(o, t)
	if err != nil {
		return err
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	d.pods.step() // so that no replica sees the endpoints of an earlier run, or none
	var playing sync.WaitGroup
	playing.Go(func() { d.pods.run(work) })
	for _, r := range d.saved.Replicas {
		d.sup.keep(work, d.replica(r))
	}
	err = d.watch(ctx, work)
	d.stop()
	cancel()
	playing.Wait()
	d.pods.close()
	return err
}

// prepareDev makes everything that can fail before anything is started.
func prepareDev(o devOptions, t terminal) (*dev, error) {
	d := &dev{devOptions: o, terminal: t}
	var err error
	for _, p := range []*string{&d.dir, &d.state} {
		if *p, err = filepath.Abs(*p); err != nil {
			return nil, err
		}
	}
	envoy, err := findEnvoy(t.getenv)
	if err != nil && o.envoys > 0 {
		return nil, err
	}
	if d.executable == "" {
		if d.executable, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("finding this program: %w", err)
		}
	}
	if err := d.openState(); err != nil {
		return nil, err
	}
	if d.certs, err = newDevCerts(filepath.Join(d.state, "pki")); err != nil {
		return nil, err
	}
	for _, r := range d.saved.Replicas {
		if err := d.writeReplica(r); err != nil {
			return nil, err
		}
	}
	d.assemble(envoy)
	return d, nil
}

// openState finds or makes the state directory.
func (d *dev) openState() error {
	if err := os.MkdirAll(d.state, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	if err := lockState(d.state); err != nil {
		return err
	}
	if d.fresh {
		if err := wipe(d.state); err != nil {
			return err
		}
	}
	var err error
	if d.saved, err = loadState(d.state, d.replicas); err != nil {
		return err
	}
	for _, sub := range []string{"endpoints", "status", "proxy", "pki"} {
		if err := os.MkdirAll(filepath.Join(d.state, sub), 0o700); err != nil {
			return fmt.Errorf("making the state directory: %w", err)
		}
	}
	if err := seal.Create(filepath.Join(d.state, "seal.key")); err != nil {
		return err
	}
	if err := d.saved.save(d.state); err != nil {
		return err
	}
	list := replicaAddresses{APIVersion: apiVersion, Kind: "ReplicaAddresses"}
	for _, r := range d.saved.Replicas {
		list.Admin = append(list.Admin, r.Admin)
	}
	return writeJSON(filepath.Join(d.state, replicasFile), list)
}

// assemble joins the parts.
func (d *dev) assemble(envoy string) {
	d.asking = &asking{terminal: d.terminal, timeout: 2 * time.Second}
	var xdsAddresses, admin []string
	for _, r := range d.saved.Replicas {
		xdsAddresses, admin = append(xdsAddresses, r.XDS), append(admin, r.Admin)
	}
	d.asking.server = strings.Join(admin, ",")
	d.sup = newSupervisor(d.say, d.notePIDs)
	d.fleets = &fleets{dir: filepath.Join(d.state, "proxy"), envoy: envoy, size: d.envoys, re2Program: d.re2Program, listen: d.listen, xds: xdsAddresses, certs: d.certs,
		sup: d.sup, say: d.say, tell: d.tell, running: map[string]*devFleet{}}
	d.pods = newPods(d.dir, filepath.Join(d.state, "endpoints"), d.saved, func() error { return d.saved.save(d.state) }, d.say)
	d.screen = newScreen(d.out, d.terminal, nil)
}

// say tells of an event, from any goroutine.
func (d *dev) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.screen.note(fmt.Sprintf(format, args...))
}

// notePIDs writes who runs, for people and tests that want to hurt somebody.
func (d *dev) notePIDs(pids map[string]int) {
	_ = writeJSON(filepath.Join(d.state, "processes.json"), pids)
}

// tell tells the group which proxies count; any replica passes it on.
func (d *dev) tell(ctx context.Context, f store.Fleet) error {
	var errs []error
	for _, server := range d.asking.servers() {
		err := postFleet(ctx, server, f)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// findEnvoy looks where the Makefile looks.
func findEnvoy(getenv func(string) string) (string, error) {
	if e := getenv("FLEETGATE_ENVOY"); e != "" {
		if _, err := os.Stat(e); err != nil {
			return "", fmt.Errorf("FLEETGATE_ENVOY: %w; correct it or unset it", err)
		}
		return filepath.Abs(e)
	}
	if e, err := exec.LookPath("envoy"); err == nil {
		return filepath.Abs(e)
	}
	if e := filepath.Join(".cache", "envoy", "envoy"); fileExists(e) {
		return filepath.Abs(e)
	}
	return "", errors.New("no Envoy found: name one with FLEETGATE_ENVOY, put `envoy` on PATH, or run `make run`, which fetches it")
}

func fileExists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// replicaDir is where a replica keeps its data, its configuration and its log.
func (d *dev) replicaDir(r devReplica) string { return filepath.Join(d.state, r.Pod) }

// writeReplica writes a replica's configuration file and certificates.
func (d *dev) writeReplica(r devReplica) error {
	dir := d.replicaDir(r)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making a replica's directory: %w", err)
	}
	if err := d.certs.issueReplica(dir, r.Pod); err != nil {
		return err
	}
	b, err := yaml.Marshal(d.settings(r))
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "serve.yaml"), b)
}

func (d *dev) settings(r devReplica) map[string]any {
	dir := d.replicaDir(r)
	in := func(name string) string { return filepath.Join(dir, name) }
	var peers []string
	for _, p := range d.saved.Replicas {
		peers = append(peers, p.Raft)
	}
	out := map[string]any{
		"data-dir": in("data"), "pod": r.Pod, "advertise": r.Raft, "raft-listen": r.Raft, "peers": peers,
		"xds-listen": r.XDS, "xds-advertise": r.XDS, "admin-listen": r.Admin, "admin-advertise": r.Admin,
		"peer-cert": in("peer.crt"), "peer-key": in("peer.key"), "peer-ca": d.certs.peers.CertFile(),
		"proxy-cert": in("xds.crt"), "proxy-key": in("xds.key"), "proxy-ca": d.certs.proxies.CertFile(),
		"seal-key-file": filepath.Join(d.state, "seal.key"), "marker-file": filepath.Join(d.state, "founded"),
		"listen-address": d.listen, "access-log": "/dev/stdout", "log-format": "text",
		"cluster": []any{map[string]any{"name": devCluster, "dir": []any{d.dir, filepath.Join(d.state, "endpoints")},
			"status-dir": filepath.Join(d.state, "status"), "address": d.address()}},
	}
	for _, s := range d.serveSettings {
		name, value, _ := strings.Cut(s, "=")
		out[name] = value
	}
	return out
}

// address is what Gateways are reached at.
func (d *dev) address() string {
	if ip := net.ParseIP(d.listen); ip.IsUnspecified() {
		return "127.0.0.1"
	}
	return d.listen
}

func (d *dev) replica(r devReplica) *process {
	dir := d.replicaDir(r)
	return &process{name: r.Pod, path: d.executable, args: []string{"serve", "--config", filepath.Join(dir, "serve.yaml")},
		env: cleanEnvironment(os.Environ()), dir: dir, stdout: "serve.log", stderr: "serve.log"}
}

// cleanEnvironment drops our own variables: what is set for this command is not meant for its replicas.
func cleanEnvironment(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "FLEETGATE_") {
			out = append(out, e)
		}
	}
	return out
}

// watch shows what runs and keeps fleets as the view asks, until ctx ends.
func (d *dev) watch(ctx, work context.Context) error {
	d.say("starting %d replicas; manifests in %s, state in %s", len(d.saved.Replicas), shown(d.dir), shown(d.state))
	if err := d.awaitReady(ctx); err != nil {
		return err
	}
	settled := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	shownOnce := false
	for ctx.Err() == nil {
		v, err := d.asking.view(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			v = d.unreachable()
		case err == nil:
			d.fleets.follow(work, v)
			shownOnce = shownOnce || allProgrammed(v) && len(v.Proxies) >= d.envoys*len(v.Gateways) || time.Now().After(settled)
		}
		if shownOnce && ctx.Err() == nil {
			d.show(v)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

// unreachable is the last view, with the news that nobody answers.
func (d *dev) unreachable() view {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := view{}
	if d.screen.last != nil {
		v = *d.screen.last
	}
	v.Leader, v.Notice = "", "no replica answers"
	return v
}

func (d *dev) show(v view) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.screen.fixed = d.places(v)
	d.screen.show(v)
}

func allProgrammed(v view) bool {
	for _, g := range v.Gateways {
		if g.Programmed != "True" {
			return false
		}
	}
	for _, r := range v.Routes {
		for _, p := range r.Parents {
			if condition(p.Conditions, conditionProgrammed).Status != "True" && condition(p.Conditions, "Accepted").Status != "False" {
				return false
			}
		}
	}
	return len(v.Gateways) > 0
}

// awaitReady waits until every replica is ready, and gives up when that takes longer than a minute.
func (d *dev) awaitReady(ctx context.Context) error {
	deadline := time.Now().Add(time.Minute)
	for _, r := range d.saved.Replicas {
		for {
			pctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			_, err := get(pctx, baseURL(r.Admin)+"/readyz")
			cancel()
			if err == nil {
				d.say("%s is ready: admin %s, xDS %s", r.Pod, r.Admin, r.XDS)
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s did not become ready: %w; the end of its log, %s, says why:\n%s", r.Pod, err,
					filepath.Join(d.replicaDir(r), "serve.log"), tail(filepath.Join(d.replicaDir(r), "serve.log"), 2000))
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

// tail is the end of a file.
func tail(file string, n int64) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > n {
		_, _ = f.Seek(-n, io.SeekEnd)
	}
	b, _ := io.ReadAll(f)
	return strings.TrimSpace(string(b))
}

// places says where things are and what to try next.
func (d *dev) places(v view) []string {
	state := shown(d.state)
	url := "http://localhost:8080"
	for _, g := range v.Gateways {
		if ports := listenerPorts(g); len(ports) > 0 {
			url = fmt.Sprintf("http://localhost:%d", ports[0])
			break
		}
	}
	program := shown(d.executable)
	if d.state != mustAbs(defaultState) {
		program += " --server " + strings.SplitN(d.asking.server, ",", 2)[0]
	}
	return []string{
		"Manifests    " + shown(d.dir) + "   (edit them: a saved change is live at once)",
		"Status       " + state + "/status",
		"Logs         " + state + "/replica-*/serve.log, " + state + "/proxy/*/envoy.log",
		"Access logs  " + state + "/proxy/*/access.log",
		"",
		"Try next:",
		"  curl " + url,
		"  " + program + " gateway list",
		"  " + program + " route list -o wide",
		"",
		"Ctrl-C stops all of it; running it again finds its state.",
	}
}

func mustAbs(p string) string {
	if abs, err := filepath.Abs(p); err == nil {
		return abs
	}
	return p
}

// shown is a path as a person would type it here.
func shown(p string) string {
	wd, err := os.Getwd()
	if err != nil {
		return p
	}
	if rel, err := filepath.Rel(wd, p); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return p
}

// stop ends proxies, then replicas; a second signal ends all at once.
func (d *dev) stop() {
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(again)
	go func() {
		if _, ok := <-again; ok {
			d.sup.kill()
		}
	}()
	d.say("stopping; once more Ctrl-C stops at once")
	isReplica := map[string]bool{}
	for _, r := range d.saved.Replicas {
		isReplica[r.Pod] = true
	}
	d.sup.stopAll(func(name string) bool { return !isReplica[name] })
	d.sup.stopAll(func(name string) bool { return isReplica[name] })
	d.say("stopped; state stays in %s", shown(d.state))
}
