package translate

import (
	"context"
	"strings"
	"sync/atomic"
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

// rising is a gRPC server that is not available the first few times.
type rising struct {
	authv3.UnimplementedAuthorizationServer
	calls, failures atomic.Int64
}

func (r *rising) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	if r.calls.Add(1) <= r.failures.Load() {
		return nil, status.Error(codes.Unavailable, "not yet")
	}
	return &authv3.CheckResponse{}, nil
}

// TestRealEnvoyRetriesGRPC: a server that says UNAVAILABLE has not begun to work on the call, so a route with a retry stanza tries again.
func TestRealEnvoyRetriesGRPC(t *testing.T) {
	s, server := grpc.NewServer(), &rising{}
	authv3.RegisterAuthorizationServer(s, server)
	backends := strings.Replace(slicesOf("grpc", "TCP", serveGRPC(t, s, "127.0.0.1:0")), "{port: 80,", "{port: 80, appProtocol: kubernetes.io/h2c,", 1)
	r := run(t, httpGateway+backends+`kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec: {parentRefs: [{name: gw}], rules: [{retry: {attempts: 2, backoff: 1ms}, backendRefs: [{name: grpc, port: 80}]}]}`)
	conn, err := grpc.NewClient(r.address("http"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for failures, want := range map[int64]codes.Code{0: codes.OK, 2: codes.OK, 3: codes.Unavailable} {
		server.calls.Store(0)
		server.failures.Store(failures)
		_, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{})
		if got, calls := status.Code(err), server.calls.Load(); got != want || calls != min(failures+1, 3) {
			t.Errorf("after %d failures: %v (%v) of %d calls, want %v of %d", failures, got, err, calls, want, min(failures+1, 3))
		}
	}
}
