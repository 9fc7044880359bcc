// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// state is what is known of one container of a pod.
type state struct {
	running bool
	// started says that the container runs, its postStart hook is over and its startup probe has passed; ready that its readiness probe passes.
	started, ready bool
	startedAt      time.Time
	id             string
	restarts       int32
	// ended is how the last run ended, nil if there was none; before is how the one before it did.
	ended, before *v1.ContainerStateTerminated
	// failures counts runs, or attempts at one, since the last that went well for resetAfter; the next attempt is not made before notBefore.
	failures  int
	notBefore time.Time
	// reason and message say why a container that does not run is waiting.
	reason, message string
}

// The back-off between restarts is the one that Kubernetes' feature ReduceDefaultCrashLoopBackOffDecay has, since a local cluster is there to try things: at once, then
// 1 s, 2 s, ... 60 s.
const (
	firstBackOff = time.Second
	lastBackOff  = time.Minute
	resetAfter   = 10 * time.Minute
)

func backOff(failures int) time.Duration {
	if failures <= 1 {
		return 0
	}
	return min(lastBackOff, firstBackOff<<min(failures-2, 10))
}

// plan is what to do next for a pod.
type plan struct {
	start []*v1.Container
	// wake is when to decide again although nothing happens; zero is never.
	wake time.Time
	// phase is the phase of a pod whose main containers all have ended for good, else empty.
	phase v1.PodPhase
}

// decide says what to start, after the rules for init containers, sidecars (init containers with restartPolicy Always) and restart policies.
func decide(pod *v1.Pod, states map[string]*state, now time.Time) plan {
	var p plan
	if p.phase = outcome(pod, states); p.phase != "" {
		return p
	}
	initialized := initialized(pod, states)
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		s := states[c.Name]
		if initialized && !sidecar(c) {
			continue
		}
		if !s.running && restarts(pod, c, s) {
			p.attempt(c, s, now)
		}
		if !initialized && !passed(c, s) {
			return p
		}
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if s := states[c.Name]; !s.running && restarts(pod, c, s) {
			p.attempt(c, s, now)
		}
	}
	return p
}

func (p *plan) attempt(c *v1.Container, s *state, now time.Time) {
	if !now.Before(s.notBefore) {
		p.start = append(p.start, c)
	} else if p.wake.IsZero() || s.notBefore.Before(p.wake) {
		p.wake = s.notBefore
	}
}

func sidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// passed says that the next init container, or the main containers, may start.
func passed(c *v1.Container, s *state) bool {
	if sidecar(c) {
		return s.running && s.started
	}
	return !s.running && s.ended != nil && s.ended.ExitCode == 0
}

// initialized says that the init containers are over: they are not run again although a sidecar may be down just now.
func initialized(pod *v1.Pod, states map[string]*state) bool {
	for i := range pod.Spec.Containers {
		if s := states[pod.Spec.Containers[i].Name]; s.running || s.ended != nil {
			return true
		}
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; !passed(c, states[c.Name]) {
			return false
		}
	}
	return true
}

// restarts says whether a container that does not run shall (again).
func restarts(pod *v1.Pod, c *v1.Container, s *state) bool {
	if s.ended == nil {
		return true
	}
	policy := pod.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = v1.RestartPolicy(*c.RestartPolicy)
	}
	if isInit(pod, c) && !sidecar(c) && policy == v1.RestartPolicyAlways {
		policy = v1.RestartPolicyOnFailure
	}
	return policy == v1.RestartPolicyAlways || policy == v1.RestartPolicyOnFailure && s.ended.ExitCode != 0
}

func isInit(pod *v1.Pod, c *v1.Container) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == c.Name {
			return true
		}
	}
	return false
}

// outcome is Succeeded or Failed where nothing of the pod will run again, else empty.
func outcome(pod *v1.Pod, states map[string]*state) v1.PodPhase {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if s := states[c.Name]; !sidecar(c) && !s.running && s.ended != nil && s.ended.ExitCode != 0 && !restarts(pod, c, s) {
			return v1.PodFailed
		}
	}
	phase := v1.PodSucceeded
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		s := states[c.Name]
		if s.running || s.ended == nil || restarts(pod, c, s) {
			return ""
		}
		if s.ended.ExitCode != 0 {
			phase = v1.PodFailed
		}
	}
	return phase
}

// view is what the status of a pod is made of beside the pod itself.
type view struct {
	states       map[string]*state
	networkReady bool
	podIP, node  string
	started      metav1.Time
	stopped      bool // everything has ended, for good
}

// podStatus is the status of a pod. What is not the kubelet's to say is kept.
func podStatus(pod *v1.Pod, v view, now metav1.Time) v1.PodStatus {
	status := *pod.Status.DeepCopy()
	status.ObservedGeneration = pod.Generation
	status.Phase = phase(pod, v)
	status.HostIP, status.HostIPs = v.node, []v1.HostIP{{IP: v.node}}
	if v.podIP != "" {
		status.PodIP, status.PodIPs = v.podIP, []v1.PodIP{{IP: v.podIP}}
	}
	status.StartTime = &v.started
	status.InitContainerStatuses = containerStatuses(pod, pod.Spec.InitContainers, v)
	status.ContainerStatuses = containerStatuses(pod, pod.Spec.Containers, v)
	for _, c := range podConditions(pod, v, status.Phase) {
		status.Conditions = setCondition(status.Conditions, c, now)
	}
	return status
}

