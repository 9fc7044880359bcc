package xds

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
)

// BootstrapConfig is what an Envoy must know before it has asked anybody.
type BootstrapConfig struct {
	ProxyID      string // node.id, for people who read logs: identity is the certificate's
	FleetCluster string // node.cluster, likewise
	// XDSAddresses are host:port of the replicas: one cluster, all of them endpoints, round robin; a connection that breaks is made again elsewhere.
	XDSAddresses []string
	// AdminPath is a unix socket for the admin interface; where it is empty, AdminPort on 127.0.0.1 is (0 = no admin interface).
	AdminPath string
	AdminPort int
	// CertFile, KeyFile and CAFile are PEM files; without a CertFile the connection is plain, which no replica accepts outside tests.
	CertFile, KeyFile, CAFile string
	// SecretsDir says that the three files are replaced while Envoy runs: it holds the files of SecretFiles, and something in it is renamed whenever the
	// three have changed (a symbolic link on their way, say). "" = they are read once.
	SecretsDir string
	// Collector is host:port of the OTLP collector of access logs, "" = none. Its cluster is called CollectorCluster.
	Collector, CollectorCluster string
	// RE2Program is the largest program that a regular expression may become in this Envoy; 0 = RE2Program.
	RE2Program int
	// ServerName is the DNS name that the replicas' certificates must carry, and the SNI that is sent.
	ServerName string
}

// object is a JSON object of a bootstrap. It is written by hand, not through the protos, because it is small, and is to be read by people.
type object = map[string]any

const (
	typeHTTPOptions = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	typeUpstreamTLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
)

// RE2Program is the largest RE2 program that our Envoys take. Envoy's own default of 100 refuses ordinary long expressions; translate bounds what it
// lets through well below this.
const RE2Program = 32768

// Bootstrap gives the bootstrap file (JSON, which is YAML too) of an Envoy that takes all of its configuration over delta ADS. LDS and CDS wait for
// ever for their first answer: an Envoy that starts while no replica answers is not ready, rather than ready and empty.
func Bootstrap(c BootstrapConfig) ([]byte, error) {
	cluster, err := xdsCluster(c)
	if err != nil {
		return nil, fmt.Errorf("bootstrap of proxy %q: %w", c.ProxyID, err)
	}
	if c.RE2Program == 0 {
		c.RE2Program = RE2Program
	}
	clusters := []any{cluster}
	if c.Collector != "" {
		collector, err := grpcCluster(c.CollectorCluster, []string{c.Collector})
		if err != nil {
			return nil, fmt.Errorf("bootstrap of proxy %q: collector: %w", c.ProxyID, err)
		}
		clusters = append(clusters, collector)
	}
	out := object{
		"layered_runtime":       object{"layers": []any{object{"name": "fleetgate", "static_layer": object{"re2.max_program_size.error_level": c.RE2Program}}}},
		"node":                  object{"id": c.ProxyID, "cluster": c.FleetCluster},
		"dynamic_resources":     dynamicResources(),
		"static_resources":      object{"clusters": clusters},
		"stats_config":          statsConfig(),
		"deferred_stat_options": object{"enable_deferred_creation_stats": true},
	}
	if admin := adminAddress(c); admin != nil {
		out["admin"] = object{"address": admin}
	}
	return json.MarshalIndent(out, "", "  ")
}

