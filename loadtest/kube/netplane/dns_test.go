// SPDX-License-Identifier: Apache-2.0

package netplane

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

func objectsOf(t *testing.T, s snapshot) objects {
	t.Helper()
	index := func() cache.Indexer {
		return cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	}
	services, slices := index(), index()
	for _, each := range s.services {
		if err := services.Add(each); err != nil {
			t.Fatal(err)
		}
	}
	for _, each := range s.slices {
		if err := slices.Add(each); err != nil {
			t.Fatal(err)
		}
	}
	return objects{corelisters.NewServiceLister(services), discoverylisters.NewEndpointSliceLister(slices)}
}

func dnsRig(t *testing.T) objects {
	t.Helper()
	db, dbSlice := service("db", v1.ClusterIPNone, v1.ProtocolTCP), slice("db", v1.ProtocolTCP, "10.244.0.3", "10.244.0.2")
	name, no := "db-0", false
	dbSlice.Endpoints[1].Hostname = &name
	dbSlice.Endpoints = append(dbSlice.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.244.0.9"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}})
	portName := "web"
	dbSlice.Ports[0].Name = &portName
	web, empty, alias := service("web", "10.96.0.20", v1.ProtocolTCP), service("empty", v1.ClusterIPNone, v1.ProtocolTCP), service("alias", "", v1.ProtocolTCP)
	web.Spec.Ports[0].Name = "http"
	alias.Spec = v1.ServiceSpec{Type: v1.ServiceTypeExternalName, ExternalName: "example.com"}
	return objectsOf(t, snapshot{[]*v1.Service{db, web, empty, alias}, []*discoveryv1.EndpointSlice{dbSlice}})
}

// describe writes an answer as "code: record record".
func describe(m dnsmessage.Message) string {
	words := []string{strings.TrimPrefix(m.RCode.String(), "RCode") + ":"}
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			words = append(words, fmt.Sprintf("%d.%d.%d.%d", body.A[0], body.A[1], body.A[2], body.A[3]))
		case *dnsmessage.CNAMEResource:
			words = append(words, body.CNAME.String())
		case *dnsmessage.SRVResource:
			words = append(words, fmt.Sprintf("%s%d", body.Target, body.Port))
		}
	}
	return strings.Join(words, " ")
}

func question(t *testing.T, name string, kind dnsmessage.Type, edns int) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	if edns > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(edns, dnsmessage.RCodeSuccess, false); err != nil {
			t.Fatal(err)
		}
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}})
	}
	data, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func unpack(t *testing.T, data []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(data); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNames(t *testing.T) {
	s := &nameServer{objects: dnsRig(t)}
	for name, c := range map[string]struct {
		name string
		kind dnsmessage.Type
		want string
	}{
		"a Service has no address":                          {"web.default.svc.cluster.local.", dnsmessage.TypeA, "Success: 10.96.0.20"},
		"case matters":                                      {"WEB.Default.svc.Cluster.local.", dnsmessage.TypeA, "Success: 10.96.0.20"},
		"a name without IPv6 does not exist":                {"web.default.svc.cluster.local.", dnsmessage.TypeAAAA, "Success:"},
		"an unknown Service exists":                         {"nosuch.default.svc.cluster.local.", dnsmessage.TypeA, "NameError:"},
		"a Service exists in another namespace":             {"web.other.svc.cluster.local.", dnsmessage.TypeA, "NameError:"},
		"a name outside is asked for elsewhere":             {"example.com.", dnsmessage.TypeA, "NameError:"},
		"a search path's end exists":                        {"example.com.cluster.local.", dnsmessage.TypeA, "NameError:"},
		"a headless Service has endpoints that are unready": {"db.default.svc.cluster.local.", dnsmessage.TypeA, "Success: 10.244.0.2 10.244.0.3"},
		"a headless Service without endpoints exists":       {"empty.default.svc.cluster.local.", dnsmessage.TypeA, "NameError:"},
		"a pod of a StatefulSet has no name":                {"db-0.db.default.svc.cluster.local.", dnsmessage.TypeA, "Success: 10.244.0.2"},
		"an endpoint without a host name has no name":       {"10-244-0-3.db.default.svc.cluster.local.", dnsmessage.TypeA, "Success: 10.244.0.3"},
		"an unknown pod of a StatefulSet exists":            {"db-1.db.default.svc.cluster.local.", dnsmessage.TypeA, "NameError:"},
		"an ExternalName is no alias":                       {"alias.default.svc.cluster.local.", dnsmessage.TypeA, "Success: example.com."},
		"a Service's ports are unknown":                     {"_http._tcp.web.default.svc.cluster.local.", dnsmessage.TypeSRV, "Success: web.default.svc.cluster.local.8080"},
		"a headless Service's ports are unknown":            {"_web._tcp.db.default.svc.cluster.local.", dnsmessage.TypeSRV, "Success: db-0.db.default.svc.cluster.local.80 10-244-0-3.db.default.svc.cluster.local.80"},
		"an unknown port exists":                            {"_no._tcp.web.default.svc.cluster.local.", dnsmessage.TypeSRV, "NameError:"},
		"an address is no pod's name":                       {"10-244-0-7.default.pod.cluster.local.", dnsmessage.TypeA, "Success: 10.244.0.7"},
	} {
		t.Run(name, func(t *testing.T) {
			data, ok := s.answer(question(t, c.name, c.kind, 0), plainSize)
			if !ok {
				t.Fatal("no answer")
			}
			m := unpack(t, data)
			if got := describe(m); got != c.want || m.ID != 7 || !m.Response || !m.Authoritative {
				t.Errorf("got %s (%+v), want %s", got, m.Header, c.want)
			}
			if len(m.Answers) == 0 && len(m.Authorities) != 1 {
				t.Error("an empty answer does not say for how long it holds")
			}
		})
	}
}

func TestAnswersThatAreTooLongAreCut(t *testing.T) {
	var ips []string
	for i := range 100 {
		ips = append(ips, fmt.Sprintf("10.244.1.%d", i))
	}
	s := &nameServer{objects: objectsOf(t, snapshot{[]*v1.Service{service("big", v1.ClusterIPNone, v1.ProtocolTCP)}, []*discoveryv1.EndpointSlice{slice("big", v1.ProtocolTCP, ips...)}})}
	for name, c := range map[string]struct {
		edns, size, answers int
		cut                 bool
	}{
		"over UDP":            {0, plainSize, 0, true},
		"with a little EDNS":  {1232, plainSize, 0, true},
		"with enough EDNS":    {4096, plainSize, 100, false},
		"over TCP":            {0, maxMessage, 100, false},
		"with EDNS below 512": {100, plainSize, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			data, ok := s.answer(question(t, "big.default.svc.cluster.local.", dnsmessage.TypeA, c.edns), c.size)
			if !ok {
				t.Fatal("no answer")
			}
			m := unpack(t, data)
			if m.Truncated != c.cut || len(m.Answers) != c.answers || (len(m.Additionals) == 1) != (c.edns > 0) {
				t.Errorf("cut %v, %d answers, %d additional", m.Truncated, len(m.Answers), len(m.Additionals))
			}
		})
	}
}