func phase(pod *v1.Pod, v view) v1.PodPhase {
	if p := outcome(pod, v.states); p != "" {
		return p
	}
	for i := range pod.Spec.Containers {
		s := v.states[pod.Spec.Containers[i].Name]
		if !s.running && s.ended == nil && s.restarts == 0 {
			if v.stopped {
				return v1.PodFailed // it was deleted before it ran
			}
			return v1.PodPending
		}
	}
	if v.stopped {
		for i := range pod.Spec.Containers {
			if s := v.states[pod.Spec.Containers[i].Name]; s.ended != nil && s.ended.ExitCode != 0 {
				return v1.PodFailed
			}
		}
		return v1.PodSucceeded
	}
	return v1.PodRunning
}

func containerStatuses(pod *v1.Pod, containers []v1.Container, v view) []v1.ContainerStatus {
	var out []v1.ContainerStatus
	for i := range containers {
		c := &containers[i]
		s := v.states[c.Name]
		started := s.running && s.started
		status := v1.ContainerStatus{
			Name: c.Name, Image: c.Image, ImageID: c.Image, ContainerID: s.id, RestartCount: s.restarts, Started: &started,
			Ready: started && s.ready,
		}
		if isInit(pod, c) && !sidecar(c) {
			status.Ready = passed(c, s)
		}
		status.State, status.LastTerminationState = containerState(pod, c, s)
		out = append(out, status)
	}
	return out
}

func containerState(pod *v1.Pod, c *v1.Container, s *state) (now, last v1.ContainerState) {
	switch {
	case s.running:
		return v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.NewTime(s.startedAt)}}, v1.ContainerState{Terminated: s.ended}
	case s.reason != "":
		return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: s.reason, Message: s.message}}, v1.ContainerState{Terminated: s.ended}
	case s.ended != nil:
		return v1.ContainerState{Terminated: s.ended}, v1.ContainerState{Terminated: s.before}
	}
	reason := "ContainerCreating"
	if len(pod.Spec.InitContainers) > 0 {
		reason = "PodInitializing"
	}
	return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}, v1.ContainerState{}
}

func podConditions(pod *v1.Pod, v view, phase v1.PodPhase) []v1.PodCondition {
	condition := func(kind v1.PodConditionType, reason, message string) v1.PodCondition {
		c := v1.PodCondition{Type: kind, Status: v1.ConditionTrue, ObservedGeneration: pod.Generation}
		if reason != "" {
			c.Status, c.Reason, c.Message = v1.ConditionFalse, reason, message
		}
		return c
	}
	network := ""
	if !v.networkReady {
		network = "NoNetwork"
	}
	waiting := ""
	if !initialized(pod, v.states) {
		waiting = "ContainersNotInitialized"
	}
	reason, message := unready(pod, v, phase)
	gate, why := reason, message
	if gate == "" {
		gate, why = closedGate(pod)
	}
	return []v1.PodCondition{
		condition(v1.PodReadyToStartContainers, network, ""), condition(v1.PodInitialized, waiting, ""),
		condition(v1.ContainersReady, reason, message), condition(v1.PodReady, gate, why), condition(v1.PodScheduled, "", ""),
	}
}

// unready says why not all containers are ready, with an empty reason where they are.
func unready(pod *v1.Pod, v view, phase v1.PodPhase) (reason, message string) {
	if phase == v1.PodSucceeded {
		return "PodCompleted", ""
	}
	if phase == v1.PodFailed || v.stopped {
		return "PodFailed", ""
	}
	var names []string
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; sidecar(c) && !v.states[c.Name].serves() {
			names = append(names, c.Name)
		}
	}
	for i := range pod.Spec.Containers {
		if name := pod.Spec.Containers[i].Name; !v.states[name].serves() {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "", ""
	}
	return "ContainersNotReady", fmt.Sprintf("containers with unready status: %v", names)
}

func (s *state) serves() bool { return s.running && s.started && s.ready }

func closedGate(pod *v1.Pod) (reason, message string) {
	for _, gate := range pod.Spec.ReadinessGates {
		open := false
		for _, c := range pod.Status.Conditions {
			open = open || c.Type == gate.ConditionType && c.Status == v1.ConditionTrue
		}
		if !open {
			return "ReadinessGatesNotReady", fmt.Sprintf("readiness gate %s is not true", gate.ConditionType)
		}
	}
	return "", ""
}

func setCondition(conditions []v1.PodCondition, c v1.PodCondition, now metav1.Time) []v1.PodCondition {
	c.LastTransitionTime = now
	for i, old := range conditions {
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		conditions[i] = c
		return conditions
	}
	return append(conditions, c)
}
