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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
	"github.com/fleetgate/fleetgate/translate"
	"github.com/fleetgate/fleetgate/translate/assemble"
	"github.com/fleetgate/fleetgate/translate/record"
	"github.com/fleetgate/fleetgate/xds"
)

// translation is what `fleetgate translate` prints: what manifests become, and what status would say of them.
type translation struct {
	APIVersion string              `json:"apiVersion"`
	Kind       string              `json:"kind"` // Translation
	Problems   []problemView       `json:"problems"`
	Classes    []translatedClass   `json:"classes"`
	Gateways   []translatedGateway `json:"gateways"`
	Routes     []translatedRoute   `json:"routes"`
	Fleets     []translatedFleet   `json:"fleets"`
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
	cmd.Flags().StringVarP(&format, "output", "o", "", "format: json, yaml")
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
			if err != nil || e.IsDir() || file != name && !isManifest(file) {
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

func isManifest(file string) bool {
	base, ext := filepath.Base(file), filepath.Ext(file)
	return !strings.HasPrefix(base, ".") && (ext == ".yaml" || ext == ".yml" || ext == ".json")
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
	t.Classes, t.Gateways, t.Routes = []translatedClass{}, []translatedGateway{}, []translatedRoute{}
	for _, o := range objects {
		if o.GetObjectKind().GroupVersionKind().Kind != "GatewayClass" {
			continue
		}
		if s, ok := state.ClassStatus(record.Key{Cluster: devCluster, Kind: record.KindClass, Name: o.GetName()}); ok {
			t.Classes = append(t.Classes, translatedClass{Name: o.GetName(), Conditions: toConditions(s.Conditions)})
		}
	}
	for _, k := range state.Gateways() {
		s, _ := state.GatewayStatus(k)
		g := translatedGateway{Namespace: k.Namespace, Name: k.Name, Conditions: toConditions(s.Conditions), Listeners: []listenerView{}}
		for i, l := range s.Listeners {
			v := listenerView{Name: string(l.Name), AttachedRoutes: l.AttachedRoutes, Conditions: toConditions(l.Conditions)}
			if i < len(s.ListenerPorts) && i < len(s.Protocols) && i < len(s.Hostnames) {
				v.Port, v.Protocol, v.Hostname = s.ListenerPorts[i], s.Protocols[i], s.Hostnames[i]
			}
			g.Listeners = append(g.Listeners, v)
		}
		t.Gateways = append(t.Gateways, g)
	}
	for _, k := range state.Routes() {
		s, _ := state.RouteStatus(k)
		kind, name, _ := strings.Cut(k.Name, "/")
		r := translatedRoute{Kind: kind, Namespace: k.Namespace, Name: name, Parents: []parentView{}, MissingParents: s.MissingParents}
		for _, p := range s.Parents {
			r.Parents = append(r.Parents, parentView{Parent: parentName(p, k.Namespace), Conditions: toConditions(p.Conditions)})
		}
		t.Routes = append(t.Routes, r)
	}
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

func toConditions(list []metav1.Condition) []conditionView {
	out := []conditionView{}
	for _, c := range list {
		out = append(out, conditionView{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message, ObservedGeneration: c.ObservedGeneration})
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
	for _, c := range t.Classes {
		bad = bad || firstBad(c.Conditions) != nil
	}
	for _, g := range t.Gateways {
		bad = bad || firstBad(g.Conditions) != nil
		for _, l := range g.Listeners {
			bad = bad || firstBad(l.Conditions) != nil
		}
	}
	for _, r := range t.Routes {
		bad = bad || len(r.MissingParents) > 0
		for _, p := range r.Parents {
			bad = bad || firstBad(p.Conditions) != nil
		}
	}
	return bad
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
	for _, c := range t.Classes {
		add("GatewayClass "+c.Name, "", c.Conditions)
	}
	for _, g := range t.Gateways {
		add("Gateway "+g.Namespace+"/"+g.Name, "", g.Conditions)
		for _, l := range g.Listeners {
			add("Gateway "+g.Namespace+"/"+g.Name, "listener "+l.Name, l.Conditions)
		}
	}
	for _, r := range t.Routes {
		for _, p := range r.Parents {
			add(r.Kind+" "+r.Namespace+"/"+r.Name, "parent "+p.Parent, p.Conditions)
		}
		for _, m := range r.MissingParents {
			out.add([]string{r.Kind + " " + r.Namespace + "/" + r.Name, "parent " + m, "", "", "missing", "there is no such Gateway here: correct the name or add its manifest"})
		}
	}
	return out
}
