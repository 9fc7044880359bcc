package status

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
)

func ip(value string) record.Address { return record.Address{Type: "IPAddress", Value: value} }

// inside asks for a ClusterIP.
func inside(value string) record.Address {
	return record.Address{Type: "IPAddress", Value: value, Routability: "Cluster"}
}

func summary(a assignment) string {
	var got []string
	for _, one := range a.addresses {
		text := string(*one.Type) + ":" + one.Value
		if one.Routability != nil {
			text += ":" + string(*one.Routability)
		}
		got = append(got, text)
	}
	return strings.Join(got, " ")
}

func TestWhatKeepsAGatewayFromBeingReached(t *testing.T) {
	for _, c := range []struct {
		failure   string
		reach     Reach
		requested []record.Address
		reason    string
		addresses string // kind:value of the status
	}{
		{"a directory without address is reached", Reach{}, nil, "", ""},
		{"an address that nobody asked for is not told", Reach{Addresses: []string{"192.0.2.1"}, Provisioned: true}, nil, "", "IPAddress:192.0.2.1"},
		{"a name is told as an IP address", Reach{Addresses: []string{"lb.example"}, Provisioned: true}, nil, "", "Hostname:lb.example"},
		{"a name does not do for an address without a value", Reach{Addresses: []string{"lb.example"}, Provisioned: true}, []record.Address{ip("")}, "", "Hostname:lb.example"},
		{"no address yet", Reach{Provisioned: true}, nil, "AddressNotAssigned", ""},
		{"asked for two, got one", Reach{Addresses: []string{"192.0.2.1"}, Provisioned: true}, []record.Address{ip("192.0.2.1"), ip("192.0.2.9")}, "AddressNotUsable", "IPAddress:192.0.2.1"},
		{"asked for one, got another", Reach{Addresses: []string{"192.0.2.1"}, Provisioned: true}, []record.Address{ip("192.0.2.9")}, "AddressNotUsable", ""},
		{"asked for one, got none", Reach{}, []record.Address{ip("192.0.2.9")}, "AddressNotUsable", ""},
		{"more than was asked for is told", Reach{Addresses: []string{"192.0.2.1", "192.0.2.2"}}, []record.Address{ip("192.0.2.2")}, "", "IPAddress:192.0.2.2"},
		{"another way to write it", Reach{Addresses: []string{"2001:db8::1"}}, []record.Address{ip("2001:db8:0::1")}, "", "IPAddress:2001:db8:0::1"},
		{"a quota is no missing address", Reach{Provisioned: true, Problem: "quota"}, nil, "NoResources", ""},
	} {
		has := c.reach.assign(assemble.GatewayStatus{Requested: c.requested})
		reason, message := c.reach.obstacle(has, false)
		if got := summary(has); reason != c.reason || (reason == "") != (message == "") || got != c.addresses {
			t.Errorf("%s: %s %q, addresses %v", c.failure, reason, message, got)
		}
	}
}

