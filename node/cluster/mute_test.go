package cluster

import (
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestPipelineWithoutReader: Raft's own transport gives no room for another message as long
// as nobody reads the answers, and Raft reads none behind a rejection. The sender comes back
// all the same.
func TestPipelineWithoutReader(t *testing.T) {
	t.Parallel()
	open := func() *raft.NetworkTransport {
		x, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, 3*time.Second, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = x.Close() })
		return x
	}
	leader, follower := open(), open()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case m := <-follower.Consumer():
				m.Respond(&raft.AppendEntriesResponse{Term: 1}, nil) // a rejection
			case <-done:
				return
			}
		}
	}()
	p, err := newMutable(leader, func() bool { return false }).AppendEntriesPipeline("f", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	for sent := 0; ; sent++ {
		if sent > 10 {
			t.Fatal("it takes any number of messages: nothing is shown")
		}
		if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, new(raft.AppendEntriesResponse)); err != nil {
			break
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
