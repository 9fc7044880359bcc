// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// parsePod makes a pod of words such as "init:a side:s main:c", with a restart policy.
func parsePod(policy v1.RestartPolicy, containers string) *v1.Pod {
	always := v1.ContainerRestartPolicyAlways
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: v1.PodSpec{RestartPolicy: policy}}
	for _, word := range strings.Fields(containers) {
		kind, name, _ := strings.Cut(word, ":")
		switch kind {
		case "init":
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, v1.Container{Name: name})
		case "side":
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, v1.Container{Name: name, RestartPolicy: &always})
		case "main":
			pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: name})
		}
	}
	return pod
}

// parseStates makes states of words such as "a=0 s=ready c=run d=3 e=wait": an exit code, ready, running but not started, running but not ready, or not begun.
func parseStates(pod *v1.Pod, words string) map[string]*state {
	states := map[string]*state{}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			states[c.Name] = &state{}
		}
	}
	for _, word := range strings.Fields(words) {
		name, what, _ := strings.Cut(word, "=")
		s := states[name]
		switch what {
		case "ready":
			s.running, s.started, s.ready = true, true, true
		case "unready":
			s.running, s.started = true, true
		case "run":
			s.running = true
		default:
			var code int32
			if _, err := fmt.Sscan(strings.TrimSuffix(what, "!"), &code); err != nil {
				panic(err) // a test that is wrong
			}
			s.ended = &v1.ContainerStateTerminated{ExitCode: code}
			if strings.HasSuffix(what, "!") { // its back-off runs
				s.notBefore = now.Add(time.Second)
			}
		}
	}
	return states
}

func TestDecide(t *testing.T) {
	const always, failure, never = v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever
	for name, c := range map[string]struct {
		policy             v1.RestartPolicy
		containers, states string
		start              string
		wakes              bool
		phase, shown       v1.PodPhase
	}{
		"main containers wait for each other":               {policy: always, containers: "main:a main:b", start: "a b", shown: v1.PodPending},
		"main containers start before init containers":      {policy: always, containers: "init:i init:j main:a", start: "i", shown: v1.PodPending},
		"an init container starts beside the one before":    {policy: always, containers: "init:i init:j main:a", states: "i=run", shown: v1.PodPending},
		"the second init container never starts":            {policy: always, containers: "init:i init:j main:a", states: "i=0", start: "j", shown: v1.PodPending},
		"a failed init container is passed":                 {policy: always, containers: "init:i main:a", states: "i=1", start: "i", shown: v1.PodPending},
		"a failed init container of Never is tried again":   {policy: never, containers: "init:i main:a", states: "i=1", phase: v1.PodFailed, shown: v1.PodFailed},
		"main containers wait for a sidecar's end":          {policy: always, containers: "side:s main:a", states: "s=ready", start: "a", shown: v1.PodPending},
		"main containers do not wait for a sidecar's start": {policy: always, containers: "side:s main:a", states: "s=run", shown: v1.PodPending},
		"a sidecar that ended stays down":                   {policy: never, containers: "side:s main:a", states: "s=0 a=ready", start: "s", shown: v1.PodRunning},
		"a sidecar keeps a finished pod alive":              {policy: never, containers: "side:s main:a", states: "s=ready a=0", phase: v1.PodSucceeded, shown: v1.PodSucceeded},
		"init containers run again after a sidecar's end":   {policy: always, containers: "init:i side:s main:a", states: "i=0 s=1 a=ready", start: "s", shown: v1.PodRunning},
		"Always lets an end be":                             {policy: always, containers: "main:a", states: "a=0", start: "a", shown: v1.PodRunning},
		"OnFailure restarts a success":                      {policy: failure, containers: "main:a main:b", states: "a=0 b=2", start: "b", shown: v1.PodRunning},
		"Never restarts a failure":                          {policy: never, containers: "main:a main:b", states: "a=0 b=2", phase: v1.PodFailed, shown: v1.PodFailed},
		"one end of two is the pod's":                       {policy: never, containers: "main:a main:b", states: "a=0 b=ready", shown: v1.PodRunning},
		"the back-off is not waited for":                    {policy: always, containers: "main:a", states: "a=1!", wakes: true, shown: v1.PodRunning},
	} {
		t.Run(name, func(t *testing.T) {
			pod := parsePod(c.policy, c.containers)
			states := parseStates(pod, c.states)
			p := decide(pod, states, now)
			var start []string
			for _, each := range p.start {
				start = append(start, each.Name)
			}
			if strings.Join(start, " ") != c.start || p.phase != c.phase || p.wake.IsZero() == c.wakes {
				t.Errorf("start %v, phase %q, wake %v", start, p.phase, p.wake)
			}
			if got := podStatus(pod, view{states: states}, metav1.NewTime(now)).Phase; got != c.shown {
				t.Errorf("status says %s, want %s", got, c.shown)
			}
		})
	}
}