// TestAssignment: GEP-5093, where a cluster has the experimental channel.
func TestAssignment(t *testing.T) {
	balanced := Reach{Addresses: []string{"192.0.2.1"}, ClusterIPs: []string{"10.0.0.1"}, Provisioned: true}
	pending := Reach{ClusterIPs: []string{"10.0.0.1"}, Provisioned: true}
	own := Reach{Addresses: []string{"10.0.0.1"}, ClusterIPs: []string{"10.0.0.1", "10.0.0.2"}, Provisioned: true}
	refused := Reach{Addresses: []string{"192.0.2.1"}, Refused: []string{"192.0.2.9: not in the range"}, Provisioned: true}
	unknown := record.Address{Type: "IPAddress", Routability: "a.example/b", Refused: "not supported"}
	for _, c := range []struct {
		failure    string
		reach      Reach
		requested  []record.Address
		addresses  string // kind:value:routability of the status
		assigned   string // reason of AddressesAssigned
		says       string // in its message
		programmed string // reason why it is not
	}{
		{"nobody looks for addresses here", Reach{}, nil, "", "", "", ""},
		{"nothing asked for", Reach{Addresses: []string{"192.0.2.1", "lb.example"}, Provisioned: true}, nil, "IPAddress:192.0.2.1: Hostname:lb.example:", "AddressesAssigned", "", ""},
		{"what is on its way is told as missing", Reach{Provisioned: true}, nil, "", "", "", "AddressNotAssigned"},
		{"what is asked for and on its way is told as missing", Reach{Provisioned: true}, []record.Address{ip(""), inside("")}, "", "", "", "AddressNotAssigned"},
		{"what is told as missing hides what never comes", Reach{Provisioned: true}, []record.Address{ip(""), unknown}, "", "NotAssigned", "a.example/b", "AddressNotAssigned"},
		{"a fleet that has a ClusterIP alone", Reach{Addresses: []string{"10.0.0.1"}, ClusterIPs: []string{"10.0.0.1"}, Provisioned: true}, nil, "IPAddress:10.0.0.1:Cluster", "AddressesAssigned", "", ""},
		{"an empty request is one request", Reach{Addresses: []string{"192.0.2.1", "192.0.2.2"}, Provisioned: true}, []record.Address{ip("")}, "IPAddress:192.0.2.1:", "AddressesAssigned", "", ""},
		{"a name is no IP address", Reach{Addresses: []string{"lb.example"}, Provisioned: true}, []record.Address{ip("")}, "", "NotAssigned", "any IPAddress", "AddressNotAssigned"},
		{"a name that is asked for is another", Reach{Addresses: []string{"lb.example"}, Provisioned: true}, []record.Address{{Type: "Hostname", Value: "a.example"}}, "", "NotAssigned", "Hostname a.example", "AddressNotAssigned"},
		{"a ClusterIP", balanced, []record.Address{inside("")}, "IPAddress:10.0.0.1:Cluster", "AddressesAssigned", "", ""},
		{"one of each", balanced, []record.Address{inside(""), ip("")}, "IPAddress:10.0.0.1:Cluster IPAddress:192.0.2.1:", "AddressesAssigned", "", ""},
		{"one of each, in another order", balanced, []record.Address{ip(""), inside("")}, "IPAddress:192.0.2.1: IPAddress:10.0.0.1:Cluster", "AddressesAssigned", "", ""},
		{"a ClusterIP stands in for the load balancer's address", pending, []record.Address{ip(""), inside("")}, "IPAddress:10.0.0.1:Cluster", "PartiallyAssigned", "any IPAddress:", ""},
		{"the ClusterIP that is taken is told as the other's", own, []record.Address{ip(""), inside("")}, "IPAddress:10.0.0.1:Cluster IPAddress:10.0.0.2:Cluster", "AddressesAssigned", "", ""},
		{"values come first", own, []record.Address{inside(""), inside("10.0.0.2")}, "IPAddress:10.0.0.1:Cluster IPAddress:10.0.0.2:Cluster", "AddressesAssigned", "", ""},
		{"one address satisfies two", balanced, []record.Address{ip(""), ip("")}, "IPAddress:192.0.2.1:", "PartiallyAssigned", "any IPAddress", ""},
		{"a load balancer's address is a ClusterIP", balanced, []record.Address{inside("192.0.2.1")}, "", "NotAssigned", "IPAddress 192.0.2.1 with routability Cluster", "AddressNotAssigned"},
		{"what was refused is told with its reason", refused, []record.Address{ip(""), inside("192.0.2.9")}, "IPAddress:192.0.2.1:", "PartiallyAssigned", "not in the range", ""},
		{"what was refused, alone", refused, []record.Address{inside("192.0.2.9")}, "", "NotAssigned", "not in the range", "AddressNotAssigned"},
		{"an unknown routability is satisfied", balanced, []record.Address{unknown}, "", "NotAssigned", "a.example/b (not supported)", "AddressNotAssigned"},
		{"an unknown routability takes another's address", balanced, []record.Address{unknown, ip("")}, "IPAddress:192.0.2.1:", "PartiallyAssigned", "a.example/b", ""},
		{"one that promises nothing", balanced, []record.Address{{Type: "IPAddress", Routability: "testing.x-k8s.io/sentinel"}}, "IPAddress:192.0.2.1:testing.x-k8s.io/sentinel", "AddressesAssigned", "", ""},
		{"a value that cannot be had, beside one that can", balanced, []record.Address{ip("192.0.2.1"), ip("192.0.2.9")}, "IPAddress:192.0.2.1:", "PartiallyAssigned", "IPAddress 192.0.2.9", "AddressNotUsable"},
	} {
		has := c.reach.assign(assemble.GatewayStatus{Requested: c.requested, Routability: true})
		reason, _ := c.reach.obstacle(has, true)
		conditions := append(c.reach.assigned(has, 7, nil), metav1.Condition{})
		got := conditions[0]
		if all := c.assigned == "AddressesAssigned"; summary(has) != c.addresses || got.Reason != c.assigned || (got.Status == metav1.ConditionTrue) != all || !strings.Contains(got.Message, c.says) || reason != c.programmed {
			t.Errorf("%s: addresses %s, AddressesAssigned %s %s %q, Programmed %q", c.failure, summary(has), got.Status, got.Reason, got.Message, reason)
		}
	}
}

// TestMoreAddressesThanAStatusHasRoomFor: a fleet on twenty nodes is reached at each, and an API server takes no status that names more than sixteen.
func TestMoreAddressesThanAStatusHasRoomFor(t *testing.T) {
	var r Reach
	for i := range 20 {
		r.Addresses = append(r.Addresses, fmt.Sprintf("192.0.2.%d", i))
	}
	got := Gateway(assemble.GatewayStatus{}, r, Convergence{}, metav1.Now(), gatewayv1.GatewayStatus{}).Addresses
	if len(got) != 16 || got[15].Value != "192.0.2.15" {
		t.Errorf("%d addresses: %s", len(got), asJSON(got))
	}
}

// TestAddressesThatAreLost: what was told once is told on, for good and for bad.
func TestAddressesThatAreLost(t *testing.T) {
	r := Reach{Provisioned: true}
	has := r.assign(assemble.GatewayStatus{Routability: true})
	got := r.assigned(has, 7, []metav1.Condition{{Type: "AddressesAssigned", Status: metav1.ConditionTrue, Reason: "AddressesAssigned"}})
	if len(got) != 1 || got[0].Status != metav1.ConditionFalse || got[0].Reason != "NotAssigned" || got[0].ObservedGeneration != 7 {
		t.Errorf("%+v", got)
	}
}
