// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"path/filepath"

	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// Names of the components, which are also the names of their programs and logs.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
)

// etcdPort is the first of two ports of a cluster's etcd, on the loopback of the rig's network: pods, which have a loopback of their own, do not reach it.
func etcdPort(c rig.Cluster) int { return 20000 + 10*int(c.NodeIP.As4()[3]) }

func etcdArgs(c rig.Cluster) []string {
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", etcdPort(c)), fmt.Sprintf("http://127.0.0.1:%d", etcdPort(c)+1)
	return []string{
		"--name=" + c.Name, "--data-dir=" + filepath.Join(c.Dir, "etcd"), "--log-level=warn",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=" + c.Name + "=" + peer,
		"--unsafe-no-fsync", // a machine that crashes takes the rig with it anyway
	}
}

// apiServerArgs: authentication, authorization and admission are those of a usual cluster; nothing is relaxed.
func apiServerArgs(c rig.Cluster, k keys, auditPolicy string) []string {
	args := []string{
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", etcdPort(c)),
		"--bind-address=" + c.NodeIP.String(), "--advertise-address=" + c.NodeIP.String(), "--secure-port=6443",
		"--service-cluster-ip-range=" + c.ServiceCIDR.String(),
		"--tls-cert-file=" + k.path("apiserver.crt"), "--tls-private-key-file=" + k.path("apiserver.key"), "--client-ca-file=" + k.path("ca.crt"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + k.path("sa.key"), "--service-account-signing-key-file=" + k.path("sa.key"),
		"--kubelet-client-certificate=" + k.path("kubelet-client.crt"), "--kubelet-client-key=" + k.path("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--profiling=false",
	}
	if auditPolicy != "" {
		args = append(args, "--audit-policy-file="+auditPolicy, "--audit-log-path="+AuditLog(c), "--audit-log-maxsize=1000")
	}
	return args
}

// AuditLog is where the API server of a cluster writes what it was asked, when auditing is on.
func AuditLog(c rig.Cluster) string { return filepath.Join(c.Dir, "audit.log") }

// controllerManagerArgs: each controller works under its own service account, as in a usual cluster.
func controllerManagerArgs(c rig.Cluster, k keys) []string {
	return []string{
		"--kubeconfig=" + k.path("kube-controller-manager.kubeconfig"), "--use-service-account-credentials=true",
		"--leader-elect=false", "--secure-port=0", "--profiling=false",
		"--service-cluster-ip-range=" + c.ServiceCIDR.String(), "--allocate-node-cidrs=false",
		"--root-ca-file=" + k.path("ca.crt"), "--service-account-private-key-file=" + k.path("sa.key"),
		"--cluster-signing-cert-file=" + k.path("ca.crt"), "--cluster-signing-key-file=" + k.path("ca.key"),
		"--kube-api-qps=200", "--kube-api-burst=400",
	}
}

func schedulerArgs(k keys) []string {
	return []string{"--kubeconfig=" + k.path("kube-scheduler.kubeconfig"), "--leader-elect=false", "--secure-port=0", "--profiling=false", "--kube-api-qps=200", "--kube-api-burst=400"}
}
