// SPDX-License-Identifier: Apache-2.0

// Package conformance runs the Gateway API's official conformance suite against whatever cluster the kubeconfig names. It consists of tests, which are built into a program
// (`go test -c`) that `go run ./loadtest/kube conformance` runs inside the network of local clusters. The suite itself is left as it is: same tests, same timeouts. Tests of our own, of
// features that it names without testing them, are apart from it.
//
// It is a module of its own because the suite needs a replace line and a few dozen modules that Fleetgate has no use for.
package conformance
