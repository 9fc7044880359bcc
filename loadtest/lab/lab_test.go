// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

const (
	// patience is what kubectl waits at most, on a machine that is busy with other things.
	patience = "--timeout=4m"
	bound    = 4 * time.Minute
	deploy   = "../../deploy/"
	examples = deploy + "examples/kubernetes/"
	welcome  = "Welcome to nginx!"
)

// bench is one cluster, its kubectl and a way into its network.
type bench struct {
	*testing.T
	r *rig.Rig
}

func (b bench) try(args ...string) (string, error) {
	cmd := exec.CommandContext(b.Context(), filepath.Join(b.r.State().Binaries, "kubectl"), append([]string{"--kubeconfig", b.r.Cluster(0).Kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "EDITOR=sed -i s/8080/9090/", "KUBE_EDITOR=")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// kubectl runs kubectl, which has to succeed, and returns what it says.
func (b bench) kubectl(args ...string) string {
	b.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (b bench) wait(what, until string) {
	b.Helper()
	b.kubectl("wait", what, "--for="+until, patience)
}

// shows runs kubectl and looks for words in what it says.
func (b bench) shows(words []string, args ...string) {
	b.Helper()
	out := b.kubectl(args...)
	for _, w := range words {
		if !strings.Contains(out, w) {
			b.Errorf("kubectl %s does not show %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
}

// curl asks once, on a new connection.
func (b bench) curl(ctx context.Context, address, host string) (*http.Response, string, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) { return b.r.Dial(ctx, network, address) }}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", nil)
	if err != nil {
		return nil, "", err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

// eventually asks until the answer is the one that is wanted, and returns how long that took.
func (b bench) eventually(what, address, host string, is func(*http.Response, string, error) bool) time.Duration {
	b.Helper()
	start, pace := time.Now(), time.NewTicker(20*time.Millisecond)
	defer pace.Stop()
	for {
		ctx, cancel := context.WithTimeout(b.Context(), 2*time.Second)
		response, body, err := b.curl(ctx, address, host)
		cancel()
		if is(response, body, err) {
			return time.Since(start)
		}
		if time.Since(start) > bound {
			b.Fatalf("%s: %s (%s) still answers %.300q, %v", what, address, host, body, err)
		}
		<-pace.C
	}
}

// until asks kubectl for what it cannot be told to wait for.
func (b bench) until(what string, is func() bool) {
	b.Helper()
	start, pace := time.Now(), time.NewTicker(100*time.Millisecond)
	defer pace.Stop()
	for !is() {
		if time.Since(start) > bound {
			b.Fatalf("%s: not in %v", what, bound)
		}
		<-pace.C
	}
}

func isWelcome(r *http.Response, body string, err error) bool {
	return err == nil && r.StatusCode == http.StatusOK && strings.Contains(body, welcome)
}

func (b bench) address(gateway string) string {
	b.Helper()
	return b.kubectl("get", "gtw", gateway, "-o", "jsonpath={.status.addresses[0].value}")
}

func start(t *testing.T) bench {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a Kubernetes cluster, and builds Kubernetes the first time")
	}
	o, err := build.Options(t.Context(), rig.Options{Dir: t.TempDir(), Clusters: 1, Channel: "none"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rig.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Down(); err != nil {
			t.Error(err)
		}
	})
	return bench{t, r}
}

// TestFirstLab is one story: each step stands on those before it, so the first that fails ends it.
func TestFirstLab(t *testing.T) {
	b := start(t)
	for _, step := range []struct {
		name string
		do   func(bench)
	}{
		{"one kubectl apply installs three replicas", installs},
		{"a GatewayClass is accepted and described as such", acceptsClass},
		{"a Gateway gets an address and is programmed", programs},
		{"curl of the address returns the welcome page", serves},
		{"kubectl edit moves the port", movesPort},
		{"a split is 90 to 10", splits},
		{"GRPCRoutes with and without a method match carry calls", calls},
		{"a listener lets in the namespaces that it names and no other", admits},
		{"kubectl describe gtw tells what is wrong", tellsWhy},
		{"traffic is back after restarts without an API server", survives},
		{"a GatewayClass in use is held, and goes with its last Gateway", holdsClass},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(bench{t, b.r}) }) {
			out, _ := b.try("get", "pods,gatewayclasses,gateways,httproutes,events", "-A", "-o", "wide")
			t.Fatal(out)
		}
	}
}

func installs(b bench) {
	b.kubectl("apply", "--server-side", "-f", deploy+"install.yaml")
	b.kubectl("-n", "fleetgate-system", "rollout", "status", "statefulset/fleetgate", patience)
	if got := b.kubectl("-n", "fleetgate-system", "get", "statefulset", "fleetgate", "-o", "jsonpath={.status.readyReplicas}"); got != "3" {
		b.Errorf("%s replicas are ready, want 3", got)
	}
}

func acceptsClass(b bench) {
	b.kubectl("apply", "-f", examples+"class.yaml")
	b.wait("gc/fleetgate", "condition=Accepted")
	b.shows([]string{"ACCEPTED", "True"}, "get", "gc")
	b.shows([]string{"Accepted", "Supported Features"}, "describe", "gc", "fleetgate")
}

func programs(b bench) {
	b.kubectl("apply", "-f", examples+"app.yaml", "-f", examples+"gateway.yaml")
	b.wait("deployment/nginx-app", "condition=Available")
	b.wait("gtw/nginx-gateway", "condition=programmed")
	b.shows([]string{"ADDRESS", "PROGRAMMED", b.address("nginx-gateway"), "True"}, "get", "gtw")
}

func serves(b bench) {
	b.kubectl("apply", "-f", examples+"route.yaml")
	b.eventually("the welcome page", b.address("nginx-gateway")+":8080", "localhost", isWelcome)
}

func movesPort(b bench) {
	b.kubectl("edit", "gtw", "nginx-gateway")
	ip := b.address("nginx-gateway")
	b.eventually("the new port", ip+":9090", "localhost", isWelcome)
	b.eventually("the old port is closed", ip+":8080", "localhost", func(_ *http.Response, _ string, err error) bool { return err != nil })
}

func splits(b bench) {
	b.kubectl("apply", "-f", examples+"split.yaml")
	address, count := b.address("nginx-gateway")+":9090", map[string]int{}
	b.eventually("the split", address, "split.example.com", func(r *http.Response, _ string, err error) bool { return err == nil && r.Header.Get("X-Version") != "" })
	const asked = 500
	for range asked {
		r, body, err := b.curl(b.Context(), address, "split.example.com")
		if err != nil || r.StatusCode != http.StatusOK {
			b.Fatalf("%v: %.200q", err, body)
		}
		count[r.Header.Get("X-Version")]++
	}
	// 50 are expected, with a standard deviation of 6.7: a sound one is outside of these once in 10^9 runs, and outside of 20 to 80 once in 90,000.
	if c := count["canary"]; c < 12 || c > 95 || c+count["stable"] != asked {
		b.Errorf("of %d requests came from each version: %v", asked, count)
	}
}

// call makes one gRPC call on a connection of its own, and gives what the server said of itself.
func (b bench) call(address, host, method string) (metadata.MD, error) {
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(host),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return b.r.Dial(ctx, "tcp", address) }))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	var said metadata.MD
	asked, answer := wrapperspb.String("who is there?"), &wrapperspb.StringValue{}
	if err := conn.Invoke(ctx, method, asked, answer, grpc.Header(&said)); err != nil {
		return nil, err
	}
	if answer.Value != asked.Value {
		return nil, fmt.Errorf("the message came back as %q", answer.Value)
	}
	return said, nil
}

func calls(b bench) {
	b.kubectl("apply", "-f", examples+"grpc.yaml")
	b.wait("deployment/grpc-app", "condition=Available")
	for _, route := range []string{"login", "everything"} {
		b.wait("grpcroute/"+route, `jsonpath={.status.parents[0].conditions[?(@.type=="Accepted")].status}=True`)
		b.wait("grpcroute/"+route, `jsonpath={.status.parents[0].conditions[?(@.type=="ResolvedRefs")].status}=True`)
		b.wait("grpcroute/"+route, `jsonpath={.status.parents[0].conditions[?(@.type=="fleetgate.io/Programmed")].status}=True`)
	}
	address := b.address("nginx-gateway") + ":9090"
	for _, c := range []struct {
		host, method string
		want         codes.Code
	}{
		{"grpc.example.com", "/com.example/Login", codes.OK},
		{"grpc.example.com", "/com.example/Logout", codes.Unimplemented},
		{"grpc.example.com", "/org.example/Login", codes.Unimplemented},
		{"all.example.com", "/com.example/Login", codes.OK},
		{"all.example.com", "/org.example.Users/List", codes.OK},
	} {
		said, err := b.call(address, c.host, c.method)
		if got := status.Code(err); got != c.want {
			b.Errorf("%s at %s: %v (%v), want %v", c.method, c.host, got, err, c.want)
		} else if err == nil && (!slices.Equal(said.Get("x-method"), []string{c.method}) || !strings.HasPrefix(strings.Join(said.Get("x-pod"), ""), "grpc-app-")) {
			b.Errorf("%s at %s was answered by %v", c.method, c.host, said)
		}
	}
}

func admits(b bench) {
	b.kubectl("apply", "-f", examples+"allowed.yaml")
	b.wait("gtw/shared", "condition=programmed")
	for section, want := range map[string]string{"all": "Accepted", "selected": "Accepted", "same": "NotAllowedByListeners"} {
		reason := fmt.Sprintf(`jsonpath={.status.parents[?(@.parentRef.sectionName==%q)].conditions[?(@.type=="Accepted")].reason}=%s`, section, want)
		b.kubectl("-n", "team-a", "wait", "httproute/visitor", "--for="+reason, patience)
	}
	b.kubectl("delete", "-f", examples+"allowed.yaml", patience)
}

func tellsWhy(b bench) {
	b.kubectl("patch", "gtw", "nginx-gateway", "--type=json", "-p",
		`[{"op":"add","path":"/spec/listeners/-","value":{"name":"https","protocol":"HTTPS","port":8443,"tls":{"certificateRefs":[{"name":"no-such-secret"}]}}}]`)
	b.wait("gtw/nginx-gateway", `jsonpath={.status.listeners[?(@.name=="https")].conditions[?(@.type=="ResolvedRefs")].reason}=InvalidCertificateRef`)
	b.shows([]string{"InvalidCertificateRef", "no-such-secret"}, "describe", "gtw", "nginx-gateway")
	b.until("an event tells why", func() bool {
		_, events, _ := strings.Cut(b.kubectl("describe", "gtw", "nginx-gateway"), "Events:")
		return strings.Contains(events, "Warning  InvalidCertificateRef") && strings.Contains(events, "no-such-secret")
	})
	b.kubectl("patch", "gtw", "nginx-gateway", "--type=json", "-p", `[{"op":"remove","path":"/spec/listeners/1"}]`)
	b.eventually("the sound listener", b.address("nginx-gateway")+":9090", "localhost", isWelcome)
}

// survives: the API server is down all the while; containers that end are started again by their node, on the volumes that they had.
func survives(b bench) {
	address := b.address("nginx-gateway") + ":9090"
	cluster := b.r.Cluster(0)
	if err := b.r.Stop(b.Context(), cluster.Name, "kube-apiserver"); err != nil {
		b.Fatal(err)
	}
	for _, victims := range []string{"fleetgate-system/fleetgate-*", "default/*nginx-gateway*"} {
		b.killed(victims)
		b.Logf("%s killed, without an API server: traffic is back %.2f s after the restart", victims, b.eventually("traffic", address, "localhost", isWelcome).Seconds())
	}
	if err := b.r.Start(b.Context(), cluster.Name, "kube-apiserver"); err != nil {
		b.Fatal(err)
	}
	b.until("the API server is back", func() bool { _, err := b.try("get", "--raw", "/readyz"); return err == nil })
	b.kubectl("wait", "--for=condition=Ready", "pod", "--all", "-A", patience)
}

// killed kills the containers of the pods of a pattern, and returns when their node has started them again.
func (b bench) killed(pods string) {
	b.Helper()
	if err := b.r.KillContainers(b.Context(), b.r.Cluster(0).Name, pods); err != nil {
		b.Fatal(err)
	}
}

func holdsClass(b bench) {
	b.kubectl("delete", "gc", "fleetgate", "--wait=false")
	b.shows([]string{"gateway-exists-finalizer.gateway.networking.k8s.io", "deletionTimestamp"}, "get", "gc", "fleetgate", "-o", "yaml")
	b.eventually("what a held class serves", b.address("nginx-gateway")+":9090", "localhost", isWelcome)
	b.kubectl("delete", "gtw", "nginx-gateway", patience)
	b.wait("gc/fleetgate", "delete")
}
