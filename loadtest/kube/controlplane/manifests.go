// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// fieldManager owns what the rig installs.
const fieldManager = "fleetgate-kube"

// resources are the kinds that the manifests of the Gateway API consist of. All are cluster-wide.
var resources = map[string]schema.GroupVersionResource{
	"CustomResourceDefinition":         {Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	"ValidatingAdmissionPolicy":        {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicies"},
	"ValidatingAdmissionPolicyBinding": {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicybindings"},
}

// Install applies manifest files and waits until every CRD among them is established.
func (p *ControlPlane) Install(ctx context.Context, files []string) error {
	client, err := dynamic.NewForConfig(rest.CopyConfig(p.Admin))
	if err != nil {
		return fmt.Errorf("make a client of %s: %w", p.cluster.Name, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, file := range files {
		objects, err := readManifests(file)
		if err != nil {
			return err
		}
		for _, object := range objects {
			g.Go(func() error { return install(ctx, client, object) })
		}
	}
	return g.Wait()
}

func readManifests(file string) ([]*unstructured.Unstructured, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	var objects []*unstructured.Unstructured
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		var object unstructured.Unstructured
		err := documents.Decode(&object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read manifest %s: %w", file, err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, &object)
		}
	}
}

func install(ctx context.Context, client dynamic.Interface, object *unstructured.Unstructured) error {
	resource, ok := resources[object.GetKind()]
	if !ok {
		return fmt.Errorf("install %s %s: only CRDs and validating admission policies are expected among the Gateway API's manifests", object.GetKind(), object.GetName())
	}
	_, err := client.Resource(resource).Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("install %s %s: %w", object.GetKind(), object.GetName(), err)
	}
	if resource.Resource != "customresourcedefinitions" {
		return nil
	}
	err = wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		crd, err := client.Resource(resource).Get(ctx, object.GetName(), metav1.GetOptions{})
		return err == nil && established(crd), err
	})
	if err != nil {
		return fmt.Errorf("wait for %s to be established: %w", object.GetName(), err)
	}
	return nil
}

func established(crd *unstructured.Unstructured) bool {
	conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
	if err != nil {
		return false
	}
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == "Established" {
			return c["status"] == "True"
		}
	}
	return false
}
