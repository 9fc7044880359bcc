package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetgate/fleetgate/cluster/enroll"
	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/xds"
)

// proxyRun is what a pod of a fleet is told: `fleetgate proxy run` gets its certificate, runs Envoy, answers the kubelet, and drains.
type proxyRun struct {
	cluster, namespace, gateway string
	xds                         []string
	certificates, serverName    string
	stateDir, authority, token  string
	envoy, health, collector    string
	concurrency                 int
	admin                       bool
	drainDelay, drainTimeout    time.Duration
	poll                        time.Duration // how often the certificate and the authority are looked at
	pod, uid                    string
	log                         *slog.Logger
}

func newProxyRun(t terminal) *cobra.Command {
	p := &proxyRun{poll: 30 * time.Second, log: slog.New(slog.NewJSONHandler(t.err, nil))}
	cmd := &cobra.Command{Use: "run", Short: "Run one Envoy of a fleet (in its pod)", Args: cobra.NoArgs, Long: "Run one Envoy of a fleet. It gets a certificate for the pod's token, " +
		"renews it, keeps Envoy running and\nanswers /ready and /live. The first SIGTERM drains, the second one ends it at once. Deployments of fleets run this; see `fleetgate gateway bootstrap`\nfor Envoys that run elsewhere."}
	f := cmd.Flags()
	f.StringVar(&p.cluster, "cluster", "", "member cluster")
	f.StringVar(&p.namespace, "namespace", "", "namespace of the Gateway")
	f.StringVar(&p.gateway, "gateway", "", "name of the Gateway")
	f.StringSliceVar(&p.xds, "xds", nil, "host:port of the replicas' xDS")
	f.StringVar(&p.certificates, "certificates", "", "host:port at which replicas issue certificates")
	f.StringVar(&p.serverName, "server-name", xdsServerName, "name in the replicas' certificates")
	f.StringVar(&p.stateDir, "state-dir", fleet.StateDir, "directory that outlives this process")
	f.StringVar(&p.authority, "authority", fleet.AuthorityPEM, "PEM file: who signs the replicas' certificates")
	f.StringVar(&p.token, "token", fleet.TokenFile, "file with the pod's token")
	f.StringVar(&p.envoy, "envoy", "envoy", "Envoy's binary")
	f.StringVar(&p.health, "health-listen", fmt.Sprintf(":%d", fleet.HealthPort), "host:port of /ready, /live and /stats/prometheus")
	f.StringVar(&p.collector, "access-log-collector", "", "host:port of an OTLP/gRPC collector")
	f.IntVar(&p.concurrency, "concurrency", 2, "Envoy's worker threads")
	f.BoolVar(&p.admin, "admin", false, "open Envoy's admin interface on 127.0.0.1:19000")
	f.DurationVar(&p.drainDelay, "drain-delay", 5*time.Second, "how long to serve on, unready, before listeners drain")
	f.DurationVar(&p.drainTimeout, "drain-timeout", 30*time.Second, "how long listeners drain at most")
	for _, name := range []string{"cluster", "namespace", "gateway", "xds", "certificates"} {
		_ = cmd.MarkFlagRequired(name)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p.pod, p.uid = t.getenv("POD_NAME"), t.getenv("POD_UID")
		if p.pod == "" || p.uid == "" {
			return usageError{errors.New("POD_NAME and POD_UID are not set: give them by the downward API")}
		}
		return p.run(cmd.Context())
	}
	return cmd
}

// adminPort is where --admin opens Envoy's admin interface, besides the socket by which we speak to it.
const adminPort = 19000

// run lasts until Envoy has drained after a signal.
func (p *proxyRun) run(ctx context.Context) error {
	lis, err := net.Listen("tcp", p.health)
	if err != nil {
		return fmt.Errorf("health port: %w; free it, or choose another with --health-listen", err)
	}
	told, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(told, stop) // the second signal does what signals do
	socket := filepath.Join(p.stateDir, adminSocket)
	watch := &proxyWatch{admin: adminClient(socket)}
	server := &http.Server{Handler: watch.handler(), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(lis) }()
	defer func() { _ = server.Close() }()

	keeper := p.keeper()
	if err := keeper.Start(told); err != nil {
		if told.Err() != nil {
			return nil // it was told to stop before it began
		}
		return err
	}
	child, err := p.prepare(keeper, socket)
	if err != nil {
		return err
	}
	if p.admin {
		open, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", adminPort))
		if err != nil {
			return fmt.Errorf("admin port: %w; free it, or leave --admin out", err)
		}
		defer func() { _ = open.Close() }()
		go relay(open, socket)
	}
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	go keeper.Run(work)
	sup := newSupervisor(func(format string, args ...any) { p.log.Warn(fmt.Sprintf(format, args...)) }, func(map[string]int) {})
	sup.keep(work, child)
	<-told.Done()
	p.log.Info("draining", "delay", p.drainDelay.String(), "timeout", p.drainTimeout.String())
	watch.drain(p.drainDelay, p.drainTimeout, p.log)
	sup.forget(child)
	return nil
}

func (p *proxyRun) keeper() *enroll.Keeper {
	return &enroll.Keeper{Dir: filepath.Join(p.stateDir, "identity"), Log: p.log, Now: time.Now, Poll: p.poll,
		Client: &enroll.Client{Address: p.certificates, ServerName: p.serverName, Cluster: p.cluster, Authority: p.authority, Token: p.token}}
}

// prepare writes what Envoy reads, and gives the process.
func (p *proxyRun) prepare(k *enroll.Keeper, socket string) (*process, error) {
	c := xds.BootstrapConfig{
		ProxyID: p.pod, FleetCluster: xds.Identity{Cluster: p.cluster, Namespace: p.namespace, Gateway: p.gateway}.Fleet(), XDSAddresses: p.xds,
		AdminPath: socket, CertFile: k.CertFile(), KeyFile: k.KeyFile(), CAFile: k.TrustFile(), SecretsDir: k.Dir, ServerName: p.serverName,
		Collector: p.collector, CollectorCluster: envoy.CollectorCluster,
	}
	files, err := xds.SecretFiles(c)
	if err != nil {
		return nil, err
	}
	for name, content := range files {
		if err := replaceFile(filepath.Join(k.Dir, name), content); err != nil {
			return nil, err
		}
	}
	b, err := xds.Bootstrap(c)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(p.stateDir, "bootstrap.json")
	if err := replaceFile(file, b); err != nil {
		return nil, err
	}
	_ = os.Remove(socket) // of an Envoy that was killed
	return &process{name: "envoy", path: p.envoy, dir: p.stateDir, env: os.Environ(), args: []string{
		"-c", file, "--disable-hot-restart", "--concurrency", fmt.Sprint(p.concurrency), "--log-level", "warning",
		"--drain-time-s", fmt.Sprint(max(1, int(p.drainTimeout/time.Second))), "--drain-strategy", "immediate",
	}}, nil
}

// adminClient speaks to Envoy's admin interface.
func adminClient(socket string) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		MaxIdleConns: 1, IdleConnTimeout: 10 * time.Second,
	}}
}

// relay passes what is open on the admin socket to whoever may reach 127.0.0.1.
func relay(lis net.Listener, socket string) {
	for {
		down, err := lis.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = down.Close() }()
			up, err := net.Dial("unix", socket)
			if err != nil {
				return
			}
			defer func() { _ = up.Close() }()
			go func() { _, _ = io.Copy(up, down); _ = up.Close() }()
			_, _ = io.Copy(down, up)
		}()
	}
}
