//go:build !race

package translate

// raced says that the race detector is on, with which everything takes five times as long: fewer random sequences do then, as make test runs all of them without it too.
const raced = false
