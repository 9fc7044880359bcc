package member

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/fleetgate/fleetgate/deploy"
)

// schema is one version of a CRD, ready to check objects. Compiling its CEL rules costs tens of milliseconds, a check some
// microseconds; so it is compiled once for each process and version, and only when an object of it appears.
type schema struct {
	structural *structuralschema.Structural
	validator  crdvalidation.SchemaValidator
	rules      *cel.Validator // nil where the schema has none
}

// schemas caches what is compiled. Its entries never change once made.
var schemas = struct {
	sync.Mutex
	crds    map[string]*apiextensionsv1.CustomResourceDefinition // by file
	checked map[string]*schema                                   // by file and version
}{crds: map[string]*apiextensionsv1.CustomResourceDefinition{}, checked: map[string]*schema{}}

// loadCRD parses an embedded CRD; the caller holds the lock of schemas.
func loadCRD(file string) (*apiextensionsv1.CustomResourceDefinition, error) {
	if crd := schemas.crds[file]; crd != nil {
		return crd, nil
	}
	data, err := deploy.CRDs.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the embedded CRD %s: %w", file, err)
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := sigsyaml.Unmarshal(data, crd); err != nil {
		return nil, fmt.Errorf("parsing the embedded CRD %s: %w", file, err)
	}
	schemas.crds[file] = crd
	return crd, nil
}

// servedVersions are the versions of a CRD that an API server would accept.
func servedVersions(k *kind) ([]string, error) {
	schemas.Lock()
	defer schemas.Unlock()
	crd, err := loadCRD(k.crd)
	if err != nil {
		return nil, err
	}
	var served []string
	for _, v := range crd.Spec.Versions {
		if v.Served {
			served = append(served, v.Name)
		}
	}
	return served, nil
}

// schemaOf gives the compiled schema of a version of a CRD.
func schemaOf(k *kind, version string) (*schema, error) {
	schemas.Lock()
	defer schemas.Unlock()
	key := k.crd + "@" + version
	if s := schemas.checked[key]; s != nil {
		return s, nil
	}
	crd, err := loadCRD(k.crd)
	if err != nil {
		return nil, err
	}
	for i := range crd.Spec.Versions {
		if v := &crd.Spec.Versions[i]; v.Name == version {
			s, err := compileSchema(v.Schema.OpenAPIV3Schema)
			if err != nil {
				return nil, fmt.Errorf("compiling the schema of %s %s: %w", k.name, version, err)
			}
			schemas.checked[key] = s
			return s, nil
		}
	}
	return nil, fmt.Errorf("the CRD of %s has no version %s", k.name, version)
}

func compileSchema(props *apiextensionsv1.JSONSchemaProps) (*schema, error) {
	internal := &apiextensions.JSONSchemaProps{}
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(props, internal, nil); err != nil {
		return nil, err
	}
	structural, err := structuralschema.NewStructural(internal)
	if err != nil {
		return nil, err
	}
	validator, _, err := crdvalidation.NewSchemaValidator(internal)
	if err != nil {
		return nil, err
	}
	return &schema{structural, validator, cel.NewValidator(structural, true, celconfig.PerCallLimit)}, nil
}

// apply does to an object what an API server does before it stores it: unknown fields (refused, as kubectl asks for), defaults in
// place, types and formats, lists that are maps or sets, CEL rules. CEL rules are tried only on what is otherwise well-formed.
func (s *schema) apply(ctx context.Context, object map[string]any, root *yaml.Node) []fault {
	opts := structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	if unknown := pruning.PruneWithOptions(object, s.structural, true, opts); len(unknown) > 0 {
		faults := make([]fault, 0, len(unknown))
		for _, path := range unknown {
			faults = append(faults, unknownField(root, path, s.fieldsBeside(path)))
		}
		return faults
	}
	defaulting.PruneNonNullableNullsWithoutDefaults(object, s.structural)
	defaulting.Default(object, s.structural)
	errs := crdvalidation.ValidateCustomResource(nil, object, s.validator)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, s.structural, object)...)
	if len(errs) == 0 && s.rules != nil {
		errs, _ = s.rules.Validate(ctx, nil, s.structural, object, nil, celconfig.RuntimeCELCostBudget)
	}
	return faultsOf(errs, root)
}

