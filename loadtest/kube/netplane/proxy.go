// SPDX-License-Identifier: Apache-2.0

package netplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fleetgate/fleetgate/loadtest/kube/link"
)

// Registers of nftables: of 16 bytes each, and the same memory as words of 4 bytes.
const (
	reg1   = unix.NFT_REG_1
	reg2   = unix.NFT_REG_2
	word1  = unix.NFT_REG32_01
	word2  = unix.NFT_REG32_02
	word5  = unix.NFT_REG32_05 // the second word of reg2
	inIPv4 = 16                // offset of the destination address; the source is 4 before
)

// chunk is how many elements go into one message, whose length is limited to 64 KiB.
const chunk = 500

// proxy programs one cluster's table and remembers what it has programmed.
type proxy struct {
	o      Options
	table  *nftables.Table
	fronts *nftables.Set
	loops  *nftables.Set
	vips   *nftables.Set

	// done is what the kernel has; nil before the first time and after a failure, when all is made anew.
	done *table
	// flows are the endpoints to which there may be UDP flows: those that there are, and those that are gone and whose flows were not forgotten yet.
	flows map[netip.AddrPort]bool
	// chains number the ports.
	chains map[portName]int
	next   int
	routes map[netip.Addr]bool
}

func newProxy(o Options) *proxy {
	return &proxy{o: o, table: &nftables.Table{Name: "kube-" + o.Cluster, Family: nftables.TableFamilyIPv4}, flows: map[netip.AddrPort]bool{}, routes: map[netip.Addr]bool{}}
}

// apply brings the kernel to t in one transaction.
func (p *proxy) apply(t table) error {
	if err := p.route(t.virtual); err != nil {
		return err
	}
	c, err := nftables.New(nftables.WithSockOptions(wide))
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	from := p.done
	p.done = nil
	if from == nil {
		from = &table{}
		if err := p.rebuild(c); err != nil {
			return err
		}
	}
	if err := p.change(c, *from, t); err != nil {
		return err
	}
	maps.Copy(p.flows, udpEndpoints(t))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("programming Services (does the kernel have nf_tables with nat, numgen and reject?): %w", err)
	}
	p.done = &t
	return p.forgetFlows(t)
}

// buffer is room for a transaction, which goes to the kernel in one piece, and for its acknowledgements.
const buffer = 64 << 20

func wide(c *mdnetlink.Conn) error {
	return errors.Join(c.SetWriteBuffer(buffer), c.SetReadBuffer(buffer))
}

// route makes virtual addresses outside of the ranges routable.
func (p *proxy) route(virtual map[netip.Addr]bool) error {
	outside := func(a netip.Addr) bool { return !p.o.ServiceCIDR.Contains(a) && !p.o.LoadBalancerCIDR.Contains(a) }
	for a := range virtual {
		if outside(a) && !p.routes[a] {
			if err := link.RouteVirtual(netip.PrefixFrom(a, a.BitLen()), p.o.NodeIP); err != nil {
				return err
			}
			p.routes[a] = true
		}
	}
	for a := range p.routes {
		if !virtual[a] {
			if err := link.UnrouteVirtual(netip.PrefixFrom(a, a.BitLen())); err != nil {
				return err
			}
			delete(p.routes, a)
		}
	}
	return nil
}

// rebuild starts with an empty table.
func (p *proxy) rebuild(c *nftables.Conn) error {
	p.chains, p.next = map[portName]int{}, 0
	c.AddTable(p.table)
	c.DelTable(p.table) // whatever was in it
	c.AddTable(p.table)
	three, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	if err != nil {
		return fmt.Errorf("describing a map: %w", err)
	}
	two, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	if err != nil {
		return fmt.Errorf("describing a set: %w", err)
	}
	p.fronts = &nftables.Set{Table: p.table, Name: "fronts", IsMap: true, Concatenation: true, KeyType: three, DataType: nftables.TypeVerdict}
	p.loops = &nftables.Set{Table: p.table, Name: "loops", Concatenation: true, KeyType: two}
	p.vips = &nftables.Set{Table: p.table, Name: "virtual", KeyType: nftables.TypeIPAddr}
	for _, set := range []*nftables.Set{p.fronts, p.loops, p.vips} {
		if err := c.AddSet(set, nil); err != nil {
			return fmt.Errorf("making a set: %w", err)
		}
	}
	p.addTranslation(c)
	p.addReturn(c)
	p.addRefusal(c)
	return nil
}

