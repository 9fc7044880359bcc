// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reporter writes a pod's status, newest first, and in the end removes the pod. It keeps trying, so the worker never waits for the API server.
type reporter struct {
	k    *kubelet
	wake chan struct{}
	// gone is closed when the API server has the pod no more.
	gone chan struct{}
	once sync.Once

	mu       sync.Mutex
	pod      *v1.Pod // the newest version known
	want     *v1.PodStatus
	removing bool
}

func newReporter(k *kubelet, pod *v1.Pod) *reporter {
	return &reporter{k: k, pod: pod, wake: make(chan struct{}, 1), gone: make(chan struct{})}
}

func (r *reporter) update(pod *v1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pod = pod
}

func (r *reporter) status(s v1.PodStatus) {
	r.mu.Lock()
	r.want = &s
	r.mu.Unlock()
	r.poke()
}

// remove says that nothing of the pod is left, so that it can be deleted after its last status.
func (r *reporter) remove() {
	r.mu.Lock()
	r.removing = true
	r.mu.Unlock()
	r.poke()
}

func (r *reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// forget says that the pod is gone.
func (r *reporter) forget() { r.once.Do(func() { close(r.gone) }) }

func (r *reporter) isGone() bool {
	select {
	case <-r.gone:
		return true
	default:
		return false
	}
}

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

func (r *reporter) loop(ctx context.Context) {
	pause := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.gone:
			return
		case <-r.wake:
		}
		err := r.write(ctx)
		if err == nil {
			pause = firstRetry
			continue
		}
		if ctx.Err() != nil {
			return
		}
		r.k.Log.Warn("cannot report a pod, trying again", "namespace", r.pod.Namespace, "pod", r.pod.Name, "error", err)
		if !wait(ctx, pause) {
			return
		}
		pause = min(2*pause, lastRetry)
		r.poke()
	}
}

// write writes what there is to write.
func (r *reporter) write(ctx context.Context) error {
	r.mu.Lock()
	pod, want, removing := r.pod, r.want, r.removing
	r.mu.Unlock()
	if want != nil {
		if err := r.writeStatus(ctx, pod, want); err != nil || r.isGone() {
			return err
		}
	}
	if removing {
		return r.delete(ctx, pod)
	}
	return nil
}

func (r *reporter) writeStatus(ctx context.Context, pod *v1.Pod, want *v1.PodStatus) error {
	pods := r.k.client.CoreV1().Pods(pod.Namespace)
	next := pod.DeepCopy()
	next.Status = mergeStatus(pod.Status, *want)
	written, err := pods.UpdateStatus(ctx, next, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		var fresh *v1.Pod
		if fresh, err = pods.Get(ctx, pod.Name, metav1.GetOptions{}); err == nil && fresh.UID == pod.UID {
			next = fresh.DeepCopy()
			next.Status = mergeStatus(fresh.Status, *want)
			written, err = pods.UpdateStatus(ctx, next, metav1.UpdateOptions{})
		} else if err == nil {
			r.forget()
			return nil
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		r.forget()
		return nil
	case apierrors.IsInvalid(err): // trying again cannot help
		r.k.Log.Error("the API server refuses a pod's status", "namespace", pod.Namespace, "pod", pod.Name, "error", err)
	case err != nil:
		return fmt.Errorf("writing the status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if written != nil && err == nil && r.pod == pod {
		r.pod = written
	}
	if r.want == want {
		r.want = nil
	}
	return nil
}

// own are the conditions that a kubelet writes; others belong to others.
var own = map[v1.PodConditionType]bool{v1.PodReadyToStartContainers: true, v1.PodInitialized: true, v1.ContainersReady: true, v1.PodReady: true, v1.PodScheduled: true}

// mergeStatus is the wanted status with what others wrote since kept.
func mergeStatus(now, want v1.PodStatus) v1.PodStatus {
	merged := *want.DeepCopy()
	merged.QOSClass, merged.NominatedNodeName = now.QOSClass, now.NominatedNodeName
	merged.Conditions = nil
	for _, c := range now.Conditions {
		if !own[c.Type] {
			merged.Conditions = append(merged.Conditions, c)
		}
	}
	for _, c := range want.Conditions {
		if own[c.Type] {
			merged.Conditions = append(merged.Conditions, c)
		}
	}
	return merged
}

// delete removes the pod for good, and never another one of the same name.
func (r *reporter) delete(ctx context.Context, pod *v1.Pod) error {
	none := int64(0)
	options := metav1.DeleteOptions{GracePeriodSeconds: &none, Preconditions: &metav1.Preconditions{UID: &pod.UID}}
	err := r.k.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, options)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		r.forget()
		return nil
	}
	return fmt.Errorf("deleting pod %s/%s: %w", pod.Namespace, pod.Name, err)
}
