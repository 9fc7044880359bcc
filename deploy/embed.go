// Package deploy holds what an installation consists of. The Gateway API's CRDs are embedded in the binary because a
// directory of manifests has no API server to hold them: the schemas that check a manifest on a laptop are then, byte for
// byte, the ones that a cluster would check it with.
package deploy

import "embed"

// CRDs is the standard channel of the Gateway API, as its module ships it, and EnvoyFleet.
//
//go:embed crds/*.yaml
var CRDs embed.FS
