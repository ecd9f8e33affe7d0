package rpc

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	peerpb "github.com/quorumkms/quorumkms/rpc/peerv1"
	"github.com/quorumkms/quorumkms/transport"
)

// Peers calls other nodes: one connection an address, kept.
type Peers struct {
	credentials *transport.Credentials
	nameAt      func(address string) (name string, ok bool)
	options     []grpc.DialOption

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

var _ cluster.Peers = (*Peers)(nil)

const (
	// maxPeers bounds the connections kept; beyond it all are dropped and made anew.
	maxPeers     = 2 * fsm.MaxMembers
	peerBackoff  = 100 * time.Millisecond // first pause between dials to a node that is down
	peerBackoffs = time.Second            // longest
	peerDial     = 2 * time.Second
)

// NewPeers makes the caller of other nodes. nameAt tells which member lives at an
// address, so that nobody else can answer there. options are added to every connection.
func NewPeers(c *transport.Credentials, nameAt func(address string) (string, bool), options ...grpc.DialOption) *Peers {
	return &Peers{credentials: c, nameAt: nameAt, options: options, conns: map[string]*grpc.ClientConn{}}
}

// Close closes the connections.
func (p *Peers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.drop()
}

func (p *Peers) drop() error {
	var err error
	for address, c := range p.conns {
		err = errors.Join(err, c.Close())
		delete(p.conns, address)
	}
	return err
}

func (p *Peers) to(address string) (peerpb.PeerServiceClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.conns[address]; ok {
		return peerpb.NewPeerServiceClient(c), nil
	}
	if len(p.conns) >= maxPeers {
		if err := p.drop(); err != nil {
			return nil, err
		}
	}
	c, err := p.dial(address, p.credentials.Client([]string{transport.ALPNPeer}, func(id transport.Identity) error {
		if name, known := p.nameAt(address); known && name != id.Name {
			return fmt.Errorf("node %s answers at the address of %s", id.Name, name)
		}
		return nil
	}))
	if err != nil {
		return nil, err
	}
	p.conns[address] = c
	return peerpb.NewPeerServiceClient(c), nil
}

func (p *Peers) dial(address string, config *tls.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, append(slices.Clip(p.options),
		grpc.WithTransportCredentials(dialledTLS{p.credentials, config}),
		grpc.WithUnaryInterceptor(tellingCalls), grpc.WithStreamInterceptor(tellingStreams),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveAt / 3, Timeout: minPing, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: peerBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: peerBackoffs},
			MinConnectTimeout: peerDial,
		}))...)
}

// Propose implements cluster.Peers.
func (p *Peers) Propose(ctx context.Context, address string, x fsm.Proposal, proposer string) (fsm.Result, error) {
	body, err := json.Marshal(x.Command)
	if err != nil {
		return fsm.Result{}, err
	}
	c, err := p.to(address)
	if err != nil {
		return fsm.Result{}, err
	}
	r, err := c.Propose(ctx, &peerpb.ProposeRequest{
		Command: fsm.NameOf(x.Command), Body: body, RequestId: x.Request, Digest: x.Digest, Principal: x.Principal, Proposer: proposer,
	})
	switch {
	case err == nil:
		return fsm.Result{Index: r.GetIndex(), ID: r.GetId(), Version: r.GetVersion()}, failed(r.GetFailure())
	case notSent(err):
		return fsm.Result{}, fmt.Errorf("%w: the leader does not take it: %v", cluster.ErrNoLeader, err) //nolint:errorlint // its code is not ours
	}
	return fsm.Result{}, fmt.Errorf("%w: the leader's answer was lost: %v", cluster.ErrOutcomeUnknown, err) //nolint:errorlint // its code is not ours
}

// Lease implements cluster.Peers.
func (p *Peers) Lease(ctx context.Context, address string, r cluster.LeaseRequest) (cluster.LeaseGrant, error) {
	c, err := p.to(address)
	if err != nil {
		return cluster.LeaseGrant{}, err
	}
	asked := &peerpb.LeaseRequest{
		Node: r.Node, Incarnation: r.Incarnation, Nonce: r.Nonce, AppliedIndex: r.Applied, HashIndex: r.HashIndex, RunningHash: r.Hash,
		WallClock: r.Wall, RecoveryEpoch: r.Epoch, Release: uint32(r.Release), //nolint:gosec // a small number
	}
	if h := r.Audit; h != nil {
		asked.AuditCheckpoint, asked.AuditFrom, asked.AuditProof = h.Note, h.From, h.Proof
	}
	g, err := c.Lease(ctx, asked)
	if err != nil {
		return cluster.LeaseGrant{}, err
	}
	return cluster.LeaseGrant{Incarnation: g.GetIncarnation(), Nonce: g.GetNonce(), MinIndex: g.GetMinIndex(), Agreed: g.GetAgreed()}, failed(g.GetFailure())
}

