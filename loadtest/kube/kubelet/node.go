// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"runtime"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	leaseDuration = 40 * time.Second
	leaseRenewal  = 10 * time.Second
	// port is where the API server looks for logs and exec; each node has an address of its own.
	port = 10250
)

// nodeResources is what the node says that it has. Pods are plain processes and nothing limits them, so the figures are there to let pods be scheduled.
func nodeResources() v1.ResourceList {
	return v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("64"), v1.ResourceMemory: resource.MustParse("256Gi"),
		v1.ResourceEphemeralStorage: resource.MustParse("1Ti"), v1.ResourcePods: resource.MustParse("1000"),
	}
}

func (k *kubelet) node() *v1.Node {
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: k.NodeName, Labels: map[string]string{
			v1.LabelHostname: k.NodeName, v1.LabelOSStable: runtime.GOOS, v1.LabelArchStable: runtime.GOARCH,
			v1.LabelTopologyZone: "local", v1.LabelTopologyRegion: "local",
		}},
		Spec: v1.NodeSpec{PodCIDR: k.PodCIDR.String(), PodCIDRs: []string{k.PodCIDR.String()}},
	}
}

func (k *kubelet) nodeStatus(old v1.NodeStatus, now metav1.Time) v1.NodeStatus {
	ready := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "pods are processes", LastHeartbeatTime: now, LastTransitionTime: now}
	conditions := []v1.NodeCondition{}
	for _, c := range old.Conditions {
		if c.Type != v1.NodeReady {
			conditions = append(conditions, c)
		} else if c.Status == v1.ConditionTrue {
			ready.LastTransitionTime = c.LastTransitionTime
		}
	}
	status := old
	status.Capacity, status.Allocatable = nodeResources(), nodeResources()
	status.Conditions = append(conditions, ready)
	status.Addresses = []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: k.NodeIP}, {Type: v1.NodeHostName, Address: k.NodeName}}
	status.DaemonEndpoints = v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: port}}
	status.NodeInfo.OperatingSystem, status.NodeInfo.Architecture = runtime.GOOS, runtime.GOARCH
	status.NodeInfo.ContainerRuntimeVersion, status.NodeInfo.KubeletVersion = "process://1", "v1.37.2"
	status.NodeInfo.OSImage = "processes in network namespaces"
	return status
}

// join registers the node, however often that takes: the API server may be busy, and the control plane writes taints and annotations to a Node as soon as it is there.
func (k *kubelet) join(ctx context.Context) error {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := k.register(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		k.Log.Warn("cannot register the node, trying again", "error", err)
		wait(ctx, pause)
	}
}

// register makes the Node, or takes it over from an earlier run, and says that it is ready.
func (k *kubelet) register(ctx context.Context) error {
	nodes := k.client.CoreV1().Nodes()
	node, err := nodes.Create(ctx, k.node(), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		node, err = nodes.Get(ctx, k.NodeName, metav1.GetOptions{})
	}
	if err != nil {
		return fmt.Errorf("registering node %s: %w", k.NodeName, err)
	}
	node.Status = k.nodeStatus(node.Status, metav1.Now())
	if _, err := nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("writing the status of node %s: %w", k.NodeName, err)
	}
	return nil
}

// heartbeat keeps the node alive in the eyes of the control plane until ctx ends. An unreachable API server is nothing to act on: the pods run on.
func (k *kubelet) heartbeat(ctx context.Context) {
	for {
		if err := k.renewLease(ctx); err != nil && ctx.Err() == nil {
			k.Log.Warn("cannot renew the lease of the node", "error", err)
			if err := k.register(ctx); err != nil && ctx.Err() == nil {
				k.Log.Warn("cannot register the node again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(leaseRenewal):
		}
	}
}

func (k *kubelet) renewLease(ctx context.Context) error {
	leases := k.client.CoordinationV1().Leases(v1.NamespaceNodeLease)
	now, seconds := metav1.NowMicro(), int32(leaseDuration.Seconds())
	spec := coordinationv1.LeaseSpec{HolderIdentity: &k.NodeName, LeaseDurationSeconds: &seconds, RenewTime: &now}
	lease, err := leases.Get(ctx, k.NodeName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: k.NodeName, Namespace: v1.NamespaceNodeLease}, Spec: spec}
		_, err = leases.Create(ctx, lease, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec = spec
	if _, err = leases.Update(ctx, lease, metav1.UpdateOptions{}); err != nil {
		return err
	}
	return k.revive(ctx)
}

// revive says that the node is ready again where the control plane, after an outage, has come to think otherwise.
func (k *kubelet) revive(ctx context.Context) error {
	node, err := k.client.CoreV1().Nodes().Get(ctx, k.NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == v1.NodeReady && c.Status == v1.ConditionTrue {
			return nil
		}
	}
	return k.register(ctx)
}
