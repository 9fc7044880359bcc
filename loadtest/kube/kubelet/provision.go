// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

const (
	// provisioner makes a directory for each PersistentVolumeClaim of the default class, and removes it with the claim.
	provisioner      = "fleetgate.io/directory"
	storageClass     = "standard"
	provisionerAsked = "volume.kubernetes.io/storage-provisioner"
	provisionedBy    = "pv.kubernetes.io/provisioned-by"
	defaultClass     = "storageclass.kubernetes.io/is-default-class"
)

// provision serves claims and removes released volumes, beside the control plane's own controller, which binds them.
func (k *kubelet) provision(claims, volumes cache.SharedIndexInformer) error {
	try := func(what string, f func() error) {
		k.jobs.Go(func() {
			for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
				err := f()
				if err == nil || k.ctx.Err() != nil {
					return
				}
				k.Log.Warn("cannot provision, trying again", "what", what, "error", err)
				wait(k.ctx, pause)
			}
		})
	}
	try("class "+storageClass, k.makeClass)
	claim := func(o any) {
		if c := o.(*v1.PersistentVolumeClaim); wantsVolume(c) {
			try("claim "+c.Namespace+"/"+c.Name, func() error { return k.makeVolume(c) })
		}
	}
	volume := func(o any) {
		if v := o.(*v1.PersistentVolume); v.Annotations[provisionedBy] == provisioner && v.Status.Phase == v1.VolumeReleased && v.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete && v.DeletionTimestamp == nil {
			try("volume "+v.Name, func() error { return k.removeVolume(v) })
		}
	}
	_, claimsErr := claims.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: claim, UpdateFunc: func(_, o any) { claim(o) }})
	_, volumesErr := volumes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: volume, UpdateFunc: func(_, o any) { volume(o) }})
	return errors.Join(claimsErr, volumesErr)
}

func wantsVolume(c *v1.PersistentVolumeClaim) bool {
	return c.Annotations[provisionerAsked] == provisioner && c.Spec.VolumeName == "" && c.DeletionTimestamp == nil
}

func (k *kubelet) makeClass() error {
	binding, reclaim := storagev1.VolumeBindingImmediate, v1.PersistentVolumeReclaimDelete
	class := &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: storageClass, Annotations: map[string]string{defaultClass: "true"}},
		Provisioner: provisioner, VolumeBindingMode: &binding, ReclaimPolicy: &reclaim,
	}
	_, err := k.client.StorageV1().StorageClasses().Create(k.ctx, class, metav1.CreateOptions{})
	return ignore(err, apierrors.IsAlreadyExists)
}

func ignore(err error, is func(error) bool) error {
	if is(err) {
		return nil
	}
	return err
}

func (k *kubelet) makeVolume(c *v1.PersistentVolumeClaim) error {
	name := "pvc-" + string(c.UID)
	path := filepath.Join(k.Dir, "volumes", name)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return fmt.Errorf("making a volume: %w", err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		return fmt.Errorf("making a volume: %w", err)
	}
	kind := v1.HostPathDirectoryOrCreate
	volume := &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisioner}},
		Spec: v1.PersistentVolumeSpec{
			AccessModes: c.Spec.AccessModes, Capacity: v1.ResourceList{v1.ResourceStorage: c.Spec.Resources.Requests[v1.ResourceStorage]},
			PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimDelete, StorageClassName: *c.Spec.StorageClassName, VolumeMode: c.Spec.VolumeMode,
			ClaimRef:               &v1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion},
			PersistentVolumeSource: v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path, Type: &kind}},
		},
	}
	ctx, cancel := context.WithTimeout(k.ctx, 10*time.Second)
	defer cancel()
	_, err := k.client.CoreV1().PersistentVolumes().Create(ctx, volume, metav1.CreateOptions{})
	return ignore(err, apierrors.IsAlreadyExists)
}

func (k *kubelet) removeVolume(v *v1.PersistentVolume) error {
	if err := os.RemoveAll(filepath.Join(k.Dir, "volumes", v.Name)); err != nil {
		return fmt.Errorf("removing a volume: %w", err)
	}
	return ignore(k.client.CoreV1().PersistentVolumes().Delete(k.ctx, v.Name, metav1.DeleteOptions{}), apierrors.IsNotFound)
}

// claimPlace is the directory of a bound claim.
func (k *kubelet) claimPlace(namespace, name string) (string, error) {
	claim, err := k.listers.claims.PersistentVolumeClaims(namespace).Get(name)
	if err != nil {
		return "", err
	}
	if claim.Spec.VolumeName == "" || claim.Status.Phase != v1.ClaimBound {
		return "", fmt.Errorf("claim %s/%s is not bound", namespace, name)
	}
	volume, err := k.listers.volumes.Get(claim.Spec.VolumeName)
	if err != nil {
		return "", err
	}
	switch {
	case volume.Spec.HostPath != nil:
		return volume.Spec.HostPath.Path, hostPath(volume.Spec.HostPath)
	case volume.Spec.Local != nil:
		return volume.Spec.Local.Path, nil
	}
	return "", fmt.Errorf("volume %s is of a kind that a local cluster does not support: use hostPath or local", volume.Name)
}
