// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/container"
	"github.com/fleetgate/fleetgate/loadtest/kube/kubelet"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// patience is what kubectl waits at most, on a machine that is busy with other things.
const patience = "--timeout=4m"

// podRig is a cluster with the pods of testdata/pods.yaml.
type podRig struct {
	*testing.T
	r       *rig.Rig
	cluster rig.Cluster
}

func (p podRig) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.Context(), filepath.Join(p.r.State().Binaries, "kubectl"), append([]string{"--kubeconfig", p.cluster.Kubeconfig}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// kubectl runs kubectl and returns its output.
func (p podRig) kubectl(args ...string) string {
	p.Helper()
	out, err := p.command(args...).Output()
	if err != nil {
		p.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (p podRig) wait(what, until string) {
	p.Helper()
	p.kubectl("wait", what, "--for="+until, patience)
}

func (p podRig) expect(got, want string) {
	p.Helper()
	if got != want {
		p.Errorf("got %q, want %q", got, want)
	}
}

// get fetches a page over the rig's own network.
func (p podRig) get(address string) string {
	p.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) { return p.r.Dial(ctx, network, address) }}}
	response, err := client.Get("http://pod/")
	if err != nil {
		p.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		p.Fatal(err)
	}
	if !strings.Contains(string(body), "Welcome to nginx!") {
		p.Errorf("%s answers %d: %s", address, response.StatusCode, body)
	}
	return string(body)
}

// TestPods: what a node does, as those see it who use it.
func TestPods(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a Kubernetes cluster, and builds Kubernetes the first time")
	}
	pages, err := build.Own(t.Context(), "loadtest/kube/pages", "pages")
	if err != nil {
		t.Fatal(err)
	}
	images := kubelet.Images{"pages": {Binary: pages, Entrypoint: []string{"/pages"}}, "shell": {}}
	r := upForTest(t, rig.Options{Dir: t.TempDir(), Clusters: 1, Channel: "none", Images: images})
	p := podRig{t, r, r.Cluster(0)}
	p.kubectl("apply", "-f", "testdata/pods.yaml")
	for _, c := range []struct {
		name string
		test func(podRig)
	}{
		{"pods run when what they need has come", runs},
		{"files follow their ConfigMap", followsConfigMap},
		{"Services, names and load balancers lead to pods", isReached},
		{"a token tells who the pod is", hasIdentity},
		{"kubectl exec has exit codes, input and terminals", executes},
		{"kubectl port-forward reaches the pod", forwards},
		{"a container that ends is restarted, its last words and its log are kept", restarts},
		{"an unknown image is told, with those that are known", tellsUnknownImage},
		{"a container that is sick is restarted", healsSick},
		{"a pod is asked to end, and what it says last is heard", endsGracefully},
		{"a volume outlives its pod", keepsVolume},
		{"a job completes", completes},
		{"without an API server containers are restarted all the same", livesAlone},
		{"a deleted pod leaves nothing", leavesNothing},
	} {
		if !t.Run(c.name, func(t *testing.T) { c.test(podRig{t, r, r.Cluster(0)}) }) {
			t.Log(p.kubectl("get", "pods,events", "-A", "-o", "wide"))
		}
	}
}

