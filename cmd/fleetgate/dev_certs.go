package main

import (
	"github.com/fleetgate/fleetgate/cluster/pki"
	"github.com/fleetgate/fleetgate/xds"
)

// xdsServerName is the name by which Envoys know the replicas' xDS servers, whatever their addresses.
const xdsServerName = "xds.fleetgate"

// devCerts are the two authorities of a laptop's installation (D15): what one signs opens nothing that trusts the other.
type devCerts struct{ peers, proxies *pki.Authority }

func newDevCerts(dir string) (*devCerts, error) {
	peers, err := pki.NewAuthority(dir, "peers")
	if err != nil {
		return nil, err
	}
	proxies, err := pki.NewAuthority(dir, "proxies")
	if err != nil {
		return nil, err
	}
	return &devCerts{peers: peers, proxies: proxies}, nil
}

// issueReplica writes peer.crt, peer.key, xds.crt and xds.key into a replica's directory. The peer's speaks for this pod alone.
func (c *devCerts) issueReplica(dir, pod string, hosts ...string) error {
	if _, _, err := c.peers.Issue(dir, "peer", append([]string{pod, "localhost", "127.0.0.1"}, hosts...), []string{pki.ReplicaURI(pod)}, true, true); err != nil {
		return err
	}
	_, _, err := c.proxies.Issue(dir, "xds", []string{xdsServerName, "localhost", "127.0.0.1"}, nil, false, true)
	return err
}

// issueProxy writes proxy.crt and proxy.key, which say who an Envoy is, into its directory.
func (c *devCerts) issueProxy(dir string, id xds.Identity) error {
	_, _, err := c.proxies.Issue(dir, "proxy", nil, []string{id.URI().String()}, true, false)
	return err
}
