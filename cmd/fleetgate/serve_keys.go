package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/fleetgate/fleetgate/cluster/group"
	"github.com/fleetgate/fleetgate/cluster/member/kube"
	"github.com/fleetgate/fleetgate/cluster/seal"
)

// Names of what replicas keep in the namespace in which they run.
const (
	keysSecret = "fleetgate-keys"
	groupMap   = "fleetgate-group"
)

// keyFiles are the keys of a group: two authorities that never mix, and the key that seals secrets.
var keyFiles = []string{"peers-ca.crt", "peers-ca.key", "proxies-ca.crt", "proxies-ca.key", sealKeyFile}

const sealKeyFile = "seal.key"

// inHome fills in what follows from --home-namespace: the keys that the group shares are in a Secret of that namespace, and each replica keeps them, and makes
// its own certificates of them, on its volume.
func (c *serveConfig) inHome() {
	if c.HomeNamespace == "" || c.DataDir == "" {
		return
	}
	for name, at := range map[string]*string{
		"peer.crt": &c.PeerCert, "peer.key": &c.PeerKey, "peers-ca.crt": &c.PeerCA, "xds.crt": &c.ProxyCert, "xds.key": &c.ProxyKey, "proxies-ca.crt": &c.ProxyCA,
		"proxies-ca.key": &c.ProxyCAKey, sealKeyFile: &c.SealKeyFile,
	} {
		if *at == "" {
			*at = filepath.Join(c.keysDir(), name)
		}
	}
}

func (c *serveConfig) keysDir() string { return filepath.Join(c.DataDir, "keys") }

// home is the namespace in which this replica runs.
func (c *serveConfig) home() (*kube.Home, error) {
	to, err := kube.InCluster()
	if err != nil {
		return nil, fmt.Errorf("--home-namespace: %w", err)
	}
	return kube.NewHome(to, c.Pod, c.HomeNamespace)
}

// obtainKeys makes sure that this replica has the group's keys and certificates of its own. The replica that creates the Secret makes the keys; all others, and all
// later starts, take what is there. A volume that holds them asks nobody.
func (c *serveConfig) obtainKeys(ctx context.Context) error {
	if c.HomeNamespace == "" {
		return nil
	}
	if err := os.MkdirAll(c.keysDir(), 0o700); err != nil {
		return fmt.Errorf("directory of the keys: %w", err)
	}
	for _, name := range keyFiles {
		if _, err := os.Stat(filepath.Join(c.keysDir(), name)); err == nil {
			continue
		}
		if err := c.fetchKeys(ctx); err != nil {
			return err
		}
		break
	}
	return c.issueOwn()
}

// fetchKeys tries until the API server has answered.
func (c *serveConfig) fetchKeys(ctx context.Context) error {
	home, err := c.home()
	if err != nil {
		return err
	}
	log := c.logger(os.Stderr)
	for pause := time.Second / 4; ; pause = min(2*pause, 10*time.Second) {
		keys, err := home.Secret(ctx, keysSecret, makeKeys)
		if err == nil {
			return c.storeKeys(keys)
		}
		log.Warn("no keys yet, they are asked for again", "in", pause.String(), "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// makeKeys makes the keys of a new group.
func makeKeys() (out map[string][]byte, err error) {
	dir, err := os.MkdirTemp("", "fleetgate-keys-")
	if err != nil {
		return nil, fmt.Errorf("making keys: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if _, err := newDevCerts(dir); err != nil {
		return nil, err
	}
	if err := seal.Create(filepath.Join(dir, sealKeyFile)); err != nil {
		return nil, err
	}
	out = map[string][]byte{}
	for _, name := range keyFiles {
		if out[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("making keys: %w", err)
		}
	}
	return out, nil
}

func (c *serveConfig) storeKeys(keys map[string][]byte) error {
	for _, name := range keyFiles {
		if len(keys[name]) == 0 {
			return fmt.Errorf("Secret %s/%s has no key %s: restore it from a backup; if this group is new, delete it and have another made", c.HomeNamespace, keysSecret, name)
		}
		file := filepath.Join(c.keysDir(), name)
		if err := os.WriteFile(file+".new", keys[name], 0o600); err != nil {
			return fmt.Errorf("storing the keys: %w", err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			return fmt.Errorf("storing the keys: %w", err)
		}
	}
	return nil
}

// issueOwn makes this replica's own certificates.
func (c *serveConfig) issueOwn() error {
	certs, err := newDevCerts(c.keysDir())
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(c.Advertise)
	if err != nil {
		return fmt.Errorf("--advertise: %w", err)
	}
	return certs.issueReplica(c.keysDir(), c.Pod, host)
}

// renewOwn makes them again long before they end; connections stay, and the next handshake takes up the new ones.
func (r *replica) renewOwn(ctx context.Context) error {
	every(ctx, 24*time.Hour, func() {
		if err := r.cfg.issueOwn(); err != nil {
			r.log.Error("own certificates were not renewed", "err", err)
		}
	})
	return nil
}

// marker is where one replica founds the group, nil = the replicas agree among themselves.
func (c *serveConfig) marker() (group.Marker, error) {
	switch {
	case c.MarkerFile != "":
		return group.FileMarker(c.MarkerFile), nil
	case c.HomeNamespace != "":
		home, err := c.home()
		if err != nil {
			return nil, err
		}
		return kube.Marker{Home: home, Name: groupMap}, nil
	}
	return nil, nil
}
