package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/fleetgate/fleetgate/cluster/fleet"
)

// Install is what this process was installed as: the objects of deploy/install.yaml from which it lives.
//
// A GatewayClass in use carries a finalizer that only we take away, and its CRD is part of the install. So an install that is deleted must let go of its classes before it is gone. But
// `kubectl delete -f` deletes the file's objects without waiting for one before the next, and our rights are gone a moment later, before a replica has heard of anything. Therefore, while
// a class is held, what our rights come from is held too (Hold): the service account and one binding carry a finalizer, and the role that they are bound to stands in no file; the leader
// makes it, and it is the binding's, so that the garbage collector removes it after the binding. Whoever then finds that the install is being deleted (Stays), at the latest each
// replica when it is stopped, lets go of the classes and of these two (Release), in this order. An install that holds no class carries none of this.
type Install struct {
	client    dynamic.Interface
	namespace string
	workload  string // name of our StatefulSet

	mu      sync.Mutex
	granted types.UID // of the binding whose role was made
}

// Names of deploy/release-rbac.yaml and deploy/namespace.yaml.
const (
	accountName      = "fleetgate"
	releaseName      = "fleetgate-release"
	releaseFinalizer = "fleetgate.io/holds-gatewayclasses"
)

var (
	namespaces      = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	statefulSets    = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "statefulsets"}
	releaseRoles    = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}
	releaseBindings = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"}
)

// Install is the install that a replica in this namespace is part of.
func (h *Home) Install(pod string) *Install {
	workload := pod
	if at := strings.LastIndex(pod, "-"); at > 0 {
		workload = pod[:at]
	}
	return &Install{client: h.client, namespace: h.namespace, workload: workload}
}

func (i *Install) account() dynamic.ResourceInterface {
	return i.client.Resource(serviceAccounts).Namespace(i.namespace)
}

func (i *Install) binding() dynamic.ResourceInterface { return i.client.Resource(releaseBindings) }

// Stays tells whether this install is there to stay: nothing that it lives from is gone or being deleted, and its StatefulSet is not scaled to nothing. An error says that nobody can tell.
func (i *Install) Stays(ctx context.Context) (bool, error) {
	_, _, stays, err := i.look(ctx)
	return stays, err
}

// look also gives the two objects that can be held.
func (i *Install) look(ctx context.Context) (account, binding *unstructured.Unstructured, stays bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	stays = true
	for _, o := range []struct {
		client dynamic.ResourceInterface
		name   string
		into   **unstructured.Unstructured
	}{
		{i.client.Resource(namespaces), i.namespace, nil},
		{i.client.Resource(statefulSets).Namespace(i.namespace), i.workload, nil},
		{i.account(), accountName, &account},
		{i.binding(), releaseName, &binding},
	} {
		got, err := o.client.Get(ctx, o.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			stays = false
			continue
		}
		if err != nil {
			return nil, nil, false, fmt.Errorf("looking whether the install in namespace %s is to stay: %s: %w", i.namespace, o.name, err)
		}
		replicas, scaled, _ := unstructured.NestedInt64(got.Object, "spec", "replicas")
		stays = stays && got.GetDeletionTimestamp() == nil && !(scaled && replicas == 0)
		if o.into != nil {
			*o.into = got
		}
	}
	return account, binding, stays, nil
}

// Hold makes sure that our rights outlive the order to delete them. False says that the order has been given already: nothing may be held any more.
func (i *Install) Hold(ctx context.Context) (bool, error) { return i.Keep(ctx, true) }

// Keep is Hold where a class is held, and lets go of our rights where none is. False says that the install is being deleted, and changes nothing.
func (i *Install) Keep(ctx context.Context, holding bool) (stays bool, err error) {
	account, binding, stays, err := i.look(ctx)
	if err != nil || !stays {
		return false, err
	}
	if !holding {
		return true, i.release(ctx, account, binding)
	}
	if err := i.grantOnce(ctx, binding.GetUID()); err != nil {
		return false, err
	}
	for _, o := range []struct {
		client dynamic.ResourceInterface
		object *unstructured.Unstructured
	}{{i.binding(), binding}, {i.account(), account}} {
		if err := setHeld(ctx, o.client, o.object, true); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (i *Install) grantOnce(ctx context.Context, owner types.UID) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.granted == owner {
		return nil
	}
	err := i.grant(ctx, owner)
	if err == nil {
		i.granted = owner
	}
	return err
}

// grant makes the role that the binding names, as the binding's own.
func (i *Install) grant(ctx context.Context, owner types.UID) error {
	raw, err := json.Marshal(map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": i.releaseRules(),
		"metadata": map[string]any{"name": releaseName, "ownerReferences": []any{map[string]any{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "name": releaseName, "uid": owner}}},
	})
	if err != nil {
		return fmt.Errorf("ClusterRole %s: %w", releaseName, err)
	}
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	if _, err := i.client.Resource(releaseRoles).Patch(ctx, releaseName, types.ApplyPatchType, raw, applyOptions); err != nil {
		return fmt.Errorf("making ClusterRole %s, which lets us let go at the end: %w; apply deploy/install.yaml of this version", releaseName, err)
	}
	return nil
}

// rule is a rule of a ClusterRole.
type rule struct {
	APIGroups     []string `json:"apiGroups"`
	Resources     []string `json:"resources"`
	ResourceNames []string `json:"resourceNames,omitempty"`
	Verbs         []string `json:"verbs"`
}

// releaseRules are what it takes to let go: to see that the install is being deleted, and to take our finalizers away.
func (i *Install) releaseRules() []rule {
	return []rule{
		{[]string{gatewayGroup}, []string{"gatewayclasses"}, nil, []string{"list", "patch"}},
		{[]string{releaseBindings.Group}, []string{releaseBindings.Resource}, []string{releaseName}, []string{"get", "patch"}},
		{[]string{""}, []string{serviceAccounts.Resource}, []string{accountName}, []string{"get", "patch"}},
		{[]string{""}, []string{namespaces.Resource}, []string{i.namespace}, []string{"get"}},
		{[]string{statefulSets.Group}, []string{statefulSets.Resource}, []string{i.workload}, []string{"get"}},
	}
}

// Release lets go of what Hold held. It is called when no class is held any more: the rights may end with it.
func (i *Install) Release(ctx context.Context) error {
	account, binding, _, err := i.look(ctx)
	if err != nil {
		return err
	}
	return i.release(ctx, account, binding)
}

func (i *Install) release(ctx context.Context, account, binding *unstructured.Unstructured) error {
	if err := setHeld(ctx, i.account(), account, false); err != nil { // the binding is what allows it
		return err
	}
	return setHeld(ctx, i.binding(), binding, false)
}

// setHeld puts our finalizer on an object, or takes it away; nil is an object that is not there.
func setHeld(ctx context.Context, client dynamic.ResourceInterface, o *unstructured.Unstructured, held bool) error {
	if o == nil || slices.Contains(o.GetFinalizers(), releaseFinalizer) == held {
		return nil
	}
	raw, err := json.Marshal(withFinalizer(o, releaseFinalizer, held))
	if err != nil {
		return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
	}
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	if _, err = client.Patch(ctx, o.GetName(), types.MergePatchType, raw, metav1.PatchOptions{FieldManager: fleet.ManagedBy}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("changing the finalizers of %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}
