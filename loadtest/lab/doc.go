// SPDX-License-Identifier: Apache-2.0

// Package lab is what a person does with Fleetgate on day one, done by a test: the real kubectl, the manifests of deploy and
// deploy/examples/kubernetes as they stand, one local cluster of loadtest/kube. Nothing here knows Fleetgate from the inside; what kubectl and
// an HTTP client do not show has not happened. The same cluster says what routes cost: what new ones answer on their way in, and what is written for
// them, by the API server's own count.
package lab
