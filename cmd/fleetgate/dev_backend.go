package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// received is what a demo backend answers: who it is and what it received.
type received struct {
	Pod       string              `json:"pod"`
	Namespace string              `json:"namespace"`
	Version   string              `json:"version,omitempty"`
	Proto     string              `json:"proto"`
	Method    string              `json:"method"`
	Host      string              `json:"host"`
	Path      string              `json:"path"`
	Headers   map[string][]string `json:"headers"`
}

// echo plays one pod: HTTP/1.1 and cleartext HTTP/2 get JSON, gRPC gets its own messages back.
type echo struct{ pod, namespace, version string }

func (e echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Pod", e.pod)
	w.Header().Set("X-Version", e.version)
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		e.grpc(w, r)
		return
	}
	if d, err := time.ParseDuration(r.URL.Query().Get("delay")); err == nil && d <= 10*time.Second {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(received{Pod: e.pod, Namespace: e.namespace, Version: e.version, Proto: r.Proto, Method: r.Method, Host: r.Host, Path: r.URL.RequestURI(), Headers: r.Header})
}

// grpc sends every byte back: frames are self-delimiting, so this is an echo of any method, unary or streaming, of any service.
func (e echo) grpc(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	rc := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			_ = rc.Flush()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	w.Header().Set(http.TrailerPrefix+"Grpc-Message", "")
}

// startEcho listens at a loopback port, the remembered one where it is free.
func startEcho(e echo, port int) (*http.Server, int, error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		if l, err = net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			return nil, 0, err
		}
	}
	s := &http.Server{Handler: e, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(l) }()
	return s, l.Addr().(*net.TCPAddr).Port, nil
}

// drainEcho lets requests end, then closes.
func drainEcho(s *http.Server, patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if s.Shutdown(ctx) != nil {
		_ = s.Close()
	}
}
