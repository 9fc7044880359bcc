package shard

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/record"
)

// backend is a route to a Service with one endpoint at an address.
func backend(address string) []translate.Event {
	port := gatewayv1.PortNumber(80)
	number, protocol := int32(8080), corev1.ProtocolTCP
	ref := gatewayv1.HTTPBackendRef{BackendRef: gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{Name: "s", Port: &port}}}
	in := metav1.ObjectMeta{Namespace: "n", Name: "s"}
	slice := in
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "s"}
	return []translate.Event{
		{Kind: "Service", Namespace: "n", Name: "s", Object: &corev1.Service{ObjectMeta: in, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, Protocol: protocol}}}}},
		{Kind: "HTTPRoute", Namespace: "n", Name: "s", Object: &gatewayv1.HTTPRoute{ObjectMeta: in, Spec: gatewayv1.HTTPRouteSpec{
			CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Name: "g"}}}, Rules: []gatewayv1.HTTPRouteRule{{BackendRefs: []gatewayv1.HTTPBackendRef{ref}}}}}},
		{Kind: "EndpointSlice", Namespace: "n", Name: "s", Object: &discoveryv1.EndpointSlice{ObjectMeta: slice, AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Port: &number, Protocol: &protocol}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}}}},
	}
}

// TestDrainedRowTellsEndpointsAhead: who has drained a row proposes nothing more for it, but where the group has lost its quorum before the row got its next owner, nobody else
// will tell proxies of pods that died (D18).
func TestDrainedRowTellsEndpointsAhead(t *testing.T) {
	s := newSingle(t)
	events, cancel := s.db.Subscribe()
	defer cancel()
	told := make(chan Ahead, 100)
	m := NewManager(Config{Session: "a@1", Store: s.db, Proposer: s, Logger: slog.New(slog.DiscardHandler),
		Translate: translate.Config{ControllerNames: []string{"ours"}, Seal: func(plain, _ []byte) ([]byte, error) { return plain, nil }, Version: func([]byte) string { return "v" }},
		Ahead: func(all []Ahead) {
			for _, a := range all {
				told <- a
			}
		}})
	table := func(next string, epoch uint64) {
		t.Helper()
		version, _ := s.db.Table()
		cmd := store.Command{Version: 1, Table: &store.TableCommand{Expect: version, Rows: []store.Row{{ID: 1, Cluster: "c", Owner: "a@1", Epoch: epoch, Next: next}}}}
		if res, err := s.Propose(t.Context(), cmd); err != nil || res.Code != "" {
			t.Fatalf("%v: %+v", err, res)
		}
	}
	table("", 1)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); m.Run(ctx) }()
	defer func() { stop(); <-ended }()
	m.Observe("c", backend("10.0.0.1"), true)
	key := store.Key{Cluster: "c", Namespace: "n", Kind: string(record.KindEndpoints), Name: "s/80/auto"}
	for there := false; !there; {
		e := <-events
		for _, c := range e.Changes {
			there = there || c.Key == key
		}
	}
	table("b@1", 1)
	for len(m.Drained()) == 0 {
		m.Observe("c", nil, true) // wakes it: it may have been at its last proposal
	}
	before := s.db.Applied()
	m.Observe("c", backend("10.0.0.2"), true)
	for a := range told { // the first content is told too, where its proposal is not known to be back yet
		if a.Key != key || a.Epoch != 1 {
			t.Errorf("told %+v", a)
		}
		if strings.Contains(string(a.Payload), "10.0.0.2") {
			if a.After == 0 {
				t.Errorf("%+v is told as before the first proposal, so that this overtakes it", a)
			}
			break
		}
	}
	if now := s.db.Applied(); now != before {
		t.Errorf("a drained row went on to propose: the log is at %d, was at %d", now, before)
	}
	if got := m.Drained(); got[1] != 1 {
		t.Errorf("drained: %v", got)
	}
}

