package schema

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/xds"
)

// fleet is what the proxies of one Gateway are sent, with the world that it comes from.
type fleet struct {
	world     *world
	name      string
	resources []assemble.Resource
}

// TestMeasureRealEnvoy: whatever Gateways, routes and backends an API server would store, the real Envoy takes what they come to. Listeners, their routes,
// clusters, endpoints, certificates and authorities are all put into one bootstrap, many Gateways at once; of a rejected one the culprit is found by halves.
func TestMeasureRealEnvoy(t *testing.T) {
	want, batch := amount(20, 200, 2000), 50
	channels := []channel{must(t, standard), must(t, experimental)}
	all := must(t, seeds)
	accepted, kinds := 0, map[assemble.ResourceType]int{}
	var pending []fleet
	for i := uint64(1); accepted < want; i++ {
		pending = append(pending, randomFleets(t, generatorOf(4, i), channels[i%2], all)...)
		if len(pending) < min(batch, want) {
			continue
		}
		if culprit, err := accept(t, pending); err != nil {
			t.Fatalf("Envoy rejects Gateway %s: %v\nin the world:\n%s", culprit.name, err, culprit.world.dump())
		}
		accepted += len(pending)
		count(kinds, pending)
		pending = nil
		if full {
			t.Logf("%d of %d Gateways", accepted, want)
		}
	}
	t.Logf("| %-34s | %d Gateways: %d listeners, %d route configurations, %d clusters, %d endpoint sets, %d secrets; 0 rejected |", "random Gateways in the real Envoy", accepted,
		kinds[assemble.TypeListener], kinds[assemble.TypeRoute], kinds[assemble.TypeCluster], kinds[assemble.TypeEndpoints], kinds[assemble.TypeSecret])
	for _, r := range []assemble.ResourceType{assemble.TypeListener, assemble.TypeRoute, assemble.TypeCluster, assemble.TypeEndpoints, assemble.TypeSecret} {
		if kinds[r] < accepted/4 {
			t.Errorf("only %d resources of type %d: too little comes through to Envoy", kinds[r], r)
		}
	}
}

func count(into map[assemble.ResourceType]int, fleets []fleet) {
	for _, f := range fleets {
		for _, r := range f.resources {
			into[r.Type]++
		}
	}
}

// randomFleets fills a world and gives its Gateways that have listeners.
func randomFleets(t *testing.T, g generator, c channel, all map[string][]map[string]any) []fleet {
	t.Helper()
	w := newWorld()
	events := furnish()
	for range 100 {
		events = append(events, g.next(c, all, tallies{}))
	}
	if _, err := w.apply(events...); err != nil {
		t.Fatalf("%v\nin the world:\n%s", err, w.dump())
	}
	var out []fleet
	for _, name := range w.state.Fleets() {
		resources := w.state.Resources(name)
		if slices.ContainsFunc(resources, func(r assemble.Resource) bool { return r.Type == assemble.TypeListener }) {
			out = append(out, fleet{w, name, resources})
		}
	}
	return out
}

// accept asks Envoy about fleets; where it rejects them it finds one that it rejects.
func accept(t *testing.T, fleets []fleet) (culprit fleet, err error) {
	t.Helper()
	limit, err := structpb.NewStruct(map[string]any{"re2.max_program_size.error_level": xds.RE2Program}) // as in the bootstrap of our proxies
	if err != nil {
		return fleet{}, err
	}
	b := &bootstrapv3.Bootstrap{Node: &corev3.Node{Id: "n", Cluster: "c"}, StaticResources: &bootstrapv3.Bootstrap_StaticResources{},
		LayeredRuntime: &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{Name: "fleetgate", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: limit}}}}}
	b.StaticResources.Clusters = []*clusterv3.Cluster{{Name: envoy.CollectorCluster, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}}} // as in the bootstrap of fleets that log to one
	for i, f := range fleets {
		if err := f.addTo(b.StaticResources, fmt.Sprintf("%d/", i)); err != nil {
			return f, err
		}
	}
	if err = run(t, b); err == nil {
		return fleet{}, nil
	}
	if len(fleets) == 1 {
		return fleets[0], err
	}
	half := len(fleets) / 2
	for _, part := range [][]fleet{fleets[:half], fleets[half:]} {
		if culprit, err := accept(t, part); err != nil {
			return culprit, err
		}
	}
	return fleets[0], fmt.Errorf("it takes each half of these Gateways and not all: %w", err)
}

func run(t *testing.T, b *bootstrapv3.Bootstrap) error {
	t.Helper()
	data, err := proto.Marshal(b)
	if err != nil {
		return err
	}
	file := filepath.Join(t.TempDir(), "bootstrap.pb")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(realEnvoy(t), "--mode", "validate", "--disable-hot-restart", "-l", "error", "-c", file).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

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

// addTo puts a fleet into a bootstrap, under names of its own, with everything that xDS would bring put in its place.
func (f fleet) addTo(to *bootstrapv3.Bootstrap_StaticResources, prefix string) error {
	in := inliner{prefix: prefix, configs: map[string]*routev3.RouteConfiguration{}, endpoints: map[string]*endpointv3.ClusterLoadAssignment{}}
	var messages []proto.Message
	for _, r := range f.resources {
		m, err := open(r)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *routev3.RouteConfiguration:
			m.ValidateClusters = wrapperspb.Bool(false)
			in.configs[r.Name] = m
		case *endpointv3.ClusterLoadAssignment:
			in.endpoints[r.Name] = m
		case *tlsv3.Secret:
			m.Name = prefix + m.Name
			to.Secrets = append(to.Secrets, m)
		default:
			messages = append(messages, m)
		}
	}
	for _, m := range messages {
		if err := in.rewrite(m.ProtoReflect()); err != nil {
			return err
		}
		switch m := m.(type) {
		case *clusterv3.Cluster:
			to.Clusters = append(to.Clusters, in.cluster(m))
		case *listenerv3.Listener:
			m.Name = prefix + m.Name
			m.Address.GetSocketAddress().PortSpecifier = &corev3.SocketAddress_PortValue{PortValue: uint32(10000 + len(to.Listeners))} // it is not bound
			to.Listeners = append(to.Listeners, m)
		}
	}
	return nil
}

