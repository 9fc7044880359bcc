// Package enroll turns a pod's service account token into the certificate by which its Envoy is known (D15).
//
// The token is worth a certificate only at the API server that signed it: the replica has that server review it, for an audience that names the member cluster. Who
// the pod is (cluster, namespace, Gateway, pod) is put together from the review and from our own records; what the request says of itself is not even read.
// The Gateway is found by the token's service account, which is the fleet's alone: Name is injective.
//
// An API server that is away must not cost a fleet its certificates. So a certificate that is still valid may be renewed by itself, for as long as Longest
// after the last token; and it is kept on the pod's volume, so that a container that starts again needs nobody.
package enroll

import (
	"errors"
	"time"
)

// Life is how long a certificate is valid, and Longest how long it can be renewed by itself after it was last got for a token.
const (
	Life    = 24 * time.Hour
	Longest = 7 * 24 * time.Hour
)

// patience is how long a pod waits for a replica, and askWithin how long that waits for an API server: one that says nothing is away, and leaves time for a renewal.
const patience, askWithin = 10 * time.Second, 4 * time.Second

// Path is where a replica issues certificates.
const Path = "/v1/proxy-certificate"

// ErrDenied says that a token is no good, whoever is asked and however often.
var ErrDenied = errors.New("denied")

// Pod is whom a token was given to.
type Pod struct {
	Namespace, ServiceAccount string
	UID                       string
}

// request is what a pod sends. The token is in the Authorization header.
type request struct {
	Cluster string `json:"cluster"`
	CSR     []byte `json:"csr"` // DER
}

// response holds a PEM certificate.
type response struct {
	Certificate string `json:"certificate"`
}

// lifetime gives how long a certificate is valid. A renewal keeps the beginning of what it renews, so that no chain of renewals is longer than Longest.
func lifetime(now, began time.Time) (from, until time.Time, ok bool) {
	until = now.Add(Life)
	if last := began.Add(Longest); until.After(last) {
		until = last
	}
	return began, until, until.After(now)
}
