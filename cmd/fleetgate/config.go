package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// serveConfig is all that a replica must be told. It is only made by loadConfig: after that nothing in it needs checking again.
type serveConfig struct {
	DataDir string // raft log, vote and store live here
	Pod     string // a name that stays the same over restarts

	Advertise      string // host:port at which the other replicas reach the Raft port
	RaftListen     string
	XDSListen      string
	XDSAdvertise   string // host:port that proxies are told
	AdminListen    string // loopback unless told otherwise
	AdminAdvertise string
	Peers          []string // Advertise of every first replica, itself included

	PeerCert, PeerKey, PeerCA    string
	ProxyCert, ProxyKey, ProxyCA string // of the xDS server; ProxyCA signs proxies
	ProxyCAKey                   string // with it this replica issues certificates to proxies
	SealKeyFile                  string
	HomeNamespace                string // where the group's keys are kept, and who founds it is decided; "" = files say both

	CertificatesListen string // where proxies get their certificates
	FleetImage         string // of the Envoys that are provisioned
	FleetXDS           string // host:port at which their xDS is
	FleetCertificates  string // host:port at which they get their certificates

	ControllerNames []string
	Clusters        []clusterConfig

	ListenAddress    string // that Envoy's listeners bind
	AccessLog        string // file that every Envoy writes requests to, "" = none
	LogFormat        string // text or json
	LogLevel         slog.Level
	MarkerFile       string // created by the one replica that founds the group; on a file system that all see
	HeartbeatTimeout time.Duration
	TestGateOff      bool // for the measurement of what the gate is worth
}

// clusterConfig is a member cluster: an API server, or directories of manifests.
type clusterConfig struct {
	Name       string   `json:"name"`
	Kubeconfig string   `json:"kubeconfig,omitempty"`
	Context    string   `json:"context,omitempty"`   // of the kubeconfig, "" = its current one
	InCluster  bool     `json:"inCluster,omitempty"` // the cluster in which this runs
	Dirs       []string `json:"dirs"`
	StatusDir  string   `json:"statusDir"`
	Addresses  []string `json:"addresses,omitempty"` // what Gateways without addresses of their own are reached at

	// Where Envoys that are provisioned in it find this group, "" = as --fleet-xds and --fleet-certificates say.
	XDS          string `json:"xds,omitempty"`
	Certificates string `json:"certificates,omitempty"`
}

// setting is one thing that can be told by flag (--name), environment (FLEETGATE_NAME) and file (name:), in that order of precedence.
type setting struct {
	name, usage, fallback string
	list, hidden          bool
	set                   func(c *serveConfig, values []string) error
}

func text(at func(*serveConfig) *string) func(*serveConfig, []string) error {
	return func(c *serveConfig, v []string) error { *at(c) = v[0]; return nil }
}

func hostPort(at func(*serveConfig) *string) func(*serveConfig, []string) error {
	return func(c *serveConfig, v []string) error { *at(c) = v[0]; return checkHostPort(v[0]) }
}

func checkHostPort(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q: the port must be a number from 1 to 65535", s)
	}
	return nil
}

