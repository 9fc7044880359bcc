package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/xds"
)

// bootstrapRequest is an Envoy that Fleetgate does not run, and that is to join a Gateway's fleet.
type bootstrapRequest struct {
	filters        listFlags
	gateway, proxy string
	xds            []string
	serverName     string
	authority, dir string
	admin          int
	collector      string
}

// newGatewayBootstrap is `fleetgate gateway bootstrap`: an Envoy on a virtual machine, on a laptop or in a cluster without our provisioning joins a fleet.
func newGatewayBootstrap(a *asking) *cobra.Command {
	var b bootstrapRequest
	cmd := &cobra.Command{Use: "bootstrap NAME", Args: cobra.ExactArgs(1), Short: "Print the bootstrap of an Envoy that joins a Gateway's fleet",
		Long: "Print the bootstrap of an Envoy that joins a Gateway's fleet, wherever it runs. Its certificate says which fleet it belongs to:\n" +
			"--authority issues one, with the key of the proxies' authority, into --certificates; else proxy.crt, proxy.key and trust.pem are\n" +
			"expected there when Envoy starts. A certificate that is issued anew by the same command is taken up without a restart.",
		Example: "  fleetgate gateway bootstrap web -n shop --proxy vm-1 --authority ./certs --certificates /etc/fleetgate > bootstrap.json\n  envoy -c bootstrap.json --disable-hot-restart"}
	b.filters.addFilters(cmd)
	f := cmd.Flags()
	f.StringVar(&b.proxy, "proxy", "", "the Envoy's name, another for each of the fleet")
	f.StringSliceVar(&b.xds, "xds", nil, "host:port of the replicas' xDS (default: as the replicas say)")
	f.StringVar(&b.serverName, "server-name", xdsServerName, "name in the replicas' certificates")
	f.StringVar(&b.dir, "certificates", "", "directory of proxy.crt, proxy.key and trust.pem, as Envoy will see it")
	f.StringVar(&b.authority, "authority", "", "directory with proxies-ca.crt and proxies-ca.key: issue the certificate now")
	f.IntVar(&b.admin, "admin-port", 0, "port of the admin interface on 127.0.0.1, 0 = none")
	f.StringVar(&b.collector, "access-log-collector", "", "host:port of an OTLP/gRPC collector, where the Gateway's EnvoyFleet names one")
	_ = cmd.MarkFlagRequired("proxy")
	_ = cmd.MarkFlagRequired("certificates")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		b.gateway = args[0]
		v, err := a.ask(cmd.Context())
		if err != nil {
			return err
		}
		who, err := b.identity(v)
		if err != nil {
			return err
		}
		if b.dir, err = filepath.Abs(b.dir); err != nil {
			return fmt.Errorf("--certificates: %w", err)
		}
		return b.write(a.out, who, v)
	}
	return cmd
}

// identity finds the one Gateway that is meant.
func (b *bootstrapRequest) identity(v view) (xds.Identity, error) {
	var found []xds.Identity
	for _, g := range v.Gateways {
		if g.Name == b.gateway && b.filters.wants(g.Cluster, g.Namespace) {
			found = append(found, xds.Identity{Cluster: g.Cluster, Namespace: g.Namespace, Gateway: g.Name, Proxy: b.proxy})
		}
	}
	switch len(found) {
	case 0:
		return xds.Identity{}, fmt.Errorf("there is no Gateway %q; see fleetgate gateway list", b.gateway)
	case 1:
		return found[0], nil
	}
	return xds.Identity{}, usageError{fmt.Errorf("%d Gateways are called %q: say which with --namespace and --cluster", len(found), b.gateway)}
}

func (b *bootstrapRequest) write(out io.Writer, who xds.Identity, v view) error {
	c := xds.BootstrapConfig{ProxyID: who.Proxy, FleetCluster: who.Fleet(), XDSAddresses: b.addresses(v), AdminPort: b.admin, ServerName: b.serverName,
		CertFile: filepath.Join(b.dir, "proxy.crt"), KeyFile: filepath.Join(b.dir, "proxy.key"), CAFile: filepath.Join(b.dir, "trust.pem"),
		Collector: b.collector, CollectorCluster: envoy.CollectorCluster}
	if b.authority != "" {
		c.SecretsDir = b.dir
		if err := b.issue(who, c); err != nil {
			return err
		}
	}
	text, err := xds.Bootstrap(c)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, string(text))
	return err
}

func (b *bootstrapRequest) addresses(v view) []string {
	if len(b.xds) > 0 {
		return b.xds
	}
	var out []string
	for _, r := range v.Replicas {
		if r.XDS != "" {
			out = append(out, r.XDS)
		}
	}
	return out
}

// issue makes the certificate, and the files through which Envoy reads it.
func (b *bootstrapRequest) issue(who xds.Identity, c xds.BootstrapConfig) error {
	authority, err := pki.OpenAuthority(filepath.Join(b.authority, "proxies-ca.crt"), filepath.Join(b.authority, "proxies-ca.key"))
	if err != nil {
		return fmt.Errorf("--authority: %w", err)
	}
	if _, _, err := authority.Issue(b.dir, "proxy", nil, []string{who.URI().String()}, true, false); err != nil {
		return err
	}
	trust, err := os.ReadFile(authority.CertFile())
	if err != nil {
		return fmt.Errorf("--authority: %w", err)
	}
	files, err := xds.SecretFiles(c)
	if err != nil {
		return err
	}
	files["trust.pem"] = trust
	for name, content := range files {
		if err := replaceFile(filepath.Join(b.dir, name), content); err != nil {
			return err
		}
	}
	return nil
}
