package kube

import (
	"context"
	"fmt"
	"maps"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"encoding/base64"
)

// Home is the namespace in which replicas run, as a place where one of them wins: what is created there is created once, by whoever comes first.
type Home struct {
	client    dynamic.Interface
	namespace string
}

var (
	secrets    = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
)

// NewHome is for the namespace of the cluster that c reaches.
func NewHome(c *rest.Config, replica, namespace string) (*Home, error) {
	client, err := dynamic.NewForConfig(prepare(c, UserAgent(replica)))
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", namespace, err)
	}
	return &Home{client: client, namespace: namespace}, nil
}

// Secret gives the content of a Secret. Where there is none, make says what to create; whoever creates first decides for all.
func (h *Home) Secret(ctx context.Context, name string, make func() (map[string][]byte, error)) (map[string][]byte, error) {
	client := h.client.Resource(secrets).Namespace(h.namespace)
	for {
		old, err := client.Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return secretData(old)
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("reading Secret %s/%s: %w", h.namespace, name, err)
		}
		data, err := make()
		if err != nil {
			return nil, err
		}
		encoded := map[string]any{}
		for k, v := range maps.All(data) {
			encoded[k] = base64.StdEncoding.EncodeToString(v)
		}
		_, err = client.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": map[string]any{"name": name}, "data": encoded,
		}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("creating Secret %s/%s: %w", h.namespace, name, err)
		}
	}
}

func secretData(s *unstructured.Unstructured) (map[string][]byte, error) {
	encoded, _, err := unstructured.NestedStringMap(s.Object, "data")
	if err != nil {
		return nil, fmt.Errorf("Secret %s/%s: %w", s.GetNamespace(), s.GetName(), err)
	}
	out := map[string][]byte{}
	for k, v := range encoded {
		if out[k], err = base64.StdEncoding.DecodeString(v); err != nil {
			return nil, fmt.Errorf("Secret %s/%s: key %s: %w", s.GetNamespace(), s.GetName(), k, err)
		}
	}
	return out, nil
}

// Marker is a ConfigMap that is created once: a group.Marker.
type Marker struct {
	Home *Home
	Name string
}

const markerKey = "group"

// Create stores id if there is nothing (won), else it gives what is there.
func (m Marker) Create(ctx context.Context, id string) (won bool, existing string, err error) {
	client := m.Home.client.Resource(configMaps).Namespace(m.Home.namespace)
	_, err = client.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": m.Name}, "data": map[string]any{markerKey: id},
	}}, metav1.CreateOptions{})
	if err == nil {
		return true, id, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return false, "", fmt.Errorf("group marker: creating ConfigMap %s/%s: %w", m.Home.namespace, m.Name, err)
	}
	old, err := client.Get(ctx, m.Name, metav1.GetOptions{})
	if err != nil {
		return false, "", fmt.Errorf("group marker: reading ConfigMap %s/%s: %w", m.Home.namespace, m.Name, err)
	}
	existing, _, _ = unstructured.NestedString(old.Object, "data", markerKey)
	return false, existing, nil
}
