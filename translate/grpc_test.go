package translate

import (
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// TestRealEnvoyAnswersGRPC: calls that go to an invalid backend hear UNAVAILABLE, which clients know to try again, and not UNKNOWN.
func TestRealEnvoyAnswersGRPC(t *testing.T) {
	r := run(t, httpGateway+grpcEndpointsOf(t, "grpc", "127.0.0.1")+`kind: GRPCRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{name: gw}]
  rules:
  - {matches: [{headers: [{name: to, value: gone}]}], backendRefs: [{name: gone, port: 80}]}
  - {matches: [{headers: [{name: to, value: share}]}], backendRefs: [{name: gone, port: 80, weight: 1000000}, {name: grpc, port: 80, weight: 1}]}
  - {matches: [{headers: [{name: to, value: nobody}]}]}
  - {matches: [{headers: [{name: to, value: filter}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}], backendRefs: [{name: gone, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: c, value: d}]}}]}]}
  - {matches: [{headers: [{name: to, value: server}]}], backendRefs: [{name: grpc, port: 80}]}`)
	conn, err := grpc.NewClient(r.address("http"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for to, want := range map[string]codes.Code{"gone": codes.Unavailable, "share": codes.Unavailable, "nobody": codes.Unavailable, "filter": codes.Unavailable, "server": codes.OK, "": codes.Unimplemented} {
		_, err := authv3.NewAuthorizationClient(conn).Check(metadata.NewOutgoingContext(t.Context(), metadata.Pairs("to", to)), &authv3.CheckRequest{})
		if got := status.Code(err); got != want {
			t.Errorf("to %q: %v (%v), want %v", to, got, err, want)
		}
	}
}
