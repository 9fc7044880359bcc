package translate

import "github.com/fleetgate/fleetgate/translate/record"

// compileClass makes the record of a GatewayClass that is ours.
func compileClass(v *view, k record.Key) compiled {
	f := fact[classFact](v, "GatewayClass", "", k.Name)
	if !v.ours(f.controller) {
		return compiled{}
	}
	out := record.Class{Object: f.object, ControllerName: f.controller}
	out.Bundle, out.Experimental, out.Problems = definitions(v)
	out.TrustBundles = v.defined(TrustBundles)
	if _, err := v.parameters(f.parameters); err != nil {
		out.Problems = append(out.Problems, accepted("InvalidParameters", err.Error()))
	}
	return compiled{value: out}
}

// compileNamespace makes the record of a Namespace with its labels.
func compileNamespace(v *view, k record.Key) compiled {
	f := fact[namespaceFact](v, "Namespace", "", k.Name)
	return compiled{value: record.Namespace{Name: k.Name, Labels: f.labels}}
}