// settings is the whole configuration, in the order in which help lists it.
func settings() []setting {
	return []setting{
		{name: "data-dir", usage: "directory for the Raft log and the store", set: text(func(c *serveConfig) *string { return &c.DataDir })},
		{name: "pod", usage: "this replica's name, the same after every restart (default: the host's name)", set: text(func(c *serveConfig) *string { return &c.Pod })},
		{name: "advertise", usage: "host:port at which other replicas reach this one", set: hostPort(func(c *serveConfig) *string { return &c.Advertise })},
		{name: "raft-listen", usage: "host:port of the Raft port (default: every address, --advertise's port)", set: hostPort(func(c *serveConfig) *string { return &c.RaftListen })},
		{name: "peers", usage: "host:port of every replica of the first group, this one included", list: true, set: setPeers},
		{name: "xds-listen", usage: "host:port of the xDS port", fallback: ":18000", set: hostPort(func(c *serveConfig) *string { return &c.XDSListen })},
		{name: "xds-advertise", usage: "host:port at which proxies reach it (default: --advertise's host)", set: hostPort(func(c *serveConfig) *string { return &c.XDSAdvertise })},
		{name: "admin-listen", usage: "host:port of the admin port: /livez, /readyz, /metrics, /v1/view", fallback: "127.0.0.1:9901", set: hostPort(func(c *serveConfig) *string { return &c.AdminListen })},
		{name: "admin-advertise", usage: "host:port at which it is reached (default: --admin-listen)", set: hostPort(func(c *serveConfig) *string { return &c.AdminAdvertise })},
		{name: "peer-cert", usage: "PEM certificate for talking to replicas", set: text(func(c *serveConfig) *string { return &c.PeerCert })},
		{name: "peer-key", usage: "its PEM key", set: text(func(c *serveConfig) *string { return &c.PeerKey })},
		{name: "peer-ca", usage: "PEM authority of replicas", set: text(func(c *serveConfig) *string { return &c.PeerCA })},
		{name: "proxy-cert", usage: "PEM certificate of the xDS server", set: text(func(c *serveConfig) *string { return &c.ProxyCert })},
		{name: "proxy-key", usage: "its PEM key", set: text(func(c *serveConfig) *string { return &c.ProxyKey })},
		{name: "proxy-ca", usage: "PEM authority of proxies; never the replicas' one", set: text(func(c *serveConfig) *string { return &c.ProxyCA })},
		{name: "proxy-ca-key", usage: "PEM key of --proxy-ca: with it this replica issues certificates to the pods of fleets", set: text(func(c *serveConfig) *string { return &c.ProxyCAKey })},
		{name: "certificates-listen", usage: "host:port of the port that issues them", fallback: ":18001", set: hostPort(func(c *serveConfig) *string { return &c.CertificatesListen })},
		{name: "home-namespace", usage: "in a pod: namespace that holds the group's keys (Secret " + keysSecret + ") and its marker (ConfigMap " + groupMap + "), each made by the replica that comes first", set: text(func(c *serveConfig) *string { return &c.HomeNamespace })},
		{name: "fleet-image", usage: "image of provisioned Envoys; it holds fleetgate and envoy", fallback: "fleetgate", set: text(func(c *serveConfig) *string { return &c.FleetImage })},
		{name: "fleet-xds", usage: "host:port at which provisioned Envoys reach xDS (default: --xds-advertise)", set: hostPort(func(c *serveConfig) *string { return &c.FleetXDS })},
		{name: "fleet-certificates", usage: "host:port at which they get certificates (default: --fleet-xds's host, --certificates-listen's port)", set: hostPort(func(c *serveConfig) *string { return &c.FleetCertificates })},
		{name: "seal-key-file", usage: "file with the key that seals secrets, the same for every replica", set: text(func(c *serveConfig) *string { return &c.SealKeyFile })},
		{name: "controller-name", usage: "GatewayClasses with these controllerNames are ours", fallback: "fleetgate.io/gatewayclass-controller", list: true,
			set: func(c *serveConfig, v []string) error { c.ControllerNames = v; return nil }},
		{name: "cluster", usage: "a member cluster: name=NAME,kubeconfig=FILE[,context=CONTEXT], or name=NAME,in-cluster, or name=NAME,dir=DIR[,dir=DIR],status-dir=DIR; each with [,address=IP] and, where Envoys are provisioned, [,xds=HOST:PORT][,certificates=HOST:PORT] instead of --fleet-xds and --fleet-certificates", list: true, set: setClusters},
		{name: "listen-address", usage: "address that Envoy's listeners bind", fallback: "0.0.0.0", set: setIP},
		{name: "access-log", usage: "file that every Envoy logs requests to, such as /dev/stdout", set: text(func(c *serveConfig) *string { return &c.AccessLog })},
		{name: "log-format", usage: "text or json", fallback: "json", set: setLogFormat},
		{name: "log-level", usage: "debug, info, warn or error", fallback: "info", set: func(c *serveConfig, v []string) error { return c.LogLevel.UnmarshalText([]byte(v[0])) }},
		{name: "marker-file", usage: "file that exactly one replica creates and so founds the group", set: text(func(c *serveConfig) *string { return &c.MarkerFile })},
		{name: "heartbeat-timeout", usage: "Raft's heartbeat timeout", fallback: "1s", set: setHeartbeat},
		{name: "test-gate-off", usage: "send changes without waiting for ACKs (loses requests)", hidden: true, fallback: "false", set: setGate},
	}
}