// fieldsBeside are the fields that the schema has where an unknown one was found.
func (s *schema) fieldsBeside(path string) []string {
	at := s.structural
	parts := pathPart.FindAllString(path, -1)
	for _, part := range parts[:len(parts)-1] {
		at = below(at, strings.Trim(part, "[]"))
		if at == nil {
			return nil
		}
	}
	names := make([]string, 0, len(at.Properties))
	for name := range at.Properties {
		names = append(names, name)
	}
	return names
}

func below(s *structuralschema.Structural, part string) *structuralschema.Structural {
	if _, err := strconv.Atoi(part); err == nil && s.Items != nil {
		return s.Items
	}
	if p, ok := s.Properties[part]; ok {
		return &p
	}
	if s.AdditionalProperties != nil {
		return s.AdditionalProperties.Structural
	}
	return nil
}

// faultsOf words an API server's errors for a person, each once.
func faultsOf(errs field.ErrorList, root *yaml.Node) []fault {
	var faults []fault
	seen := map[string]bool{}
	for _, e := range errs {
		path := e.Field
		if path == "<nil>" {
			path = ""
		}
		f := fault{lineOf(root, path), path, wording(e)}
		if key := f.field + "\x00" + f.message; !seen[key] {
			seen[key] = true
			faults = append(faults, f)
		}
	}
	return faults
}

var (
	wrongType = regexp.MustCompile(`must be of type (\w+): "(\w+)"$`)
	inBody    = regexp.MustCompile(`^\S+ in body `)
)

// wording says what is wrong with a field and ends with what to do. Objects and lists are not printed: only scalars help.
func wording(e *field.Error) string {
	detail := inBody.ReplaceAllString(strings.TrimSpace(e.Detail), "")
	switch e.Type {
	case field.ErrorTypeRequired:
		if detail == "" {
			return "the field is required. Add it"
		}
		return sentence(detail) + " Add the field"
	case field.ErrorTypeTypeInvalid:
		if m := wrongType.FindStringSubmatch(e.Detail); m != nil {
			return typeMismatch(m[1], m[2])
		}
		return "wrong type: " + sentence(detail) + " Correct the value"
	case field.ErrorTypeNotSupported:
		return fmt.Sprintf("value %s is not supported; %s. Use one of these", quoted(e.BadValue), detail)
	case field.ErrorTypeDuplicate:
		twice, _ := json.Marshal(e.BadValue) // it came from JSON
		return fmt.Sprintf("%s is there twice. Remove or rename one of the two", twice)
	case field.ErrorTypeForbidden:
		return sentence(detail) + " Remove the field"
	case field.ErrorTypeTooMany:
		return sentence(e.ErrorBody()) + " Remove some"
	case field.ErrorTypeTooLong:
		return sentence(e.ErrorBody()) + " Shorten it"
	}
	if value := quoted(e.BadValue); value != "" {
		detail = "value " + value + " is invalid: " + detail
	}
	return sentence(detail) + " Change it so that this holds"
}

// typeMismatch words a wrong type. Most often it is a string that YAML takes for something else: 80, true, yes, on.
func typeMismatch(want, got string) string {
	remedy := "Write a value of type " + want
	if want == "string" && got != "object" && got != "array" && got != "null" {
		remedy = "Put it in quotes"
	}
	return fmt.Sprintf("wrong type: it must be of type %s, and it is of type %s. %s", want, got, remedy)
}

func sentence(s string) string {
	if s = strings.TrimRight(s, " ."); s == "" {
		return "invalid."
	}
	return s + "."
}

// quoted prints a scalar, shortened, and nothing for what is no scalar.
func quoted(v any) string {
	switch v := v.(type) {
	case string:
		if v == "object" || v == "array" { // how CEL validation hides composite values
			return ""
		}
		if len(v) > 120 {
			v = v[:120] + "..."
		}
		return strconv.Quote(v)
	case bool, int, int32, int64, float64:
		return fmt.Sprint(v)
	default:
		return ""
	}
}
