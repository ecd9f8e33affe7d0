package cluster

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestRaftLogIsPaced: of what Raft says of one node again and again, one line a minute
// is left, with the number of those that are not; everything else is passed on.
func TestRaftLogIsPaced(t *testing.T) {
	var out bytes.Buffer
	clock := &handClock{}
	log := raftLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})), clock)
	lines := func() []string {
		all := strings.Split(strings.TrimSpace(out.String()), "\n")
		out.Reset()
		return all
	}
	for range 320 { // 80 s of a dead node
		log.Error("failed to heartbeat to", "peer", raft.ServerAddress("a:1"), "backoff time", time.Second, "error", "refused")
		log.Error("failed to heartbeat to", "peer", raft.ServerAddress("b:1"), "error", "refused")
		log.Error("failed to make requestVote RPC", "target", raft.Server{ID: "a", Address: "a:1"}, "error", "refused", "term", 7)
		clock.advance(time.Second / 4)
	}
	got := lines()
	if len(got) != 6 || !strings.Contains(got[3], "not_logged_since_the_last=239") || !strings.Contains(got[3], "peer=a:1") {
		t.Errorf("%d lines:\n%s", len(got), strings.Join(got, "\n"))
	}
	for range 3 {
		log.Warn("heartbeat timeout reached, starting election", "last-leader-id", "a")
		log.Debug("about a node", "peer", "a:1")
	}
	if got := lines(); len(got) != 6 {
		t.Errorf("%d lines:\n%s", len(got), strings.Join(got, "\n"))
	}
	for i := range 3 * maxSayings {
		log.Error("failed to heartbeat to", "peer", fmt.Sprint("node ", i))
	}
	if got := lines(); len(got) != 3*maxSayings {
		t.Errorf("%d lines of as many nodes", len(got))
	}
}
