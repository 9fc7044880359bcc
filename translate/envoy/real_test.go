package envoy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// TestRealEnvoyAccepts lets the real binary check what the constructors make.
func TestRealEnvoyAccepts(t *testing.T) {
	binary := realEnvoy(t)
	hcm := must(HTTPConnectionManager("p", "rc", AccessLog{Path: Stdout}, nil))(t)
	chain := must(HTTPSChain("https", []string{"*.example"}, []string{"s"}, nil, hcm))(t)
	fallback := must(HTTPSChain("any", nil, []string{"s"}, &Clients{Trust: "t"}, hcm))(t)
	b := &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: "n", Cluster: "c"},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{AdsConfig: &corev3.ApiConfigSource{
			ApiType:             corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "xds"},
			}}},
		}},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Listeners: []*listenerv3.Listener{
				logging(t, 10085, AccessLog{Path: Stdout, Format: "%PROTOCOL%\n"}), logging(t, 10082, AccessLog{Path: Stdout, JSON: true}),
				logging(t, 10083, AccessLog{Path: filepath.Join(t.TempDir(), "access.log"), JSON: true, Fields: map[string]string{"code": "%RESPONSE_CODE%"}}), logging(t, 10084, AccessLog{Collector: true}),
				must(Listener("plain", "", 10080, false, nil, must(HTTPChain("http", hcm))(t)))(t),
				must(Listener("tcp", "", 10081, false, nil, must(StreamChain("tcp", nil, nil, "stream", AccessLog{Path: Stdout}))(t)))(t),
				must(DatagramListener("udp", "", 10053, "stream"))(t),
				must(Listener("tls", "127.0.0.1", 10443, true, []*listenerv3.FilterChain{chain}, fallback))(t),
			},
			Clusters: []*clusterv3.Cluster{
				StreamCluster("stream"), must(Cluster("auto", HTTP1))(t), must(Cluster("h2", HTTP2))(t),
				must(Cluster(CollectorCluster, HTTP2))(t),
				{Name: "xds", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
					LoadAssignment: LoadAssignment("xds", []Endpoint{{"127.0.0.1", 1}}), TypedExtensionProtocolOptions: must(Cluster("h2", HTTP2))(t).TypedExtensionProtocolOptions},
			},
		},
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, must(protojson.Marshal(b))(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "--mode", "validate", "--disable-hot-restart", "-l", "warn", "-c", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func logging(t *testing.T, port int32, log AccessLog) *listenerv3.Listener {
	hcm := must(HTTPConnectionManager("p", "rc", log, nil))(t)
	return must(Listener(fmt.Sprint(port), "", port, false, nil, must(HTTPChain("http", hcm))(t)))(t)
}

// realEnvoy finds the real binary; without it what these tests are for would go untested.
func realEnvoy(t *testing.T) string {
	t.Helper()
	if binary := os.Getenv("FLEETGATE_ENVOY"); binary != "" {
		return binary
	}
	binary, err := exec.LookPath("envoy")
	if err != nil {
		t.Fatal("no Envoy: run the tests by make, put envoy on PATH, or name one in FLEETGATE_ENVOY")
	}
	return binary
}
