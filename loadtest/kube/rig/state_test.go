// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"net/netip"
	"os"
	"os/exec"
	"testing"
)

// TestPlanGivesNoAddressTwice: all clusters share one network.
func TestPlanGivesNoAddressTwice(t *testing.T) {
	var taken []netip.Prefix
	for i := range MaxClusters {
		c := plan("/rig", i+1, "1")
		for _, p := range []netip.Prefix{c.PodCIDR, c.ServiceCIDR, c.LoadBalancerCIDR, netip.PrefixFrom(c.NodeIP, 32)} {
			for _, other := range taken {
				if p.Overlaps(other) {
					t.Errorf("%s of %s overlaps %s", p, c.Name, other)
				}
			}
			taken = append(taken, p)
		}
		if !c.ServiceCIDR.Contains(c.DNS) || c.DNS == c.ServiceCIDR.Addr().Next() {
			t.Errorf("the name server's address %s is not a free one of %s", c.DNS, c.ServiceCIDR)
		}
	}
}

// TestAProcessIsNotMistakenForALaterOne: a process id comes again, a start time does not.
func TestAProcessIsNotMistakenForALaterOne(t *testing.T) {
	me, err := identify(os.Getpid())
	if err != nil || !me.alive() {
		t.Fatalf("this process: %+v, %v", me, err)
	}
	if (Process{PID: me.PID, Started: me.Started + "1"}).alive() {
		t.Error("another process of the same id counts as this one")
	}
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := identify(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.end(); err != nil { // waits for its end; it is a zombie until Wait
		t.Error(err)
	}
	if p.alive() {
		t.Error("a zombie counts as alive")
	}
	if err := child.Wait(); err == nil {
		t.Error("a killed process ended well")
	}
	if err := p.end(); err != nil {
		t.Errorf("ending what has ended: %v", err)
	}
}
