// SPDX-License-Identifier: Apache-2.0

// Package rig starts, finds and ends local Kubernetes clusters. It is what commands and tests hold in their hands; the clusters themselves run under a supervisor, a process of
// the program loadtest/kube.
//
// All clusters of one rig live in one network namespace, and in one PID namespace whose first process is tied to the supervisor. The machine's own network is therefore never
// touched (one limit of the machine is, see limits.go), and nothing can be left over: whoever is killed, and however hard, the kernel ends every process of the rig and with the last one every address, route and
// firewall rule. What remains after a `kill -9` is a directory, which the next Up or Down removes.
//
// Two things lead in from outside. A socket keeps the network namespace in which it was made, so the API servers' listeners on the machine's loopback are made before the
// namespaces and handed in. And the supervisor connects or starts programs inside on request, passing the sockets out and the caller's terminal in, so that neither root nor
// nsenter is needed.
package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fleetgate/fleetgate/loadtest/kube/kubelet"
)

// Options says what Up starts.
type Options struct {
	// Dir keeps the rig's state. Up removes what an earlier rig left there.
	Dir string
	// Clusters is how many, named c1, c2, ...
	Clusters int
	// Channel of the Gateway API's CRDs: "standard", "experimental", or "none" for clusters without them.
	Channel string
	// Audit has each API server write the metadata of every request to audit.log in its directory.
	Audit bool
	// Program is the built loadtest/kube, Binaries the directory of the Kubernetes programs, CRDs the manifests of the channel. Package build finds or makes them.
	Program, Binaries string
	CRDs              []string
	// Images is what the images of pods stand for; package build makes those of this repository.
	Images kubelet.Images
	// Detach lets the rig outlive this process. Otherwise it ends with it, whatever ends it.
	Detach bool
	// Progress hears of every step. May be nil.
	Progress func(Event)
}

// Event is one step of starting up.
type Event struct {
	Cluster string        `json:"cluster,omitempty"`
	Text    string        `json:"text,omitempty"`
	After   time.Duration `json:"after"`
	// Error ends the start.
	Error string `json:"error,omitempty"`
	// Ready is the last event.
	Ready bool `json:"ready,omitempty"`
}

// Rig is a running set of clusters.
type Rig struct {
	state State
	// life is held open while this process wants the rig to live; nil when the rig is detached.
	life *os.File
	init *exec.Cmd
}

// State tells addresses and paths.
func (r *Rig) State() State { return r.state }

// Cluster returns cluster number i, from 0.
func (r *Rig) Cluster(i int) Cluster { return r.state.Clusters[i] }

// Find returns the cluster of a name.
func (r *Rig) Find(name string) (Cluster, error) {
	for _, c := range r.state.Clusters {
		if c.Name == name {
			return c, nil
		}
	}
	return Cluster{}, fmt.Errorf("there is no cluster %q: they are called %s to %s", name, r.state.Clusters[0].Name, r.state.Clusters[len(r.state.Clusters)-1].Name)
}

// Attach finds the running rig of a directory; ErrNone when there is none, or only what is left of one.
func Attach(dir string) (*Rig, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s, err := Load(dir)
	if err != nil {
		return nil, err
	}
	if !s.Init.alive() {
		return nil, fmt.Errorf("%s: %w any more: it was killed (start some with `up`)", dir, ErrNone)
	}
	return &Rig{state: s}, nil
}

// Up starts clusters and returns when they are ready: API server up, CRDs established, node Ready.
func Up(ctx context.Context, o Options) (*Rig, error) {
	if o.Clusters < 1 || o.Clusters > MaxClusters {
		return nil, fmt.Errorf("start %d clusters: there is room for 1 to %d", o.Clusters, MaxClusters)
	}
	dir, err := prepare(o.Dir)
	if err != nil {
		return nil, err
	}
	if told := raiseLimits(inotifyLimit); told != "" && o.Progress != nil {
		o.Progress(Event{Text: told})
	}
	listeners, err := listenLoopback(o.Clusters)
	if err != nil {
		return nil, err
	}
	defer closeAll(listeners)
	state := State{
		Dir: dir, Channel: o.Channel, Binaries: o.Binaries, CRDs: o.CRDs, Audit: o.Audit, Images: o.Images,
		Kubeconfig: filepath.Join(dir, "kubeconfig"),
	}
	for i, l := range listeners {
		state.Clusters = append(state.Clusters, plan(dir, i+1, l.Name()))
	}
	if err := state.Save(); err != nil {
		return nil, err
	}
	r := &Rig{state: state}
	events, err := r.launch(o, listeners)
	if err != nil {
		return nil, err
	}
	defer func() { _ = events.Close() }()
	defer context.AfterFunc(ctx, func() { _ = events.Close() })()
	if err := await(events, o.Progress); err != nil {
		err = errors.Join(ctx.Err(), err)
		return nil, errors.Join(fmt.Errorf("start clusters (their logs lie in %s): %w", dir, err), r.kill())
	}
	return r, nil
}

