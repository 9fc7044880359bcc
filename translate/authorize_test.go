package translate

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

// echoing is a server that answers with its name, the request line, sorted headers and body; check, if not nil, may add to the answer and says its status.
func echoing(t *testing.T, name string, check func(http.ResponseWriter, *http.Request) int) (port string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		code := http.StatusOK
		if check != nil {
			code = check(w, r)
		}
		var headers []string
		for h, values := range r.Header {
			headers = append(headers, strings.ToLower(h)+"="+strings.Join(values, ","))
		}
		slices.Sort(headers)
		w.Header().Set("X-Saw", fmt.Sprintf("%s %s host=%s length=%d", r.Method, r.URL, r.Host, len(body)))
		w.WriteHeader(code)
		_, _ = fmt.Fprintf(w, "%s %s %s host=%s body=%s; %s;", name, r.Method, r.URL, r.Host, body, strings.Join(headers, "; "))
	}))
	t.Cleanup(s.Close)
	_, port, _ = net.SplitHostPort(s.Listener.Addr().String())
	return port
}

// authorizer is a server of ext_authz: it allows what has the header x-token, and tells the backend which headers it saw, and what it was called.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
}

func (authorizer) Check(ctx context.Context, in *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	h := in.Attributes.Request.Http
	if h.Headers["x-token"] == "" {
		return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized}}}}, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	saw := fmt.Sprintf("other=%q body=%q at=%s", h.Headers["x-other"], h.Body, strings.Join(md.Get(":authority"), ","))
	return &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-saw", Value: saw}}},
	}}}, nil
}

func grpcAuthorizer(t *testing.T) (port string) {
	t.Helper()
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, authorizer{})
	return serveGRPC(t, s, "127.0.0.1:0")
}

const authManifests = httpGateway + `kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{name: gw}]
  rules:
  - {matches: [{path: {value: /all}}], filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: http, port: 80}, http: {}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /some}}], filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: http, port: 80}, http: {path: /check, allowedHeaders: [X-Want], allowedResponseHeaders: [X-User]}, forwardBody: {maxSize: 8}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /grpc}}], filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: grpc, port: 80}, grpc: {}, forwardBody: {maxSize: 8}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /few}}], filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: grpc, port: 80}, grpc: {allowedHeaders: [X-Token]}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /host}}], filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {group: gateway.networking.x-k8s.io, kind: XBackend, name: host}, grpc: {}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /pods}}], filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {group: gateway.networking.x-k8s.io, kind: XBackend, name: pods}, grpc: {}}}], backendRefs: [{name: web, port: 80}]}
  - matches: [{path: {value: /both}}]
    filters:
    - {type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: http, port: 80}, http: {}}}
    - {type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: http, port: 80}, http: {}, forwardBody: {maxSize: 8}}}
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /twice}}]
    filters:
    - {type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: http, port: 80}, http: {}}}
    - {type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: grpc, port: 80}, grpc: {}}}
    backendRefs: [{name: web, port: 80}]
  - {matches: [{path: {value: /moved}}], filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: http, port: 80}, http: {}}}, {type: RequestRedirect, requestRedirect: {hostname: to.example}}]}
  - {matches: [{path: {value: /backend}}], backendRefs: [{name: web, port: 80, filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: http, port: 80}, http: {}}}]}]}
  - {matches: [{path: {value: /idle}}], filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: none, port: 80}, http: {}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /open}}], backendRefs: [{name: web, port: 80}]}
---
kind: Service
metadata: {namespace: shop, name: none}
spec: {ports: [{port: 80}]}
---
`

// TestRealEnvoyAsksForAuthorization: what a server sees, what the backend sees of its answer, and that nothing passes which it did not allow.
func TestRealEnvoyAsksForAuthorization(t *testing.T) {
	allow := func(w http.ResponseWriter, r *http.Request) int {
		w.Header().Set("X-User", "ana")
		w.Header().Set("X-Group", "staff")
		w.Header().Set("X-Envoy-Retry-On", "5xx")
		if strings.Contains(r.URL.Path, "deny") {
			return http.StatusUnauthorized
		}
		if strings.Contains(r.URL.Path, "fail") {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	}
	grpc := grpcAuthorizer(t)
	host, _, _ := strings.Cut(xbackend("host", grpc, ""), "kind: HTTPRoute")
	r := run(t, authManifests+slicesOf("web", "TCP", echoing(t, "web", nil))+slicesOf("http", "TCP", echoing(t, "auth", allow))+host+podsOf("pods", "127.0.0.1", grpc, "")+
		strings.TrimSuffix(slicesOf("grpc", "TCP", grpc), "---\n"), nameServer(t))
	for _, c := range []struct {
		request string // method path headers, body after "|"
		want    string // as in TestRealEnvoyServes
	}{
		{"GET /all?q=1 x-want:1 authorization:me", "200 web~GET~/all?q=1 x-saw=GET~/all?q=1~host=name.example:10080~length=0 x-user=ana x-group=staff !x-envoy-retry-on"},
		{"POST /all |hello", "200 body=hello; x-saw=POST~/all~host=name.example:10080~length=0 content-length=5"},
		{"GET /all/deny", "401 auth~GET !web"},
		{"GET /all/fail", "403 !web"},
		{"POST /some x-want:1 x-other:2 |hello", "200 body=hello; x-user=ana !x-group=staff !x-saw"},
		{"POST /some/deny x-want:1 x-other:2 authorization:me |hello", "401 auth~POST~/check/some/deny body=hello; x-want=1 authorization=me !x-other !web"},
		{"POST /some |123456789", "413"},
		{"POST /grpc x-token:1 x-other:2 |hello", `200 x-saw=other="2"~body="hello"`},
		{"POST /grpc x-token:1 |123456789", "413"},
		{"GET /grpc", "401"},
		{"GET /few x-token:1 x-other:2", `200 x-saw=other=""`},
		{"GET /few x-token:1", "200 at=grpc.shop"},
		{"GET /host x-token:1", "200 at=host.example"},
		{"GET /pods x-token:1", "200 at=pods.shop"},
		{"POST /both |12345678", "200 body=12345678;"},
		{"POST /both |123456789", "413 !web"},
		{"GET /twice x-token:1 x-other:2", `200 x-saw=other="2"`},
		{"GET /twice/deny x-token:1", "401 auth~GET !web"},
		{"GET /twice", "401 !web"},
		{"GET /moved", "302 location=http://to.example"},
		{"GET /moved/deny", "401"},
		{"GET /backend", "200 x-user=ana"},
		{"GET /backend/deny", "401"},
		{"GET /idle", "403"},
		{"GET /open/deny", "200 !x-user"},
	} {
		got := exchange(t, "http://"+r.address("http"), c.request)
		holds(t, c.request, got, c.want)
	}
}

// exchange sends a request and gives status, headers and body as text, what a client sees of an answer.
func exchange(t *testing.T, url, request string) string {
	t.Helper()
	head, body, _ := strings.Cut(request, "|")
	fields := strings.Fields(head)
	req, err := http.NewRequest(fields[0], url+fields[1], strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "name.example:10080"
	for _, h := range fields[2:] {
		name, value, _ := strings.Cut(h, ":")
		req.Header.Add(name, value)
	}
	res, answer := get(t, req)
	return fmt.Sprintf("%d location=%s\n%s", res.StatusCode, res.Header.Get("Location"), answer)
}
