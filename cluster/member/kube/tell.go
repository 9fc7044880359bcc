package kube

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	typedevents "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"

	"github.com/fleetgate/fleetgate/cluster/member"
)

const (
	reporter = "fleetgate.io/gatewayclass-controller" // of events
	noteSize = 1024                                   // bytes, the API server's limit
)

// newBroadcaster makes what sends events: it makes a series of what is said again within minutes, and tries again where the API server is away.
func newBroadcaster(c *rest.Config, a *api) (events.EventBroadcaster, error) {
	client, err := typedevents.NewForConfigAndClient(c, a.client)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return events.NewBroadcaster(&events.EventSinkImpl{Interface: client}), nil
}

// sendEvents has events sent until ctx ends.
func (s *Source) sendEvents(ctx context.Context) (stop func(), err error) {
	broadcaster, err := newBroadcaster(s.connect, s.api)
	if err != nil {
		return nil, err
	}
	if err := broadcaster.StartRecordingToSinkWithContext(klog.NewContext(ctx, klog.Logger{})); err != nil {
		broadcaster.Shutdown()
		return nil, fmt.Errorf("events: %w", err)
	}
	s.mu.Lock()
	s.recorder = broadcaster.NewRecorder(scheme, reporter)
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.recorder = nil
		s.mu.Unlock()
		broadcaster.Shutdown()
	}, nil
}

// Tell implements member.Telling: an event on the object, which `kubectl describe` shows.
func (s *Source) Tell(n member.Notice) {
	k := kindOf(n.Kind)
	if k == nil {
		return
	}
	s.mu.Lock()
	recorder, version := s.recorder, s.versions[k]
	s.mu.Unlock()
	if recorder == nil || version == "" {
		return
	}
	object := &corev1.ObjectReference{Kind: n.Kind, Namespace: n.Namespace, Name: n.Name, FieldPath: n.Part}
	object.SetGroupVersionKind(k.gvk(version))
	object.UID = types.UID(n.UID)
	kind := corev1.EventTypeNormal
	if n.Warning {
		kind = corev1.EventTypeWarning
	}
	text := fnv.New32a()
	_, _ = text.Write([]byte(n.Text))                     // never fails
	action := fmt.Sprintf("Reconcile-%08x", text.Sum32()) // what differs in nothing but its text would be counted as said again, and not be shown
	recorder.Eventf(object, nil, kind, n.Reason, action, "%s", shorten(n.Text, noteSize))
}

// shorten cuts a text to a number of bytes, between characters.
func shorten(text string, size int) string {
	const more = " ..."
	if len(text) <= size {
		return text
	}
	return strings.ToValidUTF8(text[:size-len(more)], "") + more
}
