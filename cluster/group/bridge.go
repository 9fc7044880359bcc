package group

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// bridge lets Raft log through slog.
func bridge(to *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
	l.RegisterSink(&sink{to: to, now: time.Now, said: map[string]time.Time{}})
	return l
}

// sink passes on what Raft says, at the level that an operator would give it.
type sink struct {
	to  *slog.Logger
	now func() time.Time

	mu   sync.Mutex
	said map[string]time.Time
}

// quiet is for how long a line of the same kind about the same peer is not said again.
const quiet = 10 * time.Second

// retried are lines that Raft says at each of many attempts a second while a peer is away, as errors although it goes on trying: each is a warning, once in a
// while. The value is the argument that names the peer.
var retried = map[string]string{
	"failed to appendEntries to":       "peer",
	"failed to heartbeat to":           "peer",
	"failed to pipeline appendEntries": "peer",
	"failed to make requestVote RPC":   "target",
	"failed to contact":                "server-id",
}

// ended is what Raft says, as an error, of each connection that its peer closed.
const ended = "failed to decode incoming command"

// Accept implements hclog.SinkAdapter.
func (s *sink) Accept(name string, level hclog.Level, msg string, args ...interface{}) {
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	at := s.level(level, msg, args)
	if s.to.Enabled(context.Background(), at) {
		s.to.Log(context.Background(), at, "raft: "+msg, args...)
	}
}

func (s *sink) level(level hclog.Level, msg string, args []any) slog.Level {
	if by, ok := retried[msg]; ok {
		if s.lately(msg + " " + argument(args, by)) {
			return slog.LevelDebug
		}
		return slog.LevelWarn
	}
	switch {
	case msg == ended:
		return slog.LevelDebug
	case level == hclog.Info:
		return slog.LevelInfo
	case level == hclog.Warn:
		return slog.LevelWarn
	case level == hclog.Error:
		return slog.LevelError
	}
	return slog.LevelDebug
}

// lately tells whether a line was said within the quiet time; where it was not, it is now.
func (s *sink) lately(line string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if now.Sub(s.said[line]) < quiet {
		return true
	}
	s.said[line] = now
	return false
}

// argument is the value of a named argument as text, "" where there is none.
func argument(args []any, name string) string {
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == name {
			return fmt.Sprint(args[i+1])
		}
	}
	return ""
}
