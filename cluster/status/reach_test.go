package status

import (
	"strings"
	"testing"
)

func TestWhatKeepsAGatewayFromBeingReached(t *testing.T) {
	for _, c := range []struct {
		failure   string
		reach     Reach
		requested []string
		reason    string
		addresses string // kind:value of the status
	}{
		{"a directory without address is reached", Reach{}, nil, "", ""},
		{"an address that nobody asked for is not told", Reach{Addresses: []string{"192.0.2.1"}, Provisioned: true}, nil, "", "IPAddress:192.0.2.1"},
		{"a name is told as an IP address", Reach{Addresses: []string{"lb.example"}, Provisioned: true}, nil, "", "Hostname:lb.example"},
		{"no address yet", Reach{Provisioned: true}, nil, "AddressNotAssigned", ""},
		{"asked for two, got one", Reach{Addresses: []string{"192.0.2.1"}, Provisioned: true}, []string{"192.0.2.1", "192.0.2.9"}, "AddressNotUsable", "IPAddress:192.0.2.1"},
		{"asked for one, got another", Reach{Addresses: []string{"192.0.2.1"}, Provisioned: true}, []string{"192.0.2.9"}, "AddressNotUsable", ""},
		{"asked for one, got none", Reach{}, []string{"192.0.2.9"}, "AddressNotUsable", ""},
		{"more than was asked for is told", Reach{Addresses: []string{"192.0.2.1", "192.0.2.2"}}, []string{"192.0.2.2"}, "", "IPAddress:192.0.2.2"},
		{"a quota is no missing address", Reach{Provisioned: true, Problem: "quota"}, nil, "NoResources", ""},
	} {
		reason, message := c.reach.obstacle(c.requested)
		var got []string
		for _, a := range c.reach.addresses(c.requested) {
			got = append(got, string(*a.Type)+":"+a.Value)
		}
		if reason != c.reason || (reason == "") != (message == "") || strings.Join(got, " ") != c.addresses {
			t.Errorf("%s: %s %q, addresses %v", c.failure, reason, message, got)
		}
	}
}
