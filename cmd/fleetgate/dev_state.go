package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// defaultState is where dev keeps everything unless told otherwise.
const defaultState = ".fleetgate"

const stateFile = "dev.json"

// devState is what dev remembers from one run to the next, in <state>/dev.json: ports must stay, for replicas know each other by them.
type devState struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"` // DevState
	Replicas   []devReplica   `json:"replicas"`
	Backends   map[string]int `json:"backends"` // pod/port -> loopback port
}

type devReplica struct {
	Pod   string `json:"pod"`
	Raft  string `json:"raft"`
	XDS   string `json:"xds"`
	Admin string `json:"admin"`
}

// lockState makes sure that only one dev uses a state directory; the lock goes with the process.
func lockState(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("locking the state directory: %w", err)
	}
	syscall.CloseOnExec(int(f.Fd()))
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("another fleetgate dev uses %s; stop it, or give this one its own --state", dir), f.Close())
	}
	keepOpen = append(keepOpen, f)
	return nil
}

// keepOpen holds locks: a file that the garbage collector closes is a lock that is lost.
var keepOpen []*os.File

// wipe empties a state directory of which lockState has the lock, but only one that is dev's.
func wipe(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("reading the state directory: %w", err)
	}
	if len(entries) > 1 && !fileExists(filepath.Join(dir, stateFile)) {
		return fmt.Errorf("%s does not look like a state directory of fleetgate dev, so --fresh does not empty it; name another --state", dir)
	}
	for _, e := range entries {
		if e.Name() == "lock" {
			continue // held by us
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("removing old state: %w", err)
		}
	}
	return nil
}

// loadState reads what an earlier run left, or makes the state of a first run with free ports. replicas 0 = as before, else 3.
func loadState(dir string, replicas int) (*devState, error) {
	var s devState
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return newState(replicas)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state of an earlier run: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil || s.APIVersion != apiVersion || len(s.Replicas) == 0 {
		return nil, fmt.Errorf("%s is not the state of this version of fleetgate dev; start afresh with --fresh", filepath.Join(dir, stateFile))
	}
	if replicas != 0 && replicas != len(s.Replicas) {
		return nil, fmt.Errorf("%s holds a group of %d replicas, not %d; leave --replicas out, or start afresh with --fresh", dir, len(s.Replicas), replicas)
	}
	if s.Backends == nil {
		s.Backends = map[string]int{}
	}
	return &s, s.portsFree()
}

func newState(replicas int) (*devState, error) {
	if replicas == 0 {
		replicas = 3
	}
	ports, err := freePorts(3 * replicas)
	if err != nil {
		return nil, err
	}
	s := &devState{APIVersion: apiVersion, Kind: "DevState", Backends: map[string]int{}}
	for i := range replicas {
		s.Replicas = append(s.Replicas, devReplica{Pod: fmt.Sprintf("replica-%d", i+1), Raft: ports[3*i], XDS: ports[3*i+1], Admin: ports[3*i+2]})
	}
	return s, nil
}

// Remembered ports lie below what the kernel gives to outgoing connections (32768 and up on Linux): a port from there that is free now may be some
// connection's when the replica is started again.
const firstPort, lastPort = 20000, 32000

// freePorts gives loopback addresses that nobody listens at; all are held until all are found, so they differ.
func freePorts(n int) ([]string, error) {
	var out []string
	for try := 0; len(out) < n; try++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", firstPort+rand.IntN(lastPort-firstPort)))
		if err != nil {
			if try > 100*n {
				return nil, fmt.Errorf("looking for free ports from %d to %d: %w", firstPort, lastPort, err)
			}
			continue
		}
		defer func() { _ = l.Close() }()
		out = append(out, l.Addr().String())
	}
	return out, nil
}

// portsFree tells whether the remembered ports can be had again.
func (s *devState) portsFree() error {
	for _, r := range s.Replicas {
		for _, address := range []string{r.Raft, r.XDS, r.Admin} {
			if err := probe(address); err != nil {
				return fmt.Errorf("%s of an earlier run: %w; stop what uses it, or start afresh with --fresh", r.Pod, err)
			}
		}
	}
	return nil
}

// probe tells whether an address can be listened at. SO_REUSEPORT is not set, so it fails where another Envoy of somebody else listens with it:
// Envoy itself would share such a port silently, and half of the requests would go astray.
func probe(address string) error {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("port taken: another program listens at %s", address)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("port %s is for root only: choose one above 1023", address)
	case err != nil:
		return fmt.Errorf("port %s: %w", address, err)
	}
	return l.Close()
}

// save writes the state; ports once given are kept.
func (s *devState) save(dir string) error { return writeJSON(filepath.Join(dir, stateFile), s) }

// writeJSON replaces a file at once: a reader sees the old or the new one.
func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(file, append(b, '\n'))
}

func replaceFile(file string, b []byte) error {
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".tmp")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}
