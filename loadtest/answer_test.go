package loadtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Headers in which a server of this process tells who it is, and in which protocol it was asked.
const (
	serverHeader = "X-Server"
	protoHeader  = "X-Proto"
)

// answerer gives back what it was sent: bodies over HTTP/1.1 and cleartext HTTP/2, messages over WebSocket.
type answerer string

func (a answerer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if websocket.IsWebSocketUpgrade(r) {
		answerMessages(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client is gone, or will see that the answer is cut short
	}
	w.Header().Set(serverHeader, string(a))
	w.Header().Set(protoHeader, r.Proto)
	_, _ = w.Write(body)
}

func answerMessages(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	c, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer func() { _ = c.Close() }()
	for {
		kind, message, err := c.ReadMessage()
		if err != nil || c.WriteMessage(kind, message) != nil {
			return
		}
	}
}

// answerWeb listens as a web server of a name, and gives its port.
func answerWeb(t *testing.T, name string) (port int) {
	t.Helper()
	l := listenLoopback(t)
	s := &http.Server{Handler: answerer(name), ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	serveUntilEnd(t, func() error { return s.Serve(l) }, func() { _ = s.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// answerGRPC gives back every message of every method, unary or streaming, and gives its port.
func answerGRPC(t *testing.T) (port int) {
	t.Helper()
	l := listenLoopback(t)
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		for {
			var m wrapperspb.BytesValue
			switch err := stream.RecvMsg(&m); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			}
			if err := stream.SendMsg(&m); err != nil {
				return err
			}
		}
	}))
	serveUntilEnd(t, func() error { return s.Serve(l) }, s.Stop)
	return l.Addr().(*net.TCPAddr).Port
}

// answerStreams gives back every byte of every connection, and gives its port.
func answerStreams(t *testing.T) (port int) {
	t.Helper()
	l := listenLoopback(t)
	serve := func() error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}
	serveUntilEnd(t, serve, func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

func listenLoopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serveUntilEnd runs a server until the test has ended.
func serveUntilEnd(t *testing.T, serve func() error, stop func()) {
	done := make(chan error, 1)
	go func() { done <- serve() }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			t.Errorf("a server of this test ended with %v", err)
		}
	})
}

// service is a Service without a selector and its one endpoint: a port of this process. appProtocol "" = none.
func service(name, appProtocol string, port int) string {
	return serviceOf(name, appProtocol) + endpoint(name, port)
}

func serviceOf(name, appProtocol string) string {
	if appProtocol != "" {
		appProtocol = ", appProtocol: " + appProtocol
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: default}
spec: {ports: [{port: 8080%s}]}
`, name, appProtocol)
}

func endpoint(service string, port int) string {
	return fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-1, namespace: default, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{port: %[2]d, protocol: TCP}]
endpoints: [{addresses: [127.0.0.1], conditions: {ready: true}}]
`, service, port)
}

// object is a manifest of the Gateway API in namespace default.
func object(kind, name, spec string) string {
	return fmt.Sprintf("---\napiVersion: gateway.networking.k8s.io/v1\nkind: %s\nmetadata: {name: %s, namespace: default}\nspec:\n  %s\n", kind, name,
		strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  "))
}