// addTranslation sends what comes to a front, from pods and from here, to the port's chain.
func (p *proxy) addTranslation(c *nftables.Conn) {
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		priority := nftables.ChainPriorityNATDest
		if name == "output" {
			priority = nftables.ChainPriorityRef(-100)
		}
		chain := c.AddChain(&nftables.Chain{Table: p.table, Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority})
		c.AddRule(&nftables.Rule{Table: p.table, Chain: chain, Exprs: []expr.Any{
			address(reg1, inIPv4),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: word1},
			&expr.Payload{DestRegister: word2, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: reg1, IsDestRegSet: true, SetName: p.fronts.Name, SetID: p.fronts.ID},
		}})
	}
}

func address(register uint32, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

// addReturn gives a pod that reaches itself through a Service another source address, for it would not take a packet from itself.
func (p *proxy) addReturn(c *nftables.Conn) {
	chain := c.AddChain(&nftables.Chain{Table: p.table, Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	c.AddRule(&nftables.Rule{Table: p.table, Chain: chain, Exprs: []expr.Any{
		address(reg1, inIPv4-4), address(word1, inIPv4),
		&expr.Lookup{SourceRegister: reg1, SetName: p.loops.Name, SetID: p.loops.ID},
		&expr.Immediate{Register: reg1, Data: p.o.NodeIP.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1},
	}})
}

// addRefusal refuses what is still on its way to a virtual address after translation. The name server's address is real.
func (p *proxy) addRefusal(c *nftables.Conn) {
	refuse := c.AddChain(&nftables.Chain{Table: p.table, Name: "refuse"})
	c.AddRule(&nftables.Rule{Table: p.table, Chain: refuse, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	}})
	c.AddRule(&nftables.Rule{Table: p.table, Chain: refuse, Exprs: []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}}}) // port unreachable
	jump := &expr.Verdict{Kind: expr.VerdictGoto, Chain: refuse.Name}
	for name, hook := range map[string]*nftables.ChainHook{"forward": nftables.ChainHookForward, "local": nftables.ChainHookOutput} {
		chain := c.AddChain(&nftables.Chain{Table: p.table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
		c.AddRule(&nftables.Rule{Table: p.table, Chain: chain, Exprs: []expr.Any{
			address(reg1, inIPv4), &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: p.o.DNS.AsSlice()}, &expr.Verdict{Kind: expr.VerdictAccept},
		}})
		for _, r := range []netip.Prefix{p.o.ServiceCIDR, p.o.LoadBalancerCIDR} {
			c.AddRule(&nftables.Rule{Table: p.table, Chain: chain, Exprs: []expr.Any{
				address(reg1, inIPv4),
				&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: mask(r), Xor: make([]byte, 4)},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: r.Masked().Addr().AsSlice()}, jump,
			}})
		}
		c.AddRule(&nftables.Rule{Table: p.table, Chain: chain, Exprs: []expr.Any{
			address(reg1, inIPv4), &expr.Lookup{SourceRegister: reg1, SetName: p.vips.Name, SetID: p.vips.ID}, jump,
		}})
	}
}

func mask(r netip.Prefix) []byte {
	return binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-r.Bits()))
}

// change adds what turns one table into the other: first chains that fronts will lead to, then the fronts, last the chains that nothing leads to any more.
func (p *proxy) change(c *nftables.Conn, from, to table) error {
	for _, name := range sortedPorts(to.ports) {
		if old, ok := from.ports[name]; !ok || !slices.Equal(old.endpoints, to.ports[name].endpoints) {
			if err := p.setChain(c, name, to.ports[name].endpoints); err != nil {
				return err
			}
		}
	}
	if err := p.changeFronts(c, from, to); err != nil {
		return err
	}
	for _, name := range sortedPorts(from.ports) {
		if _, ok := to.ports[name]; !ok {
			chain := p.chain(name)
			c.FlushChain(chain)
			c.DelChain(chain)
			delete(p.chains, name)
		}
	}
	return errors.Join(
		changeSet(c, p.loops, loops(from), loops(to)),
		changeSet(c, p.vips, addressKeys(from.virtual), addressKeys(to.virtual)))
}

func sortedPorts(ports map[portName]backends) []portName {
	return slices.SortedFunc(maps.Keys(ports), func(a, b portName) int {
		return slices.Compare([]string{a.namespace, a.service, a.port}, []string{b.namespace, b.service, b.port})
	})
}

func (p *proxy) chain(name portName) *nftables.Chain {
	return &nftables.Chain{Table: p.table, Name: fmt.Sprintf("port-%d", p.chains[name])}
}

