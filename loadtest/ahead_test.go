package loadtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/shard"
)

// TestEndpointsChangeWithoutAQuorum: two of three replicas are dead, and nothing can be committed; yet Envoys learn from the survivor, who owns the namespace, that a pod has moved (D18).
// A changed route that waits for the quorum does not hold that up.
func TestEndpointsChangeWithoutAQuorum(t *testing.T) {
	slice := func(body string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
		t.Cleanup(server.Close)
		_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
		return fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: still-1, namespace: default, labels: {kubernetes.io/service-name: still}}
addressType: IPv4
ports: [{port: %s, protocol: TCP}]
endpoints: [{addresses: [127.0.0.1], conditions: {ready: true}}]
`, port)
	}
	service := "apiVersion: v1\nkind: Service\nmetadata: {name: still, namespace: default}\nspec: {ports: [{port: 8080}]}\n"
	r := start(t, map[string]string{"gateway.yaml": base, "service.yaml": service, "slice.yaml": slice("before"), "route.yaml": route("default", "r", "/r", "still")})
	r.until("the first endpoint serves", soon, func() bool { _, body := r.get("/r"); return body == "before" })

	survivor := r.ownerOf("default")
	pids := r.pids()
	_ = syscall.Kill(r.cmd.Process.Pid, syscall.SIGSTOP) // dev would start them again
	defer func() { _ = syscall.Kill(r.cmd.Process.Pid, syscall.SIGCONT) }()
	for n, admin := range r.adminAddresses() {
		if name := fmt.Sprintf("replica-%d", n+1); !strings.HasPrefix(survivor, name+"-") {
			if err := syscall.Kill(pids[name], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			r.until(name+" is dead", soon, func() bool { _, err := viewOf(admin); return err != nil })
		}
	}
	r.save("route.yaml", route("default", "r", "/moved", "still"))
	r.save("slice.yaml", slice("after"))
	took := r.until("the changed endpoint serves", soon, func() bool { _, body := r.get("/r"); return body == "after" })
	row(t, "endpoints changed without a quorum -> served", "%v", took)
}

// ownerOf names the replica that owns a namespace, once every replica votes and owns rows, no row is on its way to another, and all replicas have applied what says so: one that was
// not told that it owns a row before the quorum went will never know.
func (r *rig) ownerOf(namespace string) (owner string) {
	r.t.Helper()
	r.until("every replica owns rows, and all know it", soon, func() bool {
		v, err := r.view()
		if err != nil || slices.ContainsFunc(v.Replicas, func(x replicaView) bool { return x.Role == "Nonvoter" }) {
			return false
		}
		owners := map[string]bool{}
		for _, row := range v.Rows {
			if row.Next != "" {
				return false
			}
			from, _ := strconv.ParseUint(row.From, 16, 64)
			to, _ := strconv.ParseUint(row.To, 16, 64)
			owners[row.Owner] = true
			if shard.Contains(store.Row{From: from, To: to}, namespace) {
				owner = row.Owner
			}
		}
		after, err := r.view() // the index of the first may be older than its rows
		behind := func(admin string) bool { return appliedBy(admin) < after.Index }
		return err == nil && len(owners) == 3 && owner != "" && !slices.ContainsFunc(r.adminAddresses(), behind)
	})
	return owner
}

// appliedBy is the index that a replica itself has applied, 0 where it does not say. Its view would be the leader's.
func appliedBy(admin string) uint64 {
	resp, err := client.Get("http://" + admin + "/v1/hash")
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	var h struct {
		Index uint64 `json:"index"`
	}
	_ = json.NewDecoder(resp.Body).Decode(&h) // what cannot be read has applied nothing
	return h.Index
}
