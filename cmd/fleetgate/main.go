// Command fleetgate is the one binary: a replica of the control plane, a laptop's whole installation, and the questions that people ask of both.
//
// One sub-command is one file: its flags, its constructor, and a function that writes to a given writer. Data goes to stdout and talk to stderr; -o is
// always a format; every format that a program would read is a named, versioned type. Reads ask any replica, and any replica gives the same answer.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// Exit codes, the same for every command.
const (
	exitFine       = 0
	exitFailed     = 1
	exitFindings   = 2 // differences or findings
	exitNotReached = 3
	exitNoLeader   = 4
	exitUsage      = 64
)

// usageError is a mistake on the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errNoLeader says that the group was reached but nobody leads it.
var errNoLeader = errors.New("no leader: changes cannot be accepted until most replicas are up; proxies keep what they have (see fleetgate replica list)")

// errNotReached says that no replica answered.
var errNotReached = errors.New("no replica was reached")

// errSilent is a failure whose story has been told on stdout already.
var errSilent = errors.New("failed")

func main() {
	os.Exit(run(context.Background(), os.Args[1:], terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr, now: time.Now, getenv: os.Getenv}))
}

// terminal is the world that a command sees.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time
	getenv   func(string) string
}

func run(ctx context.Context, args []string, t terminal) int {
	root := newRootCommand(t)
	root.SetArgs(args)
	root.SetIn(t.in)
	root.SetOut(t.out)
	root.SetErr(t.err)
	err := root.ExecuteContext(ctx)
	if err != nil && !errors.Is(err, errSilent) {
		_, _ = fmt.Fprintln(t.err, "fleetgate:", err)
	}
	return exitCode(err)
}

func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitFine
	case errors.As(err, &usage), isCobraUsage(err):
		return exitUsage
	case errors.Is(err, errNotReached):
		return exitNotReached
	case errors.Is(err, errFindings):
		return exitFindings
	case errors.Is(err, errNoLeader):
		return exitNoLeader
	default:
		return exitFailed
	}
}

// isCobraUsage knows the errors that cobra makes itself of unknown commands and missing flags: it gives them no type.
func isCobraUsage(err error) bool {
	for _, prefix := range []string{"unknown command", "required flag", "accepts ", "requires at least", "invalid argument"} {
		if strings.HasPrefix(err.Error(), prefix) {
			return true
		}
	}
	return false
}
