package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/cluster/member"
)

// Finalizer keeps an object of a kind that Fleetgate answers for from vanishing (present), or lets it go. It changes nothing where it is so already.
func (s *Source) Finalizer(ctx context.Context, kind, namespace, name, finalizer string, present bool) error {
	k := kindOf(kind)
	s.mu.Lock()
	var o member.Object
	version := ""
	if k != nil {
		o, version = s.kept[k].objects[key{namespace, name}], s.versions[k]
	}
	s.mu.Unlock()
	if o == nil || version == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	held := slices.Contains(o.GetFinalizers(), finalizer)
	if present {
		var err error
		if present, err = s.holds(ctx, k, o, held); err != nil {
			return fmt.Errorf("whether %s %s in member cluster %s may be held: %w", kind, name, s.name, err)
		}
	}
	if held == present {
		return nil
	}
	if err := s.setFinalizer(ctx, k, version, o, finalizer, present); err != nil {
		return fmt.Errorf("changing the finalizers of %s %s in member cluster %s: %w", kind, name, s.name, sentinel(err))
	}
	return nil
}

// holds tells whether an object in use is to be kept. One that goes with its whole kind is not: those that use it go as well, and what waits is
// the deletion of the CRD. Nor is one kept by an install that is itself being deleted.
func (s *Source) holds(ctx context.Context, k *kind, o member.Object, held bool) (bool, error) {
	switch {
	case o.GetDeletionTimestamp() != nil && held:
		return s.api.defined(ctx, k)
	case o.GetDeletionTimestamp() != nil: // the API server would refuse a new finalizer
		return false, nil
	case held || s.hold == nil:
		return true, nil
	}
	return s.hold(ctx)
}

// setFinalizer changes exactly the version of an object that is given.
func (s *Source) setFinalizer(ctx context.Context, k *kind, version string, o metav1.Object, finalizer string, present bool) error {
	return s.api.patch(ctx, k, version, o.GetNamespace(), o.GetName(), withFinalizer(o, finalizer, present))
}

// withFinalizer is the patch that puts a finalizer on an object, or takes it away.
func withFinalizer(o metav1.Object, finalizer string, present bool) map[string]any {
	finalizers := slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer })
	if present {
		finalizers = append(finalizers, finalizer)
	}
	if finalizers == nil {
		finalizers = []string{}
	}
	return map[string]any{"metadata": map[string]any{"resourceVersion": o.GetResourceVersion(), "uid": o.GetUID(), "finalizers": finalizers}}
}

// Holding tells whether a GatewayClass of these controllers is known to carry our finalizer.
func (s *Source) Holding(controllers []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.kept[classKind].objects {
		if class, ok := o.(*gatewayv1.GatewayClass); ok && heldBy(class, controllers) {
			return true
		}
	}
	return false
}

// Release lets go of every GatewayClass of these controllers. It asks the API server for them: at the end of an install the watch may have lost its rights already.
func (s *Source) Release(ctx context.Context, controllers []string) error {
	s.mu.Lock()
	version := s.versions[classKind]
	s.mu.Unlock()
	if version == "" { // not seen yet, or not served
		version = classKind.versions[0]
	}
	var classes gatewayv1.GatewayClassList
	client := s.api.typed[schema.GroupVersion{Group: gatewayGroup, Version: version}]
	err := client.Get().Resource(classKind.resource).Do(ctx).Into(&classes)
	if errors.Is(sentinel(err), member.ErrNotFound) {
		return nil // the kind is gone, and with it every class
	}
	if err != nil {
		return fmt.Errorf("listing the GatewayClasses of member cluster %s: %w", s.name, err)
	}
	var errs []error
	for i := range classes.Items {
		class := &classes.Items[i]
		if !heldBy(class, controllers) {
			continue
		}
		err := sentinel(s.setFinalizer(ctx, classKind, version, class, gatewayv1.GatewayClassFinalizerGatewaysExist, false))
		if err != nil && !errors.Is(err, member.ErrNotFound) {
			errs = append(errs, fmt.Errorf("letting go of GatewayClass %s in member cluster %s: %w", class.Name, s.name, err))
		}
	}
	return errors.Join(errs...)
}

var classKind = kindOf("GatewayClass")

func heldBy(class *gatewayv1.GatewayClass, controllers []string) bool {
	return slices.Contains(controllers, string(class.Spec.ControllerName)) && slices.Contains(class.Finalizers, gatewayv1.GatewayClassFinalizerGatewaysExist)
}
