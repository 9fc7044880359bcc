// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// A kubelet takes a container without a readiness probe for ready as soon as it runs, and hears of that up to a second late: it asks the container runtime once a second, and by then
// the program listens. This kubelet hears of it at once, when the program has not bound its ports yet, and a datagram that is sent because the pod is ready would be lost. So it looks
// whether the program listens on the ports that its container declares, for the second that a kubelet would have taken.
const (
	belated   = time.Second
	lookEvery = 10 * time.Millisecond
)

// awaitPorts returns when the container listens, or after that second.
func awaitPorts(ctx context.Context, ports []v1.ContainerPort, pid int) {
	for deadline := time.Now().Add(belated); !listens(ports, pid) && time.Now().Before(deadline); {
		if !wait(ctx, lookEvery) {
			return
		}
	}
}

func listens(ports []v1.ContainerPort, pid int) bool {
	for _, p := range ports {
		protocol := "tcp"
		switch p.Protocol {
		case v1.ProtocolUDP:
			protocol = "udp"
		case v1.ProtocolSCTP: // the kernel has no such table
			continue
		}
		if !bound(table(pid, protocol), p.ContainerPort) && !bound(table(pid, protocol+"6"), p.ContainerPort) {
			return false
		}
	}
	return true
}

// table is what the kernel says of the sockets of a process's network namespace; none where it cannot be read.
func table(pid int, protocol string) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, protocol))
	if err != nil {
		return ""
	}
	return string(data)
}

// bound tells whether a socket waits on a port for whoever comes: the remote address of such a one is nobody's (proc_net_tcp of the kernel's documentation).
func bound(table string, port int32) bool {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasSuffix(f[2], ":0000") {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		if n, err := strconv.ParseInt(hex, 16, 32); err == nil && int32(n) == port {
			return true
		}
	}
	return false
}
