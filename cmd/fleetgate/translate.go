package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

// translation is what `fleetgate translate` prints: what manifests become, and what status would say of them.
type translation struct {
	APIVersion   string                  `json:"apiVersion"`
	Kind         string                  `json:"kind"` // Translation
	Problems     []problemView           `json:"problems"`
	Classes      []translatedClass       `json:"classes"`
	Gateways     []translatedGateway     `json:"gateways"`
	ListenerSets []translatedListenerSet `json:"listenerSets"`
	Routes       []translatedRoute       `json:"routes"`
	Policies     []translatedPolicy      `json:"policies"`
	Fleets       []translatedFleet       `json:"fleets"`
}

type translatedClass struct {
	Name       string          `json:"name"`
	Conditions []conditionView `json:"conditions"`
}

type translatedGateway struct {
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	Conditions []conditionView `json:"conditions"`
	Listeners  []listenerView  `json:"listeners"`
}

type translatedListenerSet struct {
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	Gateway    string          `json:"gateway"` // namespace/name
	Conditions []conditionView `json:"conditions"`
	Listeners  []listenerView  `json:"listeners"`
}

type translatedPolicy struct {
	Kind       string          `json:"kind"`
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	Ancestors  []string        `json:"ancestors"`  // namespace/name of the Gateways with routes to what it names
	Conditions []conditionView `json:"conditions"` // the same for each
}

type translatedRoute struct {
	Kind           string       `json:"kind"`
	Namespace      string       `json:"namespace"`
	Name           string       `json:"name"`
	Parents        []parentView `json:"parents"`
	MissingParents []string     `json:"missingParents,omitempty"`
}

type translatedFleet struct {
	Name      string               `json:"name"`
	Resources []translatedResource `json:"resources"`
}

// translatedResource is an Envoy resource. Secrets are named but never printed.
type translatedResource struct {
	TypeURL  string          `json:"typeURL"`
	Name     string          `json:"name"`
	Version  string          `json:"version"`
	Resource json.RawMessage `json:"resource,omitempty"`
}

// newTranslateCommand is `fleetgate translate`: for the CI of those who write routes.
func newTranslateCommand(t terminal) *cobra.Command {
	var files, controllers []string
	var format, listen string
	cmd := &cobra.Command{
		Use:   "translate -f FILE|DIR|-",
		Short: "Show what manifests become, without any server",
		Long: "Check manifests as an API server and the control plane would, and show the conditions of what is in them; with -o yaml or json the Envoy\n" +
			"resources too. Exit code 1 when a manifest is refused, a parent is missing, or a condition is False.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, directory, or - for stdin; may be repeated")
	addFormat(cmd, &format, "json, yaml")
	cmd.Flags().StringArrayVar(&controllers, "controller-name", []string{"fleetgate.io/gatewayclass-controller"}, "GatewayClasses with this controllerName are ours")
	cmd.Flags().StringVar(&listen, "listen-address", "0.0.0.0", "address that Envoy's listeners bind")
	cmd.RunE = func(*cobra.Command, []string) error {
		if len(files) == 0 {
			return usageError{errors.New("name manifests with -f")}
		}
		manifests, err := readManifests(files, t.in)
		if err != nil {
			return err
		}
		out, err := translateManifests(manifests, controllers, listen)
		if err != nil {
			return err
		}
		if err := printList(t.out, format, out, out.table(), "No objects of the Gateway API found."); err != nil {
			return err
		}
		for _, p := range out.Problems {
			_, _ = fmt.Fprintf(t.err, "%s: %s\n", where(p), p.Message)
		}
		if out.bad() {
			return errSilent
		}
		return nil
	}
	return cmd
}

// readManifests reads files; of directories what the directory source would read.
func readManifests(names []string, stdin io.Reader) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range names {
		if name == "-" {
			b, err := io.ReadAll(stdin)
			if err != nil {
				return nil, fmt.Errorf("reading stdin: %w", err)
			}
			out["stdin"] = b
			continue
		}
		err := filepath.WalkDir(name, func(file string, e fs.DirEntry, err error) error {
			switch hidden := file != name && strings.HasPrefix(e.Name(), "."); {
			case err == nil && e.IsDir() && hidden:
				return fs.SkipDir
			case err != nil || e.IsDir() || file != name && !member.IsManifest(file):
				return err
			}
			out[file], err = os.ReadFile(file)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading manifests: %w", err)
		}
	}
	return out, nil
}

