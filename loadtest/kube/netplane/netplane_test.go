// SPDX-License-Identifier: Apache-2.0

package netplane

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fleetgate/fleetgate/loadtest/kube/link"
)

// rig is a network namespace with pods, in which a proxy programs Services.
type rig struct {
	t     *testing.T
	outer *link.Namespace
	pods  map[string]*link.Namespace
	proxy *proxy
	o     Options
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root (or a user namespace that the caller made)")
	}
	outer, err := link.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Close() })
	o := Options{
		Cluster: "c1", NodeIP: netip.MustParseAddr("10.245.0.1"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), PodCIDR: netip.MustParsePrefix("10.244.0.0/16"),
		LoadBalancerCIDR: netip.MustParsePrefix("10.97.0.0/24"), DNS: netip.MustParseAddr("10.96.0.10"),
	}
	r := &rig{t: t, outer: outer, pods: map[string]*link.Namespace{}, proxy: newProxy(o), o: o}
	r.in(nil, o.prepare)
	return r
}

// in runs f in a pod's network, or the outer one for nil.
func (r *rig) in(ns *link.Namespace, f func() error) {
	r.t.Helper()
	if ns == nil {
		ns = r.outer
	}
	if err := ns.Do(f); err != nil {
		r.t.Fatal(err)
	}
}

// pod makes a pod that answers TCP and UDP on port 80 with its name.
func (r *rig) pod(name, ip string) {
	r.t.Helper()
	ns, err := link.New()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { ns.Close() })
	r.pods[name] = ns
	r.in(nil, func() error { return link.Connect(ns, "veth-"+name, netip.MustParseAddr(ip), r.o.NodeIP) })
	r.in(ns, func() error {
		l, err := net.Listen("tcp4", ip+":80")
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { l.Close() })
		go answerTCP(l, name)
		c, err := net.ListenPacket("udp4", ip+":80")
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { c.Close() })
		go answerUDP(c, name)
		return nil
	})
}

func answerTCP(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr().(*net.TCPAddr).IP)
		c.Close()
	}
}

func answerUDP(c net.PacketConn, name string) {
	buffer := make([]byte, 100)
	for {
		_, from, err := c.ReadFrom(buffer)
		if err != nil {
			return
		}
		_, _ = c.WriteTo([]byte(name), from) // a client that is gone gets nothing
	}
}

func (r *rig) apply(s snapshot) {
	r.t.Helper()
	r.in(nil, func() error { return r.proxy.apply(compile(s)) })
}

// ask connects from a pod ("" is the outer namespace) and returns who answered and whom it saw, or the error.
func (r *rig) ask(from, address string) (string, error) {
	r.t.Helper()
	ns := r.outer
	if from != "" {
		ns = r.pods[from]
	}
	var line string
	err := ns.Do(func() error {
		c, err := net.Dial("tcp4", address)
		if err != nil {
			return err
		}
		defer c.Close()
		line, err = bufio.NewReader(c).ReadString('\n')
		return err
	})
	return strings.TrimSpace(line), err
}

func service(name, ip string, protocol v1.Protocol, external ...string) *v1.Service {
	return &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       v1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, ExternalIPs: external, Ports: []v1.ServicePort{{Port: 8080, Protocol: protocol}}},
	}
}

func slice(service string, protocol v1.Protocol, ips ...string) *discoveryv1.EndpointSlice {
	port, name := int32(80), ""
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	}
	return s
}

