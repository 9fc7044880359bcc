package member

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds what one document may become once its aliases are followed: a few lines of aliases of aliases would
// otherwise become gigabytes. maxDepth bounds the recursion of everything that walks a document.
const (
	maxNodes = 200_000
	maxDepth = 200
)

// document is one YAML document of a file: its value as JSON would have it, and its nodes, which know the lines.
type document struct {
	number int // 1-based
	root   *yaml.Node
}

// fault is a mistake at a place of a document, before it is known whose object that is.
type fault struct {
	line    int
	field   string
	message string
}

func (f *fault) Error() string { return f.message }

// splitDocuments reads all documents of a file. On a syntax error it gives the documents before it too, and the fault.
func splitDocuments(data []byte) ([]document, *fault) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var docs []document
	for number := 1; ; number++ {
		var node yaml.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return docs, syntaxFault(err)
		}
		if len(node.Content) == 0 || isNull(node.Content[0]) {
			continue
		}
		docs = append(docs, document{number: number, root: node.Content[0]})
	}
}

var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntaxFault turns the YAML library's error into a fault with its line.
func syntaxFault(err error) *fault {
	text, line := err.Error(), 0
	if m := syntaxLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	return &fault{line: line, message: "broken YAML: " + text + ". Correct the syntax at or just above this line"}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// converter turns nodes into the values that encoding/json would give, with int64 for whole numbers as API servers do.
type converter struct {
	budget int
}

// value converts a document's root, and refuses what kubectl would: duplicate keys, keys that are no strings, endless aliases.
func (d document) value() (any, *fault) {
	c := &converter{budget: maxNodes}
	return c.convert(d.root, "", 0)
}

func (c *converter) convert(n *yaml.Node, path string, depth int) (any, *fault) {
	c.budget--
	if c.budget < 0 || depth > maxDepth {
		return nil, &fault{n.Line, path, "the document is too large or too deeply nested once its aliases are followed. Write it without aliases, or split it"}
	}
	switch n.Kind {
	case yaml.AliasNode:
		return c.convert(n.Alias, path, depth+1)
	case yaml.MappingNode:
		return c.convertMap(n, path, depth)
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for i, item := range n.Content {
			v, f := c.convert(item, fmt.Sprintf("%s[%d]", path, i), depth+1)
			if f != nil {
				return nil, f
			}
			list = append(list, v)
		}
		return list, nil
	default:
		return scalar(n, path)
	}
}

func (c *converter) convertMap(n *yaml.Node, path string, depth int) (any, *fault) {
	out := make(map[string]any, len(n.Content)/2)
	lines := make(map[string]int, len(n.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := resolveAlias(n.Content[i]), n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return nil, &fault{key.Line, path, "a key is not a string. Write the key as a plain string"}
		}
		if key.ShortTag() == "!!merge" {
			merges = append(merges, val)
			continue
		}
		child := joinPath(path, key.Value)
		if first, twice := lines[key.Value]; twice {
			return nil, &fault{key.Line, child, fmt.Sprintf("the field is given twice, first in line %d. Remove one of the two", first)}
		}
		lines[key.Value] = key.Line
		v, f := c.convert(val, child, depth+1)
		if f != nil {
			return nil, f
		}
		out[key.Value] = v
	}
	return out, c.merge(out, merges, path, depth)
}

// merge adds what YAML merge keys (<<) name, where the map does not say otherwise itself.
func (c *converter) merge(out map[string]any, merges []*yaml.Node, path string, depth int) *fault {
	for _, node := range merges {
		v, f := c.convert(node, path, depth+1)
		if f != nil {
			return f
		}
		sources, ok := v.([]any)
		if !ok {
			sources = []any{v}
		}
		for _, source := range sources {
			m, ok := source.(map[string]any)
			if !ok {
				return &fault{node.Line, path, "a merge key (<<) names something that is no map. Name an anchor of a map"}
			}
			for k, v := range m {
				if _, own := out[k]; !own {
					out[k] = v
				}
			}
		}
	}
	return nil
}

func resolveAlias(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// scalar converts a scalar. Dates stay strings, as in JSON; yes, no, on and off are booleans, since they are for kubectl: a
// manifest that works here must not fail there.
func scalar(n *yaml.Node, path string) (any, *fault) {
	plain := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) == 0
	if plain {
		if b, ok := oldBooleans[n.Value]; ok {
			return b, nil
		}
	}
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		var b bool
		return decodeScalar(n, path, &b, func() any { return b })
	case "!!int":
		var i int64
		return decodeScalar(n, path, &i, func() any { return i })
	case "!!float":
		var f float64
		v, wrong := decodeScalar(n, path, &f, func() any { return f })
		if wrong == nil && (math.IsNaN(f) || math.IsInf(f, 0)) {
			return nil, &fault{n.Line, path, "the value is no finite number. Write a number, or quote it if it is a string"}
		}
		return v, wrong
	case "!!binary":
		raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(n.Value), ""))
		if err != nil {
			return nil, &fault{n.Line, path, "the value is tagged !!binary and is no base64. Correct it, or remove the tag"}
		}
		return string(raw), nil
	default:
		return n.Value, nil
	}
}

var oldBooleans = map[string]bool{
	"y": true, "Y": true, "yes": true, "Yes": true, "YES": true, "on": true, "On": true, "ON": true,
	"n": false, "N": false, "no": false, "No": false, "NO": false, "off": false, "Off": false, "OFF": false,
}

func decodeScalar(n *yaml.Node, path string, into any, get func() any) (any, *fault) {
	if err := n.Decode(into); err != nil {
		return nil, &fault{n.Line, path, fmt.Sprintf("the number %q cannot be held. Write a smaller number, or quote it if it is a string", n.Value)}
	}
	return get(), nil
}

// joinPath writes field paths as API servers do: a key that holds a dot or a bracket goes into brackets.
func joinPath(path, key string) string {
	switch {
	case strings.ContainsAny(key, ".[]/"):
		return path + "[" + key + "]"
	case path == "":
		return key
	default:
		return path + "." + key
	}
}

var pathPart = regexp.MustCompile(`\[[^\]]*\]|[^.\[]+`)

// lineOf finds the line of a field. Where the field itself is missing it is the line of the deepest part of its path that is there.
func lineOf(root *yaml.Node, path string) int {
	node, line := root, root.Line
	for _, part := range pathPart.FindAllString(path, -1) {
		next, at := child(resolveAlias(node), strings.Trim(part, "[]"))
		if next == nil {
			break
		}
		node, line = next, at
	}
	return line
}

// child finds a key of a map or an item of a list, and the line that names it.
func child(n *yaml.Node, part string) (*yaml.Node, int) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == part {
				return n.Content[i+1], n.Content[i].Line
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i], n.Content[i].Line
		}
	}
	return nil, 0
}

// nearest finds the known name that a misspelt one most likely meant, "" where none is close.
func nearest(name string, known []string) string {
	best, bestDistance := "", max(2, len(name)/3)+1
	for _, k := range slices.Sorted(slices.Values(known)) {
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// unknownField is the fault of a field that the schema does not have.
func unknownField(root *yaml.Node, path string, known []string) fault {
	name := path[strings.LastIndexAny(path, ".]")+1:]
	remedy := "Remove it"
	if guess := nearest(name, known); guess != "" {
		remedy = fmt.Sprintf("Did you mean %q?", guess)
	} else if len(known) > 0 {
		remedy = "Remove it; known here: " + strings.Join(slices.Sorted(slices.Values(known)), ", ")
	}
	return fault{lineOf(root, path), path, "unknown field. " + remedy}
}
