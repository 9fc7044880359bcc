package translate

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/yaml"

	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// assembled gives what the records of a case come to.
func assembled(c *Compiler) *assemble.State {
	var changes []assemble.Change
	for k, put := range c.Records() {
		changes = append(changes, assemble.Change{Key: k, Cur: &assemble.Content{Hash: record.Hash(put.Payload), Payload: put.Payload, Refs: put.Refs, Index: 1}})
	}
	s := assemble.New(assemble.Config{ControllerNames: testConfig().ControllerNames})
	s.Apply(changes)
	return s
}

// shown are the types whose bytes a case shows; secrets are sealed.
var shown = map[assemble.ResourceType]func() proto.Message{
	assemble.TypeCluster:   func() proto.Message { return &clusterv3.Cluster{} },
	assemble.TypeEndpoints: func() proto.Message { return &endpointv3.ClusterLoadAssignment{} },
	assemble.TypeListener:  func() proto.Message { return &listenerv3.Listener{} },
	assemble.TypeRoute:     func() proto.Message { return &routev3.RouteConfiguration{} },
}

// renderResources writes what the proxies of each fleet are sent.
func renderResources(t testing.TB, s *assemble.State) string {
	t.Helper()
	var out strings.Builder
	for _, fleet := range s.Fleets() {
		for _, r := range s.Resources(fleet) {
			fmt.Fprintf(&out, "# %s of fleet %s\n", typeName(r.Type), fleet)
			if make := shown[r.Type]; make == nil {
				fmt.Fprintf(&out, "name: %s\n", r.Name)
			} else {
				out.WriteString(toYAML(t, generic(t, open(t, r, make()))))
			}
		}
	}
	return out.String()
}

func typeName(t assemble.ResourceType) string {
	return [...]string{"secret", "cluster", "endpoints", "listener", "routes"}[t]
}

func open(t testing.TB, r assemble.Resource, m proto.Message) proto.Message {
	t.Helper()
	if err := proto.Unmarshal(slices.Concat(r.Bytes...), m); err != nil {
		t.Fatalf("%s: %v", r.Name, err)
	}
	return m
}

func generic(t testing.TB, m proto.Message) any {
	t.Helper()
	j, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := yaml.Unmarshal(j, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func toYAML(t testing.TB, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// renderStatuses writes all that committed records say of classes, Gateways, ListenerSets, routes and policies.
func renderStatuses(t testing.TB, c *Compiler, s *assemble.State) string {
	t.Helper()
	var out strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(c.Records()), record.Key.Compare) {
		var v any
		var ok bool
		switch k.Kind {
		case record.KindClass:
			v, ok = s.ClassStatus(k)
		case record.KindGateway:
			v, ok = s.GatewayStatus(k)
		case record.KindListenerSet:
			v, ok = s.ListenerSetStatus(k)
		case record.KindRoute:
			v, ok = s.RouteStatus(k)
		case record.KindPolicy:
			v, ok = s.PolicyStatus(k)
		}
		if ok {
			var plain any
			if err := yaml.Unmarshal([]byte(toYAML(t, v)), &plain); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "# %s\n%s", name(k), toYAML(t, prune(plain)))
		}
	}
	return out.String()
}

// prune leaves out what is empty or says nothing here: indexes, the object's own name, times that a status writer fills in.
func prune(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
	case map[string]any:
		for field, x := range v {
			if field == "Object" || field == "Index" || field == "lastTransitionTime" || x == nil || x == "" || x == false {
				delete(v, field)
				continue
			}
			v[field] = prune(x)
		}
	}
	return v
}