// TestReferenceThatIsOlderThanTheSessionIsMissed: a session that starts finds routes in the store; when one of them goes, what only it named goes too.
func TestReferenceThatIsOlderThanTheSessionIsMissed(t *testing.T) {
	s := newSingle(t)
	events, cancel := s.db.Subscribe()
	defer cancel()
	await := func(what string, over func(store.Change) bool) {
		t.Helper()
		for {
			select {
			case e := <-events:
				if slices.ContainsFunc(e.Changes, over) {
					return
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s", what)
			}
		}
	}
	key := store.Key{Cluster: "c", Namespace: "n", Kind: string(record.KindBackend), Name: "s/80/auto"}
	run := func(session string, epoch uint64, use func(m *Manager)) {
		t.Helper()
		version, _ := s.db.Table()
		cmd := store.Command{Version: 1, Table: &store.TableCommand{Expect: version, Rows: []store.Row{{ID: 1, Cluster: "c", Owner: session, Epoch: epoch}}}}
		if res, err := s.Propose(t.Context(), cmd); err != nil || res.Code != "" {
			t.Fatalf("%v: %+v", err, res)
		}
		m := NewManager(Config{Session: session, Store: s.db, Proposer: s, Logger: slog.New(slog.DiscardHandler),
			Translate: translate.Config{ControllerNames: []string{"ours"}, Seal: func(plain, _ []byte) ([]byte, error) { return plain, nil }, Version: func([]byte) string { return "v" }}})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); m.Run(ctx) }()
		defer func() { stop(); <-ended }()
		m.Observe("c", backend("10.0.0.1"), true)
		use(m)
	}
	run("a@1", 1, func(*Manager) {
		await("the route was never compiled", func(c store.Change) bool { return c.Key.Kind == string(record.KindRoute) && c.Record != nil })
	})
	run("a@2", 2, func(m *Manager) {
		m.Observe("c", []translate.Event{{Kind: "HTTPRoute", Namespace: "n", Name: "s"}}, true)
		await("the backend stays although nothing names it any more", func(c store.Change) bool { return c.Key == key && c.Record == nil })
	})
}

// TestProposalThatTheLogRefuses: a batch that is too large for the log would be proposed for ever, and nothing else of its row with it. The group takes a record of the largest size
// and 64 KiB around it.
func TestProposalThatTheLogRefuses(t *testing.T) {
	const limit = store.MaxRecord + 64<<10
	long := func(s string, n int) string { return s + strings.Repeat("x", n-len(s)) }
	port := gatewayv1.PortNumber(80)
	var events []translate.Event
	var rules []gatewayv1.HTTPRouteRule
	for i := range 16 { // as many rules and backends as a route may have
		var rule gatewayv1.HTTPRouteRule
		for j := range 16 {
			in := metav1.ObjectMeta{Namespace: long("n", 63), Name: long(fmt.Sprintf("s%d-%d-", i, j), 63)}
			events = append(events, translate.Event{Kind: "Service", Namespace: in.Namespace, Name: in.Name, Object: &corev1.Service{ObjectMeta: in, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}}})
			ref := gatewayv1.BackendObjectReference{Name: gatewayv1.ObjectName(in.Name), Port: &port}
			rule.BackendRefs = append(rule.BackendRefs, gatewayv1.HTTPBackendRef{BackendRef: gatewayv1.BackendRef{BackendObjectReference: ref}})
		}
		for j := range 5 {
			path := long(fmt.Sprintf("/%d/%d/", i, j), 400)
			rule.Matches = append(rule.Matches, gatewayv1.HTTPRouteMatch{Path: &gatewayv1.HTTPPathMatch{Value: &path}})
		}
		rules = append(rules, rule)
	}
	events = append(events, translate.Event{Kind: "HTTPRoute", Namespace: long("n", 63), Name: "r", Object: &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: long("n", 63), Name: "r"},
		Spec: gatewayv1.HTTPRouteSpec{CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Name: "g"}}}, Rules: rules}}})
	pending := map[string]map[store.Key]store.Op{"the largest route": {}, "deletions of long names": {}, "references of long names": {}}
	compiler := translate.New(translate.Config{Cluster: "c", ControllerNames: []string{"ours"}, Owns: func(string) bool { return true }})
	for _, p := range compiler.Apply(events).Puts {
		pending["the largest route"][StoreKey(p.Key)] = putOp(p)
	}
	for i := range 3000 {
		k := store.Key{Cluster: "c", Namespace: long("n", 63), Kind: string(record.KindRoute), Name: long(fmt.Sprintf("HTTPRoute/r%d-", i), 253)}
		pending["deletions of long names"][k] = store.Op{Key: k}
		pending["references of long names"][k] = store.Op{Key: k, Content: &store.Content{Payload: []byte("short"), Refs: []store.Key{k, k}}}
	}
	for name, all := range pending {
		c := &Controller{pending: all}
		for len(all) > 0 {
			ops := c.batch(time.Now())
			raw, err := store.EncodeCommand(store.Command{Put: &store.PutCommand{Proposer: "a@1", Ops: ops}})
			if err != nil || len(raw) > limit {
				t.Errorf("%s: %d operations have %d bytes, the limit is %d (%v)", name, len(ops), len(raw), limit, err)
			}
			for _, op := range ops {
				delete(all, op.Key)
			}
		}
	}
}
