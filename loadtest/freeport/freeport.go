// SPDX-License-Identifier: Apache-2.0

// Package freeport gives tests TCP ports of loopback for the servers that they start.
//
// Looking for a free port and closing it again leaves it to anyone until the server listens, and again while a server is down between two starts: another
// test, or another package's that runs at the same time, may take it. So a port is kept by a socket that is bound to it and does not listen, until the test
// ends or its process dies. On Linux such a socket keeps off every other Take (which binds without SO_REUSEADDR), and lets servers in that listen with
// SO_REUSEADDR, as those written in Go and Envoy do (socket(7)).
package freeport

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
)

// Ports lie below what the kernel gives to outgoing connections (32768 and up on Linux, net.ipv4.ip_local_port_range), which no lease keeps off,
// and below those that fleetgate dev takes.
const first, last = 10000, 20000

// Take gives a port of 127.0.0.1 that nobody uses and nobody else will be given before the test ends.
func Take(t testing.TB) int {
	t.Helper()
	var err error
	for range 100 {
		var socket int
		number := first + rand.IntN(last-first)
		if socket, err = lease(number); err == nil {
			t.Cleanup(func() { _ = syscall.Close(socket) })
			return number
		}
	}
	t.Fatalf("no free port from %d to %d: %v", first, last, err)
	return 0
}

// Address is Take as host:port.
func Address(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", Take(t))
}

// lease binds a socket to a port: alone, then open to those who listen.
func lease(number int) (socket int, err error) {
	syscall.ForkLock.RLock() // no child is started between the two calls: it would keep the port
	socket, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	syscall.CloseOnExec(socket)
	syscall.ForkLock.RUnlock()
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	if err = syscall.Bind(socket, &syscall.SockaddrInet4{Port: number, Addr: [4]byte{127, 0, 0, 1}}); err == nil {
		err = syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	}
	if err != nil {
		_ = syscall.Close(socket)
		return 0, fmt.Errorf("port %d: %w", number, err)
	}
	return socket, nil
}
