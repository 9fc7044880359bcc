package assemble

import (
	"fmt"
	"slices"
	"testing"
	"time"

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

// BenchmarkGrowth changes one route among 1,000 and one among 10,000 by turns and reports the ratio of the medians: growth is what D17 bounds.
func BenchmarkGrowth(b *testing.B) {
	sizes := []int{1000, 10000}
	states, edits, took := [2]*State{}, [2][]Change{}, [2][]time.Duration{}
	for i, n := range sizes {
		w, changes := many(b, n, false)
		states[i] = New(testConfig)
		states[i].Apply(changes)
		edits[i] = []Change{manyRoute(w, n/2, false, 1), manyRoute(w, n/2, false, 2)}
	}
	for turn := 0; b.Loop(); turn++ {
		for i, s := range states {
			start := time.Now()
			s.Apply(edits[i][turn%2 : turn%2+1])
			took[i] = append(took[i], time.Since(start))
		}
	}
	for i := range took {
		slices.Sort(took[i])
	}
	small, large := took[0][len(took[0])/2], took[1][len(took[1])/2]
	b.ReportMetric(float64(small.Nanoseconds()), "ns/change@1000")
	b.ReportMetric(float64(large.Nanoseconds()), "ns/change@10000")
	b.ReportMetric(float64(large)/float64(small), "ratio")
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
