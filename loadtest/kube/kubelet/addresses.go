// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"net/netip"
	"sync"
)

// addresses gives out the addresses of a range, each to one pod at a time. An address that was given back is the last to be given again, so that whoever
// still remembers a pod does not reach another.
type addresses struct {
	within netip.Prefix

	mu   sync.Mutex
	last netip.Addr
	used map[netip.Addr]bool
}

func newAddresses(within netip.Prefix) *addresses {
	// The first address of a range is left out, as it is in networks where it means the network itself.
	return &addresses{within: within.Masked(), last: within.Masked().Addr(), used: map[netip.Addr]bool{}}
}

func (a *addresses) take() (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for candidate := a.last.Next(); candidate != a.last; candidate = candidate.Next() {
		if !a.within.Contains(candidate) {
			candidate = a.within.Addr() // which the loop steps over
			if candidate == a.last {
				break
			}
			continue
		}
		if !a.used[candidate] {
			a.used[candidate], a.last = true, candidate
			return candidate, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("all addresses of %s are in use: give the cluster a larger range or delete pods", a.within)
}

func (a *addresses) giveBack(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.used, addr)
}
