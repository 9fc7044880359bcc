package kube

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/fleetgate/fleetgate/cluster/enroll"
)

// reviewed reads a TokenReview. A server that does not know audiences gives none back: its answer is worth nothing.
func reviewed(review map[string]any, audience string) (enroll.Pod, error) {
	if ok, _, _ := unstructured.NestedBool(review, "status", "authenticated"); !ok {
		why, _, _ := unstructured.NestedString(review, "status", "error")
		return enroll.Pod{}, fmt.Errorf("%w: the API server does not know the token (%s)", enroll.ErrDenied, why)
	}
	audiences, _, _ := unstructured.NestedStringSlice(review, "status", "audiences")
	if !slices.Contains(audiences, audience) {
		return enroll.Pod{}, fmt.Errorf("%w: the token is not for audience %s", enroll.ErrDenied, audience)
	}
	name, _, _ := unstructured.NestedString(review, "status", "user", "username")
	account, ok := strings.CutPrefix(name, "system:serviceaccount:")
	namespace, account, found := strings.Cut(account, ":")
	if !ok || !found {
		return enroll.Pod{}, fmt.Errorf("%w: %q is no service account", enroll.ErrDenied, name)
	}
	uids, _, _ := unstructured.NestedStringSlice(review, "status", "user", "extra", "authentication.kubernetes.io/pod-uid")
	if len(uids) != 1 {
		return enroll.Pod{}, fmt.Errorf("%w: the token is bound to no pod", enroll.ErrDenied)
	}
	return enroll.Pod{Namespace: namespace, ServiceAccount: account, UID: uids[0]}, nil
}