// setChain makes a port's chain, or empties it, and has it pick one of the endpoints.
func (p *proxy) setChain(c *nftables.Conn, name portName, endpoints []netip.AddrPort) error {
	if _, ok := p.chains[name]; !ok {
		p.next++
		p.chains[name] = p.next
		c.AddChain(p.chain(name))
	} else {
		c.FlushChain(p.chain(name))
	}
	data, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	if err != nil {
		return fmt.Errorf("describing a map: %w", err)
	}
	pick := &nftables.Set{Table: p.table, Anonymous: true, Constant: true, IsMap: true, KeyType: nftables.TypeInteger, DataType: data}
	elements := make([]nftables.SetElement, len(endpoints))
	for i, e := range endpoints {
		elements[i] = nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: append(e.Addr().AsSlice(), portBytes(e.Port())...)}
	}
	if err := c.AddSet(pick, elements); err != nil {
		return fmt.Errorf("describing endpoints: %w", err)
	}
	c.AddRule(&nftables.Rule{Table: p.table, Chain: p.chain(name), Exprs: []expr.Any{
		&expr.Numgen{Register: reg1, Modulus: uint32(len(endpoints)), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: reg1, DestRegister: reg2, IsDestRegSet: true, SetName: pick.Name, SetID: pick.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg2, RegProtoMin: word5},
	}})
	return nil
}

// portBytes is a port as an element of a concatenation, padded to a word.
func portBytes(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }

func (f front) key() string {
	return string(slices.Concat(f.addr.AsSlice(), []byte{f.protocol, 0, 0, 0}, portBytes(f.port)))
}

func (p *proxy) changeFronts(c *nftables.Conn, from, to table) error {
	var remove, add []nftables.SetElement
	for f, name := range from.fronts {
		if now, ok := to.fronts[f]; !ok || now != name {
			remove = append(remove, nftables.SetElement{Key: []byte(f.key())})
		}
	}
	for f, name := range to.fronts {
		if before, ok := from.fronts[f]; !ok || before != name {
			add = append(add, nftables.SetElement{Key: []byte(f.key()), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: p.chain(name).Name}})
		}
	}
	return changeElements(c, p.fronts, remove, add)
}

// changeSet turns one set of keys into another.
func changeSet(c *nftables.Conn, set *nftables.Set, from, to map[string]bool) error {
	var remove, add []nftables.SetElement
	for key := range from {
		if !to[key] {
			remove = append(remove, nftables.SetElement{Key: []byte(key)})
		}
	}
	for key := range to {
		if !from[key] {
			add = append(add, nftables.SetElement{Key: []byte(key)})
		}
	}
	return changeElements(c, set, remove, add)
}

func changeElements(c *nftables.Conn, set *nftables.Set, remove, add []nftables.SetElement) error {
	for part := range slices.Chunk(remove, chunk) {
		if err := c.SetDeleteElements(set, part); err != nil {
			return fmt.Errorf("describing elements of %s: %w", set.Name, err)
		}
	}
	for part := range slices.Chunk(add, chunk) {
		if err := c.SetAddElements(set, part); err != nil {
			return fmt.Errorf("describing elements of %s: %w", set.Name, err)
		}
	}
	return nil
}

// loops are the pairs of an endpoint's address with itself.
func loops(t table) map[string]bool {
	out := map[string]bool{}
	for _, b := range t.ports {
		for _, e := range b.endpoints {
			a := e.Addr().AsSlice()
			out[string(slices.Concat(a, a))] = true
		}
	}
	return out
}

func addressKeys(addresses map[netip.Addr]bool) map[string]bool {
	out := map[string]bool{}
	for a := range addresses {
		out[string(a.AsSlice())] = true
	}
	return out
}

// forgetFlows makes the kernel forget UDP flows to endpoints that are no more: a client that keeps its port would send to them for as long as it sends.
func (p *proxy) forgetFlows(t table) error {
	now, gone := udpEndpoints(t), gone(maps.Clone(p.flows))
	for e := range now {
		delete(gone, e)
	}
	if len(gone) == 0 {
		return nil
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, gone); err != nil {
		return fmt.Errorf("forgetting UDP flows: %w", err)
	}
	p.flows = now
	return nil
}

// gone takes the translated UDP flows to these endpoints.
type gone map[netip.AddrPort]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (g gone) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return ok && flow.Forward.Protocol == unix.IPPROTO_UDP && !flow.Forward.DstIP.Equal(flow.Reverse.SrcIP) && g[netip.AddrPortFrom(to.Unmap(), flow.Reverse.SrcPort)]
}

func udpEndpoints(t table) map[netip.AddrPort]bool {
	out := map[netip.AddrPort]bool{}
	for _, b := range t.ports {
		if b.protocol == unix.IPPROTO_UDP {
			for _, e := range b.endpoints {
				out[e] = true
			}
		}
	}
	return out
}
