package shard

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/record"
)

// world is a controller's compiler and what it wants of a cluster whose source reads by name.
type world struct {
	cache    *cache
	ctl      *Controller
	compiler *translate.Compiler
	asking   *asking
	wanted   []translate.Ref // by all controllers
	last     map[record.Key][]byte
}

func newWorld(c *cache) *world {
	w := &world{cache: c, ctl: &Controller{wake: make(chan struct{}, 1)}}
	w.compiler = translate.New(translate.Config{Cluster: "c", Asked: true, Last: func(k record.Key) []byte { return w.last[k] }, ControllerNames: []string{"ours"}, Owns: func(string) bool { return true },
		Seal: func(plain, _ []byte) ([]byte, error) { return plain, nil }, Version: func([]byte) string { return "v" }})
	w.asking = &asking{asked: map[translate.Ref]bool{}, answered: map[translate.Ref]bool{}, held: map[store.Key]bool{},
		ask: func(before, now map[translate.Ref]bool) bool { w.wanted = c.ask(w.ctl, before, now); return true }}
	return w
}

// step is what a controller does with events, and with what the cache answered at once.
func (w *world) step(events ...translate.Event) {
	for len(events) > 0 {
		w.asking.hear(events)
		w.compiler.Apply(events)
		w.asking.update(w.compiler)
		events, w.ctl.queue = w.ctl.queue, nil
	}
}

var (
	certificate    = translate.Ref{Kind: "Secret", Namespace: "n", Name: "cert"}
	certificateKey = StoreKey(record.Key{Cluster: "c", Namespace: "n", Kind: record.KindSecret, Name: "cert"})
)

// https is a Gateway that refers to a Secret, and its class.
func https() []translate.Event {
	return []translate.Event{
		{Kind: "GatewayClass", Name: "k", Object: &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "k"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: "ours"}}},
		{Kind: "Gateway", Namespace: "n", Name: "g", Object: &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "g"},
			Spec: gatewayv1.GatewaySpec{GatewayClassName: "k", Listeners: []gatewayv1.Listener{{Name: "l", Port: 443, Protocol: gatewayv1.HTTPSProtocolType,
				TLS: &gatewayv1.ListenerTLSConfig{CertificateRefs: []gatewayv1.SecretObjectReference{{Name: "cert"}}}}}}}},
	}
}

// TestUnansweredIsNotProposed: a Secret of which nobody has told is not taken for absent; it is wanted while a Gateway refers to it, and forgotten after.
func TestUnansweredIsNotProposed(t *testing.T) {
	w := newWorld(newCache())
	w.step(https()...)
	if len(w.wanted) != 1 || w.wanted[0] != certificate {
		t.Fatalf("wanted is %v, want the Gateway's certificate", w.wanted)
	}
	if _, compiled := w.compiler.Record(RecordKey(certificateKey)); !compiled || !w.asking.held[certificateKey] {
		t.Errorf("the Secret's record may be proposed before anybody has told of the Secret (compiled %t)", compiled)
	}
	w.step(translate.Event{Kind: "Secret", Namespace: "n", Name: "cert"})
	if w.asking.held[certificateKey] {
		t.Error("the record of a Secret that does not exist is held for ever")
	}
	w.step(translate.Event{Kind: "Gateway", Namespace: "n", Name: "g"})
	if len(w.wanted) != 0 {
		t.Errorf("wanted is %v after the Gateway is gone", w.wanted)
	}
}

// TestAnotherControllerIsAnsweredFromTheCache: what is known is not asked of the cluster again, whether it exists or not; and nobody keeps a Secret that nobody wants.
func TestAnotherControllerIsAnsweredFromTheCache(t *testing.T) {
	for name, object := range map[string]translate.Object{"there": &corev1.Secret{}, "absent": nil} {
		c := newCache()
		first, second := newWorld(c), newWorld(c)
		first.step(https()...)
		c.observe([]translate.Event{{Kind: "Secret", Namespace: "n", Name: "cert", Object: object}}, true)
		second.step(https()...)
		if second.asking.held[certificateKey] {
			t.Errorf("%s: the second controller waits for what the first one knows", name)
		}
		for _, w := range []*world{first, second} {
			w.step(translate.Event{Kind: "Gateway", Namespace: "n", Name: "g"})
		}
		if len(c.objects)+len(c.absent)+len(c.asks) != 0 {
			t.Errorf("%s: the cache still holds %d objects", name, len(c.objects))
		}
	}
}

// TestADeniedSecretSaysSo: a Secret that may not be read is not held for ever: its record says why, also to a controller that starts later; and where there is a
// good record it stays.
func TestADeniedSecretSaysSo(t *testing.T) {
	c := newCache()
	denied := translate.Event{Kind: "Secret", Namespace: "n", Name: "cert", Unknown: true, Denied: true}
	first, second, third := newWorld(c), newWorld(c), newWorld(c)
	first.step(https()...)
	c.observe([]translate.Event{denied}, true)
	first.step(denied)
	second.step(https()...)
	for name, w := range map[string]*world{"told": first, "starts later": second} {
		var r record.Secret
		p, _ := w.compiler.Record(RecordKey(certificateKey))
		if err := record.Unmarshal(p.Payload, &r); err != nil || r.Problem == nil || !strings.Contains(r.Problem.Message, "RBAC forbids") || w.asking.held[certificateKey] {
			t.Errorf("%s: the record is %+v (held %t, %v)", name, r, w.asking.held[certificateKey], err)
		}
	}
	good, _ := record.Marshal(record.Secret{Name: "c/n/cert", Sealed: []byte("sealed")})
	third.last = map[record.Key][]byte{RecordKey(certificateKey): good}
	third.step(https()...)
	if p, _ := third.compiler.Record(RecordKey(certificateKey)); !record.Equal(p.Payload, good) {
		t.Error("the last good record of a Secret that may not be read is lost")
	}
	there := translate.Event{Kind: "Secret", Namespace: "n", Name: "cert"}
	c.observe([]translate.Event{there}, true)
	third.step(there)
	if p, _ := third.compiler.Record(RecordKey(certificateKey)); record.Equal(p.Payload, good) {
		t.Error("a Secret that does not exist, as the cluster says at last, is taken for the one that may not be read")
	}
}