// inliner replaces what a message names by what is named.
type inliner struct {
	prefix    string
	configs   map[string]*routev3.RouteConfiguration
	endpoints map[string]*endpointv3.ClusterLoadAssignment
}

func (in *inliner) cluster(c *clusterv3.Cluster) *clusterv3.Cluster {
	if c.GetType() == clusterv3.Cluster_EDS {
		name := c.GetEdsClusterConfig().GetServiceName()
		if name == "" {
			name = c.Name
		}
		c.ClusterDiscoveryType, c.EdsClusterConfig = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, nil
		if c.LoadAssignment = in.endpoints[name]; c.LoadAssignment == nil {
			c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: name}
		}
	}
	c.Name = in.prefix + c.Name
	return c
}

// rewrite goes through a message and all that is packed into it.
func (in *inliner) rewrite(m protoreflect.Message) error {
	switch x := m.Interface().(type) {
	case *anypb.Any:
		return in.repack(x)
	case *tlsv3.SdsSecretConfig:
		x.Name, x.SdsConfig = in.prefix+x.Name, nil // a static one
	case *hcmv3.HttpConnectionManager:
		if rds := x.GetRds(); rds != nil {
			rc := in.configs[rds.RouteConfigName]
			if rc == nil {
				return fmt.Errorf("a listener names RouteConfiguration %q, which is not there", rds.RouteConfigName)
			}
			x.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: rc}
		}
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil || fd.IsMap() && fd.MapValue().Message() == nil:
		case fd.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				err = in.rewrite(v.Message())
				return err == nil
			})
		case fd.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = in.rewrite(v.List().Get(i).Message())
			}
		default:
			err = in.rewrite(v.Message())
		}
		return err == nil
	})
	return err
}

func (in *inliner) repack(packed *anypb.Any) error {
	if packed.GetTypeUrl() == "" { // a route.v3.FilterConfig with an empty config: the filter is enabled as it stands
		return nil
	}
	m, err := packed.UnmarshalNew()
	if err != nil {
		return fmt.Errorf("opening a %s: %w", packed.TypeUrl, err)
	}
	if err := in.rewrite(m.ProtoReflect()); err != nil {
		return err
	}
	return packed.MarshalFrom(m)
}

// TestCulpritIsFound: a harness that accepted everything would prove nothing.
func TestCulpritIsFound(t *testing.T) {
	for _, spoil := range []assemble.ResourceType{assemble.TypeSecret, assemble.TypeCluster, assemble.TypeEndpoints, assemble.TypeListener, assemble.TypeRoute} {
		bad := fleetsWith(t, spoil)
		spoiled := -1
		for i := range bad {
			if at := slices.IndexFunc(bad[i].resources, func(r assemble.Resource) bool { return r.Type == spoil }); at >= 0 && spoiled < 0 {
				bad[i].resources = slices.Clone(bad[i].resources)
				bad[i].resources[at].Bytes = append(slices.Clone(bad[i].resources[at].Bytes), spoilage(t, spoil))
				spoiled = i
			}
		}
		if culprit, err := accept(t, bad); err == nil || culprit.name != bad[spoiled].name {
			t.Errorf("type %d: the culprit is %q, want %q (%v)", spoil, culprit.name, bad[spoiled].name, err)
		}
	}
}

// fleetsWith makes random Gateways until some of them have a resource of a type.
func fleetsWith(t *testing.T, of assemble.ResourceType) []fleet {
	t.Helper()
	for seed := range uint64(50) {
		fleets := randomFleets(t, generatorOf(5+seed, 1), must(t, standard), must(t, seeds))
		if slices.ContainsFunc(fleets, func(f fleet) bool {
			return slices.ContainsFunc(f.resources, func(r assemble.Resource) bool { return r.Type == of })
		}) {
			return fleets
		}
	}
	t.Fatalf("no resource of type %d in any of 50 sets of Gateways", of)
	return nil
}

// spoilage is what makes Envoy reject a resource when it is added to its bytes, though the protos' own rules are kept.
func spoilage(t *testing.T, of assemble.ResourceType) []byte {
	t.Helper()
	address := &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "no address", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 1}}}}
	b, err := proto.Marshal(map[assemble.ResourceType]proto.Message{
		assemble.TypeSecret: &tlsv3.Secret{Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "no certificate"}}}}},
		assemble.TypeCluster: &clusterv3.Cluster{UpstreamBindConfig: &corev3.BindConfig{SourceAddress: address.GetSocketAddress()}},
		assemble.TypeEndpoints: &endpointv3.ClusterLoadAssignment{Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}}}}}}},
		assemble.TypeListener: &listenerv3.Listener{Address: address},
		assemble.TypeRoute:    &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{{Name: "1", Domains: []string{"twice.test"}}, {Name: "2", Domains: []string{"twice.test"}}}},
	}[of])
	if err != nil {
		t.Fatal(err)
	}
	return b
}
