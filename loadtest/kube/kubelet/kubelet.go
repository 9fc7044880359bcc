// SPDX-License-Identifier: Apache-2.0

// Package kubelet is a kubelet whose pods are processes: a node of a local cluster.
//
// A container is a process with a root of its own in the pod's network namespace (package container); a pod has an address that the node routes to (package
// link). Images are not pulled, they are a table of programs. All else is as on any node, as far as programs and their tests can tell: volumes that follow their
// objects, service-account tokens that are renewed, init containers and sidecars, probes, hooks, restarts with back-off, logs, exec, port-forward, status,
// events, graceful ends. PersistentVolumeClaims are served from directories that outlive the cluster's processes.
//
// What there is not: limits (nothing bounds the processor and memory of a pod), names of a shared process namespace, NetworkPolicy, ports of the host, devices,
// ephemeral containers, resizing. Host paths are paths of the machine.
//
// One goroutine runs each pod (worker), and one tells the API server about it (reporter). What to start is decided by a pure function of the pod's spec
// and the states of its containers (decide), what to say by another (podStatus). While the API server is away everything goes on: containers are restarted with
// the volumes and objects that are known.
//
// It does with one client, that of a cluster administrator, what on a real node a kubelet, a volume provisioner and a node registrar do.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/fleetgate/fleetgate/loadtest/kube/link"
)

// Options say which node of which cluster to be.
type Options struct {
	// Cluster names the cluster in logs.
	Cluster string
	// Config reaches its API server as an administrator.
	Config *rest.Config
	// NodeName is the name of the Node; NodeIP is its address, which the calling process's network namespace has already, and where port 10250 serves logs,
	// exec and port-forward.
	NodeName, NodeIP string
	// PodCIDR is the range of pod addresses; every cluster in the network namespace has a range of its own.
	PodCIDR netip.Prefix
	// Dir is the node's directory: volumes stay in it from one run to the next.
	Dir    string
	Images Images
	// ClusterDNS is the name server that pods are given.
	ClusterDNS netip.Addr
	Log        *slog.Logger
}

type kubelet struct {
	Options
	ctx       context.Context
	client    kubernetes.Interface
	nodeIP    netip.Addr
	addresses *addresses
	recorder  record.EventRecorder
	// jobs are all goroutines that belong to pods.
	jobs sync.WaitGroup

	listers listers

	mu      sync.Mutex
	workers map[types.UID]*worker
}

type listers struct {
	services   corelisters.ServiceLister
	configMaps corelisters.ConfigMapLister
	secrets    corelisters.SecretLister
	claims     corelisters.PersistentVolumeClaimLister
	volumes    corelisters.PersistentVolumeLister
}

// Run is the node until ctx ends, and leaves no process and no link behind. It fails where it cannot begin.
func Run(ctx context.Context, o Options) error {
	k, err := newKubelet(ctx, o)
	if err != nil {
		return err
	}
	listener, err := k.listen()
	if err != nil {
		return err
	}
	stopEvents := k.recordEvents()
	defer stopEvents()
	if err := k.watch(); err != nil {
		return errors.Join(err, listener.Close())
	}
	k.jobs.Go(func() { k.serve(listener) })
	if err := k.join(ctx); err != nil {
		return err
	}
	k.heartbeat(ctx)
	k.jobs.Wait()
	return nil
}

func newKubelet(ctx context.Context, o Options) (*kubelet, error) {
	nodeIP, err := netip.ParseAddr(o.NodeIP)
	if err != nil {
		return nil, fmt.Errorf("address of node %s: %w", o.NodeName, err)
	}
	if err := os.MkdirAll(filepath.Join(o.Dir, "pods"), 0o755); err != nil {
		return nil, fmt.Errorf("making the node's directory: %w", err)
	}
	if o.Dir, err = filepath.EvalSymlinks(o.Dir); err != nil {
		return nil, fmt.Errorf("finding the node's directory: %w", err)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("finding the node's directory: %w", err)
	}
	config := rest.CopyConfig(o.Config)
	config.QPS = -1 // the node is as fast as its pods come
	config.UserAgent = "kubelet"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for cluster %s: %w", o.Cluster, err)
	}
	return &kubelet{Options: o, ctx: ctx, client: client, nodeIP: nodeIP, addresses: newAddresses(o.PodCIDR), workers: map[types.UID]*worker{}}, nil
}

func (k *kubelet) recordEvents() (stop func()) {
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: k.client.CoreV1().Events("")})
	k.recorder = broadcaster.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: k.NodeName})
	return broadcaster.Shutdown
}

func (k *kubelet) event(pod *v1.Pod, kind, reason, message string) {
	k.recorder.Event(pod, kind, reason, message)
	if kind == v1.EventTypeWarning {
		k.Log.Info("event", "namespace", pod.Namespace, "pod", pod.Name, "reason", reason, "message", message)
	}
}

