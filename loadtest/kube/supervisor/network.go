// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// makeNetwork brings the loopback up and gives it the address of every node. A node's address stands on the loopback because no machine is behind it: the control
// plane, the kubelet and the pods of all clusters share this one network namespace, in which each pod is reached by a route of its own.
func makeNetwork(clusters []rig.Cluster) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set the loopback up: %w", err)
	}
	for _, c := range clusters {
		address := &netlink.Addr{IPNet: &net.IPNet{IP: c.NodeIP.AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if err := netlink.AddrAdd(lo, address); err != nil {
			return fmt.Errorf("give the node of %s its address: %w", c.Name, err)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("let packets pass between pods: %w", err)
	}
	return nil
}

// forward serves a cluster's API server on the listener from outside, and on the same port of the loopback in here, so that one kubeconfig works in both places.
func forward(ctx context.Context, c rig.Cluster, outside net.Listener, log *slog.Logger) error {
	at, err := url.Parse(c.Server)
	if err != nil {
		return fmt.Errorf("forward the API server of %s: %w", c.Name, err)
	}
	inside, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", at.Host)
	if err != nil {
		return fmt.Errorf("forward the API server of %s: %w", c.Name, err)
	}
	target := net.JoinHostPort(c.NodeIP.String(), "6443")
	for _, l := range []net.Listener{outside, inside} {
		context.AfterFunc(ctx, func() { _ = l.Close() })
		go acceptAndForward(ctx, l, target, log)
	}
	return nil
}

func acceptAndForward(ctx context.Context, l net.Listener, target string, log *slog.Logger) {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Error("cannot accept a connection for an API server", "error", err)
			continue
		}
		go func() {
			defer func() { _ = client.Close() }()
			server, err := (&net.Dialer{}).DialContext(ctx, "tcp4", target)
			if err != nil {
				return // the client sees a closed connection, as it would from a dead API server
			}
			defer func() { _ = server.Close() }()
			splice(client.(*net.TCPConn), server.(*net.TCPConn))
		}()
	}
}

// splice copies both ways, each to its own end.
func splice(a, b *net.TCPConn) {
	done := make(chan struct{})
	one := func(to, from *net.TCPConn) {
		_, _ = io.Copy(to, from) // an error ends this direction like an end does
		_ = to.CloseWrite()
		done <- struct{}{}
	}
	go one(a, b)
	go one(b, a)
	<-done
	<-done
}
