// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/exec"

	"github.com/fleetgate/fleetgate/loadtest/kube/container"
)

// streamIdle is how long an exec or port-forward may be silent.
const streamIdle = 4 * time.Hour

// serve answers the API server's requests for logs, exec and port-forward until the node ends.
func (k *kubelet) serve(l net.Listener) {
	config, err := k.tlsConfig()
	if err != nil {
		k.Log.Error("cannot serve the API of the node", "error", err)
		return
	}
	server := &http.Server{Handler: k.handler(), TLSConfig: config, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	stop := context.AfterFunc(k.ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		k.Log.Error("the API of the node has ended", "error", err)
	}
}

// tlsConfig is a certificate made for this run, which API servers do not check unless told to, and asks for one that the cluster's authority signed: what runs in pods cannot
// run commands in others.
func (k *kubelet) tlsConfig() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: k.NodeName}, IPAddresses: []net.IP{k.nodeIP.AsSlice()}, DNSNames: []string{k.NodeName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}}
	authority := k.Config.CAData
	if len(authority) == 0 && k.Config.CAFile != "" {
		if authority, err = os.ReadFile(k.Config.CAFile); err != nil {
			return nil, fmt.Errorf("reading the cluster's authority: %w", err)
		}
	}
	config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !config.ClientCAs.AppendCertsFromPEM(authority) {
		return nil, errors.New("the cluster's configuration holds no certificate authority")
	}
	return config, nil
}

func (k *kubelet) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.serveLogs)
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", k.serveExec)
	mux.HandleFunc("/exec/{namespace}/{pod}/{uid}/{container}", k.serveExec)
	mux.HandleFunc("/portForward/{namespace}/{pod}", k.servePortForward)
	mux.HandleFunc("/portForward/{namespace}/{pod}/{uid}", k.servePortForward)
	mux.HandleFunc("GET /pods", k.servePods)
	return mux
}

func (k *kubelet) servePods(w http.ResponseWriter, _ *http.Request) {
	k.mu.Lock()
	workers := make([]*worker, 0, len(k.workers))
	for _, each := range k.workers {
		workers = append(workers, each)
	}
	k.mu.Unlock()
	list := v1.PodList{}
	for _, each := range workers {
		_ = each.ask(func() { list.Items = append(list.Items, *each.seen()) }) // one that ends meanwhile is left out
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(&list) // the caller has gone
}

var errEnded = errors.New("the pod is ending")

// ask runs f in the worker's turn and waits for it.
func (w *worker) ask(f func()) error {
	done := make(chan struct{})
	w.post(func() { f(); close(done) })
	select {
	case <-done:
		return nil
	case <-w.ctx.Done():
		return errEnded
	}
}

// run finds the present run of a container.
func (k *kubelet) run(namespace, pod, name string) (*run, error) {
	w := k.find(namespace, pod)
	if w == nil {
		return nil, fmt.Errorf("pod %s/%s is not on this node", namespace, pod)
	}
	var found *run
	if err := w.ask(func() { found = w.containers[name] }); err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("container %q in pod %q is waiting to start", name, pod)
	}
	return found, nil
}