func dynamicResources() object {
	source := object{"ads": object{}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
	return object{
		"lds_config": source,
		"cds_config": source,
		"ads_config": object{
			"api_type": "DELTA_GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
			"grpc_services": []any{object{"envoy_grpc": object{
				"cluster_name": "xds",
				// The default backs off up to 30 s: that long a healthy replica would stand by while a proxy waits.
				"retry_policy": object{"retry_back_off": object{"base_interval": "0.2s", "max_interval": "2s"}},
			}}},
		},
	}
}

// statsConfig leaves out what a cluster counts about its own workings: about half of its statistics, which nobody looks at one Service at a time. What is left
// is requests, connections and members.
func statsConfig() object {
	var patterns []any
	for _, part := range []string{".circuit_breakers.", ".lb_", ".assignment_", ".upstream_flow_control_", ".upstream_cx_http", ".upstream_internal_", ".retry_or_shadow_", ".bind_errors", ".original_dst_", ".max_host_weight"} {
		patterns = append(patterns, object{"contains": part})
	}
	return object{"stats_matcher": object{"exclusion_list": object{"patterns": patterns}}}
}

func adminAddress(c BootstrapConfig) object {
	switch {
	case c.AdminPath != "":
		return object{"pipe": object{"path": c.AdminPath, "mode": 0o600}}
	case c.AdminPort != 0:
		return socket("127.0.0.1", c.AdminPort)
	default:
		return nil
	}
}

func socket(host string, port int) object {
	return object{"socket_address": object{"address": host, "port_value": port}}
}

func xdsCluster(c BootstrapConfig) (object, error) {
	out, err := grpcCluster("xds", c.XDSAddresses)
	if err == nil && c.CertFile != "" {
		out["transport_socket"] = tlsSocket(c)
	}
	return out, err
}

// grpcCluster reaches gRPC servers.
func grpcCluster(name string, addresses []string) (object, error) {
	endpoints, static, err := grpcEndpoints(addresses)
	if err != nil {
		return nil, err
	}
	kind := "STRICT_DNS"
	if static {
		kind = "STATIC"
	}
	return object{
		"name": name, "type": kind, "connect_timeout": "1s", "lb_policy": "ROUND_ROBIN",
		"load_assignment": object{"cluster_name": name, "endpoints": []any{object{"lb_endpoints": endpoints}}},
		"typed_extension_protocol_options": object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
			"@type": typeHTTPOptions,
			"explicit_http_config": object{"http2_protocol_options": object{
				"connection_keepalive": object{"interval": "30s", "timeout": "5s"},
			}},
		}},
	}, nil
}

// grpcEndpoints also tells whether all addresses are IP addresses.
func grpcEndpoints(addresses []string) (endpoints []any, static bool, err error) {
	if len(addresses) == 0 {
		return nil, false, fmt.Errorf("no address: give at least one host:port")
	}
	static = true
	for _, a := range addresses {
		host, text, err := net.SplitHostPort(a)
		if err != nil {
			return nil, false, fmt.Errorf("address %q: %w: write it as host:port", a, err)
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return nil, false, fmt.Errorf("address %q: port %q is no number from 1 to 65535", a, text)
		}
		static = static && net.ParseIP(host) != nil
		endpoints = append(endpoints, object{"endpoint": object{"address": socket(host, int(port))}})
	}
	return endpoints, static, nil
}

func tlsSocket(c BootstrapConfig) object {
	validation := object{}
	if c.ServerName != "" {
		validation["match_typed_subject_alt_names"] = []any{object{"san_type": "DNS", "matcher": object{"exact": c.ServerName}}}
	}
	common := object{
		"tls_params":     object{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
		"alpn_protocols": []any{"h2"},
	}
	if c.SecretsDir != "" {
		common["tls_certificate_sds_secret_configs"] = []any{fileSecret(c.SecretsDir, identitySecret)}
		common["combined_validation_context"] = object{"default_validation_context": validation, "validation_context_sds_secret_config": fileSecret(c.SecretsDir, trustSecret)}
	} else {
		validation["trusted_ca"] = object{"filename": c.CAFile}
		common["tls_certificates"], common["validation_context"] = []any{c.certificate()}, validation
	}
	context := object{"@type": typeUpstreamTLS, "common_tls_context": common}
	if c.ServerName != "" {
		context["sni"] = c.ServerName
	}
	return object{"name": "envoy.transport_sockets.tls", "typed_config": context}
}
