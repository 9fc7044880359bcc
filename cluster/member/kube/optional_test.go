package kube

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/rest"

	"github.com/fleetgate/fleetgate/cluster/member"
)

// betaServer answers as an API server that serves ClusterTrustBundles as a beta, and nothing else that anybody asks for.
func betaServer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	const bundles = "/apis/certificates.k8s.io/v1beta1"
	switch q := r.URL.Query(); {
	case r.URL.Path == "/api/v1/namespaces":
		fmt.Fprint(w, `{"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "kube-system", "uid": "1"}}]}`)
	case r.URL.Path == bundles:
		fmt.Fprint(w, `{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "certificates.k8s.io/v1beta1", "resources": [{"name": "clustertrustbundles", "kind": "ClusterTrustBundle", "verbs": ["list", "watch"]}]}`)
	case r.URL.Path == bundles+"/clustertrustbundles" && q.Get("sendInitialEvents") != "":
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422}`)
	case r.URL.Path == bundles+"/clustertrustbundles" && q.Get("watch") != "":
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case r.URL.Path == bundles+"/clustertrustbundles":
		fmt.Fprintf(w, `{"kind": "ClusterTrustBundleList", "apiVersion": "certificates.k8s.io/v1beta1", "metadata": {"resourceVersion": "1"},
		"items": [{"metadata": {"name": %q, "resourceVersion": "1"}, "spec": {"trustBundle": "pem"}}]}`, strings.TrimPrefix(q.Get("fieldSelector"), "metadata.name="))
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`)
	}
}

// TestOptionalKindIsFoundAndRead: that a cluster serves ClusterTrustBundles is told, in whichever version, and one that is asked for is read in that version and handed out as v1.
func TestOptionalKindIsFoundAndRead(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(betaServer))
	defer server.Close()
	src, err := New(Config{Name: "c1", Connect: &rest.Config{Host: server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	const name = "example.com:signer:v1"
	src.Want([]member.Ref{{Kind: "ClusterTrustBundle", Name: name}})
	served, read := make(chan struct{}), make(chan string, 1)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- src.Run(ctx, func(events []member.Event, _ bool) {
			for _, e := range events {
				if e.Kind == kindCRD && e.Name == "clustertrustbundles.certificates.k8s.io" && e.Object != nil {
					close(served)
				}
				if b, ok := e.Object.(*certificatesv1.ClusterTrustBundle); ok {
					read <- b.Name + " " + b.Spec.TrustBundle
				}
			}
		})
	}()
	<-served
	if got := <-read; got != name+" pem" {
		t.Errorf("read %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
