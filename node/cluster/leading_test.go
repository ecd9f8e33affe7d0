package cluster

import (
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func openTCP(t *testing.T) *raft.NetworkTransport {
	t.Helper()
	x, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, 3*time.Second, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

// TestNewsOfCommit: a follower is told at once that the last entry it was sent is committed,
// once, and nothing of entries that others have brought or that have another term.
func TestNewsOfCommit(t *testing.T) {
	t.Parallel()
	leader, follower := newLeading(openTCP(t), func() bool { return false }), openTCP(t)
	p, err := leader.AppendEntriesPipeline("f", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	next := func() *raft.AppendEntriesRequest {
		m := <-follower.Consumer()
		m.Respond(&raft.AppendEntriesResponse{Term: 5, Success: true}, nil)
		<-p.Consumer()
		r, _ := m.Command.(*raft.AppendEntriesRequest)
		return r
	}
	send := func(commit uint64, last *raft.Log) {
		t.Helper()
		r := &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ID: []byte("l"), Addr: []byte("l:1")}, Term: 5,
			PrevLogEntry: last.Index - 1, PrevLogTerm: 3, Entries: []*raft.Log{last}, LeaderCommitIndex: commit,
		}
		if _, err := p.AppendEntries(r, new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		if got := next(); len(got.Entries) != 1 {
			t.Fatalf("%+v in place of an entry", got)
		}
	}
	send(6, &raft.Log{Index: 7, Term: 4})
	for _, other := range []raft.Log{{Index: 6, Term: 4}, {Index: 7, Term: 3}, {Index: 8, Term: 4}} {
		leader.committed(&other)
	}
	leader.committed(&raft.Log{Index: 7, Term: 4})
	got := next()
	if len(got.Entries) > 0 || got.PrevLogEntry != 7 || got.PrevLogTerm != 4 || got.LeaderCommitIndex != 7 || got.Term != 5 || string(got.Addr) != "l:1" {
		t.Errorf("told %+v, want that entry 7 of term 4 is committed", got)
	}
	leader.committed(&raft.Log{Index: 7, Term: 4}) // it knows
	send(7, &raft.Log{Index: 8, Term: 5})
	leader.committed(&raft.Log{Index: 8, Term: 5})
	if got := next(); got.PrevLogEntry != 8 || got.LeaderCommitIndex != 8 {
		t.Errorf("told %+v, want that entry 8 is committed", got)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	leader.committed(&raft.Log{Index: 8, Term: 5}) // of nobody
}

// TestPipelineWithoutReader: Raft's own transport gives no room for another message as long
// as nobody reads the answers, and Raft reads none behind a rejection. The sender comes back
// all the same.
func TestPipelineWithoutReader(t *testing.T) {
	t.Parallel()
	leader, follower := openTCP(t), openTCP(t)
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
	p, err := newLeading(leader, func() bool { return false }).AppendEntriesPipeline("f", follower.LocalAddr())
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
