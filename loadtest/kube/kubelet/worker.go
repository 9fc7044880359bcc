// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fleetgate/fleetgate/loadtest/kube/container"
	"github.com/fleetgate/fleetgate/loadtest/kube/link"
)

// worker runs one pod. Everything that happens to the pod is a function in its queue, and one goroutine takes them out: its fields need no lock.
//
// It needs the API server only to begin (tokens). After that containers restart, are probed and stopped from what the worker knows; what it has to say goes to the
// reporter, which keeps trying.
type worker struct {
	k *kubelet
	// These three never change, and may be read by anybody.
	namespace, name string
	uid             types.UID

	pod   *v1.Pod
	queue chan func()
	// ctx ends when the kubelet ends or the pod is gone.
	ctx    context.Context
	cancel context.CancelFunc
	report *reporter

	network *link.Namespace
	ip      netip.Addr
	veth    string
	started metav1.Time

	volumes  *volumes
	places   map[string]string // of the volumes; nil until all are there
	mounting bool
	mounts   sync.WaitGroup // what writes volumes
	remount  bool           // something changed while mounting
	mountAt  time.Time      // when to mount again; zero is not before something changes
	mountBad int            // failures in a row

	states     map[string]*state
	containers map[string]*run
	attempts   map[string]int // of starts, which names logs

	// stopping, then drained (all were told to end and have), then stopped (and all is closed down).
	stopping, drained, stopped bool

	hurry    context.CancelFunc // ends the grace of a stop under way
	deadline time.Time          // of the stop under way
	last     *v1.PodStatus      // as reported
}

// run is one run of a container.
type run struct {
	process *container.Running
	log     *containerLog
	// kept is the log of the run before.
	kept   *containerLog
	cancel context.CancelFunc // of probes
}

func (k *kubelet) newWorker(pod *v1.Pod) *worker {
	ctx, cancel := context.WithCancel(k.ctx)
	w := &worker{
		k: k, namespace: pod.Namespace, name: pod.Name, uid: pod.UID, pod: pod, queue: make(chan func(), 16), ctx: ctx, cancel: cancel, started: metav1.Now(),
		states: map[string]*state{}, containers: map[string]*run{}, attempts: map[string]int{},
		volumes: &volumes{k: k, dir: filepath.Join(k.place(pod.UID), "volumes"), places: map[string]string{}, tokens: map[string]token{}},
	}
	w.report = newReporter(k, pod)
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			w.states[list[i].Name] = inherit(pod, list[i].Name)
		}
	}
	return w
}

// inherit continues from what an earlier run of the kubelet reported: its containers are gone. Pods that may restart begin anew, init containers included, as after a
// reboot of a node; of the others the ends are kept, since for them an end is final.
func inherit(pod *v1.Pod, name string) *state {
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, s := range list {
			if s.Name != name || s.State.Running == nil && s.State.Terminated == nil {
				continue
			}
			if pod.Spec.RestartPolicy == v1.RestartPolicyAlways {
				return &state{restarts: s.RestartCount + 1}
			}
			ended := s.State.Terminated
			if ended == nil {
				ended = &v1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown", Message: "the node was restarted", StartedAt: s.State.Running.StartedAt, ContainerID: s.ContainerID}
			}
			return &state{restarts: s.RestartCount, ended: ended}
		}
	}
	return &state{}
}

// post queues what happened; nothing happens any more once the worker has ended.
func (w *worker) post(f func()) {
	select {
	case w.queue <- f:
	case <-w.ctx.Done():
	}
}

// loop runs the pod until it is gone.
func (w *worker) loop() {
	defer w.cleanUp()
	defer w.cancel()
	w.k.jobs.Go(func() { w.report.loop(w.ctx) })
	for !w.report.isGone() {
		wake := w.step()
		select {
		case <-w.ctx.Done():
			return
		case f := <-w.queue:
			f()
		case <-w.report.gone:
		case <-after(wake):
		}
	}
}

func after(t time.Time) <-chan time.Time {
	if t.IsZero() {
		return nil
	}
	return time.After(time.Until(t))
}

// step does what is due and says when to look again, at the latest.
func (w *worker) step() time.Time {
	now := time.Now()
	var wake time.Time
	switch {
	case w.stopped || w.stopping:
	case w.pod.DeletionTimestamp != nil:
		w.stop(grace(w.pod))
	default:
		wake = w.advance(now)
	}
	w.tell()
	return wake
}