// Ack implements cluster.Peers.
func (p *Peers) Ack(ctx context.Context, address, node string, applied uint64) error {
	c, err := p.to(address)
	if err != nil {
		return err
	}
	_, err = c.Ack(ctx, &peerpb.AckRequest{Node: node, AppliedIndex: applied})
	return err
}

// TransferLeadership implements cluster.Peers.
func (p *Peers) TransferLeadership(ctx context.Context, address, node string) (string, error) {
	c, err := p.to(address)
	if err != nil {
		return "", err
	}
	r, err := c.TransferLeadership(ctx, &peerpb.TransferRequest{Node: node})
	if err != nil {
		return "", fmt.Errorf("%w: %v", cluster.ErrNoLeader, err) //nolint:errorlint // its code is not ours
	}
	return r.GetLeaderId(), failed(r.GetFailure())
}

// Progress implements cluster.Peers.
func (p *Peers) Progress(ctx context.Context, address string) ([]cluster.Progress, error) {
	c, err := p.to(address)
	if err != nil {
		return nil, err
	}
	r, err := c.Progress(ctx, &peerpb.ProgressRequest{})
	if err != nil {
		return nil, err
	}
	return each(r.GetMembers(), func(m *peerpb.MemberProgress) cluster.Progress {
		return cluster.Progress{Node: m.GetNode(), Applied: m.GetAppliedIndex(), Ago: m.GetAgo().AsDuration(), LeaseLeft: m.GetLeaseLeft().AsDuration()}
	}), failed(r.GetFailure())
}

// Survey implements cluster.Peers.
func (p *Peers) Survey(ctx context.Context, address string, r cluster.SurveyRequest) (cluster.Survey, error) {
	c, err := p.to(address)
	if err != nil {
		return cluster.Survey{}, err
	}
	x, err := c.Survey(ctx, &peerpb.SurveyRequest{ClusterId: r.Cluster[:], Node: r.Node, History: historyTo(r.History), Proof: r.Proof})
	if err == nil {
		err = failed(x.GetFailure())
	}
	if err != nil {
		return cluster.Survey{}, err
	}
	history, err := historyFrom(x.GetHistory())
	return cluster.Survey{
		Cluster: idFrom(x.GetClusterId()), Node: x.GetNode(), History: history,
		LastTerm: x.GetLastLogTerm(), LastIndex: x.GetLastLogIndex(), Applied: x.GetAppliedIndex(), Leader: x.GetLeaderId(),
	}, err
}

// Open implements cluster.Peers.
func (p *Peers) Open(ctx context.Context, address string, r cluster.OpenRequest) ([]cluster.OpenResult, error) {
	c, err := p.to(address)
	if err != nil {
		return nil, err
	}
	x, err := c.Open(ctx, &peerpb.OpenRequest{
		Node: r.Node, ClusterId: r.Cluster[:], Keys: each(r.Openings, func(o cluster.Opening) *peerpb.NewKey {
			return &peerpb.NewKey{
				KeyId: o.Key[:], Version: o.Version, Token: o.Made.Token, PublicKey: o.Made.SPKI,
				Class: uint32(o.Kind.Class), Bits: uint32(o.Kind.Bits), Decrypts: o.Kind.Decrypts,
			}
		}),
	})
	if err != nil {
		return nil, err
	}
	return openResults(x), failed(x.GetFailure())
}

// openResults reads what a member has opened; one of an earlier version does not say what
// may pass.
func openResults(x *peerpb.OpenResponse) []cluster.OpenResult {
	out := make([]cluster.OpenResult, len(x.GetProblems()))
	for i, problem := range x.GetProblems() {
		out[i] = cluster.OpenResult{Problem: problem, Passing: i < len(x.GetPassing()) && x.GetPassing()[i]}
	}
	return out
}

// Domain implements cluster.Peers.
func (p *Peers) Domain(ctx context.Context, address, node string) (cluster.DomainHolding, error) {
	c, err := p.to(address)
	if err != nil {
		return cluster.DomainHolding{}, err
	}
	r, err := c.Domain(ctx, &peerpb.DomainRequest{Node: node})
	if err != nil {
		return cluster.DomainHolding{}, err
	}
	out := cluster.DomainHolding{Holds: r.GetHolds(), Problem: r.GetProblem()}
	if w := r.GetWaiting(); w != nil {
		out.Waiting = &cluster.DomainWait{Generation: w.GetGeneration(), Fingerprint: w.GetFingerprint(), Donors: w.GetDonors()}
	}
	return out, failed(r.GetFailure())
}

// Join implements cluster.Peers: a connection of its own, to a cluster whose CA's
// keys hash to pin.
func (p *Peers) Join(ctx context.Context, address string, pin []byte) (cluster.JoinStream, error) {
	conn, err := p.dial(address, p.credentials.ClientPinned([]string{transport.ALPNPeer}, pin, nil))
	if err != nil {
		return nil, err
	}
	stream, err := peerpb.NewPeerServiceClient(conn).Join(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", cluster.ErrNoLeader, err), conn.Close())
	}
	return &joinerWire{stream: stream, conn: conn, own: p.credentials}, nil
}
