package schema

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// document is one object of a file, as its author wrote it.
type document map[string]any

func (d document) kind() string { return textOf(d["kind"]) }

func (d document) meta(field string) string {
	meta, _ := d["metadata"].(map[string]any)
	return textOf(meta[field])
}

func textOf(v any) string {
	s, _ := v.(string)
	return s
}

// documents reads the objects of a text in YAML.
func documents(text []byte) ([]document, error) {
	var out []document
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		part, err := r.Read()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return out, nil
			}
			return nil, err
		}
		j, err := yaml.YAMLToJSON(part)
		if err != nil {
			return nil, err
		}
		decoder := json.NewDecoder(bytes.NewReader(j))
		decoder.UseNumber()
		var d document
		if err := decoder.Decode(&d); err != nil {
			return nil, err
		}
		if d != nil {
			out = append(out, integers(map[string]any(d)).(map[string]any))
		}
	}
}

// integers turns JSON numbers into those that validation knows.
func integers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			v[k] = integers(x)
		}
	case []any:
		for i, x := range v {
			v[i] = integers(x)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64() // it came from JSON
		return f
	}
	return v
}

// seeds are the specs that people wrote, by kind: our own cases and the Gateway API's examples.
var seeds = sync.OnceValues(func() (map[string][]map[string]any, error) {
	root, err := gatewayAPI()
	if err != nil {
		return nil, err
	}
	out := map[string][]map[string]any{}
	for _, dir := range []string{filepath.Join("..", "..", "translate", "testdata"), filepath.Join(root, "examples")} {
		if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				err = addSeeds(out, path)
			}
			return err
		}); err != nil {
			return nil, fmt.Errorf("reading the seeds in %s: %w", dir, err)
		}
	}
	written := len(out["Gateway"])
	for _, g := range []*gatewayv1.Gateway{gateway("a", "gw0"), parametrized(gateway("a", "gw1"))} {
		spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&g.Spec)
		if err != nil {
			return nil, err
		}
		out["Gateway"] = append(out["Gateway"], slices.Repeat([]map[string]any{spec}, written/2)...) // half of all Gateways have a listener of each protocol
	}
	passing := &gatewayv1.ListenerSetSpec{ParentRef: gatewayv1.ParentGatewayReference{Name: gatewayv1.ObjectName(gateways[0])}, Listeners: []gatewayv1.ListenerEntry{gatewayv1.ListenerEntry(gateway("a", gateways[0]).Spec.Listeners[2])}}
	spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(passing)
	if err != nil {
		return nil, err
	}
	out["ListenerSet"] = append(out["ListenerSet"], slices.Repeat([]map[string]any{spec}, len(out["ListenerSet"]))...) // half of all ListenerSets let TLS pass
	for _, log := range []map[string]any{{"type": "Text", "format": formats[0]}, {"type": "JSON", "fields": map[string]any{"app": formats[0]}}, {"type": "OTLP", "collector": "collector.example:4317", "fields": map[string]any{"team": formats[0]}}} {
		out["EnvoyFleet"] = append(out["EnvoyFleet"], slices.Repeat([]map[string]any{{"accessLog": log}}, 3)...)
	}
	traced := map[string]any{"targetRefs": []any{map[string]any{"group": gatewayv1.GroupName, "kind": "Gateway", "name": gateways[0]}}, "tracing": map[string]any{"mode": "Enabled",
		"provider":   map[string]any{"backendRef": map[string]any{"name": "web", "port": int64(80)}},
		"attributes": []any{map[string]any{"name": "a", "sourceType": "Header", "headerName": "x-a"}, map[string]any{"name": "b", "sourceType": "Literal", "literalValue": "b"}}}}
	out["XTelemetryPolicy"] = append(out["XTelemetryPolicy"], slices.Repeat([]map[string]any{traced}, 3*len(out["XTelemetryPolicy"]))...)
	return out, nil
})

func addSeeds(out map[string][]map[string]any, path string) error {
	ext := filepath.Ext(path)
	if ext != ".txtar" && ext != ".yaml" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	texts := [][]byte{text}
	if ext == ".txtar" {
		texts = nil
		for _, f := range txtar.Parse(text).Files {
			if strings.HasPrefix(f.Name, "in") {
				texts = append(texts, f.Data)
			}
		}
	}
	for _, text := range texts {
		docs, err := documents(text)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, d := range docs {
			if spec, ok := d["spec"].(map[string]any); ok && typed[d.kind()] != nil {
				out[d.kind()] = append(out[d.kind()], spec)
			}
		}
	}
	return nil
}
