package assemble

import (
	"fmt"
	"testing"

	"github.com/fleetgate/fleetgate/translate/record"
)

// many makes one Gateway with n routes in 50 namespaces, each with a host of its own or all on one, each tenth with a backend of its own.
func many(t testing.TB, n int, shared bool) (*world, []Change) {
	w := newWorld(t)
	g := gatewayKey("infra", "gw")
	changes := []Change{w.put(classKey("one"), class("one", ours)), w.put(g, gatewayRecord(g, "one", httpListener("http", "", 80)))}
	for i := range n {
		if i%10 == 0 {
			changes = append(changes, w.service(serviceKey(fmt.Sprintf("ns%d", i%50), fmt.Sprint("s", i)))...)
		}
		changes = append(changes, manyRoute(w, i, shared, 0))
	}
	return w, changes
}

func manyRoute(w *world, i int, shared bool, version int) Change {
	k := routeKey(fmt.Sprintf("ns%d", i%50), fmt.Sprint("r", i))
	host, path := fmt.Sprintf("h%d.example.com", i), "/"
	if shared {
		host, path = "all.example.com", fmt.Sprintf("/p%d", i)
	}
	b := serviceKey(fmt.Sprintf("ns%d", i/10*10%50), fmt.Sprint("s", i/10*10))
	r := routeRecord(k, []string{host}, []record.Parent{parentOf(gatewayKey("infra", "gw"))}, rule(w.t, k, version, b, "prefix "+path, "exact "+path))
	return w.update(k, r, refsOf(b)...)
}

func BenchmarkFirstApply(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		for _, shared := range []bool{false, true} {
			b.Run(fmt.Sprintf("routes=%d/sharedHost=%v", n, shared), func(b *testing.B) {
				_, changes := many(b, n, shared)
				b.ReportAllocs()
				for b.Loop() {
					New(testConfig).Apply(changes)
				}
			})
		}
	}
}

func BenchmarkOneChange(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		for _, shared := range []bool{false, true} {
			b.Run(fmt.Sprintf("routes=%d/sharedHost=%v", n, shared), func(b *testing.B) {
				w, changes := many(b, n, shared)
				s := New(testConfig)
				s.Apply(changes)
				edits := []Change{manyRoute(w, n/2, shared, 1), manyRoute(w, n/2, shared, 2)}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					s.Apply(edits[i%2 : i%2+1])
					i++
				}
			})
		}
	}
}

func BenchmarkEndpointsChange(b *testing.B) {
	w, changes := many(b, 10000, false)
	s := New(testConfig)
	s.Apply(changes)
	k := endpointsKey(serviceKey("ns0", "s0"))
	e := endpointsRecord(backendKey(k))
	edits := []Change{w.put(k, e), w.put(k, record.Endpoints{Name: e.Name, Bytes: []byte("other")})}
	i := 0
	for b.Loop() {
		s.Apply(edits[i%2 : i%2+1])
		i++
	}
}
