//go:build race

package translate

const raced = true
