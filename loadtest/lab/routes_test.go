// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
)

// measuring tells whether all is measured, or a tenth as a test.
var measuring = os.Getenv("FLEETGATE_MEASURE") == "1"

// times is how many are done of what the measurement does n times.
func times(n int) int {
	if measuring {
		return n
	}
	return n / 10
}

// yard is a bench with clients that write without kubectl, as fast as the API server takes it.
type yard struct {
	bench
	core    *kubernetes.Clientset
	routes  *gatewayclient.Clientset
	address string // of the Gateway
}

// TestMeasureRoutes: new routes with new Services of which nobody has heard never answer 5xx, and what Fleetgate writes into the cluster is one status for each route that is new or changed.
func TestMeasureRoutes(t *testing.T) {
	b := start(t)
	installs(b)
	acceptsClass(b)
	programs(b)
	config, err := clientcmd.BuildConfigFromFlags("", b.r.Cluster(0).Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	y := yard{bench: b, core: kubernetes.NewForConfigOrDie(config), routes: gatewayclient.NewForConfigOrDie(config), address: b.address("nginx-gateway") + ":8080"}
	t.Run("new routes with new Services are asked for every 5 ms", func(t *testing.T) { y.bench.T = t; y.askForNew(times(1000)) })
	t.Run("writes of new and of changed routes", func(t *testing.T) { y.bench.T = t; y.countWrites(times(1000)) })
}

// wave is how many new routes are made at once.
const wave = 4

// askForNew makes Services, each with a route right after it, and asks for each from before there is one.
func (y yard) askForNew(n int) {
	codes, took := map[int]int{}, []time.Duration(nil)
	for i := 0; i < n; i += wave {
		var all [wave]*probe
		for j := range all {
			all[j] = y.probe(fmt.Sprintf("new-%d.example", i+j))
		}
		for _, p := range all {
			p.until(y.T, "asked twice before there is a route", func() bool { return p.all >= 2 })
		}
		var begin [wave]time.Time
		for j, p := range all {
			name := fmt.Sprint("new-", i+j)
			begin[j] = time.Now()
			y.makeService(name)
			y.makeRoute(name, p.host, name)
		}
		for j, p := range all {
			p.until(y.T, "200 ten times in a row", func() bool { return p.right >= 10 })
			p.end()
			took = append(took, p.first.Sub(begin[j]))
			for code, count := range p.codes {
				codes[code] += count
				if code != http.StatusOK && code != http.StatusNotFound {
					y.Errorf("%s: %d answers of %d", p.host, count, code)
				}
			}
		}
	}
	slices.Sort(took)
	y.Logf("| new routes with new Services, Kubernetes | %d routes, before the first create -> first 200 p50 %v, p99 %v, max %v; answers %v |", len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1], codes)
}

func (y yard) makeService(name string) {
	y.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "nginx"}, Ports: []corev1.ServicePort{{Port: 8080, TargetPort: intstr.FromInt32(80)}},
	}}
	if _, err := y.core.CoreV1().Services("default").Create(y.Context(), s, metav1.CreateOptions{}); err != nil {
		y.Fatal(err)
	}
}

func (y yard) makeRoute(name, host, service string) {
	y.Helper()
	if _, err := y.routes.GatewayV1().HTTPRoutes("default").Create(y.Context(), routeTo(name, host, service), metav1.CreateOptions{}); err != nil {
		y.Fatal(err)
	}
}

func routeTo(name, host, service string) *gatewayv1.HTTPRoute {
	port := gatewayv1.PortNumber(8080)
	return &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: gatewayv1.HTTPRouteSpec{
		CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Name: "nginx-gateway"}}},
		Hostnames:       []gatewayv1.Hostname{gatewayv1.Hostname(host)},
		Rules: []gatewayv1.HTTPRouteRule{{BackendRefs: []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{
			BackendObjectReference: gatewayv1.BackendObjectReference{Name: gatewayv1.ObjectName(service), Port: &port},
		}}}}},
	}}
}

