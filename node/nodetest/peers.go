package nodetest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/cluster"
)

// peerTimeout is when a call between nodes is given up: keepalive finds the
// connection dead.
const peerTimeout = 5 * time.Second

// peers are the calls of one process to other nodes; they fail as rpc's do.
type peers struct{ end *end }

var _ cluster.Peers = peers{}

// to makes one call with a request that the network may look at; an error that the other node reports comes back as it would over
// the wire.
func to[T any](ctx context.Context, p peers, address string, request any, f func(ctx context.Context, m *cluster.Member) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	return call(ctx, p.end, address, nil, request, func(ctx context.Context, at *end, _ any) (T, error) {
		m := at.member()
		if m == nil {
			var none T
			return none, errRefused
		}
		v, err := f(ctx, m)
		if err != nil {
			err = reported{cluster.FromCode(cluster.Code(err), err.Error())}
		}
		return v, err
	})
}

// reported is an error that the other node has reported.
type reported struct{ error }

func (r reported) Unwrap() error { return r.error }

// known refuses calls in the name of a node that the other does not know as a member.
func known(m *cluster.Member, node string) error {
	if _, ok := m.State().Member(node); !ok {
		return fmt.Errorf("%s is no member that this node knows", node)
	}
	return nil
}

// Propose implements cluster.Peers.
func (p peers) Propose(ctx context.Context, address string, x fsm.Proposal, proposer string) (fsm.Result, error) {
	r, err := to(ctx, p, address, x, func(ctx context.Context, m *cluster.Member) (fsm.Result, error) {
		if err := known(m, proposer); err != nil {
			return fsm.Result{}, err
		}
		return m.HandlePropose(ctx, x, proposer)
	})
	var other reported
	switch {
	case err == nil:
		return r, nil
	case errors.As(err, &other):
		return r, other.error
	case errors.Is(err, errRefused):
		return r, fmt.Errorf("%w: %w", cluster.ErrNoLeader, err)
	}
	if doubt, ok := ctx.Value(doubtKey{}).(*atomic.Bool); ok {
		doubt.Store(true)
	}
	return r, fmt.Errorf("%w: %w", cluster.ErrOutcomeUnknown, err)
}

// Lease implements cluster.Peers.
func (p peers) Lease(ctx context.Context, address string, r cluster.LeaseRequest) (cluster.LeaseGrant, error) {
	return to(ctx, p, address, r, func(ctx context.Context, m *cluster.Member) (cluster.LeaseGrant, error) {
		if err := known(m, r.Node); err != nil {
			return cluster.LeaseGrant{}, err
		}
		return m.HandleLease(ctx, r)
	})
}

// Ack implements cluster.Peers.
func (p peers) Ack(ctx context.Context, address, node string, applied uint64) error {
	_, err := to(ctx, p, address, nil, func(_ context.Context, m *cluster.Member) (struct{}, error) {
		return struct{}{}, errors.Join(known(m, node), m.HandleAck(node, applied))
	})
	return err
}

// TransferLeadership implements cluster.Peers.
func (p peers) TransferLeadership(ctx context.Context, address, node string) (string, error) {
	return to(ctx, p, address, nil, func(ctx context.Context, m *cluster.Member) (string, error) {
		return m.HandleTransfer(ctx, node)
	})
}

// Progress implements cluster.Peers.
func (p peers) Progress(ctx context.Context, address string) ([]cluster.Progress, error) {
	return to(ctx, p, address, nil, func(_ context.Context, m *cluster.Member) ([]cluster.Progress, error) {
		return m.HandleProgress()
	})
}

// Survey implements cluster.Peers.
func (p peers) Survey(ctx context.Context, address string, r cluster.SurveyRequest) (cluster.Survey, error) {
	return to(ctx, p, address, r, func(_ context.Context, m *cluster.Member) (cluster.Survey, error) {
		return m.HandleSurvey(r, p.end.node)
	})
}

// Open implements cluster.Peers.
func (p peers) Open(ctx context.Context, address string, r cluster.OpenRequest) ([]cluster.OpenResult, error) {
	return to(ctx, p, address, r, func(ctx context.Context, m *cluster.Member) ([]cluster.OpenResult, error) {
		if err := known(m, r.Node); err != nil {
			return nil, err
		}
		return m.HandleOpen(ctx, r)
	})
}

// Domain implements cluster.Peers.
func (p peers) Domain(ctx context.Context, address, _ string) (cluster.DomainHolding, error) {
	return to(ctx, p, address, nil, func(_ context.Context, m *cluster.Member) (cluster.DomainHolding, error) {
		return m.HandleDomain()
	})
}

// Join implements cluster.Peers. Nodes are admitted by the test.
func (p peers) Join(context.Context, string, []byte) (cluster.JoinStream, error) {
	return nil, errRefused
}
