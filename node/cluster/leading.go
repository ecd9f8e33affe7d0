package cluster

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// pipelinePatience is how long a pipeline of Raft's messages may give no room for another:
// longer than a message and its answer may take.
const pipelinePatience = 5 * time.Second

var errMute = errors.New("this leader commits nothing, and lets others elect another")

// leading is Raft's transport of a leader: one that may fall silent, and that tells its
// followers at once what is committed, for which Raft's library waits until the next entry
// or for commitTimeout. Raft asks a transport for what it can do beside the interface; that is
// passed on by name.
type leading struct {
	raft.Transport
	preVote raft.WithPreVote
	mute    func() bool

	mu        sync.Mutex
	pipelines map[*pipeline]struct{}
}

var (
	_ raft.WithPreVote = (*leading)(nil)
	_ raft.WithClose   = (*leading)(nil)
)

func newLeading(t raft.Transport, mute func() bool) *leading {
	preVote, ok := t.(raft.WithPreVote)
	if !ok {
		panic("cluster: Raft's transport has no pre-vote") // a node that comes back would depose the leader
	}
	return &leading{Transport: t, preVote: preVote, mute: mute, pipelines: map[*pipeline]struct{}{}}
}

// RequestPreVote implements raft.WithPreVote.
func (t *leading) RequestPreVote(id raft.ServerID, to raft.ServerAddress, r *raft.RequestPreVoteRequest, into *raft.RequestPreVoteResponse) error {
	return t.preVote.RequestPreVote(id, to, r, into)
}

// Close implements raft.WithClose.
func (t *leading) Close() error {
	if c, ok := t.Transport.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

// AppendEntries implements raft.Transport.
func (t *leading) AppendEntries(id raft.ServerID, to raft.ServerAddress, r *raft.AppendEntriesRequest, into *raft.AppendEntriesResponse) error {
	if t.mute() {
		return errMute
	}
	return t.Transport.AppendEntries(id, to, r, into)
}

// AppendEntriesPipeline implements raft.Transport.
func (t *leading) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.Transport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, transport: t, news: make(chan entryID, 1), closed: make(chan struct{}), turn: make(chan struct{}, 1)}
	t.mu.Lock()
	t.pipelines[p] = struct{}{}
	t.mu.Unlock()
	go p.tell() // ends when the pipeline is closed
	return p, nil
}

// committed has the followers told that an entry is, wherever it is the last they were sent. Where
// it is not, the news of a later one says it too; of what no state machine is handed (an election's
// entry) commitTimeout does.
func (t *leading) committed(l *raft.Log) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.pipelines {
		select {
		case <-p.news: // older
		default:
		}
		p.news <- entryID{l.Index, l.Term}
	}
}

// entryID names one entry, once and for all.
type entryID struct{ index, term uint64 }

// pipeline is the way of entries to one follower.
type pipeline struct {
	raft.AppendPipeline
	transport *leading
	news      chan entryID // what is committed; committed alone sends
	closed    chan struct{}
	once      sync.Once

	turn chan struct{}             // holds one: whoever sends, for which there may be no room for long, or touches what follows
	next raft.AppendEntriesRequest // says that the last entry the follower was sent is committed
	told uint64                    // the index up to which it knows what is
}

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(r *raft.AppendEntriesRequest, into *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	last := entryID{r.PrevLogEntry, r.PrevLogTerm}
	if n := len(r.Entries); n > 0 {
		last = entryID{r.Entries[n-1].Index, r.Entries[n-1].Term}
	}
	p.next = raft.AppendEntriesRequest{
		RPCHeader: r.RPCHeader, Term: r.Term,
		PrevLogEntry: last.index, PrevLogTerm: last.term, LeaderCommitIndex: last.index,
	}
	return p.send(r, into)
}

// send wants the turn. Raft stops reading a pipeline's answers when a follower rejects a message,
// and closes it only when its sender comes back, who then waits here for room for ever: so
// the pipeline is closed when it gives none.
func (p *pipeline) send(r *raft.AppendEntriesRequest, into *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.transport.mute() {
		return nil, errMute
	}
	defer time.AfterFunc(pipelinePatience, func() { _ = p.Close() }).Stop()
	p.told = max(p.told, min(r.LeaderCommitIndex, p.next.PrevLogEntry))
	return p.AppendPipeline.AppendEntries(r, into)
}

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	p.transport.mu.Lock()
	delete(p.transport.pipelines, p)
	p.transport.mu.Unlock()
	return p.AppendPipeline.Close()
}

// tell sends what Raft would send later: a message without entries, after the last, with the
// index of that as what is committed. It is true of a leader that is none any more, too: the
// news is of this very entry, and a follower takes it only if it has it. Raft gets the answer
// like any other.
func (p *pipeline) tell() {
	for {
		select {
		case e := <-p.news:
			if p.tellOf(e) != nil {
				_ = p.Close() // as after an error of Raft's own messages
				return
			}
		case <-p.closed:
			return
		}
	}
}

func (p *pipeline) tellOf(e entryID) error {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	if e != (entryID{p.next.PrevLogEntry, p.next.PrevLogTerm}) || e.index <= p.told {
		return nil
	}
	r := p.next
	_, err := p.send(&r, new(raft.AppendEntriesResponse))
	return err
}