// watch starts following the API server's objects and returns once all are known.
func (k *kubelet) watch() error {
	all := informers.NewSharedInformerFactory(k.client, 0)
	core := all.Core().V1()
	k.listers = listers{
		services: core.Services().Lister(), configMaps: core.ConfigMaps().Lister(), secrets: core.Secrets().Lister(),
		claims: core.PersistentVolumeClaims().Lister(), volumes: core.PersistentVolumes().Lister(),
	}
	for _, informer := range []cache.SharedIndexInformer{core.ConfigMaps().Informer(), core.Secrets().Informer(), core.PersistentVolumeClaims().Informer()} {
		if _, err := informer.AddEventHandler(k.objectHandler()); err != nil {
			return fmt.Errorf("watching objects of cluster %s: %w", k.Cluster, err)
		}
	}
	core.Services().Informer()
	if err := k.provision(core.PersistentVolumeClaims().Informer(), core.PersistentVolumes().Informer()); err != nil {
		return err
	}
	all.Start(k.ctx.Done())
	all.WaitForCacheSync(k.ctx.Done())
	own := informers.NewSharedInformerFactoryWithOptions(k.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", k.NodeName).String()
	}))
	if _, err := own.Core().V1().Pods().Informer().AddEventHandler(k.podHandler()); err != nil {
		return fmt.Errorf("watching pods of cluster %s: %w", k.Cluster, err)
	}
	own.Start(k.ctx.Done())
	own.WaitForCacheSync(k.ctx.Done())
	return k.ctx.Err()
}

func (k *kubelet) podHandler() cache.ResourceEventHandlerFuncs {
	gone := func(pod *v1.Pod) {
		if w := k.worker(pod.UID); w != nil {
			w.vanish()
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { k.take(o.(*v1.Pod)) },
		UpdateFunc: func(before, o any) {
			pod := o.(*v1.Pod)
			if old := before.(*v1.Pod); old.UID != pod.UID { // deleted and made anew while nobody watched
				gone(old)
			}
			k.take(pod)
		},
		DeleteFunc: func(o any) {
			if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = unknown.Obj
			}
			if pod, ok := o.(*v1.Pod); ok {
				gone(pod)
			}
		},
	}
}

// take passes a pod to its worker, a new one where it has none and is not over.
func (k *kubelet) take(pod *v1.Pod) {
	k.mu.Lock()
	w := k.workers[pod.UID]
	over := pod.DeletionTimestamp == nil && (pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed)
	fresh := w == nil && !over && k.ctx.Err() == nil
	if fresh {
		w = k.newWorker(pod)
		k.workers[pod.UID] = w
	}
	k.mu.Unlock()
	if fresh {
		k.jobs.Go(w.loop)
	} else if w != nil {
		w.update(pod)
	}
}

func (k *kubelet) worker(uid types.UID) *worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.workers[uid]
}

// find is the worker of the pod with this name, not of one that was there before it.
func (k *kubelet) find(namespace, name string) *worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, w := range k.workers {
		if w.namespace == namespace && w.name == name && !w.report.isGone() {
			return w
		}
	}
	return nil
}

func (k *kubelet) forget(w *worker) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.workers, w.uid)
}

func (k *kubelet) objectHandler() cache.ResourceEventHandlerFuncs {
	changed := func(o any) {
		if object, ok := o.(metav1.Object); ok {
			k.objectChanged(object.GetNamespace())
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: changed,
		UpdateFunc: func(before, after any) {
			if !sameContent(before, after) {
				changed(after)
			}
		},
	}
}

// sameContent says that an update of an object changes nothing that a pod can see.
func sameContent(before, after any) bool {
	switch a := after.(type) {
	case *v1.ConfigMap:
		b := before.(*v1.ConfigMap)
		return equality.Semantic.DeepEqual(a.Data, b.Data) && equality.Semantic.DeepEqual(a.BinaryData, b.BinaryData)
	case *v1.Secret:
		return equality.Semantic.DeepEqual(a.Data, before.(*v1.Secret).Data)
	}
	return false
}

func (k *kubelet) objectChanged(namespace string) {
	k.mu.Lock()
	var affected []*worker
	for _, w := range k.workers {
		if w.namespace == namespace {
			affected = append(affected, w)
		}
	}
	k.mu.Unlock()
	for _, w := range affected {
		w.changed()
	}
}

func (k *kubelet) configMap(namespace, name string) (*v1.ConfigMap, error) {
	return k.listers.configMaps.ConfigMaps(namespace).Get(name)
}

func (k *kubelet) secret(namespace, name string) (*v1.Secret, error) {
	return k.listers.secrets.Secrets(namespace).Get(name)
}

func (k *kubelet) services(namespace string) ([]*v1.Service, error) {
	return k.listers.services.Services(namespace).List(labels.Everything())
}

// connect makes a pod's network, with the kernel parameters that the pod asks for.
func (k *kubelet) connect(ip netip.Addr, pod *v1.Pod) (*link.Namespace, string, error) {
	ns, err := link.New()
	if err != nil {
		return nil, "", err
	}
	if s := pod.Spec.SecurityContext; s != nil {
		for _, sysctl := range s.Sysctls {
			if err := ns.Do(func() error { return link.Sysctl(sysctl.Name, sysctl.Value) }); err != nil {
				return nil, "", errors.Join(err, ns.Close())
			}
		}
	}
	veth := "p" + strings.ReplaceAll(string(pod.UID), "-", "")[:13]
	if err := link.Connect(ns, veth, ip, k.nodeIP); err != nil {
		return nil, "", errors.Join(err, ns.Close())
	}
	return ns, veth, nil
}

// listen opens the port of the kubelet's own API.
func (k *kubelet) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(k.nodeIP, port).String())
	if err != nil {
		return nil, fmt.Errorf("opening the API of node %s (is %s an address of this network?): %w", k.NodeName, k.nodeIP, err)
	}
	return l, nil
}
