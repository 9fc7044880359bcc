package kube

import (
	"fmt"
	"reflect"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
)

// TestOverlayKeepsWhatIsNotKnown: fields of a newer release stay, at every depth, in our entries and in others'.
func TestOverlayKeepsWhatIsNotKnown(t *testing.T) {
	for _, c := range []struct{ name, present, want, result string }{
		{"a new field of the status is dropped", `{"parents":[],"future":{"a":1}}`, `{"parents":[]}`, `{"future":{"a":1},"parents":[]}`},
		{"a new field of a foreign entry is dropped", `{"parents":[{"controllerName":"x","parentRef":{"name":"a"},"future":1}]}`,
			`{"parents":[{"controllerName":"us","parentRef":{"name":"b"}},{"controllerName":"x","parentRef":{"name":"a"}}]}`,
			`{"parents":[{"controllerName":"us","parentRef":{"name":"b"}},{"controllerName":"x","future":1,"parentRef":{"name":"a"}}]}`},
		{"a removed entry comes back", `{"parents":[{"controllerName":"us","parentRef":{"name":"a"},"future":1}]}`, `{"parents":[]}`, `{"parents":[]}`},
		{"no status yet", ``, `{"parents":[]}`, `{"parents":[]}`},
	} {
		got, err := overlay(kindOf("HTTPRoute"), []byte(c.present), []byte(c.want))
		if err != nil || string(got) != c.result {
			t.Errorf("%s: %s, want %s (%v)", c.name, got, c.result, err)
		}
	}
}

func TestKeptBelievesAndDoubts(t *testing.T) {
	object := func(i int, version string) member.Object {
		return &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: fmt.Sprint("r", i), ResourceVersion: version}}
	}
	list := func(n int) (out []member.Object) {
		for i := range n {
			out = append(out, object(i, "1"))
		}
		return out
	}
	ids := func(from, to int) (out []key) {
		for i := from; i < to; i++ {
			out = append(out, key{"n", fmt.Sprint("r", i)})
		}
		return out
	}
	k := newKept()
	if got := k.replace(list(8), suspicious); len(got) != 8 {
		t.Fatalf("a first list gives %d objects, want 8", len(got))
	}
	if got := k.replace(list(8), suspicious); got != nil {
		t.Errorf("the same list again changes %d objects", len(got))
	}
	k.replace(list(6), suspicious)
	if got := k.settle(true); !reflect.DeepEqual(got, ids(6, 8)) {
		t.Errorf("a relist without two of eight deletes %v", got)
	}
	k.replace(list(2), suspicious)
	if got := k.settle(true); got != nil || !reflect.DeepEqual(k.doubted(tooMany), ids(2, 6)) {
		t.Errorf("a relist without four of six deletes %v and holds %v", got, k.doubted(tooMany))
	}
	k.replace(list(2), suspicious)
	if got := k.settle(true); got != nil {
		t.Errorf("the next relist deletes what is held: %v", got)
	}
	if !k.upsert(object(2, "1")) || len(k.doubted(tooMany)) != 3 {
		t.Errorf("an object that is back is still held: %v", k.doubted(tooMany))
	}
	k.lose(key{"n", "r2"})
	if got := k.settle(true); !reflect.DeepEqual(got, ids(2, 3)) {
		t.Errorf("put back and deleted: %v", got)
	}
	k.lose(key{"n", "r1"})
	if got := k.settle(false); got != nil || !reflect.DeepEqual(k.doubted(vanished), ids(1, 2)) {
		t.Errorf("a deletion that its CRD causes deletes %v", got)
	}
	k.replace(list(1), suspicious)
	if got := k.settle(true); !reflect.DeepEqual(got, ids(1, 2)) {
		t.Errorf("after the CRD is back, and the object is not: %v", got)
	}
}
