// SPDX-License-Identifier: Apache-2.0

// Package main is a local Kubernetes that is real where it matters: etcd, kube-apiserver, kube-controller-manager and kube-scheduler of the release, N clusters at once,
// and in place of machines a kubelet whose pods are processes in network namespaces.
//
// In the folders below: rig is what a command or a test holds in its hands, build makes the programs, controlplane runs one cluster's, and supervisor is the inside, where all of it runs.
//
//	o, err := build.Options(ctx, rig.Options{Dir: t.TempDir(), Clusters: 2, Channel: "standard"}, os.Stderr)
//	r, err := rig.Up(ctx, o)
//	defer r.Down()
//
// Only the folder binaries is a module of its own, because k8s.io/kubernetes needs 31 replace lines, which must not reach the main go.mod. All else belongs to the main module,
// so that `go run ./loadtest/kube up` works and any test can start clusters.
package main
