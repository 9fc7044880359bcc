package xds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// authority is a certificate authority in memory.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	dir  string
	n    int64
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, dir: t.TempDir(), pool: x509.NewCertPool(), n: 1}
	a.key = newKey(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "proxies"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	a.must(err)
	a.cert, err = x509.ParseCertificate(der)
	a.must(err)
	a.pool.AddCert(a.cert)
	a.must(os.WriteFile(a.caFile(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) caFile() string { return filepath.Join(a.dir, "ca.pem") }

// issue makes a certificate for a DNS name, or an identity's URI; the files are dir/name.crt and .key.
func (a *authority) issue(name string, dns []string, uris ...*url.URL) tls.Certificate {
	a.n++
	key := newKey(a.t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), DNSNames: dns, URIs: uris,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	a.must(err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	a.must(err)
	crt, pemKey := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	a.must(os.WriteFile(filepath.Join(a.dir, name+".crt"), crt, 0o600))
	a.must(os.WriteFile(filepath.Join(a.dir, name+".key"), pemKey, 0o600))
	out, err := tls.X509KeyPair(crt, pemKey)
	a.must(err)
	return out
}

func (a *authority) serverTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.issue("server", []string{"xds.fleetgate"})}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: a.pool, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
}

// world is a server with its reports.
type world struct {
	t       testing.TB
	srv     *Server
	addr    string
	mu      sync.Mutex
	reports map[string]Report
	history []Report
	changed chan struct{}
}

const fleetName = "c/ns/gw"

// anybody identifies each connection as the proxy of one fleet: for tests without TLS.
func anybody(*tls.ConnectionState) (Identity, error) {
	return Identity{Cluster: "c", Namespace: "ns", Gateway: "gw", Proxy: "p"}, nil
}

func newWorld(t testing.TB, cfg Config, tlsConfig *tls.Config) *world {
	w := &world{t: t, reports: map[string]Report{}, changed: make(chan struct{}, 1)}
	cfg.Report = w.report
	cfg.Replica = "replica-0"
	if tlsConfig == nil && cfg.Identify == nil {
		cfg.Identify = anybody
	}
	w.srv = New(cfg)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = lis.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.srv.Serve(ctx, lis, tlsConfig) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return w
}

func (w *world) report(r Report) {
	w.mu.Lock()
	w.reports[r.Proxy] = r
	w.history = append(w.history, r)
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// await waits until the newest report of a proxy satisfies ok.
func (w *world) await(proxy, what string, ok func(Report) bool) Report {
	w.t.Helper()
	deadline := time.After(time.Minute)
	for {
		w.mu.Lock()
		r, known := w.reports[proxy]
		w.mu.Unlock()
		if known && ok(r) {
			return r
		}
		select {
		case <-w.changed:
		case <-deadline:
			w.t.Fatalf("waited for %s; last report: %+v, stats %+v", what, r, w.srv.Stats())
		}
	}
}

func (w *world) apply(index uint64, resources ...Resource) {
	w.srv.Apply([]Update{{Fleet: fleetName, Index: index, Resources: resources}})
}

func resource(t Type, name, version string, m proto.Message, uses ...string) Resource {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	if b == nil {
		b = []byte{}
	}
	return Resource{Type: t, Name: name, Version: version, Bytes: [][]byte{b}, Uses: uses, Parts: Parts{{name: version}}}
}

func gone(t Type, name string) Resource { return Resource{Type: t, Name: name} }

var adsSource = &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}

func clusterOf(name, version string) Resource {
	return resource(Cluster, name, version, &clusterv3.Cluster{Name: name, ConnectTimeout: durationpb.New(time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsSource}})
}

func address(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
}

func endpointsOf(name, version string, port uint32) Resource {
	return resource(Endpoints, name, version, &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{
		{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address("127.0.0.1", port)}}}}}}})
}

func routeOf(name, version string, clusters ...string) Resource {
	host := &routev3.VirtualHost{Name: "all", Domains: []string{"*"}}
	for i, c := range clusters {
		host.Routes = append(host.Routes, &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: fmt.Sprintf("/%.*s", i, "aaaaaaaaaaaaaaa")}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: c}}}})
	}
	return resource(Route, name, version, &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{host}}, clusters...)
}

func listenerOf(name, version, rc string, port uint32) Resource {
	pack := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			panic(err)
		}
		return a
	}
	hcm := &hcmv3.HttpConnectionManager{StatPrefix: name, RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: adsSource, RouteConfigName: rc}},
		HttpFilters: []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{})}}}}
	return resource(Listener, name, version, &listenerv3.Listener{Name: name, Address: address("127.0.0.1", port), FilterChains: []*listenerv3.FilterChain{{
		Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(hcm)}}}}}})
}

// dial opens a delta stream with grpc-go's own client and codec, which proves the wire format on the way.
func (w *world) dial(creds credentials.TransportCredentials) (discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, func(), error) {
	w.t.Helper()
	conn, err := grpc.NewClient(w.addr, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	return stream, func() { cancel(); conn.Close() }, err
}

func adsNode(cluster string) *corev3.Node { return &corev3.Node{Id: "liar", Cluster: cluster} }
