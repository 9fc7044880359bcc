package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/cluster/member"
)

// pod is a pod that dev plays.
type pod struct {
	name, namespace, version string
	labels                   map[string]string
	ports                    []corev1.ContainerPort
}

// planPods gives the pods that Deployments ask for. Names are the Deployment's and a number: they stay when a replica is added.
func planPods(objects []member.Object) []pod {
	var out []pod
	for _, o := range objects {
		d, ok := o.(*appsv1.Deployment)
		if !ok || d.Spec.Replicas == nil {
			continue
		}
		t := d.Spec.Template
		for i := range *d.Spec.Replicas {
			p := pod{name: fmt.Sprintf("%s-%d", d.Name, i+1), namespace: d.Namespace, version: t.Labels["version"], labels: t.Labels}
			for _, c := range t.Spec.Containers {
				p.ports = append(p.ports, c.Ports...)
			}
			out = append(out, p)
		}
	}
	return out
}

// portOf finds the container port that a Service's port means; a number needs no declaration.
func (p pod) portOf(sp corev1.ServicePort) (int32, bool) {
	if sp.TargetPort.Type == intstr.Int {
		if n := sp.TargetPort.IntVal; n != 0 {
			return n, true
		}
		return sp.Port, true
	}
	for _, c := range p.ports {
		if c.Name == sp.TargetPort.StrVal {
			return c.ContainerPort, true
		}
	}
	return 0, false
}

// backing is one pod behind one Service: service port name -> container port.
type backing struct {
	service *corev1.Service
	pod     pod
	ports   []backedPort
}

type backedPort struct {
	name        string
	appProtocol *string
	container   int32
}

// headlessOf gives the Service that the leader would make for an XBackend which selects pods. Its label is the XBackend's name, for nobody knows a UID here.
func headlessOf(x *gatewayxv1alpha1.XBackend) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: x.Namespace, Name: "xbackend." + x.Name, Labels: map[string]string{v1alpha1.LabelXBackend: x.Name}}}
	if x.Spec.EndpointSelector == nil || len(x.Name) > validation.LabelValueMaxLength {
		return s
	}
	s.Spec.Selector = map[string]string{}
	for name, is := range x.Spec.EndpointSelector.MatchLabels {
		s.Spec.Selector[string(name)] = string(is)
	}
	s.Spec.Ports = []corev1.ServicePort{{Port: int32(x.Spec.Port.Number)}}
	return s
}

// planBackings joins Services with the pods that their selectors select, as a cluster's endpoint controller does.
func planBackings(objects []member.Object, pods []pod) []backing {
	var out []backing
	for _, o := range objects {
		if x, ok := o.(*gatewayxv1alpha1.XBackend); ok {
			o = headlessOf(x)
		}
		s, ok := o.(*corev1.Service)
		if !ok || len(s.Spec.Selector) == 0 {
			continue
		}
		selects := labels.SelectorFromSet(s.Spec.Selector)
		for _, p := range pods {
			if p.namespace != s.Namespace || !selects.Matches(labels.Set(p.labels)) {
				continue
			}
			b := backing{service: s, pod: p}
			for _, sp := range s.Spec.Ports {
				if n, ok := p.portOf(sp); ok && (sp.Protocol == "" || sp.Protocol == corev1.ProtocolTCP) {
					b.ports = append(b.ports, backedPort{name: sp.Name, appProtocol: sp.AppProtocol, container: n})
				}
			}
			if len(b.ports) > 0 {
				out = append(out, b)
			}
		}
	}
	return out
}

// slice is the EndpointSlice of one pod behind one Service. Pods have a port of their own each, on one loopback address, so each needs a slice of its own.
func (b backing) slice(at func(pod, int32) int) *discoveryv1.EndpointSlice {
	ready := true
	of := map[string]string{discoveryv1.LabelServiceName: b.service.Name, discoveryv1.LabelManagedBy: "dev.fleetgate.io"}
	if x := b.service.Labels[v1alpha1.LabelXBackend]; x != "" {
		of = map[string]string{v1alpha1.LabelXBackend: x, discoveryv1.LabelManagedBy: "dev.fleetgate.io"}
	}
	s := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Name: b.service.Name + "-" + b.pod.name, Namespace: b.service.Namespace, Labels: of},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{"127.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: b.pod.namespace, Name: b.pod.name},
		}},
	}
	for _, p := range b.ports {
		name, port, tcp := p.name, int32(at(b.pod, p.container)), corev1.ProtocolTCP
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port, Protocol: &tcp, AppProtocol: p.appProtocol})
	}
	return s
}

// pods plays the pods of a directory and writes their EndpointSlices to another, which replicas read as part of the same cluster.
type pods struct {
	dir, endpoints string
	state          *devState
	save           func() error
	say            func(string, ...any)

	stepped bool
	files   map[string]manifest
	running map[string]*http.Server // pod key/container port
	written map[string]string       // file -> content
	names   []string
}

// manifest is a file of the directory with its last good objects.
type manifest struct {
	stamp   string
	objects []member.Object
}

