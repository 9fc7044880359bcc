// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"net"
	"net/netip"
	"os"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestListens: by the kernel's own word of sockets that are open here.
func TestListens(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	udp, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = udp.Close() }()
	conn, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	port := func(p v1.Protocol, a net.Addr) v1.ContainerPort {
		at, err := netip.ParseAddrPort(a.String())
		if err != nil {
			t.Fatal(err)
		}
		return v1.ContainerPort{Protocol: p, ContainerPort: int32(at.Port())}
	}
	for what, c := range map[string]struct {
		ports []v1.ContainerPort
		want  bool
	}{
		"no port":             {nil, true},
		"both":                {[]v1.ContainerPort{port("", tcp.Addr()), port(v1.ProtocolUDP, udp.LocalAddr())}, true},
		"one of the two":      {[]v1.ContainerPort{port(v1.ProtocolTCP, tcp.Addr()), {ContainerPort: 1}}, false},
		"a client's own port": {[]v1.ContainerPort{port(v1.ProtocolTCP, conn.LocalAddr())}, false},
	} {
		if got := listens(c.ports, os.Getpid()); got != c.want {
			t.Errorf("%s: %t", what, got)
		}
	}
}
