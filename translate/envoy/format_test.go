package envoy

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// forms are those in which every command of a kind is taken.
var forms = []struct {
	of    map[string]bool
	forms []string
}{
	{commands, []string{"%%%s%%"}},
	{times, []string{"%%%s%%", "%%%s(%%Y-%%m-%%dT%%H:%%M:%%S.%%3fZ)%%"}},
	{addresses, []string{"%%%s%%", "%%%s(24)%%"}},
	{headers, []string{"%%%s(X-A)%%", "%%%s(:path?x-b):10%%"}},
	{states, []string{"%%%s(a)%%", "%%%s(a:PLAIN):10%%", "%%%s(a:FIELD:b)%%"}},
	{metadata, []string{"%%%s(a:b)%%"}},
	{texts, []string{"%%%s(a)%%", "%%%s(a):10%%"}},
	{paths, []string{"%%%s%%", "%%%s:10%%"}},
	{words("GRPC_STATUS"), []string{"%%%s%%", "%%%s(SNAKE_STRING)%%"}},
}

// TestRealEnvoyTakesWhatCheckTakes: every command of the tables, in every form, and texts around them, in one bootstrap of the real binary.
func TestRealEnvoyTakesWhatCheckTakes(t *testing.T) {
	all := []string{"plain", "100%% of %PROTOCOL%%%", "%PROTOCOL%%ROUTE_NAME%", "{\"a\": \"%REQ(A)%\"}\n", "é %QUERY_PARAM(é)%"}
	for _, kind := range forms {
		for _, name := range slices.Sorted(maps.Keys(kind.of)) {
			for _, form := range kind.forms {
				all = append(all, fmt.Sprintf(form, name))
			}
		}
	}
	b := &bootstrapv3.Bootstrap{Node: &corev3.Node{Id: "n", Cluster: "c"}, StaticResources: &bootstrapv3.Bootstrap_StaticResources{}, DynamicResources: nil}
	for i, text := range all {
		if err := checkFormat(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		log := AccessLog{Path: Stdout, Format: text}
		if i%2 == 1 {
			log = AccessLog{Path: Stdout, JSON: true, Fields: map[string]string{"a": text}}
		}
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, must(Listener(fmt.Sprint(i), "", int32(20000+i), false, nil, must(StreamChain("tcp", nil, nil, "stream", log))(t)))(t))
	}
	b.StaticResources.Clusters = append(b.StaticResources.Clusters, StreamCluster("stream"))
	b.StaticResources.Clusters[0].EdsClusterConfig.EdsConfig = &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{Path: os.DevNull}}}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, must(protojson.Marshal(b))(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(realEnvoy(t), "--mode", "validate", "--disable-hot-restart", "-l", "warn", "-c", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestCheckRefuses: what the real Envoy refuses, with all of the listener that has it (each was tried), and what only it could tell.
func TestCheckRefuses(t *testing.T) {
	for _, text := range []string{"100%", "%PROTOCOL", "%protocol%", "%NONSENSE%", "%PROTOCOL(x)%", "%DURATION:3%", "%REQ%", "%REQ()%", "%REQ(a%", "%REQ(a?b?c)%", "%REQ(a b)%", "%REQ(é)%", "%REQ(a\r)%", "%REQ(a)b)%",
		"%REQ(a):99999999999999999999999%", "%START_TIME(%n)%", "%START_TIME(%En)%", "%START_TIME(a\nb)%", "%START_TIME:3%", "%GRPC_STATUS(x)%", "%FILTER_STATE%", "%FILTER_STATE(a:X)%", "%FILTER_STATE(a:FIELD)%",
		"%UPSTREAM_METADATA(a):3%", "%CEL(no such(%", "%COMMON_DURATION%", "a %% %"} {
		if checkFormat(text) == nil {
			t.Errorf("%q passes", text)
		}
		if (AccessLog{Fields: map[string]string{"a": text}}).Check() == nil || (AccessLog{Format: text}).Check() == nil {
			t.Errorf("%q passes in a log", text)
		}
	}
}
