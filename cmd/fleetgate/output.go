package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// listFlags are the flags of every list command.
type listFlags struct {
	format, namespace, cluster string
}

func (f *listFlags) add(cmd *cobra.Command, formats string) { addFormat(cmd, &f.format, formats) }

// addFormat adds the flag -o; a format that is not offered is refused before anybody is asked anything.
func addFormat(cmd *cobra.Command, format *string, formats string) {
	offered := strings.Split(formats, ", ")
	cmd.Flags().StringVarP(format, "output", "o", "", "format: "+formats)
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(offered, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if *format != "" && !slices.Contains(offered, *format) {
			return usageError{fmt.Errorf("-o %s: want %s, or nothing for a table", *format, formats)}
		}
		return nil
	}
}

func (f *listFlags) addFilters(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", "", "only this namespace (default: all)")
	cmd.Flags().StringVar(&f.cluster, "cluster", "", "only this member cluster (default: all)")
}

// wants tells whether an object passes the filters.
func (f *listFlags) wants(cluster, namespace string) bool {
	return (f.cluster == "" || f.cluster == cluster) && (f.namespace == "" || f.namespace == namespace)
}

// table is rows of cells; wide cells are only shown by -o wide.
type table struct {
	head, wideHead []string
	rows, wideRows [][]string
}

func (t *table) add(cells []string, wide ...string) {
	t.rows = append(t.rows, cells)
	t.wideRows = append(t.wideRows, wide)
}

// write prints the table as kubectl does: no borders, three spaces between columns.
func (t *table) write(w io.Writer, wide bool) error {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 8, 3, ' ', 0)
	line := func(cells, more []string) {
		if wide {
			cells = append(append([]string(nil), cells...), more...)
		}
		_, _ = fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	line(t.head, t.wideHead)
	for i, row := range t.rows {
		line(row, t.wideRows[i])
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for line := range bytes.Lines(b.Bytes()) { // an empty last cell leaves blanks
		if _, err := fmt.Fprintf(w, "%s\n", bytes.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// printList writes data as JSON or YAML, or the table.
func printList(w io.Writer, format string, data any, t *table, none string) error {
	switch format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(data)
	case "yaml":
		b, err := yaml.Marshal(data)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	default:
		if len(t.rows) == 0 {
			_, err := fmt.Fprintln(w, none)
			return err
		}
		return t.write(w, format == "wide")
	}
}

// age is how kubectl prints a duration: two units at most, the coarser the older.
func age(now time.Time, unix int64) string {
	if unix == 0 {
		return "<unknown>"
	}
	d := now.Sub(time.Unix(unix, 0))
	if d < 0 {
		d = 0
	}
	s, m, h := int(d.Seconds()), int(d.Minutes()), int(d.Hours())
	switch {
	case s < 120:
		return fmt.Sprintf("%ds", s)
	case m < 10:
		return withRest(m, "m", s%60, "s")
	case m < 180:
		return fmt.Sprintf("%dm", m)
	case h < 8:
		return withRest(h, "h", m%60, "m")
	case h < 48:
		return fmt.Sprintf("%dh", h)
	case h < 192:
		return withRest(h/24, "d", h%24, "h")
	default:
		return fmt.Sprintf("%dd", h/24)
	}
}

func withRest(n int, unit string, rest int, restUnit string) string {
	if rest == 0 {
		return fmt.Sprintf("%d%s", n, unit)
	}
	return fmt.Sprintf("%d%s%d%s", n, unit, rest, restUnit)
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

// condition finds a condition by type.
func condition(list []conditionView, typ string) conditionView {
	for _, c := range list {
		if c.Type == typ {
			return c
		}
	}
	return conditionView{Type: typ, Status: "Unknown"}
}

// bad tells whether a condition says that something is wrong: some types are good news when they are False.
func (c conditionView) bad() bool {
	switch c.Type {
	case "Conflicted", "PartiallyInvalid", "OverlappingTLSConfig", "InsecureFrontendValidationMode":
		return c.Status == "True"
	default:
		return c.Status != "True"
	}
}

// firstBad is the first condition that a person has to look at, nil = none.
func firstBad(list []conditionView) *conditionView {
	for i := range list {
		if list[i].bad() {
			return &list[i]
		}
	}
	return nil
}