func (k *kubelet) serveLogs(w http.ResponseWriter, r *http.Request) {
	options, err := parseLogOptions(r.URL.Query(), time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name := r.PathValue("container")
	found, err := k.run(r.PathValue("namespace"), r.PathValue("pod"), name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	source := found.log
	if options.previous {
		if source = found.kept; source == nil {
			http.Error(w, fmt.Sprintf("previous terminated container %q in pod %q not found", name, r.PathValue("pod")), http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if f, ok := w.(http.Flusher); ok {
		f.Flush() // who follows a silent log hears at once that there is one
	}
	if err := source.send(r.Context(), w, options); err != nil && r.Context().Err() == nil {
		k.Log.Warn("cannot send a log", "pod", r.PathValue("pod"), "error", err)
	}
}

func (k *kubelet) serveExec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	found, err := k.run(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	remotecommand.ServeExec(w, r, executor{found.process}, "", "", "", r.URL.Query()[v1.ExecCommandParam], options,
		streamIdle, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

// executor runs commands in one container.
type executor struct{ process *container.Running }

// ExecInContainer implements remotecommand.Executor.
func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, args []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	var command *container.Running
	var finish func()
	var err error
	if tty {
		command, finish, err = e.onTerminal(args, in, out, resize)
	} else {
		command, finish, err = e.onPipes(args, in, out, errs)
	}
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		command.Kill()
	case <-command.Done():
	}
	exit := command.Exit()
	finish()
	if exit.Code != 0 {
		return exec.CodeExitError{Err: fmt.Errorf("exit code %d", exit.Code), Code: exit.Code}
	}
	return nil
}

// onPipes starts a command whose streams are copied; finish waits for what it wrote last.
func (e executor) onPipes(args []string, in io.Reader, out, errs io.WriteCloser) (*container.Running, func(), error) {
	var stdio container.Stdio
	var childEnds []*os.File
	var copies []chan struct{}
	defer func() {
		for _, f := range childEnds {
			_ = f.Close()
		}
	}()
	if in != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, fmt.Errorf("making a pipe: %w", err)
		}
		stdio.In, childEnds = r, append(childEnds, r)
		go func() {
			defer func() { _ = w.Close() }()
			_, _ = io.Copy(w, in) // ends with either side
		}()
	}
	for _, stream := range []struct {
		to   io.Writer
		into **os.File
	}{{out, &stdio.Out}, {errs, &stdio.Err}} {
		if stream.to == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, fmt.Errorf("making a pipe: %w", err)
		}
		*stream.into, childEnds = w, append(childEnds, w)
		done := make(chan struct{})
		copies = append(copies, done)
		go func() {
			defer close(done)
			defer func() { _ = r.Close() }()
			_, _ = io.Copy(stream.to, r) // ends with either side
		}()
	}
	command, err := e.process.Exec(args, stdio)
	finish := func() {
		for _, done := range copies {
			<-done
		}
	}
	return command, finish, err
}

// onTerminal starts a command on a terminal of its own.
func (e executor) onTerminal(args []string, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) (*container.Running, func(), error) {
	ours, theirs, err := openTerminal(e.process.PID())
	if err != nil {
		return nil, nil, err
	}
	command, err := e.process.Exec(args, container.Stdio{In: theirs, Out: theirs, Err: theirs, Terminal: true})
	_ = theirs.Close()
	if err != nil {
		return nil, nil, errors.Join(err, ours.Close())
	}
	if in != nil {
		go func() { _, _ = io.Copy(ours, in) }() // ends with either side
	}
	go func() {
		for size := range resize {
			_ = unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width}) // a wrong size harms nobody
		}
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, ours) // a terminal without programs reads as an error
	}()
	return command, func() { <-done; _ = ours.Close() }, nil
}

// openTerminal makes a terminal of the container's own, so that programs there find it by name.
func openTerminal(pid int) (ours, theirs *os.File, err error) {
	dir := fmt.Sprintf("/proc/%d/root/dev/pts", pid)
	ours, err = os.OpenFile(dir+"/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a terminal: %w", err)
	}
	if err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("unlocking a terminal: %w", err), ours.Close())
	}
	number, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("numbering a terminal: %w", err), ours.Close())
	}
	theirs, err = os.OpenFile(dir+"/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("opening a terminal: %w", err), ours.Close())
	}
	return ours, theirs, nil
}

func (k *kubelet) servePortForward(w http.ResponseWriter, r *http.Request) {
	found := k.find(r.PathValue("namespace"), r.PathValue("pod"))
	if found == nil {
		http.Error(w, "the pod is not on this node", http.StatusNotFound)
		return
	}
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, forwarder{found}, "", "", options, streamIdle, remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
}

// forwarder connects to ports of one pod, on its loopback as kubelets do.
type forwarder struct{ w *worker }

// PortForward implements portforward.PortForwarder.
func (f forwarder) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer func() { _ = stream.Close() }()
	var c net.Conn
	var err error
	asked := f.w.ask(func() {
		if f.w.network == nil {
			err = errEnded
			return
		}
		err = f.w.network.Do(func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
			return err
		})
	})
	if err = errors.Join(asked, err); err != nil {
		return fmt.Errorf("connecting to port %d of the pod: %w", port, err)
	}
	defer func() { _ = c.Close() }()
	done := make(chan struct{}, 2)
	for _, pair := range []struct {
		to   io.Writer
		from io.Reader
	}{{c, stream}, {stream, c}} {
		go func() {
			_, _ = io.Copy(pair.to, pair.from) // ends with either side
			if half, ok := pair.to.(*net.TCPConn); ok {
				_ = half.CloseWrite() // the other direction goes on
			}
			done <- struct{}{}
		}()
	}
	<-done
	select {
	case <-done:
	case <-ctx.Done():
	}
	return nil
}
