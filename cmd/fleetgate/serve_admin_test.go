package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestWhoCountsIsNotForEverybodyToSay: the admin port asks nobody who he is, and in a cluster every pod reaches it.
func TestWhoCountsIsNotForEverybodyToSay(t *testing.T) {
	r := &replica{cfg: serveConfig{Clusters: []clusterConfig{{Name: "dev", Dirs: []string{"manifests"}}, {Name: "prod", Kubeconfig: "file"}}}, ready: make(chan struct{})}
	for _, c := range []struct {
		name, kind, body string
		want             int
	}{
		{"a pod takes the proxies and the addresses of a provisioned Gateway", "application/json", `{"name": "prod/ns/gw", "proxies": ["nobody"]}`, http.StatusForbidden},
		{"a fleet of no cluster fills the store", "application/json", `{"name": "other/ns/gw"}`, http.StatusForbidden},
		{"a name that is none fills the store", "application/json", `{"name": "x"}`, http.StatusForbidden},
		{"a page in a browser writes", "text/plain", `{"name": "dev/ns/gw"}`, http.StatusUnsupportedMediaType},
		{"something without a name is taken", "application/json", `{"proxies": ["p"]}`, http.StatusBadRequest},
		{"dev is refused", "application/json; charset=utf-8", `{"name": "dev/ns/gw", "proxies": ["p"]}`, http.StatusServiceUnavailable}, // only because the group is not joined
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/fleets", strings.NewReader(c.body))
		req.Header.Set("Content-Type", c.kind)
		w := httptest.NewRecorder()
		r.setFleet(w, req)
		if w.Code != c.want {
			t.Errorf("%s: answered %d %s, want %d", c.name, w.Code, w.Body, c.want)
		}
	}
}
