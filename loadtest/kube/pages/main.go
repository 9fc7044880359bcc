// SPDX-License-Identifier: Apache-2.0

// Command pages stands in for nginx where the machine has none: pods with the image nginx then get a page on port 80 that looks like nginx's own and says that it is not.
// Whatever arguments nginx would take are passed over.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const page = `<!DOCTYPE html>
<html>
<head><title>Welcome to nginx!</title></head>
<body>
<h1>Welcome to nginx!</h1>
<p>This page comes from a stand-in for nginx, which could not be had on this machine (it needs apt-get and a way to its packages).</p>
</body>
</html>
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer stop()
	if err := serve(ctx, ":80"); err != nil {
		fmt.Fprintln(os.Stderr, "pages:", err)
		os.Exit(1)
	}
}

// serve answers until ctx ends, and then finishes what it has begun.
func serve(ctx context.Context, address string) error {
	fmt.Println("pages: a stand-in for nginx, listening on", address)
	server := &http.Server{Addr: address, Handler: handler(), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		done <- server.Shutdown(context.WithoutCancel(ctx))
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}

func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %q 200\n", r.RemoteAddr, r.Method+" "+r.RequestURI)
		w.Header().Set("Server", "pages (in place of nginx)")
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(page)) // who does not read it has gone
	})
	return mux
}