// probe asks for a host every 5 ms on one connection, which one of the Envoys has taken.
type probe struct {
	host   string
	client *http.Client
	stop   chan struct{}
	work   sync.WaitGroup

	mu    sync.Mutex
	news  *sync.Cond
	codes map[int]int // 0 = no answer
	all   int
	right int       // answers of 200 since the last other one
	first time.Time // answer of 200
}

func (y yard) probe(host string) *probe {
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return y.r.Dial(ctx, network, y.address)
	}
	p := &probe{host: host, client: &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: time.Minute}, stop: make(chan struct{}), codes: map[int]int{}}
	p.news = sync.NewCond(&p.mu)
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

func (p *probe) ask() int {
	response, err := p.client.Get("http://" + p.host + "/")
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode
}

func (p *probe) note(code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.codes[code]++
	p.all++
	if p.right++; code != http.StatusOK {
		p.right = 0
	} else if p.first.IsZero() {
		p.first = time.Now()
	}
	p.news.Broadcast()
}

// until waits for answers.
func (p *probe) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.AfterFunc(bound, p.news.Broadcast)
	defer late.Stop()
	begin := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for !ok() {
		if time.Since(begin) >= bound {
			t.Fatalf("not within %v: %s; answers so far: %v", bound, what, p.codes)
		}
		p.news.Wait()
	}
}

func (p *probe) end() {
	close(p.stop)
	p.work.Wait()
	p.client.CloseIdleConnections()
}

// mostWrites is what is promised for each route that is new or changed.
const mostWrites = 1.1

// countWrites makes n routes, then changes them all, and counts what the API server was asked to write meanwhile. Where an Envoy is starved for the second that a status waits for it,
// each route is written twice, as it has to be: so a test takes the promise for broken when it is three times. A measurement has to keep it at once.
func (y yard) countWrites(n int) {
	for turn := 1; ; turn++ {
		name := func(i int) string { return fmt.Sprintf("counted-%d-%d", turn, i) }
		made := y.counted("new", n, "POST httproutes", func(i int) error {
			_, err := y.routes.GatewayV1().HTTPRoutes("default").Create(y.Context(), routeTo(name(i), name(i)+".example", "nginx-service"), metav1.CreateOptions{})
			return err
		})
		changed := y.counted("changed", n, "PUT httproutes", func(i int) error {
			api := y.routes.GatewayV1().HTTPRoutes("default")
			route, err := api.Get(y.Context(), name(i), metav1.GetOptions{})
			if err != nil {
				return err
			}
			route.Spec.Rules[0].Filters = []gatewayv1.HTTPRouteFilter{{Type: gatewayv1.HTTPRouteFilterResponseHeaderModifier,
				ResponseHeaderModifier: &gatewayv1.HTTPHeaderFilter{Set: []gatewayv1.HTTPHeader{{Name: "x-turn", Value: "2"}}}}}
			_, err = api.Update(y.Context(), route, metav1.UpdateOptions{})
			return err
		})
		if max(made, changed) <= mostWrites {
			return
		}
		if measuring || turn == 3 {
			y.Fatalf("%.3f writes for each new route and %.3f for each changed one, want 1 to %v", made, changed, mostWrites)
		}
	}
}

// fleetKinds are what a fleet consists of: changed routes must not touch them.
var fleetKinds = []string{"deployments", "daemonsets", "services", "serviceaccounts", "poddisruptionbudgets", "horizontalpodautoscalers", "configmaps"}

// others are what a cluster writes of itself, whatever Fleetgate does.
var others = []string{"leases", "nodes", "pods", "endpointslices", "serviceaccounts/token", "tokenreviews", "subjectaccessreviews"}

