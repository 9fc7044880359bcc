package member

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// MaxFile is the largest manifest file that is read, unless told otherwise.
const MaxFile = 1 << 20

// objectKey names an object of a member cluster.
type objectKey struct{ kind, namespace, name string }

func (k objectKey) String() string {
	if k.namespace == "" {
		return k.kind + " " + k.name
	}
	return k.kind + " " + k.namespace + "/" + k.name
}

func compareKeys(a, b objectKey) int {
	return cmp.Or(cmp.Compare(kindRank[a.kind], kindRank[b.kind]), strings.Compare(a.namespace, b.namespace), strings.Compare(a.name, b.name))
}

// entry is one good object of a file, without identity.
type entry struct {
	key      objectKey
	object   Object
	specHash string // of everything but metadata and status: changes of it count as generations
	hash     string // of the whole object
	document int
	line     int
}

// parsed is what a file says.
type parsed struct {
	entries  []entry
	refused  map[objectKey]bool // named in the file, but not as an API server would accept it
	opaque   bool               // something in the file could not even be named: nothing may be taken for deleted
	problems []Problem
}

// parseFile reads all objects of a file. Every document stands for itself: a refused one leaves the others good.
func parseFile(name string, data []byte) (out parsed) {
	out = parsed{refused: map[objectKey]bool{}}
	defer func() {
		if r := recover(); r != nil { // a mistake of ours or of a library; it may not take the other files down (D16)
			out.opaque = true
			out.problems = append(out.problems, Problem{File: name, Message: fmt.Sprintf("reading the file ended in a panic: %v. Report this with the file", r)})
		}
	}()
	docs, broken := splitDocuments(data)
	if broken != nil {
		out.opaque = true
		out.problems = append(out.problems, Problem{File: name, Document: documentAt(docs, broken.line), Line: broken.line, Message: broken.message})
		return out
	}
	for _, doc := range docs {
		p := &docParser{file: name, doc: doc, out: &out}
		value, f := doc.value()
		if f != nil {
			p.refuse(nil, doc.root, []fault{*f})
			continue
		}
		p.parse(doc.root, value)
	}
	return out
}

// documentAt guesses in which document a syntax error is: the one after the last that could be read.
func documentAt(before []document, _ int) int {
	if len(before) == 0 {
		return 1
	}
	return before[len(before)-1].number + 1
}

// docParser reads one document of a file into out.
type docParser struct {
	file string
	doc  document
	out  *parsed
}

// refuse notes the faults of an object; key nil = it could not be named.
func (p *docParser) refuse(key *objectKey, root *yaml.Node, faults []fault) {
	name := ""
	if key != nil {
		name = key.String()
		p.out.refused[*key] = true
	} else {
		p.out.opaque = true
	}
	slices.SortFunc(faults, func(a, b fault) int {
		return cmp.Or(cmp.Compare(a.line, b.line), strings.Compare(a.field, b.field), strings.Compare(a.message, b.message))
	})
	for _, f := range faults {
		if f.line == 0 {
			f.line = lineOf(root, f.field)
		}
		p.out.problems = append(p.out.problems, Problem{p.file, p.doc.number, f.line, name, f.field, f.message})
	}
}

// parse reads an object, or the items of a list.
func (p *docParser) parse(root *yaml.Node, value any) {
	object, ok := value.(map[string]any)
	if !ok {
		p.refuse(nil, root, []fault{{root.Line, "", fmt.Sprintf("the document is of type %s and no object. Write a map with apiVersion, kind and metadata", typeName(value))}})
		return
	}
	apiVersion, kindName := text(object["apiVersion"]), text(object["kind"])
	for _, required := range []string{"apiVersion", "kind"} {
		if text(object[required]) == "" {
			p.refuse(nil, root, []fault{{root.Line, required, "the field is required and must be of type string. Add it"}})
			return
		}
	}
	if items, isList := object["items"]; isList && strings.HasSuffix(kindName, "List") {
		p.parseItems(root, items)
		return
	}
	p.parseObject(root, object, apiVersion, kindName)
}

