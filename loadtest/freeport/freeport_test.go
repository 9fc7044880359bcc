// SPDX-License-Identifier: Apache-2.0

package freeport

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// TestTake: a port that is taken can be listened at, again and again, and is given to nobody else, whether somebody listens or not.
func TestTake(t *testing.T) {
	address := Address(t)
	number := 0
	for range 2 {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		number = l.Addr().(*net.TCPAddr).Port
		kept(t, number)
		serveOne(t, l) // leaves a connection in TIME_WAIT on the port
		kept(t, number)
	}
	l, err := net.Listen("tcp4", strings.Replace(address, "127.0.0.1", "0.0.0.0", 1))
	if err != nil {
		t.Fatalf("on all addresses: %v", err)
	}
	_ = l.Close()
}

// kept fails the test when another one could be given the port.
func kept(t *testing.T, number int) {
	t.Helper()
	if socket, err := lease(number); !errors.Is(err, syscall.EADDRINUSE) {
		_ = syscall.Close(socket)
		t.Errorf("a second lease of port %d: %v, want EADDRINUSE", number, err)
	}
}

func serveOne(t *testing.T, l net.Listener) {
	t.Helper()
	server := &http.Server{Handler: http.NotFoundHandler()}
	go func() { _ = server.Serve(l) }()
	r, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	_ = server.Close()
}

// TestTakeDiffers: ports kept at the same time are different ones.
func TestTakeDiffers(t *testing.T) {
	seen := map[int]bool{}
	for range 500 {
		number := Take(t)
		if seen[number] {
			t.Fatalf("port %d twice", number)
		}
		seen[number] = true
	}
}