func setPeers(c *serveConfig, v []string) error {
	c.Peers = v
	var errs []error
	for _, p := range v {
		errs = append(errs, checkHostPort(p))
	}
	return errors.Join(errs...)
}

func setIP(c *serveConfig, v []string) error {
	c.ListenAddress = v[0]
	if net.ParseIP(v[0]) == nil {
		return fmt.Errorf("%q is not an IP address", v[0])
	}
	return nil
}

func setLogFormat(c *serveConfig, v []string) error {
	c.LogFormat = v[0]
	if v[0] != "text" && v[0] != "json" {
		return fmt.Errorf("%q is neither text nor json", v[0])
	}
	return nil
}

func setHeartbeat(c *serveConfig, v []string) (err error) {
	if c.HeartbeatTimeout, err = time.ParseDuration(v[0]); err == nil && c.HeartbeatTimeout < 50*time.Millisecond {
		err = fmt.Errorf("%s is under 50ms: replicas would vote each other down", v[0])
	}
	return err
}

func setGate(c *serveConfig, v []string) (err error) {
	c.TestGateOff, err = strconv.ParseBool(v[0])
	return err
}

// setClusters reads name=a,dir=b,dir=c: one cluster for each value.
func setClusters(c *serveConfig, values []string) error {
	c.Clusters = nil
	var errs []error
	for _, v := range values {
		var m clusterConfig
		for _, pair := range strings.Split(v, ",") {
			key, value, _ := strings.Cut(pair, "=")
			switch key {
			case "name":
				m.Name = value
			case "dir":
				m.Dirs = append(m.Dirs, value)
			case "status-dir":
				m.StatusDir = value
			case "kubeconfig":
				m.Kubeconfig = value
			case "context":
				m.Context = value
			case "in-cluster":
				m.InCluster = value != "false"
			case "address":
				m.Addresses = append(m.Addresses, value)
			case "xds":
				m.XDS = value
				errs = append(errs, checkHostPort(value))
			case "certificates":
				m.Certificates = value
				errs = append(errs, checkHostPort(value))
			default:
				errs = append(errs, fmt.Errorf("%q: want name=, kubeconfig=, context=, in-cluster, dir=, status-dir=, address=, xds= or certificates=, got %q", v, pair))
			}
		}
		c.Clusters = append(c.Clusters, m)
	}
	return errors.Join(errs...)
}

// envName is the variable of a setting.
func envName(name string) string {
	return "FLEETGATE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// addFlags declares every setting and returns the flags' values.
func addFlags(fs *pflag.FlagSet) map[string]*[]string {
	values := map[string]*[]string{}
	for _, s := range settings() {
		v := new([]string)
		usage := s.usage
		if s.fallback != "" {
			usage += " (default " + s.fallback + ")"
		}
		fs.StringArrayVar(v, s.name, nil, usage)
		if s.hidden {
			_ = fs.MarkHidden(s.name)
		}
		values[s.name] = v
	}
	return values
}

// loadConfig joins flags, environment and file, fills in defaults and reports every mistake at once.
func loadConfig(flags map[string]*[]string, getenv func(string) (string, bool), file string) (serveConfig, error) {
	var c serveConfig
	var errs []error
	known := settings()
	fromFile, err := readConfigFile(file, known)
	errs = append(errs, err)
	for _, s := range known {
		values, origin := choose(s, flags, getenv, fromFile)
		if len(values) == 0 {
			continue
		}
		if len(values) > 1 && !s.list {
			errs = append(errs, fmt.Errorf("%s: given %d times, want once", origin, len(values)))
		}
		if err := s.set(&c, values); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", origin, err))
		}
	}
	c.derive()
	errs = append(errs, c.problems()...)
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("configuration:\n%w\n(see fleetgate serve --help)", err)
	}
	return c, nil
}

