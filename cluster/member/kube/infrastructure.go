package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"

	"github.com/fleetgate/fleetgate/cluster/enroll"
	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/cluster/headless"
)

// Infrastructure is what Fleetgate makes in a member cluster, and what it asks of it about pods. Objects are applied and watched as they are, without Go types: what is
// compared is fields, and a field that we do not know is not ours to drop.
type Infrastructure struct {
	name     string
	client   dynamic.Interface
	metadata metadata.Interface
	log      *slog.Logger

	mu     sync.Mutex
	known  types.UID       // of the cluster, "" = it has not said yet
	denied map[string]bool // resources that may not be read
}

var (
	_ fleet.Cluster    = (*Infrastructure)(nil)
	_ headless.Cluster = (*Infrastructure)(nil)
)

// NewInfrastructure does not connect before it is asked for something.
func NewInfrastructure(c Config) (*Infrastructure, error) {
	config := prepare(c.Connect, UserAgent(c.Replica))
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("member cluster %s: %w; correct its kubeconfig", c.Name, err)
	}
	names, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("member cluster %s: %w; correct its kubeconfig", c.Name, err)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return &Infrastructure{name: c.Name, client: client, metadata: names, log: c.Logger.With("cluster", c.Name), denied: map[string]bool{}}, nil
}

var (
	pods         = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	tokenReviews = schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: "tokenreviews"}
	applyOptions = metav1.PatchOptions{FieldManager: fleet.ManagedBy, Force: new(true)}
	handOver     = metav1.PatchOptions{FieldManager: fleet.ManagedBy + "-replicas"}
	belongsTo    = "owner" // index by namespace and name of the Gateway or XBackend
	errNotByUs   = errors.New("it is there already and was not made by Fleetgate: rename it, or the Gateway")
)

func resourceOf(kind string) (schema.GroupVersionResource, error) {
	for _, k := range fleet.Kinds {
		if k.Kind == kind {
			return k.GroupVersion().WithResource(k.Resource), nil
		}
	}
	return schema.GroupVersionResource{}, fmt.Errorf("no fleet consists of a %s", kind)
}

// Apply implements fleet.Cluster by server-side apply. Our fields are taken, whoever has them; an object that is not ours is not.
func (i *Infrastructure) Apply(ctx context.Context, o fleet.Object, create bool) error {
	resource, err := resourceOf(o.Kind())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	client := i.client.Resource(resource).Namespace(o.Namespace())
	if create {
		old, err := client.Get(ctx, o.Name(), metav1.GetOptions{})
		if err == nil && old.GetLabels()[fleet.LabelManagedBy] != fleet.ManagedBy {
			return errNotByUs
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	if o.Kind() == v1alpha1.KindDeployment && !create {
		if err := keepReplicas(ctx, client, o); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = client.Patch(ctx, o.Name(), types.ApplyPatchType, raw, applyOptions)
	return err
}

// keepReplicas has the number of replicas stay where we leave it to an autoscaler from now on. A field that is applied no more is reset where nobody else has it, here to one Envoy; so it
// is handed over first (Kubernetes: "Server-Side Apply", "Transferring ownership").
func keepReplicas(ctx context.Context, client dynamic.ResourceInterface, o fleet.Object) error {
	if _, ours, err := unstructured.NestedFieldNoCopy(o, "spec", "replicas"); ours || err != nil {
		return err
	}
	old, err := client.Get(ctx, o.Name(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	replicas, _, err := unstructured.NestedInt64(old.Object, "spec", "replicas")
	if err != nil || !slices.ContainsFunc(old.GetManagedFields(), appliesReplicas) {
		return err
	}
	raw, err := json.Marshal(map[string]any{
		"apiVersion": o["apiVersion"], "kind": o["kind"], "metadata": map[string]any{"name": o.Name()}, "spec": map[string]any{"replicas": replicas},
	})
	if err != nil {
		return err
	}
	_, err = client.Patch(ctx, o.Name(), types.ApplyPatchType, raw, handOver)
	if apierrors.IsConflict(err) { // somebody has changed it meanwhile, and so has it
		return nil
	}
	return err
}

// appliesReplicas tells whether it is we who say how many replicas there are.
func appliesReplicas(m metav1.ManagedFieldsEntry) bool {
	var fields struct {
		Spec struct {
			Replicas *struct{} `json:"f:replicas"`
		} `json:"f:spec"`
	}
	return m.Manager == fleet.ManagedBy && m.FieldsV1 != nil && json.Unmarshal(m.FieldsV1.Raw, &fields) == nil && fields.Spec.Replicas != nil
}

// Delete implements fleet.Cluster. An object that was replaced meanwhile by another of its name stays.
func (i *Infrastructure) Delete(ctx context.Context, o fleet.Object) error {
	resource, err := resourceOf(o.Kind())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	uid := (&unstructured.Unstructured{Object: o}).GetUID()
	background := metav1.DeletePropagationBackground
	err = i.client.Resource(resource).Namespace(o.Namespace()).Delete(ctx, o.Name(), metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// same is an error where another cluster answers than the first time, or none: what a view of that one lacks would be made in it. A view of this one as it was before it was restored from a backup has expired;
// since is its revision, "" = it begins.
func (i *Infrastructure) same(ctx context.Context, since string) error {
	id, revision, err := identity(ctx, i.metadata)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.known == "" {
		i.known = id
	}
	if i.known != id {
		return another(id, i.known)
	}
	if older(revision, since) {
		return apierrors.NewResourceExpired(errRestored.Error())
	}
	return nil
}

// note logs when the right to read a resource is lacking, and when it is there again. Nobody else hears of it: the cluster's Source does not read most of what fleets consist of.
func (i *Infrastructure) note(resource string, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch denied := apierrors.IsForbidden(err); {
	case denied && !i.denied[resource]:
		i.denied[resource] = true
		i.log.Warn("nothing is provisioned until this may be read: give Fleetgate's service account the rights of deploy/fleets-rbac.yaml", "resource", resource, "err", err)
	case err == nil && i.denied[resource]:
		delete(i.denied, resource)
		i.log.Info("works again", "resource", resource)
	}
}

// Review asks whose token this is. An error is enroll.ErrDenied where the API server says that it is nobody's, or was not made for us.
func (i *Infrastructure) Review(ctx context.Context, token string) (enroll.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	audience := fleet.Audience(i.name)
	review := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": map[string]any{"token": token, "audiences": []any{audience}},
	}}
	got, err := i.client.Resource(tokenReviews).Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return enroll.Pod{}, fmt.Errorf("asking the API server for a review: %w", err)
	}
	return reviewed(got.Object, audience)
}