// TestPodsOfOneUser: the same where clusters run in a user namespace that knows one user only, as they do for an ordinary user.
func TestPodsOfOneUser(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a Kubernetes cluster, and builds Kubernetes the first time")
	}
	if os.Geteuid() != 0 {
		t.Skip("TestPods has shown it: nobody but root has more than one user")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPods$", "-test.v")
	only := []syscall.SysProcIDMap{{Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: only, GidMappings: only, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestPods ") {
		t.Errorf("%v\n%s", err, out)
	}
}

func runs(p podRig) {
	user := "65532"
	if container.OneUser() {
		user = "0"
	}
	p.wait("deployment/web", "condition=Available")
	p.expect(p.kubectl("exec", "deploy/web", "-c", "web", "--", "sh", "-c", `cat /shared/order; cat /late/key; echo " $GREETING $SECRET $(id -u)"; touch /x 2>/dev/null || echo read-only; hostname`),
		"first\nbeside\nsecret hello secret "+user+"\nread-only\n"+p.kubectl("exec", "deploy/web", "-c", "web", "--", "printenv", "POD_NAME"))
}

func followsConfigMap(p podRig) {
	p.kubectl("patch", "configmap", "settings", "-p", `{"data":{"greeting":"bonjour","other":null,"new":"2"}}`)
	p.expect(p.kubectl("exec", "deploy/web", "-c", "web", "--", "sh", "-c", "until test -e /settings/new; do sleep 0.05; done; cat /settings/greeting; ls /settings"), "bonjourgreeting\nnew")
}

func isReached(p podRig) {
	p.wait("service/web", "jsonpath={.status.loadBalancer.ingress[0].ip}")
	p.get(p.kubectl("get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}") + ":8080")
	ip := p.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	p.get(ip + ":8080")
	p.wait("pod/db-0", "condition=Ready")
	p.expect(p.kubectl("exec", "ending", "--", "sh", "-c", "getent hosts web | cut -d' ' -f1; getent hosts db-0.db | cut -d' ' -f1; getent hosts no.such || echo none"),
		ip+"\n"+p.kubectl("get", "pod", "db-0", "-o", "jsonpath={.status.podIP}")+"\nnone")
}

func hasIdentity(p podRig) {
	token := p.kubectl("exec", "db-0", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
	client, err := kubernetes.NewForConfig(clientConfig(p.T, p.cluster.Kubeconfig))
	if err != nil {
		p.Fatal(err)
	}
	review, err := client.AuthenticationV1().TokenReviews().Create(p.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		p.Fatal(err)
	}
	p.expect(fmt.Sprint(review.Status.User.Username, review.Status.User.Extra["authentication.kubernetes.io/pod-name"]), "system:serviceaccount:default:default[db-0]")
}

func executes(p podRig) {
	err := p.command("exec", "db-0", "--", "sh", "-c", "exit 7").Run()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 7 {
		p.Errorf("exit 7: %v", err)
	}
	cmd := p.command("exec", "-i", "db-0", "--", "tr", "a-z", "A-Z")
	cmd.Stdin = strings.NewReader("spoken")
	out, err := cmd.Output()
	if err != nil || string(out) != "SPOKEN" {
		p.Errorf("got %q, %v", out, err)
	}
	p.expect(p.onTerminal("db-0", "until stty size | grep -q 80; do sleep 0.05; done; tty; stty size"), "/dev/pts/0\r\n24 80")
}

// onTerminal runs a script as `kubectl exec -it` does at a terminal of 80 columns, which a test has not.
func (p podRig) onTerminal(pod, script string) string {
	p.Helper()
	config := clientConfig(p.T, p.cluster.Kubeconfig)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		p.Fatal(err)
	}
	options := &v1.PodExecOptions{Command: []string{"sh", "-c", script}, Stdin: true, Stdout: true, TTY: true}
	url := client.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name(pod).SubResource("exec").VersionedParams(options, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, url)
	if err != nil {
		p.Fatal(err)
	}
	var out strings.Builder
	size := make(sizes, 1)
	size <- remotecommand.TerminalSize{Width: 80, Height: 24}
	read, write := io.Pipe() // a terminal without input, not at its end
	defer write.Close()
	if err := executor.StreamWithContext(p.Context(), remotecommand.StreamOptions{Stdin: read, Stdout: &out, Tty: true, TerminalSizeQueue: size}); err != nil {
		p.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

type sizes chan remotecommand.TerminalSize

// Next implements remotecommand.TerminalSizeQueue.
func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func forwards(p podRig) {
	cmd := p.command("port-forward", "pod/db-0", ":80")
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.Fatal(err)
	}
	address := strings.TrimPrefix(strings.Split(line, " -> ")[0], "Forwarding from ")
	response, err := http.Get("http://" + address + "/")
	if err != nil {
		p.Fatal(err)
	}
	defer response.Body.Close()
	p.expect(response.Header.Get("Server"), "pages (in place of nginx)")
}

func restarts(p podRig) {
	p.wait("pod/crash", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CrashLoopBackOff")
	p.expect(p.kubectl("get", "pod", "crash", "-o", "jsonpath={.status.containerStatuses[0].lastState.terminated['exitCode','message']}"), "3 why")
	p.expect(p.kubectl("logs", "-f", "crash"), "run") // to the end: it may have begun once more, and said nothing yet
	p.expect(p.kubectl("logs", "crash", "--previous"), "run")
}

func tellsUnknownImage(p podRig) {
	p.wait("pod/unknown", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImagePull")
	p.expect(p.kubectl("get", "pod", "unknown", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.message}"),
		`no image "example.com/no/such:v1": a local cluster pulls nothing, it knows pages, shell`)
}

func healsSick(p podRig) {
	p.wait("pod/sick", "condition=Ready")
	p.kubectl("exec", "sick", "--", "touch", "/tmp/sick")
	p.wait("pod/sick", "jsonpath={.status.containerStatuses[0].restartCount}=1")
	p.wait("pod/sick", "condition=Ready")
}

func endsGracefully(p podRig) {
	p.wait("pod/ending", "condition=Ready")
	logs := p.command("logs", "-f", "ending")
	out, err := logs.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	if err := logs.Start(); err != nil {
		p.Fatal(err)
	}
	reader := bufio.NewReader(out)
	if line, err := reader.ReadString('\n'); line != "up\n" {
		p.Errorf("got %q, %v", line, err)
	}
	p.kubectl("delete", "pod", "ending", patience)
	rest, err := io.ReadAll(reader)
	if err != nil {
		p.Error(err)
	}
	p.expect(string(rest), "preStop\nTERM\n")
	if err := logs.Wait(); err != nil {
		p.Error(err)
	}
}

func keepsVolume(p podRig) {
	p.kubectl("exec", "db-0", "--", "sh", "-c", "echo kept > /state/file")
	uid := p.kubectl("get", "pod", "db-0", "-o", "jsonpath={.metadata.uid}")
	p.kubectl("delete", "pod", "db-0", patience)
	p.kubectl("wait", "pod/db-0", "--for=create", patience)
	p.wait("pod/db-0", "condition=Ready")
	if p.kubectl("get", "pod", "db-0", "-o", "jsonpath={.metadata.uid}") == uid {
		p.Error("the pod is the same")
	}
	p.expect(p.kubectl("exec", "db-0", "--", "cat", "/state/file"), "kept")
}

func completes(p podRig) {
	p.wait("job/job", "condition=Complete")
	p.expect(p.kubectl("logs", "job/job"), "done")
}

// livesAlone kills a container by the number that the node has noted, while nobody can be asked or told.
func livesAlone(p podRig) {
	noted := filepath.Join(p.cluster.Dir, "kubelet", "pids", "default", "db-0", "db")
	before, err := os.ReadFile(noted)
	if err != nil {
		p.Fatal(err)
	}
	address := p.kubectl("get", "pod", "db-0", "-o", "jsonpath={.status.podIP}") + ":80"
	if err := p.r.Stop(p.Context(), p.cluster.Name, "kube-apiserver"); err != nil {
		p.Fatal(err)
	}
	// Waits inside for what the node writes down after a restart, and for the port.
	script := fmt.Sprintf("kill -9 %[1]s; until test \"$(cat %[2]s)\" != %[1]s; do sleep 0.05; done", strings.TrimSpace(string(before)), noted)
	if code, err := p.r.Run(p.Context(), rig.Command{Args: []string{"sh", "-c", script}}); code != 0 || err != nil {
		p.Fatalf("exit code %d, %v", code, err)
	}
	for {
		c, err := p.r.Dial(p.Context(), "tcp", address)
		if err == nil {
			c.Close()
			break
		}
		if p.Context().Err() != nil {
			p.Fatal(err)
		}
	}
	p.get(address)
	if err := p.r.Start(p.Context(), p.cluster.Name, "kube-apiserver"); err != nil {
		p.Fatal(err)
	}
	for !p.ready() { // each try takes its time
		if p.Context().Err() != nil {
			p.Fatal(p.Context().Err())
		}
	}
	p.wait("pod/db-0", "jsonpath={.status.containerStatuses[0].restartCount}=1")
}

func (p podRig) ready() bool {
	cmd := p.command("get", "--raw", "/readyz")
	cmd.Stderr = nil
	return cmd.Run() == nil
}

func leavesNothing(p podRig) {
	p.kubectl("delete", "deployment,statefulset,job,pod", "--all", patience)
	// The API server hears of it a moment before the last file is gone.
	script := fmt.Sprintf(`until test -z "$(find %[1]s/pods %[1]s/pids/default -mindepth 1; ip -o link | grep ': p[0-9a-f]*@')"; do sleep 0.05; done`, filepath.Join(p.cluster.Dir, "kubelet"))
	if code, err := p.r.Run(p.Context(), rig.Command{Args: []string{"sh", "-c", script}}); code != 0 || err != nil {
		p.Errorf("exit code %d, %v", code, err)
	}
}
