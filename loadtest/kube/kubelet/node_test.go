// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"net/netip"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// TestANodeJoins: one request that fails ends no cluster.
func TestANodeJoins(t *testing.T) {
	nodes := v1.Resource("nodes")
	for name, c := range map[string]struct {
		verb string
		err  error
	}{
		"not where the API server cannot store the Node":                          {"create", apierrors.NewInternalError(errors.New("etcdserver: request timed out"))},
		"not where the control plane has written a taint since the Node is there": {"update", apierrors.NewConflict(nodes, "n", errors.New("the object has been modified"))},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			failed := false
			client.PrependReactor(c.verb, "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
				first := !failed
				failed = true
				return first, nil, c.err
			})
			k := kubeletForTest(t, client)
			k.PodCIDR = netip.MustParsePrefix("10.244.0.0/16")
			if err := k.join(t.Context()); err != nil {
				t.Fatal(err)
			}
			node, err := client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(node.Status.Conditions) != 1 || node.Status.Conditions[0].Status != v1.ConditionTrue || !failed {
				t.Errorf("the Node has conditions %v", node.Status.Conditions)
			}
		})
	}
}
