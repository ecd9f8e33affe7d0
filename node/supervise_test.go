package node

import (
	"strings"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/node/cluster"
)

// TestAlive: a node whose loop stands still gives no sign of life.
func TestAlive(t *testing.T) {
	n := &Node{member: &cluster.Member{}} // it belongs to no cluster: there is no Raft that could hang
	if err := n.alive(t.Context(), time.Second); err != nil {
		t.Errorf("before the loop has gone round: %v", err)
	}
	for _, row := range []struct {
		ago   time.Duration
		alive bool
	}{{0, true}, {time.Hour, false}} {
		beat := time.Now().Add(-row.ago)
		n.beat.Store(&beat)
		if err := n.alive(t.Context(), time.Minute); (err == nil) != row.alive || err != nil && !strings.Contains(err.Error(), "not looked at for 1h0m") {
			t.Errorf("%s after the loop has gone round: %v", row.ago, err)
		}
	}
}