// run keeps pods and slices as the directory asks, until ctx ends.
func (p *pods) run(ctx context.Context) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		p.step()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// step takes in what changed in the directory.
func (p *pods) step() {
	if changed := p.read(); !changed && p.stepped {
		return
	}
	p.stepped = true // the first time even an empty directory is news: an earlier run may have left endpoints
	if err := p.apply(); err != nil {
		p.say("demo backends: %v", err)
	}
}

// read tells whether anything in the directory changed. What cannot be read or decoded keeps its last good objects.
func (p *pods) read() bool {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return false
	}
	changed := false
	seen := map[string]bool{}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); e.IsDir() || strings.HasPrefix(e.Name(), ".") || ext != ".yaml" && ext != ".yml" && ext != ".json" {
			continue
		}
		seen[e.Name()] = true
		info, err := os.Stat(filepath.Join(p.dir, e.Name()))
		if err != nil {
			continue
		}
		stamp := fmt.Sprint(info.Size(), info.ModTime().UnixNano())
		if old, ok := p.files[e.Name()]; ok && old.stamp == stamp {
			continue
		}
		changed = p.decode(e.Name(), stamp) || changed
	}
	for name := range p.files {
		if !seen[name] {
			delete(p.files, name)
			changed = true
		}
	}
	return changed
}

func (p *pods) decode(name, stamp string) bool {
	b, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		return false
	}
	objects, problems := member.Decode(map[string][]byte{name: b})
	if len(problems) > 0 {
		objects = p.files[name].objects
	}
	p.files[name] = manifest{stamp: stamp, objects: objects}
	return true
}

func (p *pods) objects() []member.Object {
	var out []member.Object
	for _, name := range slices.Sorted(maps.Keys(p.files)) {
		out = append(out, p.files[name].objects...)
	}
	return out
}

// apply starts what is missing, writes slices, and only then stops what is no longer named.
func (p *pods) apply() error {
	objects := p.objects()
	planned := planPods(objects)
	backings := planBackings(objects, planned)
	needed, err := p.start(backings)
	if err != nil {
		return err
	}
	p.names = nil
	for _, pod := range planned {
		p.names = append(p.names, pod.namespace+"/"+pod.name)
	}
	want := map[string]*discoveryv1.EndpointSlice{}
	for _, b := range backings {
		s := b.slice(func(pod pod, port int32) int { return p.state.Backends[portKey(pod, port)] })
		want[s.Namespace+"."+s.Name+".yaml"] = s
	}
	if err := p.write(want); err != nil {
		return err
	}
	for key, server := range p.running {
		if !needed[key] {
			delete(p.running, key)
			go func() {
				time.Sleep(2 * time.Second) // proxies learn of it first
				drainEcho(server, 5*time.Second)
			}()
		}
	}
	return nil
}

func portKey(p pod, port int32) string { return fmt.Sprintf("%s/%s/%d", p.namespace, p.name, port) }

func (p *pods) start(backings []backing) (needed map[string]bool, err error) {
	needed = map[string]bool{}
	for _, b := range backings {
		for _, port := range b.ports {
			key := portKey(b.pod, port.container)
			needed[key] = true
			if p.running[key] != nil {
				continue
			}
			server, got, err := startEcho(echo{pod: b.pod.name, namespace: b.pod.namespace, version: b.pod.version}, p.state.Backends[key])
			if err != nil {
				return needed, fmt.Errorf("playing pod %s: %w", b.pod.name, err)
			}
			p.running[key], p.state.Backends[key] = server, got
		}
	}
	return needed, p.save()
}

// write makes the endpoints directory hold exactly these slices; what is as it was is not touched.
func (p *pods) write(want map[string]*discoveryv1.EndpointSlice) error {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		b, err := yaml.Marshal(want[name])
		if err != nil {
			return fmt.Errorf("writing endpoints: %w", err)
		}
		if p.written[name] == string(b) {
			continue
		}
		if err := replaceFile(filepath.Join(p.endpoints, name), b); err != nil {
			return err
		}
		p.written[name] = string(b)
	}
	entries, err := os.ReadDir(p.endpoints)
	if err != nil {
		return fmt.Errorf("reading the endpoints directory: %w", err)
	}
	for _, e := range entries {
		if want[e.Name()] == nil && !strings.HasPrefix(e.Name(), ".") {
			delete(p.written, e.Name())
			if err := os.Remove(filepath.Join(p.endpoints, e.Name())); err != nil {
				return fmt.Errorf("removing old endpoints: %w", err)
			}
		}
	}
	sort.Strings(p.names)
	return nil
}

func (p *pods) close() {
	for _, s := range p.running {
		_ = s.Close()
	}
}

func newPods(dir, endpoints string, state *devState, save func() error, say func(string, ...any)) *pods {
	return &pods{dir: dir, endpoints: endpoints, state: state, save: save, say: say,
		files: map[string]manifest{}, running: map[string]*http.Server{}, written: map[string]string{}}
}
