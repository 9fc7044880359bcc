package xds

import (
	"encoding/json"
	"fmt"
	"path/filepath"
)

// Names of the secrets by which Envoy knows who it is and whom it trusts.
const (
	identitySecret = "fleetgate_identity"
	trustSecret    = "fleetgate_trust"
)

// SecretFiles gives the files that SecretsDir has to hold: Envoy reads its own certificate and its trust through them, and reads the files that
// they name again when something in SecretsDir is renamed. Certificates that stand in a bootstrap itself are read once, at the start.
func SecretFiles(c BootstrapConfig) (map[string][]byte, error) {
	watched := object{"path": c.SecretsDir}
	identity := c.certificate()
	identity["watched_directory"] = watched
	out := map[string][]byte{}
	for name, secret := range map[string]object{
		identitySecret: {"name": identitySecret, "tls_certificate": identity},
		trustSecret:    {"name": trustSecret, "validation_context": object{"trusted_ca": object{"filename": c.CAFile}, "watched_directory": watched}},
	} {
		secret["@type"] = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
		b, err := json.MarshalIndent(object{"resources": []any{secret}}, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("secret %s of proxy %q: %w", name, c.ProxyID, err)
		}
		out[name+".json"] = b
	}
	return out, nil
}

func (c BootstrapConfig) certificate() object {
	return object{"certificate_chain": object{"filename": c.CertFile}, "private_key": object{"filename": c.KeyFile}}
}

func fileSecret(dir, name string) object {
	return object{"name": name, "sds_config": object{"resource_api_version": "V3",
		"path_config_source": object{"path": filepath.Join(dir, name+".json"), "watched_directory": object{"path": dir}}}}
}
