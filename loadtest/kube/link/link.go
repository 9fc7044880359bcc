// SPDX-License-Identifier: Apache-2.0

// Package link holds the few operations on network namespaces, links, addresses and routes that a local Kubernetes needs.
//
// Every pod has a network namespace of its own and one veth pair into the namespace of the cluster. There is no bridge: the pod's address is a /32
// route over its veth, and the pod's default gateway is the node's address, for which the outer end answers ARP. So everything between two pods is
// forwarded, network address translation sees both directions, and a pod that reaches itself through a Service needs no bridge that hairpins.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace that lives as long as this handle or a process in it.
type Namespace struct{ file *os.File }

// New makes an empty network namespace with its loopback up.
func New() (*Namespace, error) {
	ns, err := onThread(func() (*Namespace, error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("making a network namespace (root or a user namespace is needed): %w", err)
		}
		file, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		if err != nil {
			return nil, fmt.Errorf("opening the new network namespace: %w", err)
		}
		return &Namespace{file: file}, nil
	})
	if err != nil {
		return nil, err
	}
	return ns, ns.Do(func() error { return up("lo") })
}

// onThread runs f on a thread of its own, which ends with f: whatever f does to its namespaces stays there.
func onThread[T any](f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends here
		value, err := f()
		done <- result{value, err}
	}()
	r := <-done
	return r.value, r.err
}

// File is the handle to give to a process that joins the namespace.
func (n *Namespace) File() *os.File { return n.file }

// Close gives up the handle.
func (n *Namespace) Close() error { return n.file.Close() }

// Do runs f on a thread inside the namespace.
func (n *Namespace) Do(f func() error) error {
	_, err := onThread(func() (struct{}, error) {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return struct{}{}, fmt.Errorf("entering a network namespace: %w", err)
		}
		return struct{}{}, f()
	})
	return err
}

// Sysctl sets a kernel parameter of the calling thread's network namespace, such as net.ipv4.ip_forward.
func Sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", filepath.FromSlash(strings.ReplaceAll(name, ".", "/")))
	if !strings.HasPrefix(path, "/proc/sys/net/") {
		return fmt.Errorf("sysctl %s: only parameters of the network namespace (net.*) can be set", name)
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("setting sysctl %s: %w", name, err)
	}
	return nil
}

// Connect gives the namespace an eth0 with the address pod, reached over a veth called name, and a default route through node.
func Connect(ns *Namespace, name string, pod, node netip.Addr) error {
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: name})
	pair.PeerName = "eth0"
	pair.PeerNamespace = netlink.NsFd(int(ns.file.Fd()))
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("adding veth %s: %w", name, err)
	}
	if err := ns.Do(func() error { return configureInside(pod, node) }); err != nil {
		return errors.Join(err, Remove(name))
	}
	if err := configureOutside(name, pod, node); err != nil {
		return errors.Join(err, Remove(name))
	}
	return nil
}

func configureInside(pod, node netip.Addr) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("finding eth0 of a pod: %w", err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: host(pod)}); err != nil {
		return fmt.Errorf("adding address %s to a pod: %w", pod, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting up eth0 of a pod: %w", err)
	}
	for _, route := range []netlink.Route{
		{LinkIndex: link.Attrs().Index, Dst: host(node), Scope: netlink.SCOPE_LINK},
		{LinkIndex: link.Attrs().Index, Gw: node.AsSlice()},
	} {
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("adding a route of pod %s: %w", pod, err)
		}
	}
	return nil
}

func configureOutside(name string, pod, node netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding veth %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting up veth %s: %w", name, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: host(pod), Scope: netlink.SCOPE_LINK, Src: node.AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("adding the route to pod %s: %w", pod, err)
	}
	return nil
}

// Remove deletes a link; one that is gone already is no error.
func Remove(name string) error {
	link, err := netlink.LinkByName(name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finding link %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting link %s: %w", name, err)
	}
	return nil
}

// AddAddress makes addr one of the calling namespace's own; one that it has already is no error.
func AddAddress(addr netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: host(addr)}); err != nil {
		return fmt.Errorf("adding address %s to lo: %w", addr, err)
	}
	return nil
}

// RouteVirtual makes a range of virtual addresses routable with node as the client's source address.
//
// The packets never arrive there: translation sends them elsewhere, or they are rejected. A route of type local would be simpler, but then the source
// address of a client in this namespace becomes the virtual address itself.
func RouteVirtual(virtual netip.Prefix, node netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: network(virtual), Scope: netlink.SCOPE_LINK, Src: node.AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("adding a route for %s: %w", virtual, err)
	}
	return nil
}

// UnrouteVirtual takes RouteVirtual back; a route that is gone already is no error.
func UnrouteVirtual(virtual netip.Prefix) error {
	if err := netlink.RouteDel(&netlink.Route{Dst: network(virtual)}); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("deleting the route for %s: %w", virtual, err)
	}
	return nil
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting up link %s: %w", name, err)
	}
	return nil
}

func host(addr netip.Addr) *net.IPNet { return network(netip.PrefixFrom(addr, addr.BitLen())) }

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Current is a handle on the calling thread's own namespace.
func Current() (*Namespace, error) {
	file, err := onThread(func() (*os.File, error) { return os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())) })
	if err != nil {
		return nil, fmt.Errorf("opening the own network namespace: %w", err)
	}
	return &Namespace{file: file}, nil
}