// prepare makes an empty directory of dir, unless a rig runs in it.
func prepare(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if s, err := Load(dir); err == nil && s.Init.alive() {
		return "", fmt.Errorf("%s: clusters are already up here (end them with `down`, or choose another --dir)", dir)
	} else if err == nil {
		if err := os.RemoveAll(dir); err != nil {
			return "", fmt.Errorf("remove what killed clusters left: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the clusters' directory: %w", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return "", errors.Join(err, fmt.Errorf("%s is not empty and not of this tool (choose another --dir)", dir))
	}
	return dir, nil
}

// listenLoopback opens one port for each cluster on the machine's loopback; the files are named by their port.
func listenLoopback(n int) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	for range n {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return files, fmt.Errorf("open a port for an API server: %w", err)
		}
		f, err := l.File()
		port := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		if err != nil {
			return files, fmt.Errorf("open a port for an API server: %w", err)
		}
		defer func() { _ = f.Close() }()
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			return files, fmt.Errorf("open a port for an API server: %w", err)
		}
		syscall.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), strconv.Itoa(port)))
	}
	return files, nil
}

// InitCommand is the argument that makes the program the first process of a rig.
const InitCommand = "__init"

// The files that the supervisor inherits; the clusters' listeners follow.
const (
	FileControl = 3 + iota
	FileLife
	FileEvents
	FileListeners
)

// launch starts the first process of the rig in namespaces of its own and returns where it tells its steps.
func (r *Rig) launch(o Options, listeners []*os.File) (*os.File, error) {
	control, err := listenControl(r.state.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	log, err := os.Create(filepath.Join(r.state.Dir, "supervisor.log"))
	if err != nil {
		return nil, fmt.Errorf("open the supervisor's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	lifeRead, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = lifeRead.Close() }()
	events, eventsWrite, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, life.Close())
	}
	defer func() { _ = eventsWrite.Close() }()
	cmd := exec.Command(o.Program, InitCommand, r.state.Dir, strconv.FormatBool(o.Detach))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append([]*os.File{control, lifeRead, eventsWrite}, listeners...)
	cmd.SysProcAttr = namespaces()
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the supervisor in namespaces of its own: %w (root, or a kernel that allows user namespaces, is needed)", err), life.Close(), events.Close())
	}
	r.init, r.life = cmd, life
	if o.Detach {
		r.life = nil
		defer func() { _ = life.Close() }()
	}
	if r.state.Init, err = identify(cmd.Process.Pid); err == nil {
		err = r.state.Save()
	}
	if err != nil {
		return nil, errors.Join(err, r.kill(), events.Close())
	}
	return events, nil
}

// namespaces: those of the machine for root, and within a user namespace for everybody else.
func namespaces() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	if os.Geteuid() != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// await reads events until the rig is ready.
func await(events io.Reader, progress func(Event)) error {
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, MaxPacket)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("read the supervisor's progress: %w", err)
		}
		if e.Error != "" {
			return errors.New(strings.TrimSpace(e.Cluster + " " + e.Error))
		}
		if progress != nil {
			progress(e)
		}
		if e.Ready {
			return nil
		}
	}
	return errors.Join(lines.Err(), errors.New("the supervisor ended early (see supervisor.log)"))
}

// Down ends everything in the rig, hard, and removes its directory.
func (r *Rig) Down() error {
	if err := r.kill(); err != nil {
		return err
	}
	if err := os.RemoveAll(r.state.Dir); err != nil {
		return fmt.Errorf("remove the clusters' directory: %w", err)
	}
	return nil
}

// kill ends the first process, and so all of the rig, and waits until it is gone.
func (r *Rig) kill() error {
	if r.life != nil {
		defer func() { _ = r.life.Close() }()
	}
	if r.init != nil {
		err := r.init.Process.Kill()
		if errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
		_ = r.init.Wait() // how it ended is known: by this signal, or of itself before it
		return err
	}
	return r.state.Init.end()
}

// Wait returns when the rig has ended.
func (r *Rig) Wait() error {
	if r.init == nil {
		return errors.New("wait for clusters that another process started")
	}
	return r.init.Wait()
}

// end kills a process that is not a child of this one, and waits for its end by a descriptor that no other process can come to have.
func (p Process) end() error {
	fd, err := pidfdOpen(p.PID)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end process %d: %w", p.PID, err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if !p.alive() {
		return nil
	}
	return killAndWait(fd)
}

// Remove ends the rig of a directory, or removes what is left of a killed one; ErrNone when there is neither.
func Remove(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	s, err := Load(dir)
	if err != nil {
		return err
	}
	return (&Rig{state: s}).Down()
}
