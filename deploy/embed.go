// Package deploy holds what an installation consists of. The Gateway API's CRDs are embedded in the binary because a
// directory of manifests has no API server to hold them: the schemas that check a manifest on a laptop are then, byte for
// byte, the ones that a cluster would check it with.
package deploy

import "embed"

// CRDs is the standard channel of the Gateway API, as its module ships it, with EnvoyFleet in crds, and in experimental the kinds that only its experimental
// channel has. These are no part of install.yaml: a cluster of the standard channel stays one.
//
//go:embed crds/*.yaml experimental/*.yaml
var CRDs embed.FS
