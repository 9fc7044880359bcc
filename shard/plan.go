package shard

import (
	"cmp"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/fleetgate/fleetgate/cluster/store"
)

// RowsPerCluster is how many rows a member cluster is cut into at first: enough to spread it over any group that makes sense.
const RowsPerCluster = 16

// maxRows is how many rows one command changes at most: written with the longest names, about 525 bytes each, they still fit into one entry of the log. Rows
// that are left are in the next plan.
const maxRows = 1024

// View is all that a plan may depend on.
type View struct {
	Version  uint64
	Rows     []store.Row
	Sessions []string                     // live sessions
	Weights  map[string]map[string]uint64 // cluster -> namespace -> objects seen
	Drained  map[uint64]uint64            // row id -> epoch at which its owner said that it has stopped
}

// ReplicaOf gives the replica of a session.
func ReplicaOf(session string) string {
	id, _, _ := strings.Cut(session, "@")
	return id
}

// Cut gives at most n-1 boundaries (ascending, none 0) that split the hash space into ranges of nearly equal weight. Where there are fewer names
// than ranges, the widest ranges are halved, so that names to come are spread too.
func Cut(names map[string]uint64, n int) []uint64 {
	type point struct{ hash, weight uint64 }
	points := make([]point, 0, len(names))
	var total uint64
	for name, w := range names {
		points = append(points, point{store.Hash(name), max(w, 1)})
		total += max(w, 1)
	}
	slices.SortFunc(points, func(a, b point) int { return cmp.Compare(a.hash, b.hash) })
	var cuts []uint64
	var sum, taken uint64
	for i, p := range points {
		left := uint64(n - 1 - len(cuts))
		if i > 0 && left > 0 && p.hash != points[i-1].hash && sum > 0 && sum*(left+1) >= total-taken {
			cuts = append(cuts, points[i-1].hash+(p.hash-points[i-1].hash)/2)
			taken += sum
			sum = 0
		}
		sum += p.weight
	}
	for len(cuts) < n-1 {
		cuts = halveWidest(cuts)
	}
	return cuts
}

// halveWidest adds the middle of the widest range.
func halveWidest(cuts []uint64) []uint64 {
	edges := append([]uint64{0}, cuts...)
	best, at := uint64(0), 0
	for i, from := range edges {
		width := uint64(0) - from // to the end of the space
		if i+1 < len(edges) {
			width = edges[i+1] - from
		}
		if from == 0 && len(edges) == 1 {
			width = ^uint64(0)
		}
		if width > best {
			best, at = width, i
		}
	}
	return slices.Insert(slices.Clone(cuts), at, edges[at]+best/2)
}

// Contains tells whether a row covers a namespace.
func Contains(r store.Row, namespace string) bool {
	h := store.Hash(namespace)
	return h >= r.From && (r.To == 0 || h < r.To)
}

// Plan gives the command that brings the table where it should be, nil when it is there. It moves as little as it can: rows of sessions that are
// gone move at once, the others only to even out a load that differs by more than a quarter, and those drain first (Next).
func Plan(v View) *store.TableCommand {
	if len(v.Sessions) == 0 {
		return nil
	}
	p := newPlanner(v)
	p.cutNewClusters()
	p.splitHeavy()
	p.replaceDead()
	p.finishDrained()
	p.balance()
	return p.command()
}

type planner struct {
	view    View
	rows    map[uint64]store.Row
	changed map[uint64]bool
	deleted []uint64
	epoch   uint64 // highest epoch in the table: new epochs are above it
	nextID  uint64
	live    map[string]bool
}

func newPlanner(v View) *planner {
	p := &planner{view: v, rows: map[uint64]store.Row{}, changed: map[uint64]bool{}, live: map[string]bool{}, nextID: 1}
	for _, r := range v.Rows {
		p.rows[r.ID] = r
		p.epoch = max(p.epoch, r.Epoch)
		p.nextID = max(p.nextID, r.ID+1)
	}
	for _, s := range v.Sessions {
		p.live[s] = true
	}
	return p
}

