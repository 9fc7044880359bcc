// SPDX-License-Identifier: Apache-2.0

package netplane

import (
	"net/netip"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

// TestAnAddressIsGivenOnce: what a Service has just got is nobody else's, also while what is read is older than what was written.
func TestAnAddressIsGivenOnce(t *testing.T) {
	service := func(name string) *v1.Service {
		return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, UID: types.UID(name), ResourceVersion: "1"}, Spec: v1.ServiceSpec{Type: v1.ServiceTypeLoadBalancer}}
	}
	one, two := service("one"), service("two")
	client := fake.NewClientset(one, two)
	b := &balancer{within: netip.MustParsePrefix("10.151.0.0/16"), client: client}
	addressOf := func(name string) string {
		s, err := client.CoreV1().Services("a").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return holds(s).String()
	}
	for _, read := range [][]*v1.Service{{one}, {two, one}, {two, one}} { // as an informer shows them that has heard of no write yet
		if err := b.apply(t.Context(), read); err != nil {
			t.Fatal(err)
		}
		if got := addressOf("one"); got != "10.151.0.1" {
			t.Fatalf("one has %s", got)
		}
	}
	if got := addressOf("two"); got != "10.151.0.2" {
		t.Errorf("two has %s", got)
	}
}
