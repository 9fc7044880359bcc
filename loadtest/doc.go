// Package loadtest measures a whole installation: the binary as people run it, real Raft over real sockets, real bbolt files, real Envoys. A scenario runs
// `fleetgate dev` in a directory of its own on loopback, does something to it under load, and counts what clients saw. `go test` runs a tenth of every
// scenario as a test of what must never happen (a lost request, a lost change); FLEETGATE_MEASURE=1 runs all of it and prints a table of times.
package loadtest
