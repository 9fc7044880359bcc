package headless

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fleetgate/fleetgate/cluster/keep"
)

var selection = Selection{Namespace: "shop", Name: "pods", UID: "u1", Labels: map[string]string{"app": "web"}, Port: 8080}

// memory is a cluster that takes Services as they are.
type memory struct {
	mu       sync.Mutex
	services map[string]*corev1.Service
	writes   []string
	refuse   error
	changed  func(namespace, xbackend string)
}

func (m *memory) FollowHeadless(_ context.Context, changed func(string, string)) (Services, error) {
	m.changed = changed
	return m, nil
}

func (m *memory) Of(namespace, xbackend string) []*corev1.Service {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*corev1.Service
	for _, s := range m.services {
		if s.Namespace == namespace && OwnerOf(s).Name == xbackend {
			out = append(out, s)
		}
	}
	return out
}

func (m *memory) write(verb string, s *corev1.Service) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	m.writes = append(m.writes, verb+" "+s.Name)
	m.services[s.Name] = s
	if verb == "delete" {
		delete(m.services, s.Name)
	}
	return nil
}

// refuses has every write fail from now on, nil = none.
func (m *memory) refuses(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = err
}

// written gives what was written since it was asked last.
func (m *memory) written() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	writes := m.writes
	m.writes = nil
	return writes
}

func (m *memory) Create(_ context.Context, s *corev1.Service) error {
	s.Name = s.GenerateName + "x"
	return m.write("create", s)
}
func (m *memory) Change(_ context.Context, s *corev1.Service) error { return m.write("change", s) }
func (m *memory) Delete(_ context.Context, s *corev1.Service) error { return m.write("delete", s) }

// TestPlan goes through what there may be where a Service is wanted, or not.
func TestPlan(t *testing.T) {
	made := func(name string, age time.Duration, change func(*corev1.Service)) *corev1.Service {
		s := render(selection)
		s.Name, s.CreationTimestamp = name, metav1.NewTime(time.Unix(1_700_000_000, 0).Add(-age))
		if change != nil {
			change(s)
		}
		return s
	}
	other := func(s *corev1.Service) { s.OwnerReferences[0].UID = types.UID("u0") }
	gone := func(s *corev1.Service) { s.DeletionTimestamp = &metav1.Time{} }
	moved := func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "old", "tier": "a"} }
	port := func(s *corev1.Service) { s.Spec.Ports[0].TargetPort.IntVal = 1 }
	label := func(s *corev1.Service) { s.Labels["team"] = "shop" }
	unlabelled := func(s *corev1.Service) { s.Labels = nil }
	for _, c := range []struct {
		name string
		want *Selection
		have []*corev1.Service
		then string
	}{
		{"the first", &selection, nil, "create"},
		{"as it should be", &selection, []*corev1.Service{made("a", 0, nil)}, ""},
		{"an earlier XBackend's, which goes with it", &selection, []*corev1.Service{made("a", 0, other)}, "create"},
		{"one that is being deleted", &selection, []*corev1.Service{made("a", 0, gone)}, "create"},
		{"other labels", &selection, []*corev1.Service{made("a", 0, moved)}, "change a"},
		{"another port", &selection, []*corev1.Service{made("a", 0, port)}, "change a"},
		{"a label of somebody else's", &selection, []*corev1.Service{made("a", 0, label)}, ""},
		{"its label taken away", &selection, []*corev1.Service{made("a", 0, unlabelled)}, "change a"},
		{"two leaders' at once", &selection, []*corev1.Service{made("a", 0, nil), made("b", time.Second, nil)}, "remove a"},
		{"it selects no more", nil, []*corev1.Service{made("a", 0, nil)}, "remove a"},
		{"it never did", nil, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			s := plan(c.want, c.have)
			if s.create != nil {
				got = append(got, "create")
			}
			if s.change != nil {
				got = append(got, "change "+s.change.Name)
				if !says(s.change, render(selection)) {
					t.Errorf("changed into %v", s.change)
				}
			}
			for _, r := range s.remove {
				got = append(got, "remove "+r.Name)
			}
			if strings.Join(got, ", ") != c.then {
				t.Errorf("%q, want %q", got, c.then)
			}
		})
	}
}

// TestLabelsOfOthersStay where a Service is changed.
func TestLabelsOfOthersStay(t *testing.T) {
	old := render(selection)
	old.Labels = map[string]string{"team": "shop"}
	if s := plan(&selection, []*corev1.Service{old}); s.change == nil || s.change.Labels["team"] != "shop" || len(s.change.Labels) != 3 {
		t.Errorf("changed into %v", s.change)
	}
}

// TestNamesThatAreGenerated: an API server keeps 58 characters of what a name is to begin with, and a Service begins with a letter.
func TestNamesThatAreGenerated(t *testing.T) {
	for name, want := range map[string]string{
		"pods":                   "xbackend-pods-",
		"1.api.example":          "xbackend-1-api-example-",
		strings.Repeat("a", 253): "xbackend-" + strings.Repeat("a", 40) + "-",
	} {
		if got := generateName(name); got != want || len(got) > 58 {
			t.Errorf("%.20s: %q, want %q", name, got, want)
		}
	}
}

// TestKeeper: one write for each change and none without; what an API server refuses is told once, tried again, and told when it is right.
func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{services: map[string]*corev1.Service{}}
		want, known := &selection, true
		var told []string
		k := NewKeeper(Config{Cluster: m, Log: slog.New(slog.DiscardHandler), All: func() [][2]string { return [][2]string{{"shop", "pods"}} },
			Wanted: func(string, string) (*Selection, bool) { return want, known },
			Tell:   func(s Selection, problem string) { told = append(told, fmt.Sprint(s.Name, ": ", problem)) }})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m.refuses(errors.New("quota"))
		go func() { _ = k.Run(ctx) }()
		step := func(what string, writes ...string) {
			t.Helper()
			k.Touch("shop", "pods")
			synctest.Wait()
			if got := m.written(); !slices.Equal(got, writes) {
				t.Errorf("%s: %q, want %q", what, got, writes)
			}
		}
		synctest.Wait()
		time.Sleep(10 * time.Second) // of the bubble's clock: it is tried again meanwhile
		synctest.Wait()
		if !slices.Equal(told, []string{"pods: quota"}) {
			t.Errorf("told %q", told)
		}
		m.refuses(nil)
		time.Sleep(keep.Longest)
		synctest.Wait()
		if writes := m.written(); !slices.Equal(writes, []string{"create xbackend-pods-x"}) || !slices.Equal(told, []string{"pods: quota", "pods: "}) {
			t.Errorf("after a refusal: %q, told %q", writes, told)
		}
		step("again")
		moved := selection
		moved.Port = 9090
		want = &moved
		step("another port", "change xbackend-pods-x")
		want, known = nil, false
		step("nothing is known of it")
		known = true
		step("it selects no more", "delete xbackend-pods-x")
	})
}
