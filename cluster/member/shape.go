package member

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// shape checks a value against a Go type: unknown fields and wrong types, each with its exact path. Strict JSON decoders find the
// same mistakes, but name no list index, and so no line.
type shape struct {
	root   *yaml.Node
	faults []fault
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// checkShape checks the value at path, which is below root, against the type.
func checkShape(root *yaml.Node, path string, value any, as reflect.Type) []fault {
	s := &shape{root: root}
	s.check(path, value, as)
	return s.faults
}

func (s *shape) check(path string, value any, as reflect.Type) {
	if value == nil { // null means absent
		return
	}
	if as.Kind() == reflect.Pointer {
		as = as.Elem()
	}
	if reflect.PointerTo(as).Implements(unmarshaler) {
		s.checkUnmarshal(path, value, as)
		return
	}
	switch as.Kind() {
	case reflect.Struct:
		s.checkStruct(path, value, as)
	case reflect.Map:
		s.checkMap(path, value, as)
	case reflect.Slice:
		s.checkSlice(path, value, as)
	case reflect.Interface:
	default:
		s.checkScalar(path, value, as)
	}
}

func (s *shape) wrong(path string, value any, want string) {
	s.faults = append(s.faults, fault{lineOf(s.root, path), path, typeMismatch(want, typeName(value))})
}

func (s *shape) checkUnmarshal(path string, value any, as reflect.Type) {
	raw, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(raw, reflect.New(as).Interface())
	}
	if err != nil {
		s.faults = append(s.faults, fault{lineOf(s.root, path), path, fmt.Sprintf("%s is no %s. Correct the value", raw, as.Name())})
	}
}

func (s *shape) checkStruct(path string, value any, as reflect.Type) {
	m, ok := value.(map[string]any)
	if !ok {
		s.wrong(path, value, "object")
		return
	}
	fields := map[string]reflect.Type{}
	jsonFields(as, fields)
	for name, v := range m {
		child := joinPath(path, name)
		if t, known := fields[name]; known {
			s.check(child, v, t)
			continue
		}
		names := make([]string, 0, len(fields))
		for name := range fields {
			names = append(names, name)
		}
		s.faults = append(s.faults, unknownField(s.root, child, names))
	}
}

// jsonFields collects a struct's fields by JSON name, those of inlined structs among them.
func jsonFields(t reflect.Type, into map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case name == "" && f.Anonymous:
			jsonFields(f.Type, into)
		case name != "":
			into[name] = f.Type
		}
	}
}

func (s *shape) checkMap(path string, value any, as reflect.Type) {
	m, ok := value.(map[string]any)
	if !ok {
		s.wrong(path, value, "object")
		return
	}
	for name, v := range m {
		child := path + "[" + name + "]"
		if v == nil && as.Elem().Kind() == reflect.String {
			s.wrong(child, v, "string")
			continue
		}
		s.check(child, v, as.Elem())
	}
}

func (s *shape) checkSlice(path string, value any, as reflect.Type) {
	if as.Elem().Kind() == reflect.Uint8 {
		text, ok := value.(string)
		if !ok {
			s.wrong(path, value, "string")
		} else if _, err := base64.StdEncoding.DecodeString(text); err != nil {
			s.faults = append(s.faults, fault{lineOf(s.root, path), path, "the value is no base64. Encode it, or use stringData where the kind has it"})
		}
		return
	}
	list, ok := value.([]any)
	if !ok {
		s.wrong(path, value, "array")
		return
	}
	for i, v := range list {
		s.check(fmt.Sprintf("%s[%d]", path, i), v, as.Elem())
	}
}

func (s *shape) checkScalar(path string, value any, as reflect.Type) {
	ok, want := false, ""
	switch as.Kind() {
	case reflect.String:
		_, ok = value.(string)
		want = "string"
	case reflect.Bool:
		_, ok = value.(bool)
		want = "boolean"
	case reflect.Int, reflect.Int32, reflect.Int64:
		i, isInt := value.(int64)
		ok, want = isInt && !reflect.Zero(as).OverflowInt(i), "integer"
	default:
		_, isInt := value.(int64)
		_, isFloat := value.(float64)
		ok, want = isInt || isFloat, "number"
	}
	if !ok {
		s.wrong(path, value, want)
	}
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case bool:
		return "boolean"
	case int64:
		return "integer"
	case float64:
		return "number"
	case []any:
		return "array"
	default:
		return "object"
	}
}