// choose takes the flag, else the variable, else the file's line, else the default, and says which it was.
func choose(s setting, flags map[string]*[]string, getenv func(string) (string, bool), file map[string][]string) ([]string, string) {
	if v := flags[s.name]; v != nil && len(*v) > 0 {
		if s.list && s.name != "cluster" {
			return split(*v), "--" + s.name
		}
		return *v, "--" + s.name
	}
	if v, ok := getenv(envName(s.name)); ok && v != "" {
		sep := ","
		if s.name == "cluster" {
			sep = ";"
		}
		if !s.list {
			return []string{v}, envName(s.name)
		}
		return strings.Split(v, sep), envName(s.name)
	}
	if v := file[s.name]; len(v) > 0 {
		return v, "file, " + s.name
	}
	if s.fallback != "" {
		return []string{s.fallback}, "--" + s.name
	}
	return nil, ""
}

func split(values []string) []string {
	var out []string
	for _, v := range values {
		out = append(out, strings.Split(v, ",")...)
	}
	return out
}

// readConfigFile gives the file's settings as flag values; keys are the names of the flags.
func readConfigFile(file string, known []setting) (map[string][]string, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration file: %w", err)
	}
	var raw map[string]any
	if err := yaml.UnmarshalStrict(b, &raw); err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", file, err)
	}
	out := map[string][]string{}
	var errs []error
	for key, value := range raw {
		i := slices.IndexFunc(known, func(s setting) bool { return s.name == key })
		if i < 0 {
			errs = append(errs, fmt.Errorf("configuration file %s: there is no setting %q", file, key))
			continue
		}
		if out[key], err = fileValues(value); err != nil {
			errs = append(errs, fmt.Errorf("configuration file %s: %s: %w", file, key, err))
		}
	}
	sort.Slice(errs, func(i, j int) bool { return errs[i].Error() < errs[j].Error() })
	return out, errors.Join(errs...)
}

func fileValues(value any) ([]string, error) {
	switch v := value.(type) {
	case string:
		return []string{v}, nil
	case bool, float64:
		return []string{fmt.Sprint(v)}, nil
	case []any:
		var out []string
		for _, item := range v {
			one, err := fileValues(item)
			if err != nil {
				return nil, err
			}
			out = append(out, one...)
		}
		return out, nil
	case map[string]any: // a cluster
		return clusterValue(v)
	default:
		return nil, fmt.Errorf("want a text, a number or a list, got %v", value)
	}
}

// clusterValue turns {name: a, dir: [b, c]} into the flag's form, so that there is one parser.
func clusterValue(m map[string]any) ([]string, error) {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var pairs []string
	for _, k := range keys {
		values, err := fileValues(m[k])
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			pairs = append(pairs, k+"="+v)
		}
	}
	return []string{strings.Join(pairs, ",")}, nil
}

