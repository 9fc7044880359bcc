package schema

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/translate"
)

// typed are the kinds with a CRD that the compiler may read.
var typed = map[string]func() translate.Object{
	"GatewayClass":          func() translate.Object { return &gatewayv1.GatewayClass{} },
	"Gateway":               func() translate.Object { return &gatewayv1.Gateway{} },
	"ListenerSet":           func() translate.Object { return &gatewayv1.ListenerSet{} },
	"HTTPRoute":             func() translate.Object { return &gatewayv1.HTTPRoute{} },
	"GRPCRoute":             func() translate.Object { return &gatewayv1.GRPCRoute{} },
	"TLSRoute":              func() translate.Object { return &gatewayv1.TLSRoute{} },
	"TCPRoute":              func() translate.Object { return &gatewayv1.TCPRoute{} },
	"UDPRoute":              func() translate.Object { return &gatewayv1.UDPRoute{} },
	"ReferenceGrant":        func() translate.Object { return &gatewayv1.ReferenceGrant{} },
	"BackendTLSPolicy":      func() translate.Object { return &gatewayv1.BackendTLSPolicy{} },
	"XBackend":              func() translate.Object { return &gatewayxv1alpha1.XBackend{} },
	"XBackendTrafficPolicy": func() translate.Object { return &gatewayxv1alpha1.XBackendTrafficPolicy{} },
	"XTelemetryPolicy":      func() translate.Object { return &gatewayxv1alpha1.XTelemetryPolicy{} },
	"EnvoyFleet":            func() translate.Object { return &v1alpha1.EnvoyFleet{} },
}

// definition is one CRD in the version that is read.
type definition struct {
	kind, apiVersion string
	versions         []*definition // that are served, this one first: what any of them lets pass is stored, and read in this one
	structural       *structuralschema.Structural
	validator        crdvalidation.SchemaValidator
	rules            *cel.Validator
}

// channel is a release channel of the Gateway API: its CRDs by kind, and our own.
type channel map[string]*definition

var (
	standard     = sync.OnceValues(func() (channel, error) { return loadChannel("standard") })
	experimental = sync.OnceValues(func() (channel, error) { return loadChannel("experimental") })
)

func must[T any](t testing.TB, made func() (T, error)) T {
	t.Helper()
	v, err := made()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// moduleDir is where the sources of a module are that the go.mod in dir names.
func moduleDir(dir, module string) (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("getting the module %s: %w", module, err)
	}
	var got struct{ Dir string }
	if err := json.Unmarshal(out, &got); err != nil {
		return "", fmt.Errorf("finding the module %s: %w", module, err)
	}
	return got.Dir, nil
}

var gatewayAPI = sync.OnceValues(func() (string, error) { return moduleDir(".", "sigs.k8s.io/gateway-api") })

func loadChannel(name string) (channel, error) {
	root, err := gatewayAPI()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(root, "config", "crd", name, "gateway.networking.*_*.yaml"))
	if err != nil {
		return nil, err
	}
	out := channel{}
	for _, f := range append(files, filepath.Join("..", "..", "deploy", "crds", "fleetgate.io_envoyfleets.yaml")) {
		crd, err := readCRD(f)
		if err != nil {
			return nil, err
		}
		if typed[crd.Spec.Names.Kind] == nil {
			continue
		}
		if out[crd.Spec.Names.Kind], err = define(crd); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
	}
	for kind := range typed {
		if out[kind] == nil && !strings.HasPrefix(kind, "X") {
			return nil, fmt.Errorf("channel %s has no %s: the module's layout has changed", name, kind)
		}
	}
	return out, nil
}

func readCRD(file string) (*apiextensionsv1.CustomResourceDefinition, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal(data, crd); err != nil {
		return nil, fmt.Errorf("parsing %s: %w", file, err)
	}
	return crd, nil
}

// define compiles v1 of a CRD, or what it has instead, and the other versions that it serves.
func define(crd *apiextensionsv1.CustomResourceDefinition) (*definition, error) {
	var all []*definition
	for _, v := range crd.Spec.Versions {
		if !v.Served {
			continue
		}
		d, err := defineVersion(crd, v)
		if err != nil {
			return nil, fmt.Errorf("version %s: %w", v.Name, err)
		}
		if v.Name == "v1" {
			all = slices.Insert(all, 0, d)
		} else {
			all = append(all, d)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no version is served")
	}
	all[0].versions = all
	return all[0], nil
}

func defineVersion(crd *apiextensionsv1.CustomResourceDefinition, version apiextensionsv1.CustomResourceDefinitionVersion) (*definition, error) {
	internal := &apiextensions.JSONSchemaProps{}
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(version.Schema.OpenAPIV3Schema, internal, nil); err != nil {
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
	return &definition{kind: crd.Spec.Names.Kind, apiVersion: crd.Spec.Group + "/" + version.Name, structural: structural, validator: validator,
		rules: cel.NewValidator(structural, true, celconfig.PerCallLimit)}, nil
}

// version is the definition of one of the versions that are served, nil where that one is not.
func (d *definition) version(apiVersion string) *definition {
	for _, v := range d.versions {
		if v.apiVersion == apiVersion {
			return v
		}
	}
	return nil
}

// admit does what an API server does with an object that is created: defaults are set in it, and it is refused or typed.
func (d *definition) admit(object map[string]any) (translate.Object, error) {
	object["apiVersion"], object["kind"] = d.apiVersion, d.kind
	unknown := pruning.PruneWithOptions(object, d.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	if len(unknown) > 0 {
		return nil, fmt.Errorf("unknown field %s", unknown[0])
	}
	defaulting.PruneNonNullableNullsWithoutDefaults(object, d.structural)
	defaulting.Default(object, d.structural)
	errs := crdvalidation.ValidateCustomResource(nil, object, d.validator)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, d.structural, object)...)
	if len(errs) == 0 && d.rules != nil {
		errs, _ = d.rules.Validate(context.Background(), nil, d.structural, object, nil, celconfig.RuntimeCELCostBudget)
	}
	if err := errs.ToAggregate(); err != nil {
		return nil, err
	}
	out := typed[d.kind]()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object, out); err != nil {
		return nil, unreadable{err}
	}
	return out, nil
}

// unreadable is why an object that an API server takes cannot be read. One such would hide all others of its kind from us.
type unreadable struct{ error }
