package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/fleetgate/fleetgate/cluster/enroll"
	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/cluster/headless"
)

// Infrastructure is what Fleetgate makes in a member cluster, and what it asks of it about pods. Objects are applied and watched as they are, without Go types: what is
// compared is fields, and a field that we do not know is not ours to drop.
type Infrastructure struct {
	name   string
	client dynamic.Interface
}

var (
	_ fleet.Cluster    = (*Infrastructure)(nil)
	_ headless.Cluster = (*Infrastructure)(nil)
)

// NewInfrastructure does not connect before it is asked for something.
func NewInfrastructure(c Config) (*Infrastructure, error) {
	client, err := dynamic.NewForConfig(prepare(c.Connect, UserAgent(c.Replica)))
	if err != nil {
		return nil, fmt.Errorf("member cluster %s: %w; correct its kubeconfig", c.Name, err)
	}
	return &Infrastructure{name: c.Name, client: client}, nil
}

var (
	pods         = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	tokenReviews = schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: "tokenreviews"}
	applyOptions = metav1.PatchOptions{FieldManager: fleet.ManagedBy, Force: new(true)}
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
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = client.Patch(ctx, o.Name(), types.ApplyPatchType, raw, applyOptions)
	return err
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