// derive fills in what follows from the rest.
func (c *serveConfig) derive() {
	if c.Pod == "" {
		c.Pod, _ = os.Hostname()
	}
	host, port, _ := net.SplitHostPort(c.Advertise)
	if c.RaftListen == "" {
		c.RaftListen = ":" + port
	}
	if c.XDSAdvertise == "" {
		_, port, _ := net.SplitHostPort(c.XDSListen)
		c.XDSAdvertise = net.JoinHostPort(host, port)
	}
	if c.AdminAdvertise == "" {
		c.AdminAdvertise = c.AdminListen
	}
	if c.FleetXDS == "" {
		c.FleetXDS = c.XDSAdvertise
	}
	if c.FleetCertificates == "" {
		c.FleetCertificates = c.certificatesBeside(c.FleetXDS)
	}
	for i := range c.Clusters {
		if m := &c.Clusters[i]; m.XDS == "" {
			m.XDS, m.Certificates = c.FleetXDS, cmp.Or(m.Certificates, c.FleetCertificates)
		} else if m.Certificates == "" {
			m.Certificates = c.certificatesBeside(m.XDS)
		}
	}
	c.inHome()
	if len(c.Peers) == 0 && c.Advertise != "" {
		c.Peers = []string{c.Advertise}
	}
}

// certificatesBeside is where certificates are, unless somebody says otherwise: at the host of xDS, at the port of --certificates-listen.
func (c *serveConfig) certificatesBeside(xds string) string {
	host, _, _ := net.SplitHostPort(xds)
	_, port, _ := net.SplitHostPort(c.CertificatesListen)
	return net.JoinHostPort(host, port)
}

// problems are what is missing or does not fit together.
func (c *serveConfig) problems() []error {
	var errs []error
	for _, need := range []struct{ name, value string }{
		{"data-dir", c.DataDir}, {"pod", c.Pod}, {"advertise", c.Advertise}, {"peer-cert", c.PeerCert}, {"peer-key", c.PeerKey}, {"peer-ca", c.PeerCA},
		{"proxy-cert", c.ProxyCert}, {"proxy-key", c.ProxyKey}, {"proxy-ca", c.ProxyCA}, {"seal-key-file", c.SealKeyFile},
	} {
		if need.value == "" {
			errs = append(errs, fmt.Errorf("--%s is missing (or %s, or %s: in the file)", need.name, envName(need.name), need.name))
		}
	}
	if c.PeerCA != "" && c.PeerCA == c.ProxyCA {
		errs = append(errs, errors.New("--peer-ca and --proxy-ca are the same file: a proxy's certificate would open the Raft port; use two authorities"))
	}
	if len(c.Peers) > 0 && !slices.Contains(c.Peers, c.Advertise) {
		errs = append(errs, fmt.Errorf("--peers does not hold --advertise %q; list every replica of the first group, this one included", c.Advertise))
	}
	return append(errs, clusterProblems(c.Clusters)...)
}

func clusterProblems(clusters []clusterConfig) []error {
	var errs []error
	seen := map[string]bool{}
	for _, m := range clusters {
		switch {
		case m.Name == "":
			errs = append(errs, errors.New("--cluster: a cluster without name=; give it one that never changes"))
		case seen[m.Name]:
			errs = append(errs, fmt.Errorf("--cluster %s: there are two of that name", m.Name))
		}
		seen[m.Name] = true
		errs = append(errs, m.reachProblems()...)
	}
	return errs
}

// reachProblems are what does not say in exactly one way where a cluster's objects come from.
func (m clusterConfig) reachProblems() []error {
	ways := 0
	for _, given := range []bool{m.Kubeconfig != "", m.InCluster, len(m.Dirs) > 0} {
		if given {
			ways++
		}
	}
	switch {
	case ways != 1:
		return []error{fmt.Errorf("--cluster %s: give exactly one of kubeconfig=, in-cluster and dir=", m.Name)}
	case m.Context != "" && m.Kubeconfig == "":
		return []error{fmt.Errorf("--cluster %s: context= is for kubeconfig=", m.Name)}
	case len(m.Dirs) > 0 && m.StatusDir == "":
		return []error{fmt.Errorf("--cluster %s: status-dir= is missing: status is written there", m.Name)}
	case len(m.Dirs) == 0 && m.StatusDir != "":
		return []error{fmt.Errorf("--cluster %s: status-dir= is for dir=: an API server keeps status itself", m.Name)}
	}
	return nil
}

// logger writes to w in the configured format.
func (c serveConfig) logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}
