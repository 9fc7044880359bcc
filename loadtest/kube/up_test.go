// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fleetgate/fleetgate/loadtest/kube/build"
	"github.com/fleetgate/fleetgate/loadtest/kube/kubelet"
	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

func upForTest(t *testing.T, o rig.Options) *rig.Rig {
	t.Helper()
	if testing.Short() {
		t.Skip("starts Kubernetes clusters, and builds Kubernetes the first time")
	}
	if o.Images == nil {
		o.Images = kubelet.Images{} // no pods here
	}
	o, err := build.Options(t.Context(), o, os.Stderr)
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
	return r
}

func clientConfig(t *testing.T, kubeconfig string) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// TestClusters: what every user of a rig leans on.
func TestClusters(t *testing.T) {
	r := upForTest(t, rig.Options{Dir: t.TempDir(), Clusters: 2, Channel: "experimental", Audit: true})
	t.Run("each cluster has the CRDs of the channel", func(t *testing.T) {
		for _, c := range r.State().Clusters {
			hasExperimentalKinds(t, clientConfig(t, c.Kubeconfig))
		}
	})
	t.Run("each cluster has its own authority: the credentials of one are nobody in the other", func(t *testing.T) {
		config := clientConfig(t, r.Cluster(0).Kubeconfig)
		config.Host, config.Insecure, config.CAData = r.Cluster(1).Server, true, nil
		if _, err := kubernetes.NewForConfigOrDie(config).CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
			t.Errorf("c2 answers an admin of c1 with: %v", err)
		}
	})
	t.Run("RBAC is on", func(t *testing.T) {
		config := clientConfig(t, r.Cluster(0).Kubeconfig)
		config.Impersonate.UserName = "alice"
		if _, err := kubernetes.NewForConfigOrDie(config).CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("alice, whom nobody has given a role, is answered: %v", err)
		}
	})
	t.Run("the network inside is reached by Dial", func(t *testing.T) { readsMetricsFromInside(t, r) })
	t.Run("commands run inside, with their exit codes and output", func(t *testing.T) { runsInside(t, r) })
	t.Run("an API server can be stopped and started, and keeps what it had", func(t *testing.T) { stopsAndStarts(t, r) })
	t.Run("changes are in the audit log", func(t *testing.T) {
		data, err := os.ReadFile(filepath.Join(r.Cluster(0).Dir, "audit.log"))
		if err != nil || !bytes.Contains(data, []byte(`"verb":"create"`)) {
			t.Errorf("%d bytes, %v", len(data), err)
		}
	})
}

func hasExperimentalKinds(t *testing.T, config *rest.Config) {
	list, err := discovery.NewDiscoveryClientForConfigOrDie(config).ServerResourcesForGroupVersion("gateway.networking.x-k8s.io/v1alpha1")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range list.APIResources {
		names = append(names, r.Name)
	}
	if !strings.Contains(strings.Join(names, " "), "xbackends") {
		t.Errorf("kinds of the experimental channel: %v", names)
	}
}

// readsMetricsFromInside asks the API server at the address that only exists inside.
func readsMetricsFromInside(t *testing.T, r *rig.Rig) {
	config := clientConfig(t, r.Cluster(1).NodeKubeconfig)
	config.Dial = r.Dial
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Get("https://" + r.Cluster(1).NodeIP.String() + ":6443/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK || !bytes.Contains(body, []byte("apiserver_request_total")) {
		t.Errorf("status %d, %d bytes, %v", answer.StatusCode, len(body), err)
	}
}

func runsInside(t *testing.T, r *rig.Rig) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	code, err := r.Run(t.Context(), rig.Command{
		Args: []string{"sh", "-c", "kubectl --context c2 get namespace kube-system -o name; exit 7"}, Env: environment(r.State()), Stdout: write, Stderr: os.Stderr,
	})
	if err := errors.Join(err, write.Close()); err != nil || code != 7 {
		t.Errorf("exit code %d, %v", code, err)
	}
	if out, err := io.ReadAll(read); err != nil || string(out) != "namespace/kube-system\n" {
		t.Errorf("output %q, %v", out, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = started.Read(make([]byte, 1))
		cancel()
	}()
	if _, err := r.Run(ctx, rig.Command{Args: []string{"sh", "-c", "echo; sleep 1000"}, Stdout: write}); !errors.Is(err, context.Canceled) {
		t.Errorf("a command whose context ended returned %v", err)
	}
	write.Close()
	// Whoever is killed closes the pipe.
	if _, err := io.ReadAll(started); err != nil {
		t.Error(err)
	}
}

func stopsAndStarts(t *testing.T, r *rig.Rig) {
	client := kubernetes.NewForConfigOrDie(clientConfig(t, r.Cluster(0).Kubeconfig))
	before, err := client.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(t.Context(), "c1", "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{}); err == nil {
		t.Error("a stopped API server answers")
	}
	if err := r.Start(t.Context(), "c1", "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	for {
		after, err := client.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{})
		if err == nil {
			if after.UID != before.UID {
				t.Errorf("after a restart kube-system has uid %s, before %s", after.UID, before.UID)
			}
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// TestKilledClustersLeaveNothing: whatever kill -9 hits, no process survives, and the directory can be used again.
func TestKilledClustersLeaveNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rig")
	r := upForTest(t, rig.Options{Dir: dir, Clusters: 1, Channel: "none"})
	apiServer := processOf(t, "--bind-address=10.10.0.1", dir)
	if _, err := rig.Up(t.Context(), rig.Options{Dir: dir, Clusters: 1}); err == nil || !strings.Contains(err.Error(), "already up") {
		t.Errorf("a second start in the same directory: %v", err)
	}
	if err := syscall.Kill(r.State().Init.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(); err == nil {
		t.Error("the first process says that it ended well")
	}
	if err := syscall.Kill(apiServer, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the API server is still there: %v", err)
	}
	if _, err := rig.Attach(dir); !errors.Is(err, rig.ErrNone) {
		t.Errorf("attaching to killed clusters: %v", err)
	}
	again := upForTest(t, rig.Options{Dir: dir, Clusters: 1, Channel: "none"})
	if _, err := rig.Attach(dir); err != nil {
		t.Error(err)
	}
	if err := again.Down(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
}

// processOf finds the process whose command line contains all of these.
func processOf(t *testing.T, parts ...string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil {
			continue // ended since
		}
		found := true
		for _, p := range parts {
			found = found && bytes.Contains(line, []byte(p))
		}
		var pid int
		if found {
			for _, d := range filepath.Base(filepath.Dir(f)) {
				pid = 10*pid + int(d-'0')
			}
			return pid
		}
	}
	t.Fatalf("no process with %q", parts)
	return 0
}
