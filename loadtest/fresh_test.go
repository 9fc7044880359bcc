package loadtest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// probes ask for one host every 5 ms, on a new connection each time, so that every Envoy is asked, and remember what came back.
type probes struct {
	url, host string
	stop      chan struct{}
	work      sync.WaitGroup

	mu    sync.Mutex
	codes map[int]int // 0 = no answer
	right int         // answers of 200 since the last other one
	first time.Time   // answer of 200
}

// probe starts asking.
func probe(port int, host string) *probes {
	p := &probes{url: fmt.Sprintf("http://127.0.0.1:%d/", port), host: host, stop: make(chan struct{}), codes: map[int]int{}}
	p.work.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-tick.C:
				p.note(p.ask())
			}
		}
	})
	return p
}

func (p *probes) ask() int {
	ctx, cancel := context.WithTimeout(context.Background(), sayWithin)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return 0
	}
	r.Host = p.host
	resp, err := asker.Do(r)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

func (p *probes) note(code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.codes[code]++
	if code != http.StatusOK {
		p.right = 0
		return
	}
	if p.right++; p.first.IsZero() {
		p.first = time.Now()
	}
}

// asked is how many answers there were.
func (p *probes) asked() (all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.codes {
		all += n
	}
	return all
}

// settled is how many of the last answers in a row were 200.
func (p *probes) settled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.right
}

func (p *probes) end() {
	close(p.stop)
	p.work.Wait()
}

// wave is how many new routes are made at once.
const wave = 4

// TestMeasureNewRoutes: a new route with a new Service is asked for every 5 ms from before it is written. It answers 404 and then 200, from the first answer on that is not
// 404: never 5xx. The Service comes in the same file, or in files of their own written one right after the other.
func TestMeasureNewRoutes(t *testing.T) {
	r := start(t, map[string]string{"gateway.yaml": base})
	port, codes, took := answerWeb(t, "server"), map[int]int{}, []time.Duration(nil)
	n := times(1000)
	for i := 0; i < n; i += wave {
		var all [wave]*probes
		for j := range all {
			all[j] = probe(r.port, fmt.Sprintf("new-%d.example", i+j))
		}
		r.until("the hosts are asked for before there are routes", soon, func() bool { return every(all[:], func(p *probes) bool { return p.asked() >= 2 }) })
		var written [wave]time.Time
		for j := range all {
			written[j] = time.Now()
			r.saveNew(fmt.Sprint("new-", i+j), port, j%2 == 0)
		}
		r.until("the new routes answer 200 ten times in a row", soon, func() bool { return every(all[:], func(p *probes) bool { return p.settled() >= 10 }) })
		for j, p := range all {
			p.end()
			took = append(took, p.first.Sub(written[j]))
			for code, count := range p.codes {
				codes[code] += count
				if code != http.StatusOK && code != http.StatusNotFound {
					t.Errorf("%s: %d answers of %d", p.host, count, code)
				}
			}
		}
	}
	row(t, "new routes, each with a new Service", "%d routes, file close -> first 200 p50 %v, p99 %v, max %v; answers %v", len(took), quantile(took, .5), quantile(took, .99), quantile(took, 1), codes)
}

// saveNew writes a Service with its endpoint and a route to it: in one file, or in three.
func (r *rig) saveNew(name string, port int, together bool) {
	r.t.Helper()
	route := object("HTTPRoute", name, "parentRefs: [{name: gw}]\nhostnames: ["+name+".example]\nrules: [{backendRefs: [{name: "+name+", port: 8080}]}]")
	if together {
		r.save(name+".yaml", service(name, "", port)+route)
		return
	}
	r.save(name+"-1.yaml", serviceOf(name, ""))
	r.save(name+"-2.yaml", endpoint(name, port))
	r.save(name+"-3.yaml", route)
}

func every(all []*probes, ok func(*probes) bool) bool {
	return !slices.ContainsFunc(all, func(p *probes) bool { return !ok(p) })
}
