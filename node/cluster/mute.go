package cluster

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
)

// pipelinePatience is how long a pipeline of Raft's messages may give no room for another:
// longer than a message and its answer may take.
const pipelinePatience = 5 * time.Second

var errMute = errors.New("this leader commits nothing, and lets others elect another")

// mutable is Raft's transport of a leader that may fall silent. Raft asks a transport
// for what it can do beside the interface; that is passed on by name.
type mutable struct {
	raft.Transport
	preVote raft.WithPreVote
	mute    func() bool
}

var (
	_ raft.WithPreVote = (*mutable)(nil)
	_ raft.WithClose   = (*mutable)(nil)
)

func newMutable(t raft.Transport, mute func() bool) raft.Transport {
	preVote, ok := t.(raft.WithPreVote)
	if !ok {
		panic("cluster: Raft's transport has no pre-vote") // a node that comes back would depose the leader
	}
	return &mutable{t, preVote, mute}
}

// RequestPreVote implements raft.WithPreVote.
func (t *mutable) RequestPreVote(id raft.ServerID, to raft.ServerAddress, r *raft.RequestPreVoteRequest, into *raft.RequestPreVoteResponse) error {
	return t.preVote.RequestPreVote(id, to, r, into)
}

// Close implements raft.WithClose.
func (t *mutable) Close() error {
	if c, ok := t.Transport.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

// AppendEntries implements raft.Transport.
func (t *mutable) AppendEntries(id raft.ServerID, to raft.ServerAddress, r *raft.AppendEntriesRequest, into *raft.AppendEntriesResponse) error {
	if t.mute() {
		return errMute
	}
	return t.Transport.AppendEntries(id, to, r, into)
}

// AppendEntriesPipeline implements raft.Transport.
func (t *mutable) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.Transport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	return &mutablePipeline{p, t.mute}, nil
}

type mutablePipeline struct {
	raft.AppendPipeline
	mute func() bool
}

// AppendEntries implements raft.AppendPipeline. Raft stops reading a pipeline's answers when
// a follower rejects a message, and closes it only when its sender comes back, who then waits
// here for room for ever: so the pipeline is closed when it gives none.
func (p *mutablePipeline) AppendEntries(r *raft.AppendEntriesRequest, into *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.mute() {
		return nil, errMute
	}
	defer time.AfterFunc(pipelinePatience, func() { _ = p.Close() }).Stop()
	return p.AppendPipeline.AppendEntries(r, into)
}