func TestBackOff(t *testing.T) {
	got := ""
	for failures := range 10 {
		got += backOff(failures).String() + " "
	}
	if want := "0s 0s 1s 2s 4s 8s 16s 32s 1m0s 1m0s "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := backOff(1000); got != time.Minute {
		t.Errorf("after 1000 failures: %s", got)
	}
}

func conditionsOf(s v1.PodStatus) string {
	out := ""
	for _, c := range s.Conditions {
		if c.Status == v1.ConditionTrue {
			out += string(c.Type) + " "
		}
	}
	return strings.TrimSpace(out)
}

func TestConditions(t *testing.T) {
	for name, c := range map[string]struct{ containers, states, gate, want string }{
		"a container that is not ready counts as ready": {"main:a main:b", "a=ready b=unready", "", "PodReadyToStartContainers Initialized PodScheduled"},
		"ready containers do not make a pod ready":      {"main:a main:b", "a=ready b=ready", "", "PodReadyToStartContainers Initialized ContainersReady Ready PodScheduled"},
		"a sidecar that is not ready counts as ready":   {"side:s main:b", "s=unready b=ready", "", "PodReadyToStartContainers Initialized PodScheduled"},
		"a pod is initialized too early":                {"init:i main:b", "i=run", "", "PodReadyToStartContainers PodScheduled"},
		"a closed gate is passed":                       {"main:a", "a=ready", "example.com/gate", "PodReadyToStartContainers Initialized ContainersReady PodScheduled"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := parsePod(v1.RestartPolicyAlways, c.containers)
			if c.gate != "" {
				pod.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: v1.PodConditionType(c.gate)}}
			}
			status := podStatus(pod, view{states: parseStates(pod, c.states), networkReady: true}, metav1.NewTime(now))
			if got := conditionsOf(status); got != c.want {
				t.Errorf("true are %s, want %s", got, c.want)
			}
		})
	}
}

func TestConditionTimeMovesOnlyWithTheStatus(t *testing.T) {
	pod := parsePod(v1.RestartPolicyAlways, "main:a")
	pod.Status = podStatus(pod, view{states: parseStates(pod, "a=unready"), networkReady: true}, metav1.NewTime(now))
	later := metav1.NewTime(now.Add(time.Hour))
	for _, c := range podStatus(pod, view{states: parseStates(pod, "a=ready"), networkReady: true}, later).Conditions {
		changed := c.Type == v1.PodReady || c.Type == v1.ContainersReady
		if changed != c.LastTransitionTime.Equal(&later) {
			t.Errorf("%s: changed %v at %s", c.Type, changed, c.LastTransitionTime)
		}
	}
}

func TestStatusKeepsWhatOthersWrote(t *testing.T) {
	foreign := v1.PodCondition{Type: "example.com/gate", Status: v1.ConditionTrue}
	stale := v1.PodCondition{Type: "example.com/gate", Status: v1.ConditionFalse}
	ready := v1.PodCondition{Type: v1.PodReady, Status: v1.ConditionTrue}
	got := mergeStatus(v1.PodStatus{QOSClass: v1.PodQOSBurstable, Conditions: []v1.PodCondition{foreign}}, v1.PodStatus{Conditions: []v1.PodCondition{stale, ready}})
	if got.QOSClass != v1.PodQOSBurstable || conditionsOf(got) != "example.com/gate Ready" || len(got.Conditions) != 2 {
		t.Errorf("got %+v", got)
	}
}

func TestProbeCounts(t *testing.T) {
	for name, c := range map[string]struct{ outcomes, want string }{
		// One letter each second: + is a success, - a failure; the report after it is U for up, D for down, . for none.
		"one failure is down":                      {"+-+--+---+", "U.......DU"},
		"tries within one period count each":       {"+-", "U."},
		"the first failures are not reported":      {"---", "..D"},
		"failures after the threshold are silent":  {"-----", "..DDD"},
		"a success does not set the count to zero": {"--+--+", "..U..."},
	} {
		t.Run(name, func(t *testing.T) {
			var counts counter
			got, at := "", now
			for _, o := range c.outcomes {
				at = at.Add(time.Second)
				switch {
				case !counts.count(&v1.Probe{FailureThreshold: 3}, o == '+', at, time.Second):
					got += "."
				case o == '+':
					got += "U"
				default:
					got += "D"
				}
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	var counts counter
	for range 10 {
		if counts.count(&v1.Probe{FailureThreshold: 2}, false, now, time.Second) {
			t.Fatal("ten failures at one time count as more than one")
		}
	}
}
