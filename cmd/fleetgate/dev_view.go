package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// screen shows what dev runs: in a terminal one block that is kept current, elsewhere a block once and then a line for each change.
type screen struct {
	out   io.Writer
	now   func() time.Time
	live  bool // redraw in place
	width int
	lines int // of the block that is on the screen
	shown string
	last  *view
	notes []string // the newest last
	fixed []string // lines about places and commands
}

const keptNotes = 5

func newScreen(out io.Writer, t terminal, fixed []string) *screen {
	s := &screen{out: out, now: t.now, fixed: fixed, width: 200}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) && t.getenv("TERM") != "dumb" && t.getenv("CI") == "" {
		s.live = true
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 20 {
			s.width = w
		}
	}
	return s
}

// note tells of an event.
func (s *screen) note(text string) {
	if !s.live {
		_, _ = fmt.Fprintf(s.out, "%s  %s\n", s.now().Format(time.TimeOnly), text)
		return
	}
	if s.last == nil {
		_, _ = fmt.Fprintln(s.out, text)
		return
	}
	s.notes = append(s.notes, s.now().Format(time.TimeOnly)+"  "+text)
	if len(s.notes) > keptNotes {
		s.notes = s.notes[len(s.notes)-keptNotes:]
	}
	s.draw(*s.last)
}

// show brings a newer view on the screen.
func (s *screen) show(v view) {
	switch {
	case s.live:
		s.draw(v)
	case s.last == nil:
		_, _ = fmt.Fprint(s.out, "\n", s.block(v), "\n")
	default:
		for _, line := range changes(*s.last, v) {
			s.note(line)
		}
	}
	s.last = &v
}

func (s *screen) draw(v view) {
	block := clip(s.block(v), s.width)
	if block == s.shown {
		return
	}
	if s.lines > 0 {
		_, _ = fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.lines)
	}
	_, _ = fmt.Fprint(s.out, block)
	s.shown, s.lines = block, strings.Count(block, "\n")
}

// clip cuts lines that would wrap: a wrapped line would be counted as one.
func clip(block string, width int) string {
	lines := strings.Split(block, "\n")
	for i, l := range lines {
		if r := []rune(l); len(r) >= width {
			lines[i] = string(r[:width-1])
		}
	}
	return strings.Join(lines, "\n")
}

// block is everything on one screen.
func (s *screen) block(v view) string {
	var b strings.Builder
	parts := []*table{replicaSummary(v), gatewayTable(v.Gateways, s.now(), false), proxySummary(v)}
	for _, t := range parts {
		if len(t.rows) > 0 {
			_ = t.write(&b, false)
			b.WriteString("\n")
		}
	}
	for _, line := range trouble(v) {
		b.WriteString(line + "\n")
	}
	for _, n := range s.notes {
		b.WriteString(n + "\n")
	}
	if len(s.notes) > 0 {
		b.WriteString("\n")
	}
	b.WriteString(strings.Join(s.fixed, "\n") + "\n")
	return b.String()
}

func replicaSummary(v view) *table {
	t := &table{head: []string{"REPLICA", "ROLE", "APPLIED", "ROWS", "PROXIES", "ADMIN"}}
	for _, r := range v.Replicas {
		t.add([]string{r.ID, r.Role, fmt.Sprint(r.Applied), fmt.Sprint(r.Rows), fmt.Sprint(r.Proxies), r.Admin})
	}
	return t
}

func proxySummary(v view) *table {
	t := &table{head: []string{"PROXY", "FLEET", "STATE", "ACKED", "REPLICA"}}
	for _, p := range v.Proxies {
		state, _ := proxyState(p)
		t.add([]string{p.Proxy, p.Fleet, state, fmt.Sprint(p.Acked), orNone(p.Replica)})
	}
	return t
}

// trouble is what a person has to look at.
func trouble(v view) []string {
	r := summarize(v)
	if r.Healthy {
		return nil
	}
	out := make([]string, 0, len(r.Findings)+1)
	for _, f := range r.Findings {
		out = append(out, "! "+f)
	}
	const most = 8
	if len(out) > most {
		out = append(out[:most], fmt.Sprintf("! and %d more: fleetgate status", len(r.Findings)-most))
	}
	return append(out, "")
}

// changes are the lines that tell what differs between two views.
func changes(old, v view) []string {
	var out []string
	if v.Leader != old.Leader {
		out = append(out, "leader: "+orNone(v.Leader))
	}
	for _, g := range v.Gateways {
		name := g.Namespace + "/" + g.Name
		if before := findGateway(old, g); before == nil || before.Programmed != g.Programmed || before.Message != g.Message {
			out = append(out, fmt.Sprintf("gateway %s: programmed %s: %s", name, orUnknown(g.Programmed), g.Message))
		}
	}
	for _, g := range old.Gateways {
		if findGateway(v, g) == nil {
			out = append(out, fmt.Sprintf("gateway %s/%s: gone", g.Namespace, g.Name))
		}
	}
	out = append(out, proxyChanges(old, v)...)
	return append(out, newFindings(old, v)...)
}

func findGateway(v view, g gatewayView) *gatewayView {
	for i, c := range v.Gateways {
		if c.Cluster == g.Cluster && c.Namespace == g.Namespace && c.Name == g.Name {
			return &v.Gateways[i]
		}
	}
	return nil
}

func proxyChanges(old, v view) []string {
	before := map[string]string{}
	for _, p := range old.Proxies {
		state, _ := proxyState(p)
		before[p.Fleet+" "+p.Proxy] = fmt.Sprint(state, p.Acked)
	}
	var out []string
	for _, p := range v.Proxies {
		state, why := proxyState(p)
		if before[p.Fleet+" "+p.Proxy] == fmt.Sprint(state, p.Acked) {
			continue
		}
		line := fmt.Sprintf("proxy %s: %s, ACKed %d", p.Proxy, state, p.Acked)
		if why != "" {
			line += ": " + why
		}
		out = append(out, line)
	}
	return out
}

// newFindings are what a person has to look at now and had not to before.
func newFindings(old, v view) []string {
	before := map[string]bool{}
	for _, f := range summarize(old).Findings {
		before[f] = true
	}
	var out []string
	for _, f := range summarize(v).Findings {
		if !before[f] && !strings.HasPrefix(f, "Gateway ") && !strings.HasPrefix(f, "proxy ") {
			out = append(out, f)
		}
	}
	return out
}
