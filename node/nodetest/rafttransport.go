package nodetest

import (
	"context"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// raftTimeout bounds one message of Raft and its answer, as transport does.
	raftTimeout = 3 * time.Second
	// snapshotTimeout bounds a snapshot.
	snapshotTimeout = 10 * time.Second
	// inFlight is how many messages of a pipeline are on their way at a time.
	inFlight = 2
)

// raftTransport is Raft's transport of one process. Like the real one it has pre-vote
// and no fast path for heartbeats.
type raftTransport struct {
	end       *end
	installed func() // a snapshot has been taken in by a follower
}

var (
	_ raft.Transport   = (*raftTransport)(nil)
	_ raft.WithPreVote = (*raftTransport)(nil)
)

// Consumer implements raft.Transport.
func (t *raftTransport) Consumer() <-chan raft.RPC { return t.end.raft }

// LocalAddr implements raft.Transport.
func (t *raftTransport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.end.address) }

// EncodePeer implements raft.Transport.
func (t *raftTransport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

// DecodePeer implements raft.Transport.
func (t *raftTransport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport: heartbeats go the way of all messages.
func (t *raftTransport) SetHeartbeatHandler(func(raft.RPC)) {}

// ask sends one message and waits for its answer.
func ask[R any](t *raftTransport, to raft.ServerAddress, timeout time.Duration, o *order, request any, data io.Reader, into *R) error {
	ctx, cancel := context.WithTimeout(t.end.ctx, timeout)
	defer cancel()
	r, err := call(ctx, t.end, string(to), o, request, func(_ context.Context, at *end, request any) (*R, error) {
		back := make(chan raft.RPCResponse, 1)
		select {
		case at.raft <- raft.RPC{Command: request, Reader: data, RespChan: back}:
		case <-at.ctx.Done():
			return nil, errLost
		}
		select {
		case r := <-back:
			response, _ := r.Response.(*R)
			return response, r.Error
		case <-at.ctx.Done():
			return nil, errLost
		}
	})
	if r != nil {
		*into = *r
	}
	return err
}

// AppendEntries implements raft.Transport.
func (t *raftTransport) AppendEntries(_ raft.ServerID, to raft.ServerAddress, a *raft.AppendEntriesRequest, r *raft.AppendEntriesResponse) error {
	return ask(t, to, raftTimeout, nil, a, nil, r)
}

// RequestVote implements raft.Transport.
func (t *raftTransport) RequestVote(_ raft.ServerID, to raft.ServerAddress, a *raft.RequestVoteRequest, r *raft.RequestVoteResponse) error {
	return ask(t, to, raftTimeout, nil, a, nil, r)
}

// RequestPreVote implements raft.WithPreVote.
func (t *raftTransport) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, a *raft.RequestPreVoteRequest, r *raft.RequestPreVoteResponse) error {
	return ask(t, to, raftTimeout, nil, a, nil, r)
}

// TimeoutNow implements raft.Transport.
func (t *raftTransport) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, a *raft.TimeoutNowRequest, r *raft.TimeoutNowResponse) error {
	return ask(t, to, raftTimeout, nil, a, nil, r)
}

// InstallSnapshot implements raft.Transport.
func (t *raftTransport) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, a *raft.InstallSnapshotRequest, r *raft.InstallSnapshotResponse, data io.Reader) error {
	err := ask(t, to, snapshotTimeout, nil, a, data, r)
	if err == nil && r.Success {
		t.installed()
	}
	return err
}

// AppendEntriesPipeline implements raft.Transport.
func (t *raftTransport) AppendEntriesPipeline(_ raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	ctx, cancel := context.WithCancel(t.end.ctx)
	p := &pipeline{
		transport: t, to: to, ctx: ctx, cancel: cancel, order: &order{},
		under: make(chan *appending, inFlight), done: make(chan raft.AppendFuture, inFlight),
	}
	go p.collect() // ends when the pipeline is closed or the process dies
	return p, nil
}

// pipeline sends messages without waiting for the answers of those before.
type pipeline struct {
	transport *raftTransport
	to        raft.ServerAddress
	ctx       context.Context //nolint:containedctx // the pipeline's life
	cancel    context.CancelFunc
	order     *order
	under     chan *appending
	done      chan raft.AppendFuture
}

// appending is one message under way.
type appending struct {
	began    time.Time
	request  *raft.AppendEntriesRequest
	response *raft.AppendEntriesResponse
	ready    chan struct{}
	err      error
}

// Error implements raft.Future.
func (a *appending) Error() error {
	<-a.ready
	return a.err
}

// Start implements raft.AppendFuture.
func (a *appending) Start() time.Time { return a.began }

// Request implements raft.AppendFuture.
func (a *appending) Request() *raft.AppendEntriesRequest { return a.request }

// Response implements raft.AppendFuture.
func (a *appending) Response() *raft.AppendEntriesResponse { return a.response }

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	a := &appending{began: time.Now(), request: args, response: resp, ready: make(chan struct{})}
	select {
	case p.under <- a:
	case <-p.ctx.Done():
		return nil, raft.ErrPipelineShutdown
	}
	go func() { // ends with the message's timeout at the latest
		defer close(a.ready)
		a.err = ask(p.transport, p.to, raftTimeout, p.order, args, nil, resp)
	}()
	return a, nil
}

// collect hands answers on in the order of their messages.
func (p *pipeline) collect() {
	for {
		var a *appending
		select {
		case a = <-p.under:
		case <-p.ctx.Done():
			return
		}
		select {
		case <-a.ready:
		case <-p.ctx.Done():
			return
		}
		select {
		case p.done <- a:
		case <-p.ctx.Done():
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.done }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.cancel()
	return nil
}