func (p *docParser) parseItems(root *yaml.Node, value any) {
	items, ok := value.([]any)
	if !ok {
		p.refuse(nil, root, []fault{{field: "items", message: "wrong type: it must be of type array. Write a list of objects"}})
		return
	}
	node, _ := child(resolveAlias(root), "items")
	node = resolveAlias(node)
	for i, item := range items {
		p.parse(resolveAlias(node.Content[i]), item)
	}
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func (p *docParser) parseObject(root *yaml.Node, object map[string]any, apiVersion, kindName string) {
	k, f := findKind(apiVersion, kindName)
	if f != nil {
		p.refuseKind(root, object, kindName, *f)
		return
	}
	meta, faults := takeMetadata(k, root, object)
	if meta == nil {
		p.refuse(nil, root, faults)
		return
	}
	key := objectKey{k.name, meta.Namespace, meta.Name}
	if len(faults) > 0 {
		p.refuse(&key, root, faults)
		return
	}
	e, faults := buildEntry(k, root, object, meta, apiVersion)
	if len(faults) > 0 {
		p.refuse(&key, root, faults)
		return
	}
	e.key, e.document, e.line = key, p.doc.number, root.Line
	p.out.entries = append(p.out.entries, e)
}

// refuseKind refuses an object of a kind that is not supported. It may be a misspelt kind: what had that name stays.
func (p *docParser) refuseKind(root *yaml.Node, object map[string]any, kindName string, f fault) {
	meta, _ := object["metadata"].(map[string]any)
	name, namespace := text(meta["name"]), text(meta["namespace"])
	if name == "" {
		p.refuse(nil, root, []fault{f})
		return
	}
	p.refuse(&objectKey{kindName, namespace, name}, root, []fault{f})
	for _, k := range kinds {
		key := objectKey{k.name, "", name}
		if k.namespaced {
			key.namespace = cmp.Or(namespace, metav1.NamespaceDefault)
		}
		p.out.refused[key] = true
	}
}

// serverOwned are the metadata that only an API server gives. A manifest's are ignored: a forged creationTimestamp must not win
// precedence.
var serverOwned = []string{"creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields",
	"resourceVersion", "selfLink", "uid"}

// takeMetadata cleans, checks and decodes metadata, and gives it back to the object in its checked form. Metadata are nil where the
// object cannot be named.
func takeMetadata(k *kind, root *yaml.Node, object map[string]any) (*metav1.ObjectMeta, []fault) {
	delete(object, "status")
	raw, ok := object["metadata"].(map[string]any)
	if !ok {
		return nil, []fault{{lineOf(root, "metadata"), "metadata", "the field is required and must be of type object. Add it, with a name"}}
	}
	for _, owned := range serverOwned {
		delete(raw, owned)
	}
	for _, named := range []string{"name", "namespace"} {
		if faults := checkShape(root, "metadata."+named, raw[named], reflect.TypeFor[string]()); len(faults) > 0 {
			return nil, faults
		}
	}
	if text(raw["name"]) == "" {
		return nil, []fault{{lineOf(root, "metadata.name"), "metadata.name", "the field is required (generateName has no meaning here). Add it"}}
	}
	if k.namespaced && text(raw["namespace"]) == "" {
		raw["namespace"] = metav1.NamespaceDefault
	}
	named := &metav1.ObjectMeta{Namespace: text(raw["namespace"]), Name: text(raw["name"])}
	if faults := checkShape(root, "metadata", raw, reflect.TypeFor[metav1.ObjectMeta]()); len(faults) > 0 {
		return named, faults
	}
	meta := &metav1.ObjectMeta{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, meta); err != nil {
		return named, []fault{{field: "metadata", message: err.Error() + ". Correct the value"}}
	}
	if k.name == "Namespace" {
		if meta.Labels == nil {
			meta.Labels = map[string]string{}
		}
		meta.Labels[namespaceNameLabel] = meta.Name
	}
	errs := validation.ValidateObjectMeta(meta, k.namespaced, k.nameRule, field.NewPath("metadata"))
	return meta, faultsOf(errs, root)
}

const namespaceNameLabel = "kubernetes.io/metadata.name" // API servers set it on every Namespace

// buildEntry checks everything but metadata, and makes the typed object.
func buildEntry(k *kind, root *yaml.Node, object map[string]any, meta *metav1.ObjectMeta, apiVersion string) (entry, []fault) {
	faults := checkObject(k, root, object, apiVersion)
	if len(faults) > 0 {
		return entry{}, faults
	}
	object["apiVersion"] = k.apiVersion()
	typed := k.make()
	delete(object, "metadata")
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object, typed); err != nil {
		return entry{}, []fault{{line: root.Line, message: err.Error() + ". Correct the value"}}
	}
	setMetadata(typed, meta)
	if k.complete != nil {
		k.complete(typed)
	}
	if k.check != nil {
		if faults := k.check(typed); len(faults) > 0 {
			return entry{}, faults
		}
	}
	hash, specHash, err := hashes(typed)
	if err != nil {
		return entry{}, []fault{{line: root.Line, message: err.Error() + ". Correct the value"}}
	}
	return entry{object: typed, hash: hash, specHash: specHash}, nil
}

