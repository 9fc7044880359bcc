// Package schema holds the compiler against everything that the Gateway API's CRDs allow, rather than against what somebody thought of. The schemas
// themselves, with their CEL rules, say what an API server would store: objects are generated from them, mutated from objects that people wrote, and refused
// by the very validation that a cluster runs. Whatever passes must compile and assemble without a panic, into resources that the protos' own rules and the
// real Envoy take; and every field of every schema must change what proxies are sent or what a status says, for a field that is ignored in silence is a lie.
//
// `go test -short` tries some thousand objects, `go test` tens of thousands, FLEETGATE_MEASURE=1 a million. A failure prints the object; what was tried
// is a function of the seed, so it fails again. `go test -fuzz FuzzObjects ./loadtest/schema` lets coverage choose instead of chance.
package schema