// counted does something n times, waits until the cluster says that all of it is live, and gives how much was written beside own for each. None of that may be on a fleet.
func (y yard) counted(what string, n int, own string, do func(int) error) (each float64) {
	y.Helper()
	before := y.atRest(y.writes())
	begin := time.Now()
	var under errgroup.Group
	under.SetLimit(4)
	for i := range n {
		under.Go(func() error { return do(i) })
	}
	if err := under.Wait(); err != nil {
		y.Fatal(err)
	}
	made := time.Since(begin)
	y.allLive("counted-")
	took := time.Since(begin)
	after := y.atRest(y.writes())
	ours, told := 0, []string(nil)
	for _, k := range slices.Sorted(maps.Keys(after)) {
		more := after[k] - before[k]
		if more == 0 {
			continue
		}
		told = append(told, fmt.Sprintf("%s %d", k, more))
		_, resource, _ := strings.Cut(k, " ")
		kind, _, _ := strings.Cut(resource, "/")
		switch {
		case k == own:
			if more != n {
				y.Errorf("%s %d times, want %d: this test does not know what it counts", k, more, n)
			}
		case slices.Contains(others, kind), slices.Contains(others, resource):
		default:
			ours += more
			if slices.Contains(fleetKinds, kind) {
				y.Errorf("%s routes touched the fleet: %s, %d times", what, k, more)
			}
		}
	}
	each = float64(ours) / float64(n)
	y.Logf("| writes of %s routes | %d routes in %v, all live after %v: %.3f writes each; %s |", what, n, made.Round(time.Millisecond), took.Round(time.Millisecond), each, strings.Join(told, ", "))
	if each < 1 {
		y.Errorf("%.3f writes for each %s route: this test does not know what it counts", each, what)
	}
	return each
}

// allLive waits until every route with a prefix says that all proxies have its newest generation.
func (y yard) allLive(prefix string) {
	y.Helper()
	pace := time.NewTicker(200 * time.Millisecond)
	defer pace.Stop()
	for begin := time.Now(); ; <-pace.C {
		list, err := y.routes.GatewayV1().HTTPRoutes("default").List(y.Context(), metav1.ListOptions{})
		if err != nil {
			y.Fatal(err)
		}
		waits := slices.IndexFunc(list.Items, func(r gatewayv1.HTTPRoute) bool { return strings.HasPrefix(r.Name, prefix) && !isLive(&r) })
		if waits < 0 {
			return
		}
		if time.Since(begin) > bound {
			y.Fatalf("%s is not live: %+v", list.Items[waits].Name, list.Items[waits].Status)
		}
	}
}

func isLive(r *gatewayv1.HTTPRoute) bool {
	return len(r.Status.Parents) == 1 && slices.ContainsFunc(r.Status.Parents[0].Conditions, func(c metav1.Condition) bool {
		return c.Type == "fleetgate.io/Programmed" && c.Status == metav1.ConditionTrue && c.ObservedGeneration == r.Generation
	})
}

// atRest gives counts of writes once no status was written for two seconds: the last statuses of a burst come a second after it.
func (y yard) atRest(now map[string]int) map[string]int {
	y.Helper()
	pace := time.NewTicker(2 * time.Second)
	defer pace.Stop()
	status := func(counts map[string]int) (sum int) {
		for k, n := range counts {
			if strings.HasSuffix(k, "/status") && !strings.HasSuffix(k, " nodes/status") && !strings.HasSuffix(k, " pods/status") {
				sum += n
			}
		}
		return sum
	}
	for begin := time.Now(); ; {
		<-pace.C
		next := y.writes()
		if status(next) == status(now) {
			return next
		}
		if now = next; time.Since(begin) > bound {
			y.Fatalf("the cluster does not come to rest: %v", now)
		}
	}
}

var (
	requestTotal = regexp.MustCompile(`^apiserver_request_total\{(.*)\} (\S+)$`)
	requestLabel = regexp.MustCompile(`(\w+)="([^"]*)"`)
	writeVerbs   = []string{"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"}
)

// writes are the API server's own counts of requests that write, by verb, resource and subresource, whatever came of them.
func (y yard) writes() map[string]int {
	y.Helper()
	out := map[string]int{}
	for s := bufio.NewScanner(strings.NewReader(y.kubectl("get", "--raw", "/metrics"))); s.Scan(); {
		m := requestTotal.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		label := map[string]string{}
		for _, pair := range requestLabel.FindAllStringSubmatch(m[1], -1) {
			label[pair[1]] = pair[2]
		}
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			y.Fatal(err)
		}
		if slices.Contains(writeVerbs, label["verb"]) && label["dry_run"] == "" {
			out[strings.TrimSuffix(label["verb"]+" "+label["resource"]+"/"+label["subresource"], "/")] += int(n)
		}
	}
	return out
}