// checkObject holds an object against its kind's schema, where CRDs complete it too.
func checkObject(k *kind, root *yaml.Node, object map[string]any, apiVersion string) []fault {
	if k.crd == "" {
		return checkShape(root, "", object, reflect.TypeOf(k.make()).Elem())
	}
	_, version := groupVersion(apiVersion)
	s, err := schemaOf(k, version)
	if err != nil {
		return []fault{{line: root.Line, message: err.Error()}}
	}
	return s.apply(context.Background(), object, root)
}

func setMetadata(o Object, meta *metav1.ObjectMeta) {
	o.SetName(meta.Name)
	o.SetNamespace(meta.Namespace)
	o.SetLabels(meta.Labels)
	o.SetAnnotations(meta.Annotations)
	o.SetFinalizers(meta.Finalizers)
	o.SetOwnerReferences(meta.OwnerReferences)
}

// hashes gives the hash of the whole object, and that of what counts as a new generation: everything but metadata and status.
func hashes(o Object) (whole, spec string, err error) {
	all, err := json.Marshal(o)
	if err != nil {
		return "", "", fmt.Errorf("the object cannot be written as JSON: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(all, &fields); err != nil {
		return "", "", err
	}
	for _, other := range []string{"metadata", "status", "apiVersion", "kind"} {
		delete(fields, other)
	}
	rest, err := json.Marshal(fields)
	if err != nil {
		return "", "", err
	}
	return shortHash(all), shortHash(rest), nil
}

// shortHash is the first 16 hex digits of SHA-256.
func shortHash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Decode reads manifests as an API server would take them, without any server: files by name, in the order of their names. Objects have
// generation 1 and neither uid nor time of creation. Namespaces that are used and not declared are among them. A refused object is
// left out and has a Problem; an object that is there twice is taken where it is first.
func Decode(files map[string][]byte) ([]Object, []Problem) {
	inv := newInventory()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if len(files[name]) > MaxFile {
			inv.setProblems(name, []Problem{tooLarge(name, int64(len(files[name])), MaxFile)})
			continue
		}
		inv.set(place{path: name}, parseFile(name, files[name]))
	}
	inv.settle()
	objects := make([]Object, 0, len(inv.desired))
	for _, key := range slices.SortedFunc(maps.Keys(inv.desired), compareKeys) {
		o := inv.desired[key].object
		o.SetGeneration(1)
		objects = append(objects, o)
	}
	return objects, inv.allProblems()
}

func tooLarge(name string, size, limit int64) Problem {
	return Problem{File: name, Message: fmt.Sprintf("the file has %d bytes, and at most %d are read. Split it into smaller files", size, limit)}
}