func grace(pod *v1.Pod) time.Duration {
	if pod.DeletionGracePeriodSeconds != nil {
		return time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
	}
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		return time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
	}
	return 30 * time.Second
}

// advance takes a pod that shall run further towards running.
func (w *worker) advance(now time.Time) time.Time {
	if w.network == nil {
		if err := w.connect(); err != nil {
			w.k.event(w.pod, v1.EventTypeWarning, "FailedCreatePodSandBox", err.Error())
			return now.Add(time.Second)
		}
	}
	if !w.mounting && (w.remount || !w.mountAt.IsZero() && !now.Before(w.mountAt) || w.places == nil && w.mountAt.IsZero()) {
		w.mount()
	}
	if w.places == nil {
		return w.mountAt
	}
	p := decide(w.pod, w.states, now)
	if p.phase != "" {
		w.stop(grace(w.pod)) // sidecars may run still
		return time.Time{}
	}
	for _, c := range p.start {
		w.start(c)
	}
	if len(p.start) > 0 {
		p = decide(w.pod, w.states, now) // a start that failed waits for its back-off
	}
	return earliest(p.wake, w.mountAt)
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// connect gives the pod its network, or that of the node where it asks for it.
func (w *worker) connect() error {
	if w.pod.Spec.HostNetwork {
		ns, err := link.Current()
		if err != nil {
			return err
		}
		w.network, w.ip = ns, w.k.nodeIP
		return nil
	}
	ip, err := w.k.addresses.take()
	if err != nil {
		return err
	}
	ns, veth, err := w.k.connect(ip, w.pod)
	if err != nil {
		w.k.addresses.giveBack(ip)
		return err
	}
	w.network, w.ip, w.veth = ns, ip, veth
	return nil
}

// mount makes or refreshes the volumes beside the loop, since tokens come from the API server.
func (w *worker) mount() {
	w.mounting, w.remount, w.mountAt = true, false, time.Time{}
	pod := w.seen()
	w.mounts.Go(func() {
		err := w.volumes.mount(w.ctx, pod)
		places := map[string]string{}
		for name, place := range w.volumes.places {
			places[name] = place
		}
		renewal, due := w.volumes.renewal()
		w.post(func() { w.mounted(places, err, renewal, due) })
	})
}

func (w *worker) mounted(places map[string]string, err error, renewal time.Time, due bool) {
	w.mounting = false
	if err != nil {
		w.mountBad++
		w.mountAt = time.Now().Add(min(5*time.Second, 100*time.Millisecond<<min(w.mountBad, 6)))
		if w.mountBad > 2 { // what comes with the pod, in whatever order, is no failure
			w.k.event(w.pod, v1.EventTypeWarning, "FailedMount", err.Error())
		}
		return
	}
	w.mountBad, w.places = 0, places
	if due {
		w.mountAt = later(renewal, time.Now().Add(10*time.Second))
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// seen is the pod as its containers see it.
func (w *worker) seen() *v1.Pod {
	pod := w.pod.DeepCopy()
	pod.Status.HostIP = w.k.NodeIP
	if w.ip.IsValid() {
		pod.Status.PodIP = w.ip.String()
	}
	return pod
}

// update takes a newer version of the pod.
func (w *worker) update(pod *v1.Pod) {
	w.post(func() {
		w.pod = pod
		w.report.update(pod)
		if w.stopping && pod.DeletionTimestamp != nil && time.Now().Add(grace(pod)).Before(w.deadline) {
			w.deadline = time.Now().Add(grace(pod))
			hurry := w.hurry
			time.AfterFunc(grace(pod), hurry)
		}
		if w.places != nil {
			w.remount = true // labels and annotations may be in files
		}
	})
}

// changed says that an object that the pod may read has changed: what waits for it is tried at once.
func (w *worker) changed() {
	w.post(func() {
		w.remount = true
		for _, s := range w.states {
			if s.reason == reasonConfig {
				s.notBefore = time.Time{}
			}
		}
	})
}

// vanish says that the API server knows the pod no more: it ends without grace and without a report.
func (w *worker) vanish() {
	w.report.forget()
	w.post(func() {})
}

// tell reports the status where it has changed.
func (w *worker) tell() {
	v := view{states: w.states, networkReady: w.network != nil, node: w.k.NodeIP, started: w.started, stopped: w.stopped}
	if w.ip.IsValid() {
		v.podIP = w.ip.String()
	}
	status := podStatus(w.pod, v, metav1.Now().Rfc3339Copy())
	if w.last == nil || !equality.Semantic.DeepEqual(*w.last, status) {
		w.last = &status
		w.report.status(status)
	}
	if w.stopped && w.pod.DeletionTimestamp != nil {
		w.report.remove()
	}
}

// stop ends all containers, sidecars last, and then the network. The pod runs no more after that.
func (w *worker) stop(grace time.Duration) {
	w.stopping, w.deadline = true, time.Now().Add(grace)
	ctx, cancel := context.WithCancel(w.ctx)
	w.hurry = cancel
	time.AfterFunc(grace, cancel)
	var mains, sidecars []func()
	for i := range w.pod.Spec.InitContainers {
		if c := &w.pod.Spec.InitContainers[i]; w.states[c.Name].running {
			sidecars = append(sidecars, w.stopper(ctx, c))
		}
	}
	for i := range w.pod.Spec.Containers {
		if c := &w.pod.Spec.Containers[i]; w.states[c.Name].running {
			mains = append(mains, w.stopper(ctx, c))
		}
	}
	w.k.jobs.Go(func() {
		defer cancel()
		var group sync.WaitGroup
		for _, stop := range mains {
			group.Go(stop)
		}
		group.Wait()
		for i := len(sidecars) - 1; i >= 0; i-- {
			sidecars[i]()
		}
		w.post(func() { w.drained = true; w.settle() })
	})
}

// settle closes the pod down once all containers were stopped and the news of each one's end has come.
func (w *worker) settle() {
	if !w.drained {
		return
	}
	for _, s := range w.states {
		if s.running {
			return
		}
	}
	w.stopped = true
	w.disconnect()
	w.forgetPIDs()
}

// stopper returns what stops a container: the preStop hook, SIGTERM, and at the end of ctx SIGKILL.
func (w *worker) stopper(ctx context.Context, c *v1.Container) func() {
	r := w.containers[c.Name]
	t := w.target(c, r)
	w.k.event(w.pod, v1.EventTypeNormal, "Killing", "Stopping container "+c.Name)
	return func() {
		if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
			if err := t.hook(ctx, c.Lifecycle.PreStop); err != nil && ctx.Err() == nil {
				w.k.event(w.pod, v1.EventTypeWarning, "FailedPreStopHook", err.Error())
			}
		}
		r.process.Signal(syscall.SIGTERM)
		select {
		case <-r.process.Done():
		case <-ctx.Done():
			r.process.Kill()
			<-r.process.Done()
		}
	}
}

func (w *worker) disconnect() {
	if w.network == nil {
		return
	}
	if w.veth != "" {
		if err := link.Remove(w.veth); err != nil {
			w.k.Log.Error("cannot remove a pod's network", "namespace", w.pod.Namespace, "pod", w.pod.Name, "error", err)
		}
		w.k.addresses.giveBack(w.ip)
	}
	_ = w.network.Close() // the handle only
	w.network, w.veth = nil, ""
}

// cleanUp ends what still runs and removes what the pod leaves, its emptyDirs only with the pod itself.
func (w *worker) cleanUp() {
	for _, r := range w.containers {
		r.cancel()
		r.process.Kill()
		<-r.process.Done()
	}
	w.mounts.Wait()
	w.disconnect()
	w.forgetPIDs()
	w.k.forget(w)
	if w.report.isGone() {
		if err := os.RemoveAll(w.k.place(w.pod.UID)); err != nil {
			w.k.Log.Error("cannot remove a pod's files", "namespace", w.pod.Namespace, "pod", w.pod.Name, "error", err)
		}
	}
}

func (w *worker) target(c *v1.Container, r *run) target {
	return target{container: c, ip: w.ip.String(), exec: func(ctx context.Context, args []string) error { return quietly(ctx, r.process, args) }}
}

// quietly runs a command in a container for its exit code; its output goes into the error.
func quietly(ctx context.Context, c *container.Running, args []string) error {
	out, err := os.CreateTemp("", "exec")
	if err != nil {
		return fmt.Errorf("running a command: %w", err)
	}
	defer func() { _ = out.Close() }()
	_ = os.Remove(out.Name()) // the open file stays
	command, err := c.Exec(args, container.Stdio{Out: out, Err: out})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		command.Kill()
		return fmt.Errorf("command timed out: %w", ctx.Err())
	case <-command.Done():
	}
	if exit := command.Exit(); exit.Code != 0 {
		text := make([]byte, 1024)
		n, _ := out.ReadAt(text, 0) // only to tell
		return fmt.Errorf("command ended with exit code %d: %s", exit.Code, text[:n])
	}
	return nil
}
