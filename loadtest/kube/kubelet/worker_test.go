// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
)

func kubeletForTest(t *testing.T, client *fake.Clientset) *kubelet {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	k := &kubelet{
		Options: Options{NodeName: "n", NodeIP: "10.10.0.1", Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)},
		ctx:     ctx, client: client, recorder: &record.FakeRecorder{}, workers: map[types.UID]*worker{},
	}
	t.Cleanup(func() {
		cancel()
		k.jobs.Wait()
	})
	return k
}

// TestAPodThatGoesWhileItsVolumesAreMadeLeavesNoFiles: what asks for a token when the pod is gone makes no volumes in its place any more.
func TestAPodThatGoesWhileItsVolumesAreMadeLeavesNoFiles(t *testing.T) {
	client := fake.NewClientset()
	asked, answer := make(chan struct{}), make(chan struct{})
	client.PrependReactor("create", "serviceaccounts", func(clienttesting.Action) (bool, runtime.Object, error) {
		asked <- struct{}{}
		<-answer
		return true, nil, errors.New("nobody waits for an answer")
	})
	k := kubeletForTest(t, client)
	for range 20 { // the two may come in the right order by chance
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "u"}, Spec: v1.PodSpec{HostNetwork: true, Volumes: []v1.Volume{
			{Name: "token", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}}}}}},
			{Name: "empty", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		}}}
		k.take(pod)
		w := k.worker(pod.UID)
		<-asked
		w.vanish()
		<-w.ctx.Done()
		answer <- struct{}{}
		k.jobs.Wait()
		if _, err := os.Stat(k.place(pod.UID)); !os.IsNotExist(err) {
			t.Fatalf("the files of a pod that is gone are still there: %v", err)
		}
	}
}

// TestAPodInThePlaceOfAnotherEndsIt: after a gap in a watch, a pod that was deleted and made anew under its name comes as a change of the old one.
func TestAPodInThePlaceOfAnotherEndsIt(t *testing.T) {
	k := kubeletForTest(t, fake.NewClientset())
	pod := func(uid types.UID) *v1.Pod {
		// A pod whose volumes never come: it waits.
		return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: uid}, Spec: v1.PodSpec{HostNetwork: true, Volumes: []v1.Volume{{Name: "none"}}}}
	}
	k.podHandler().OnAdd(pod("old"), false)
	old := k.worker("old")
	k.podHandler().OnUpdate(pod("old"), pod("new"))
	if !old.report.isGone() {
		t.Error("the pod that was deleted runs on")
	}
	if k.worker("new") == nil {
		t.Error("the new pod does not run")
	}
}