// TestRealEnvoyAcceptsAssembledCases puts all that any case is assembled to before the real binary: each listener with its RouteConfigurations in it.
func TestRealEnvoyAcceptsAssembledCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	var listeners, clusters []string
	for _, f := range files {
		archive, err := txtar.ParseFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c := New(testConfig())
		c.Apply(parseObjects(t, string(archive.Files[0].Data)))
		c.Apply(missingGateways(t, c))
		ls, cs := static(t, assembled(c), filepath.Base(f)+"/")
		for _, l := range ls {
			l.Address.GetSocketAddress().PortSpecifier = &corev3.SocketAddress_PortValue{PortValue: uint32(20000 + len(listeners))} // it is not bound
			listeners = append(listeners, protojson.Format(l))
		}
		clusters = append(clusters, cs...)
	}
	if len(listeners) < 10 || len(clusters) < 10 {
		t.Fatalf("%d listeners and %d clusters: the cases do not come through", len(listeners), len(clusters))
	}
	config := fmt.Sprintf(`{"node": {"id": "n", "cluster": "c"},
"dynamic_resources": {"ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]}},
"static_resources": {"listeners": [%s], "clusters": [%s, %s]}}`, strings.Join(listeners, ","), strings.Join(clusters, ","), adsCluster(t))
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(realEnvoy(t), "--mode", "validate", "--disable-hot-restart", "-l", "warn", "-c", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// missingGateways gives the Gateways that a case's routes name and that it leaves out, so that its routes are served all the same.
func missingGateways(t *testing.T, c *Compiler) []Event {
	t.Helper()
	out := parseObjects(t, "kind: GatewayClass\nmetadata: {name: any}\nspec: {controllerName: fleetgate.io/gatewayclass-controller}")
	made := map[record.Key]bool{}
	for k, put := range c.Records() {
		if k.Kind != record.KindRoute {
			continue
		}
		for _, p := range routeOf(t, put).Parents {
			g := record.Key{Cluster: k.Cluster, Namespace: p.Namespace, Kind: record.KindGateway, Name: p.Name}
			if _, there := c.Records()[g]; p.Kind != "Gateway" || there || made[g] {
				continue
			}
			made[g] = true
			out = append(out, parseObjects(t, fmt.Sprintf(`kind: Gateway
metadata: {namespace: %s, name: %s}
spec:
  gatewayClassName: any
  listeners:
  - {name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - {name: other, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}`, g.Namespace, g.Name))...)
		}
	}
	return out
}

// static gives the listeners of all fleets with their routes inside, and the clusters, under names of their own.
func static(t *testing.T, s *assemble.State, prefix string) (listeners []*listenerv3.Listener, clusters []string) {
	for _, fleet := range s.Fleets() {
		configs := map[string]*routev3.RouteConfiguration{}
		for _, r := range s.Resources(fleet) {
			switch r.Type {
			case assemble.TypeRoute:
				rc := open(t, r, &routev3.RouteConfiguration{}).(*routev3.RouteConfiguration)
				rc.ValidateClusters = wrapperspb.Bool(false)
				configs[r.Name] = rc
			case assemble.TypeCluster:
				c := open(t, r, &clusterv3.Cluster{}).(*clusterv3.Cluster)
				c.Name = prefix + fleet + "/" + c.Name
				clusters = append(clusters, protojson.Format(c))
			}
		}
		for _, r := range s.Resources(fleet) {
			if r.Type == assemble.TypeListener {
				l := open(t, r, &listenerv3.Listener{}).(*listenerv3.Listener)
				l.Name = prefix + l.Name
				for _, chain := range append(slices.Clone(l.FilterChains), l.DefaultFilterChain) {
					inline(t, chain, configs)
				}
				listeners = append(listeners, l)
			}
		}
	}
	return listeners, clusters
}

// inline puts the RouteConfigurations that a chain names into it.
func inline(t *testing.T, chain *listenerv3.FilterChain, configs map[string]*routev3.RouteConfiguration) {
	t.Helper()
	for _, f := range chain.GetFilters() {
		hcm := &hcmv3.HttpConnectionManager{}
		if !f.GetTypedConfig().MessageIs(hcm) {
			continue
		}
		if err := f.GetTypedConfig().UnmarshalTo(hcm); err != nil {
			t.Fatal(err)
		}
		rc := configs[hcm.GetRds().GetRouteConfigName()]
		if rc == nil {
			t.Fatalf("chain %s names %q, which is not there", chain.Name, hcm.GetRds().GetRouteConfigName())
		}
		hcm.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: rc}
		packed, err := envoy.Any(hcm)
		if err != nil {
			t.Fatal(err)
		}
		f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
	}
}

// adsCluster is what the SDS and EDS sources of the cases need to be there.
func adsCluster(t *testing.T) string {
	t.Helper()
	c, err := envoy.Cluster("xds", envoy.HTTP2)
	if err != nil {
		t.Fatal(err)
	}
	c.ClusterDiscoveryType, c.EdsClusterConfig = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, nil
	c.LoadAssignment = envoy.LoadAssignment("xds", []envoy.Endpoint{{Address: "127.0.0.1", Port: 1}})
	return protojson.Format(c)
}
