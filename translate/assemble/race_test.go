//go:build race

package assemble

const raced = true
