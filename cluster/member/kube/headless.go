package kube

import (
	"context"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/cluster/fleet/v1alpha1"
	"github.com/fleetgate/fleetgate/cluster/headless"
)

// selections are the Services that were made for XBackends in a cluster.
type selections struct {
	*provisioned
	client dynamic.NamespaceableResourceInterface
}

var services = schema.GroupVersionResource{Version: "v1", Resource: "services"}

// FollowHeadless implements headless.Cluster.
func (i *Infrastructure) FollowHeadless(ctx context.Context, changed func(namespace, xbackend string)) (headless.Services, error) {
	p := i.follow(ctx, services, v1alpha1.LabelXBackend+","+fleet.LabelManagedBy+"="+fleet.ManagedBy, xbackendOf, changed)
	return &selections{p, i.client.Resource(services)}, p.wait(ctx)
}

func xbackendOf(u *unstructured.Unstructured) (namespace, name string) {
	s, err := service(u)
	if err != nil {
		return u.GetNamespace(), ""
	}
	return s.Namespace, headless.OwnerOf(s).Name
}

func service(u *unstructured.Unstructured) (*corev1.Service, error) {
	out := &corev1.Service{}
	return out, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out)
}

// Of implements headless.Services.
func (s *selections) Of(namespace, xbackend string) []*corev1.Service {
	var out []*corev1.Service
	for _, u := range s.belonging(namespace, xbackend) {
		if one, err := service(u); err == nil { // the API server gave it as a Service
			out = append(out, one)
		}
	}
	return out
}

// Create implements headless.Services. What was made is put into the view at once: until the watch tells of it, a second one would be made.
func (s *selections) Create(ctx context.Context, made *corev1.Service) error {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(made)
	if err != nil {
		return err
	}
	delete(object, "status")
	u, err := s.client.Namespace(made.Namespace).Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{FieldManager: fleet.ManagedBy})
	if err != nil {
		return err
	}
	if _, there, err := s.Get(u); err != nil || there {
		return err
	}
	return s.Indexer.Add(trimFleet(u))
}

// Change implements headless.Services. A Service that was replaced meanwhile is left alone.
func (s *selections) Change(ctx context.Context, to *corev1.Service) error {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	type edit struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	patch, err := json.Marshal([]edit{
		{"test", "/metadata/uid", to.UID}, {"add", "/metadata/labels", to.Labels}, {"replace", "/spec/selector", to.Spec.Selector}, {"replace", "/spec/ports", to.Spec.Ports},
	})
	if err != nil {
		return err
	}
	_, err = s.client.Namespace(to.Namespace).Patch(ctx, to.Name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: fleet.ManagedBy})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Delete implements headless.Services.
func (s *selections) Delete(ctx context.Context, gone *corev1.Service) error {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	err := s.client.Namespace(gone.Namespace).Delete(ctx, gone.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &gone.UID}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