// translateManifests compiles and assembles what is in files, as one cluster that has nothing else.
func translateManifests(files map[string][]byte, controllers []string, listen string) (*translation, error) {
	objects, problems := member.Decode(files)
	compiler := translate.New(translate.Config{
		Cluster: devCluster, ControllerNames: controllers, Owns: func(string) bool { return true },
		// Nothing leaves this process, and secrets are not printed.
		Seal:    func(plain, _ []byte) ([]byte, error) { return plain, nil },
		Version: record.Hash,
	})
	events := make([]translate.Event, len(objects))
	for i, o := range objects {
		events[i] = translate.Event{Kind: o.GetObjectKind().GroupVersionKind().Kind, Namespace: o.GetNamespace(), Name: o.GetName(), Object: o}
	}
	compiler.Apply(events)
	var changes []assemble.Change
	for k, p := range compiler.Records() {
		changes = append(changes, assemble.Change{Key: k, Cur: &assemble.Content{Hash: record.Hash(p.Payload), Payload: p.Payload, Refs: p.Refs, Index: 1}})
	}
	state := assemble.New(assemble.Config{ControllerNames: controllers, ListenAddress: listen})
	state.Apply(changes)
	out := &translation{APIVersion: apiVersion, Kind: "Translation", Problems: []problemView{}}
	for _, p := range problems {
		out.Problems = append(out.Problems, problemView{Cluster: devCluster, File: p.File, Document: p.Document, Line: p.Line, Object: p.Object, Field: p.Field, Message: p.Message})
	}
	out.statuses(state, objects)
	return out, out.resources(state)
}

// statuses reads what status would say.
func (t *translation) statuses(state *assemble.State, objects []member.Object) {
	t.Classes, t.Gateways, t.ListenerSets = []translatedClass{}, []translatedGateway{}, []translatedListenerSet{}
	t.Routes, t.Policies = []translatedRoute{}, []translatedPolicy{}
	for _, o := range objects {
		if o.GetObjectKind().GroupVersionKind().Kind != "GatewayClass" {
			continue
		}
		if s, ok := state.ClassStatus(record.Key{Cluster: devCluster, Kind: record.KindClass, Name: o.GetName()}); ok {
			t.Classes = append(t.Classes, translatedClass{Name: o.GetName(), Conditions: viewConditions(s.Conditions)})
		}
	}
	for _, k := range state.Gateways() {
		s, _ := state.GatewayStatus(k)
		t.Gateways = append(t.Gateways, translatedGateway{Namespace: k.Namespace, Name: k.Name, Conditions: viewConditions(s.Conditions), Listeners: viewListeners(s.Listeners, s.Facts, s.Listeners)})
	}
	for _, k := range state.ListenerSets() {
		s, _ := state.ListenerSetStatus(k)
		all := ofEntries(s.Listeners)
		t.ListenerSets = append(t.ListenerSets, translatedListenerSet{Namespace: k.Namespace, Name: k.Name, Gateway: s.Gateway.Namespace + "/" + s.Gateway.Name,
			Conditions: viewConditions(s.Conditions), Listeners: viewListeners(all, s.Facts, all)})
	}
	for _, k := range state.Routes() {
		s, _ := state.RouteStatus(k)
		kind, name, _ := strings.Cut(k.Name, "/")
		r := translatedRoute{Kind: kind, Namespace: k.Namespace, Name: name, Parents: []parentView{}, MissingParents: s.MissingParents}
		for _, p := range s.Parents {
			r.Parents = append(r.Parents, parentView{Parent: parentName(p, k.Namespace), Conditions: parentConditions(p, s.Object.Generation)})
		}
		t.Routes = append(t.Routes, r)
	}
	for _, k := range state.Policies() {
		s, _ := state.PolicyStatus(k)
		p := translatedPolicy{Kind: s.Object.Kind, Namespace: s.Object.Namespace, Name: s.Object.Name, Ancestors: []string{}, Conditions: viewConditions(s.Conditions)}
		for _, a := range s.Ancestors {
			p.Ancestors = append(p.Ancestors, a.Gateway.Namespace+"/"+a.Gateway.Name)
		}
		t.Policies = append(t.Policies, p)
	}
}

