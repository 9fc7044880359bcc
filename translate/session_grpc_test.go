package translate

import (
	"context"
	"net"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// named is a gRPC server that answers with its address.
type named struct {
	authv3.UnimplementedAuthorizationServer
	address string
}

func (n named) Check(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{}, grpc.SetHeader(ctx, metadata.Pairs("x-host", n.address))
}

// grpcEndpointsOf writes a Service of gRPC servers on loopback addresses.
func grpcEndpointsOf(t *testing.T, name string, addresses ...string) string {
	t.Helper()
	port := "0"
	for _, address := range addresses {
		s := grpc.NewServer()
		authv3.RegisterAuthorizationServer(s, named{address: address})
		port = serveGRPC(t, s, net.JoinHostPort(address, port))
	}
	return strings.Replace(slicesOf(name, "TCP", port), "127.0.0.1", strings.Join(addresses, ", "), 1)
}

const grpcSessions = httpGateway + `kind: GRPCRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{name: gw}]
  rules:
  - {matches: [{headers: [{name: by, value: header}]}], sessionPersistence: {type: Header, header: {name: x-session}}, backendRefs: [{name: grpc, port: 80}]}
  - {matches: [{headers: [{name: by, value: cookie}]}], sessionPersistence: {type: Cookie, cookie: {name: sid}}, backendRefs: [{name: grpc, port: 80}]}
  - {backendRefs: [{name: grpc, port: 80}]}
---
`

// TestRealEnvoyKeepsGRPCSessions: calls that carry the header or cookie of the first answer go to one server, others to all.
func TestRealEnvoyKeepsGRPCSessions(t *testing.T) {
	r := run(t, grpcSessions+strings.TrimSuffix(grpcEndpointsOf(t, "grpc", "127.0.3.1", "127.0.3.2", "127.0.3.3"), "---\n"))
	conn, err := grpc.NewClient(r.address("http"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for by, want := range map[string]int{"header": 1, "cookie": 1, "": 3} {
		hosts, carried := map[string]int{}, metadata.Pairs("by", by)
		for range 50 {
			var answer metadata.MD
			if _, err := authv3.NewAuthorizationClient(conn).Check(metadata.NewOutgoingContext(t.Context(), carried), &authv3.CheckRequest{}, grpc.Header(&answer)); err != nil {
				t.Fatal(err)
			}
			hosts[strings.Join(answer.Get("x-host"), ",")]++
			if session := answer.Get("x-session"); len(session) > 0 {
				carried.Set("x-session", session[0])
			}
			if cookie := answer.Get("set-cookie"); len(cookie) > 0 {
				value, _, _ := strings.Cut(cookie[0], ";")
				carried.Set("cookie", value)
			}
		}
		if len(hosts) != want {
			t.Errorf("50 calls of a session by %q went to %v, want %d servers", by, hosts, want)
		}
	}
}
