// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fleetgate/fleetgate/loadtest/kube/kubelet"
)

// MaxClusters is how many clusters the address plan has room for.
const MaxClusters = 40

// Cluster is one Kubernetes cluster of a rig. All addresses are those of the rig's network, in which every address is unique: pods of one cluster reach those of another.
type Cluster struct {
	Name string `json:"name"`
	// Server is where the API server answers on the machine's loopback, and on the loopback inside the rig's network.
	Server string `json:"server"`
	// Kubeconfig reaches Server as system:masters; it works outside and inside the rig's network.
	Kubeconfig string `json:"kubeconfig"`
	// NodeKubeconfig reaches the API server at NodeIP, without the forwarder: for what runs inside the rig's network.
	NodeKubeconfig string `json:"nodeKubeconfig"`
	// Dir holds the cluster's keys, data and logs.
	Dir              string       `json:"dir"`
	NodeName         string       `json:"nodeName"`
	NodeIP           netip.Addr   `json:"nodeIP"`
	PodCIDR          netip.Prefix `json:"podCIDR"`
	ServiceCIDR      netip.Prefix `json:"serviceCIDR"`
	LoadBalancerCIDR netip.Prefix `json:"loadBalancerCIDR"`
	// DNS is the address of the cluster's name server, one of ServiceCIDR.
	DNS netip.Addr `json:"dns"`
}

// State is what stands in the file state.json of a rig's directory: all that its supervisor, and whoever attaches later, has to know.
type State struct {
	Dir      string    `json:"dir"`
	Channel  string    `json:"channel"`
	Binaries string    `json:"binaries"`
	CRDs     []string  `json:"crds"`
	Audit    bool      `json:"audit"`
	Clusters []Cluster `json:"clusters"`
	// Images is what pods' images stand for.
	Images kubelet.Images `json:"images"`
	// Kubeconfig has a context for each cluster, named like it.
	Kubeconfig string `json:"kubeconfig"`
	// Init is the process with whose end all of the rig ends.
	Init Process `json:"init"`
}

// Process is a process id that a later process cannot be mistaken for.
type Process struct {
	PID int `json:"pid"`
	// Started is field 22 of /proc/PID/stat: the start, in clock ticks since boot.
	Started string `json:"started"`
}

// plan gives cluster number i, from 1, its names and addresses: a /16 each for pods, Services and load balancers, and a port of the loopback.
func plan(dir string, i int, port string) Cluster {
	name := "c" + strconv.Itoa(i)
	at := filepath.Join(dir, name)
	octet := byte(i)
	service := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100 + octet, 0, 0}), 16)
	return Cluster{
		Name: name, Dir: at,
		Server:         "https://127.0.0.1:" + port,
		Kubeconfig:     filepath.Join(at, "kubeconfig"),
		NodeKubeconfig: filepath.Join(at, "node.kubeconfig"),
		NodeName:       name + "-node", NodeIP: netip.AddrFrom4([4]byte{10, 10, 0, octet}),
		PodCIDR:          netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 50 + octet, 0, 0}), 16),
		ServiceCIDR:      service,
		LoadBalancerCIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 150 + octet, 0, 0}), 16),
		DNS:              netip.AddrFrom4([4]byte{10, 100 + octet, 0, 10}),
	}
}

func statePath(dir string) string { return filepath.Join(dir, "state.json") }

// Save writes the state in one step, so that no reader meets half of it.
func (s State) Save() error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write the rig's state: %w", err)
	}
	temporary := statePath(s.Dir) + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return fmt.Errorf("write the rig's state: %w", err)
	}
	return os.Rename(temporary, statePath(s.Dir))
}

// ErrNone says that no rig runs in the directory.
var ErrNone = errors.New("no cluster is up here")

// Load reads the state of the rig in dir; ErrNone when there is none.
func Load(dir string) (State, error) {
	data, err := os.ReadFile(statePath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, fmt.Errorf("%s: %w (start some with `up`)", dir, ErrNone)
	}
	if err != nil {
		return State{}, fmt.Errorf("read the rig's state: %w", err)
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, fmt.Errorf("read the rig's state %s: %w (remove the directory)", statePath(dir), err)
	}
	return s, nil
}

// stat reads the fields of /proc/PID/stat from the third on: the second is the command in parentheses, and may itself hold spaces and parentheses.
func stat(pid int) ([]string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(data)[strings.LastIndex(string(data), ")")+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(fields))
	}
	return fields, nil
}

// identify tells which process pid is now.
func identify(pid int) (Process, error) {
	fields, err := stat(pid)
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return Process{PID: pid, Started: fields[19]}, nil
}

// alive says whether the process still runs; a zombie does not.
func (p Process) alive() bool {
	fields, err := stat(p.PID)
	return err == nil && fields[0] != "Z" && fields[19] == p.Started
}