// parentConditions are those of a parent, and that no proxy would run the route where another is served in its place.
func parentConditions(p assemble.ParentStatus, generation int64) []conditionView {
	out := viewConditions(p.Conditions)
	if p.Overruled != "" && !p.Attached {
		out = append(out, conditionView{Type: conditionProgrammed, Status: "False", Reason: "Overruled", Message: p.Overruled, ObservedGeneration: generation})
	}
	return out
}

func parentName(p assemble.ParentStatus, namespace string) string {
	if p.Ref.Namespace != nil {
		namespace = string(*p.Ref.Namespace)
	}
	out := namespace + "/" + string(p.Ref.Name)
	if p.Ref.SectionName != nil {
		out += "/" + string(*p.Ref.SectionName)
	}
	if p.Ref.Port != nil {
		out += fmt.Sprintf(":%d", *p.Ref.Port)
	}
	return out
}

// resources reads what Envoys would be sent.
func (t *translation) resources(state *assemble.State) error {
	t.Fleets = []translatedFleet{}
	for _, name := range state.Fleets() {
		f := translatedFleet{Name: name, Resources: []translatedResource{}}
		for _, r := range state.Resources(name) {
			one := translatedResource{TypeURL: xds.URLs[r.Type], Name: r.Name, Version: r.Version}
			if r.Type != assemble.TypeSecret {
				var err error
				if one.Resource, err = readable(one.TypeURL, slices.Concat(r.Bytes...)); err != nil {
					return fmt.Errorf("reading %s: %w", r.Name, err)
				}
			}
			f.Resources = append(f.Resources, one)
		}
		t.Fleets = append(t.Fleets, f)
	}
	return nil
}

// readable turns a marshalled message into JSON.
func readable(url string, b []byte) (json.RawMessage, error) {
	typ, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		return nil, err
	}
	m := typ.New().Interface()
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, err
	}
	return protojson.Marshal(m)
}

// bad tells whether a person has to look at something.
func (t *translation) bad() bool {
	bad := len(t.Problems) > 0
	t.each(func(_, _ string, conditions []conditionView) { bad = bad || firstBad(conditions) != nil })
	for _, r := range t.Routes {
		bad = bad || len(r.MissingParents) > 0
	}
	return bad
}

// each visits all conditions by the object and the part of it that they speak of.
func (t *translation) each(do func(object, part string, conditions []conditionView)) {
	listeners := func(object string, all []listenerView) {
		for _, l := range all {
			do(object, "listener "+l.Name, l.Conditions)
		}
	}
	for _, c := range t.Classes {
		do("GatewayClass "+c.Name, "", c.Conditions)
	}
	for _, g := range t.Gateways {
		do("Gateway "+g.Namespace+"/"+g.Name, "", g.Conditions)
		listeners("Gateway "+g.Namespace+"/"+g.Name, g.Listeners)
	}
	for _, l := range t.ListenerSets {
		do("ListenerSet "+l.Namespace+"/"+l.Name, "", l.Conditions)
		listeners("ListenerSet "+l.Namespace+"/"+l.Name, l.Listeners)
	}
	for _, r := range t.Routes {
		for _, p := range r.Parents {
			do(r.Kind+" "+r.Namespace+"/"+r.Name, "parent "+p.Parent, p.Conditions)
		}
	}
	for _, p := range t.Policies {
		do(p.Kind+" "+p.Namespace+"/"+p.Name, "", p.Conditions)
	}
}

// table has a line for every condition that is as it should not be, and one for each object where all are well.
func (t *translation) table() *table {
	out := &table{head: []string{"OBJECT", "PART", "CONDITION", "STATUS", "REASON", "MESSAGE"}}
	add := func(object, part string, conditions []conditionView) {
		if c := firstBad(conditions); c != nil {
			out.add([]string{object, part, c.Type, c.Status, c.Reason, oneLine(c.Message)})
			return
		}
		out.add([]string{object, part, "all", "fine", "", ""})
	}
	t.each(add)
	for _, r := range t.Routes {
		for _, m := range r.MissingParents {
			out.add([]string{r.Kind + " " + r.Namespace + "/" + r.Name, "parent " + m, "", "", "missing", "there is no such Gateway or ListenerSet here: correct the name or add its manifest"})
		}
	}
	return out
}
