package group

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func TestPeerThatIsAwayDoesNotFloodTheLog(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	s := &sink{to: slog.New(slog.NewTextHandler(&out, nil)), now: func() time.Time { return now }, said: map[string]time.Time{}}
	for range 50 {
		s.Accept("raft", hclog.Error, "failed to appendEntries to", "peer", "b", "error", errors.New("refused"))
		s.Accept("raft", hclog.Error, "failed to appendEntries to", "peer", "c", "error", errors.New("refused"))
		s.Accept("raft", hclog.Error, "failed to decode incoming command", "error", errors.New("EOF"))
	}
	if n := strings.Count(out.String(), "level=WARN"); n != 2 || strings.Contains(out.String(), "ERROR") {
		t.Errorf("%d warnings for two peers:\n%s", n, out.String())
	}
	now = now.Add(quiet)
	s.Accept("raft", hclog.Error, "failed to appendEntries to", "peer", "b", "error", errors.New("refused"))
	s.Accept("raft", hclog.Error, "failed to append to logs", "error", errors.New("disk full"))
	if n := strings.Count(out.String(), "level=WARN"); n != 3 || !strings.Contains(out.String(), `level=ERROR msg="raft: failed to append to logs"`) {
		t.Errorf("after the quiet time:\n%s", out.String())
	}
}