func (p *planner) sorted() []store.Row {
	out := make([]store.Row, 0, len(p.rows))
	for _, r := range p.rows {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b store.Row) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// full tells whether n more rows would be too many for one command.
func (p *planner) full(n int) bool { return len(p.changed)+n > maxRows }

// room tells whether a row may be changed in this command.
func (p *planner) room(r store.Row) bool { return p.changed[r.ID] || !p.full(1) }

func (p *planner) set(r store.Row) { p.rows[r.ID] = r; p.changed[r.ID] = true }

// add makes a row under a fresh epoch.
func (p *planner) add(r store.Row) {
	p.epoch++
	r.ID, r.Epoch = p.nextID, p.epoch
	p.nextID++
	p.set(r)
}

// weight of a row is at least one, so that rows without namespaces are spread too.
func (p *planner) weight(r store.Row) uint64 {
	w := uint64(1)
	for ns, n := range p.view.Weights[r.Cluster] {
		if Contains(r, ns) {
			w += 16 * max(n, 1)
		}
	}
	return w
}

func (p *planner) cutNewClusters() {
	have := map[string]bool{}
	for _, r := range p.rows {
		have[r.Cluster] = true
	}
	clusters := make([]string, 0, len(p.view.Weights))
	for c := range p.view.Weights {
		if !have[c] {
			clusters = append(clusters, c)
		}
	}
	sort.Strings(clusters)
	for _, c := range clusters {
		if p.full(RowsPerCluster) { // a cluster is cut whole or not at all
			return
		}
		from := uint64(0)
		for _, cut := range append(Cut(p.view.Weights[c], RowsPerCluster), 0) {
			p.add(store.Row{Cluster: c, From: from, To: cut})
			from = cut
		}
	}
}

// splitHeavy halves a row that alone is more than half of one session's fair share and holds more than one namespace.
func (p *planner) splitHeavy() {
	var total uint64
	for _, r := range p.rows {
		total += p.weight(r)
	}
	fair := total / uint64(len(p.view.Sessions))
	for _, r := range p.sorted() {
		if len(p.view.Sessions) < 2 || p.weight(r) <= fair/2+16 || len(p.rows) >= 64*max(1, len(p.view.Weights)) {
			continue
		}
		inside := map[string]uint64{}
		for ns, n := range p.view.Weights[r.Cluster] {
			if Contains(r, ns) {
				inside[ns] = n
			}
		}
		if len(inside) < 2 {
			continue
		}
		if p.full(2) {
			return
		}
		cut := Cut(inside, 2)[0]
		if cut <= r.From || (r.To != 0 && cut >= r.To) {
			continue
		}
		delete(p.rows, r.ID)
		delete(p.changed, r.ID)
		p.deleted = append(p.deleted, r.ID)
		p.add(store.Row{Cluster: r.Cluster, From: r.From, To: cut, Owner: r.Owner})
		p.add(store.Row{Cluster: r.Cluster, From: cut, To: r.To, Owner: r.Owner})
	}
}

// give makes a session the owner under a new epoch.
func (p *planner) give(r store.Row, to string) {
	p.epoch++
	r.Owner, r.Epoch, r.Next = to, p.epoch, ""
	p.set(r)
}

func (p *planner) replaceDead() {
	for _, r := range p.sorted() {
		if r.Owner != "" && p.live[r.Owner] || !p.room(r) {
			continue
		}
		to := p.sameReplica(r.Owner)
		if to == "" && p.live[r.Next] {
			to = r.Next
		}
		if to == "" {
			to = p.lightest()
		}
		p.give(r, to)
	}
}

// sameReplica finds the present session of the replica that a gone session belonged to.
func (p *planner) sameReplica(session string) string {
	if session == "" {
		return ""
	}
	for _, s := range p.view.Sessions {
		if ReplicaOf(s) == ReplicaOf(session) {
			return s
		}
	}
	return ""
}

func (p *planner) loads() map[string]uint64 {
	load := map[string]uint64{}
	for _, s := range p.view.Sessions {
		load[s] = 0
	}
	for _, r := range p.rows {
		owner := r.Owner
		if p.live[r.Next] {
			owner = r.Next
		}
		if p.live[owner] {
			load[owner] += p.weight(r)
		}
	}
	return load
}

func (p *planner) lightest() string {
	load := p.loads()
	best := ""
	for _, s := range p.view.Sessions {
		if best == "" || load[s] < load[best] || load[s] == load[best] && s < best {
			best = s
		}
	}
	return best
}

// finishDrained hands over rows whose owner has stopped, and forgets moves to a session that is gone.
func (p *planner) finishDrained() {
	for _, r := range p.sorted() {
		switch {
		case r.Next == "" || !p.room(r):
		case !p.live[r.Next]:
			p.give(r, r.Owner) // a new epoch starts its controller again
		case p.view.Drained[r.ID] == r.Epoch:
			p.give(r, r.Next)
		}
	}
}

// balance marks planned moves while some session carries more than a quarter above the lightest, and a move makes it better. Where the heaviest
// has no row that would help (one heavy namespace), the next heaviest gives.
func (p *planner) balance() {
	for range p.rows {
		if !p.moveSome() {
			return
		}
	}
}

func (p *planner) moveSome() bool {
	load := p.loads()
	order := slices.Sorted(maps.Keys(load))
	slices.SortStableFunc(order, func(a, b string) int { return cmp.Compare(load[b], load[a]) })
	light := order[len(order)-1]
	for _, heavy := range order {
		gap := load[heavy] - load[light]
		if gap > 16 && gap*4 > load[heavy] && p.moveOne(heavy, light, gap) {
			return true
		}
	}
	return false
}

// moveOne moves the row whose weight is nearest to half the gap.
func (p *planner) moveOne(from, to string, gap uint64) bool {
	var best *store.Row
	var bestOff uint64
	for _, r := range p.sorted() {
		w := p.weight(r)
		if r.Owner != from || r.Next != "" || w >= gap || !p.room(r) {
			continue
		}
		off := max(w, gap/2) - min(w, gap/2)
		if best == nil || off < bestOff {
			best, bestOff = &r, off
		}
	}
	if best == nil {
		return false
	}
	if p.changed[best.ID] { // nobody runs it yet: no drain
		best.Owner = to
	} else {
		best.Next = to
	}
	p.set(*best)
	return true
}

func (p *planner) command() *store.TableCommand {
	if len(p.changed) == 0 && len(p.deleted) == 0 {
		return nil
	}
	cmd := &store.TableCommand{Expect: p.view.Version, Delete: p.deleted}
	for _, r := range p.sorted() {
		if p.changed[r.ID] {
			cmd.Rows = append(cmd.Rows, r)
		}
	}
	return cmd
}