func FuzzAnswer(f *testing.F) {
	s := &nameServer{objects: objectsOf(&testing.T{}, snapshot{services: []*v1.Service{service("web", "10.96.0.20", v1.ProtocolTCP)}})}
	f.Add([]byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 'w', 'e', 'b', 0, 0, 1, 0, 1})
	f.Add([]byte("\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, message []byte) {
		answer, ok := s.answer(message, plainSize)
		if ok && len(answer) > plainSize && len(message) < 11 {
			t.Errorf("%d bytes for a question without EDNS", len(answer))
		}
		if ok {
			unpack(t, answer)
		}
	})
}

func TestOfTwoServicesWithOneFrontTheOlderHasIt(t *testing.T) {
	old, young := service("young", "10.96.0.20", v1.ProtocolTCP, "203.0.113.7"), service("old", "10.96.0.21", v1.ProtocolTCP, "203.0.113.7")
	young.CreationTimestamp.Time = old.CreationTimestamp.AddDate(1, 0, 0)
	table := compile(snapshot{[]*v1.Service{young, old}, []*discoveryv1.EndpointSlice{slice("old", v1.ProtocolTCP, "10.244.0.2"), slice("young", v1.ProtocolTCP, "10.244.0.3")}})
	for f, name := range table.fronts {
		if f.addr.String() == "203.0.113.7" && name.service != old.Name {
			t.Errorf("%v leads to %s", f, name.service)
		}
	}
}

func TestEndpointsThatEndServeWhereNoneIsReady(t *testing.T) {
	yes, no := true, false
	web := service("web", "10.96.0.20", v1.ProtocolTCP)
	ending := slice("web", v1.ProtocolTCP, "10.244.0.2", "10.244.0.3")
	ending.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	for name, c := range map[string]struct {
		ready *bool
		want  string
	}{"beside a ready one": {&yes, "[10.244.0.3:80]"}, "alone": {&no, "[10.244.0.2:80]"}} {
		t.Run(name, func(t *testing.T) {
			ending.Endpoints[1].Conditions.Ready = c.ready
			table := compile(snapshot{[]*v1.Service{web}, []*discoveryv1.EndpointSlice{ending}})
			if got := fmt.Sprint(table.ports[portName{"default", "web", ""}].endpoints); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