func TestServicesReachTheirEndpoints(t *testing.T) {
	r := newRig(t)
	r.pod("a", "10.244.0.2")
	r.pod("b", "10.244.0.3")
	web := service("web", "10.96.0.20", v1.ProtocolTCP, "203.0.113.7")
	web.Spec.Type = v1.ServiceTypeLoadBalancer
	web.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: "10.97.0.1"}}
	r.apply(snapshot{[]*v1.Service{web}, []*discoveryv1.EndpointSlice{slice("web", v1.ProtocolTCP, "10.244.0.2")}})
	for name, c := range map[string]struct{ from, address, want string }{
		"a client outside is seen as something else than the node": {"", "10.96.0.20:8080", "a 10.245.0.1"},
		"a client in a pod is not seen as itself":                  {"b", "10.96.0.20:8080", "a 10.244.0.3"},
		"a pod cannot reach itself through its Service":            {"a", "10.96.0.20:8080", "a 10.245.0.1"},
		"an external IP is not served":                             {"b", "203.0.113.7:8080", "a 10.244.0.3"},
		"an external IP is not served outside":                     {"", "203.0.113.7:8080", "a 10.245.0.1"},
		"the load balancer's address is not served":                {"b", "10.97.0.1:8080", "a 10.244.0.3"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := r.ask(c.from, c.address); got != c.want {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestEveryEndpointIsPicked(t *testing.T) {
	r := newRig(t)
	r.pod("a", "10.244.0.2")
	r.pod("b", "10.244.0.3")
	r.apply(snapshot{[]*v1.Service{service("web", "10.96.0.20", v1.ProtocolTCP)}, []*discoveryv1.EndpointSlice{slice("web", v1.ProtocolTCP, "10.244.0.2", "10.244.0.3")}})
	seen := map[string]bool{}
	for range 64 { // one of two is missed once in 2^63 runs
		got, err := r.ask("", "10.96.0.20:8080")
		if err != nil {
			t.Fatal(err)
		}
		seen[got[:1]] = true
	}
	if len(seen) != 2 {
		t.Errorf("64 connections reached only %v", seen)
	}
}

func TestWhatNobodyServesIsRefusedAtOnce(t *testing.T) {
	r := newRig(t)
	r.pod("a", "10.244.0.2")
	web := service("web", "10.96.0.20", v1.ProtocolTCP, "203.0.113.7")
	r.apply(snapshot{services: []*v1.Service{web}})
	for _, from := range []string{"", "a"} {
		for _, address := range []string{"10.96.0.20:8080", "10.96.0.20:1", "10.96.0.99:80", "10.97.0.9:80", "203.0.113.7:8080"} {
			if _, err := r.ask(from, address); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("from %q to %s: %v", from, address, err)
			}
		}
	}
}

func TestChangesReplaceWhatWas(t *testing.T) {
	r := newRig(t)
	r.pod("a", "10.244.0.2")
	r.pod("b", "10.244.0.3")
	web, other := service("web", "10.96.0.20", v1.ProtocolTCP), service("other", "10.96.0.21", v1.ProtocolTCP)
	both := []*v1.Service{web, other}
	on := func(web, other string) snapshot {
		return snapshot{both, []*discoveryv1.EndpointSlice{slice("web", v1.ProtocolTCP, web), slice("other", v1.ProtocolTCP, other)}}
	}
	expect := func(address, want string) {
		t.Helper()
		got, err := r.ask("", address)
		if want == "" && !errors.Is(err, syscall.ECONNREFUSED) || want != "" && (err != nil || got[:1] != want) {
			t.Errorf("%s: got %q, %v, want %q", address, got, err, want)
		}
	}
	r.apply(on("10.244.0.2", "10.244.0.3"))
	expect("10.96.0.20:8080", "a")
	expect("10.96.0.21:8080", "b")
	r.apply(on("10.244.0.3", "10.244.0.2"))
	expect("10.96.0.20:8080", "b")
	expect("10.96.0.21:8080", "a")
	r.apply(snapshot{[]*v1.Service{web}, []*discoveryv1.EndpointSlice{slice("web", v1.ProtocolTCP, "10.244.0.2")}})
	expect("10.96.0.20:8080", "a")
	expect("10.96.0.21:8080", "")
	r.proxy = newProxy(r.o) // a further run takes over
	r.apply(on("10.244.0.3", "10.244.0.3"))
	expect("10.96.0.20:8080", "b")
	expect("10.96.0.21:8080", "b")
}

func TestUDPFlowsLeaveEndpointsThatAreGone(t *testing.T) {
	t.Run("not after a change", func(t *testing.T) { leavesEndpointThatIsGone(t, func(*proxy) {}) })
	t.Run("not after one that failed at first", func(t *testing.T) { leavesEndpointThatIsGone(t, func(p *proxy) { p.done = nil }) })
}

func leavesEndpointThatIsGone(t *testing.T, meanwhile func(*proxy)) {
	r := newRig(t)
	r.pod("a", "10.244.0.2")
	r.pod("b", "10.244.0.3")
	dns := []*v1.Service{service("dns", "10.96.0.20", v1.ProtocolUDP)}
	r.apply(snapshot{dns, []*discoveryv1.EndpointSlice{slice("dns", v1.ProtocolUDP, "10.244.0.2")}})
	var c net.Conn
	r.in(nil, func() (err error) {
		c, err = net.Dial("udp4", "10.96.0.20:8080")
		return err
	})
	defer c.Close()
	who := func() string {
		t.Helper()
		buffer := make([]byte, 10)
		if _, err := c.Write([]byte("who")); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
	if got := who(); got != "a" {
		t.Errorf("got %s", got)
	}
	meanwhile(r.proxy)
	r.apply(snapshot{dns, []*discoveryv1.EndpointSlice{slice("dns", v1.ProtocolUDP, "10.244.0.3")}})
	if got := who(); got != "b" {
		t.Errorf("after a change the flow still goes to %s", got)
	}
	r.apply(snapshot{services: dns})
	if _, err := c.Write([]byte("who")); err == nil {
		if _, err = c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("without endpoints: %v", err)
		}
	}
}

// A large table goes in by several messages.
func TestManyServices(t *testing.T) {
	r := newRig(t)
	r.pod("a", "10.244.0.2")
	var s snapshot
	for i := range 2000 {
		name := fmt.Sprintf("s%d", i)
		s.services = append(s.services, service(name, netip.AddrFrom4([4]byte{10, 96, byte(1 + i/250), byte(i % 250)}).String(), v1.ProtocolTCP))
		s.slices = append(s.slices, slice(name, v1.ProtocolTCP, "10.244.0.2"))
	}
	r.apply(s)
	if got, err := r.ask("", "10.96.8.249:8080"); got != "a 10.245.0.1" {
		t.Errorf("got %q, %v", got, err)
	}
	r.apply(snapshot{})
	if _, err := r.ask("", "10.96.8.249:8080"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after removal: %v", err)
	}
}

func TestAddressesOfLoadBalancers(t *testing.T) {
	within := netip.MustParsePrefix("10.97.0.0/29")
	lb := func(name, asks, holds string) *v1.Service {
		s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: v1.ServiceSpec{Type: v1.ServiceTypeLoadBalancer, LoadBalancerIP: asks}}
		if holds != "" {
			s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: holds}}
		}
		return s
	}
	class, plain, external := lb("class", "", ""), lb("plain", "", "10.97.0.5"), lb("external", "", "")
	other := "example.com/other"
	class.Spec.LoadBalancerClass = &other
	plain.Spec.Type = v1.ServiceTypeClusterIP
	external.Spec.ExternalIPs = []string{"10.97.0.1"}
	for name, c := range map[string]struct {
		services []*v1.Service
		want     string
	}{
		"addresses change though nothing asks for it":     {[]*v1.Service{lb("a", "", "10.97.0.3")}, ""},
		"two get one address":                             {[]*v1.Service{lb("a", "", ""), lb("b", "", "")}, "a=10.97.0.1 b=10.97.0.2 "},
		"a wish is not heard":                             {[]*v1.Service{lb("a", "10.97.0.4", "")}, "a=10.97.0.4 "},
		"a later wish is not heard":                       {[]*v1.Service{lb("a", "10.97.0.4", "10.97.0.1")}, "a=10.97.0.4 "},
		"a wish takes another's address":                  {[]*v1.Service{lb("a", "10.97.0.4", ""), lb("b", "", "10.97.0.4")}, ""},
		"a wish outside of the range is granted":          {[]*v1.Service{lb("a", "192.0.2.1", "")}, ""},
		"another's class is served":                       {[]*v1.Service{class}, ""},
		"an address stays with a Service of another type": {[]*v1.Service{plain}, "plain= "},
		"an external IP is given to another":              {[]*v1.Service{external, lb("b", "", "")}, "external=10.97.0.2 b=10.97.0.3 "},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			for _, a := range assign(c.services, within) {
				addr := ""
				if a.addr.IsValid() {
					addr = a.addr.String()
				}
				got += a.service.Name + "=" + addr + " "
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
