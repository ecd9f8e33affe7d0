package rpc

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	peerpb "github.com/quorumkms/quorumkms/rpc/peerv1"
	"github.com/quorumkms/quorumkms/transport"
)

// peerServer answers other nodes. The listener lets in certificates of class node
// only; all but Join is for members, by their names, as themselves.
type peerServer struct {
	peerpb.UnimplementedPeerServiceServer
	member   *cluster.Member
	kms      *kms.Service
	announce func(spki []byte) error
	own      *transport.Credentials
}

// asMember tells whether the caller is the member that it says it is.
func (s *peerServer) asMember(ctx context.Context, raftID string) error {
	caller, err := callerOf(ctx)
	if err != nil {
		return err
	}
	m, ok := s.member.State().Member(raftID)
	if !ok || m.Name != caller.Name {
		return fmt.Errorf("%w: %s is not the member %s", kms.ErrDenied, caller.Principal, raftID)
	}
	return nil
}

// asActiveMember is asMember for what neither a joining nor a removed node may do.
func (s *peerServer) asActiveMember(ctx context.Context, raftID string) error {
	if err := s.asMember(ctx, raftID); err != nil {
		return err
	}
	switch m, _ := s.member.State().Member(raftID); m.State {
	case fsm.MemberActive:
		return nil
	case fsm.MemberLeaving, fsm.MemberGone:
		return fmt.Errorf("%w: %s", cluster.ErrRemoved, raftID)
	default:
		return fmt.Errorf("%w: %s is %s", kms.ErrDenied, raftID, m.State)
	}
}

func (s *peerServer) Propose(ctx context.Context, r *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	if err := s.asActiveMember(ctx, r.GetProposer()); err != nil {
		if errors.Is(err, cluster.ErrRemoved) {
			return &peerpb.ProposeResponse{Failure: failure(err)}, nil
		}
		return nil, err
	}
	command, err := fsm.DecodeCommand(r.GetCommand(), r.GetBody())
	if err != nil {
		return &peerpb.ProposeResponse{Failure: failure(err)}, nil
	}
	result, err := s.member.HandlePropose(ctx, fsm.Proposal{
		Command: command, Request: r.GetRequestId(), Digest: r.GetDigest(), Principal: r.GetPrincipal(),
	}, r.GetProposer())
	return &peerpb.ProposeResponse{Index: result.Index, Id: result.ID, Version: result.Version, Failure: failure(err)}, nil
}

func (s *peerServer) Lease(ctx context.Context, r *peerpb.LeaseRequest) (*peerpb.LeaseResponse, error) {
	if err := s.asMember(ctx, r.GetNode()); err != nil {
		return nil, err
	}
	g, err := s.member.HandleLease(ctx, cluster.LeaseRequest{
		Node: r.GetNode(), Incarnation: r.GetIncarnation(), Nonce: r.GetNonce(), Applied: r.GetAppliedIndex(),
		HashIndex: r.GetHashIndex(), Hash: r.GetRunningHash(), Wall: r.GetWallClock(), Epoch: r.GetRecoveryEpoch(),
		Release: int(r.GetRelease()), Audit: auditHead(r),
	})
	return &peerpb.LeaseResponse{Incarnation: g.Incarnation, Nonce: g.Nonce, MinIndex: g.MinIndex, Agreed: g.Agreed, Failure: failure(err)}, nil
}

func auditHead(r *peerpb.LeaseRequest) *cluster.AuditHead {
	if len(r.GetAuditCheckpoint()) == 0 {
		return nil
	}
	return &cluster.AuditHead{Note: r.GetAuditCheckpoint(), From: r.GetAuditFrom(), Proof: r.GetAuditProof()}
}

func (s *peerServer) Ack(ctx context.Context, r *peerpb.AckRequest) (*peerpb.AckResponse, error) {
	if err := s.asMember(ctx, r.GetNode()); err != nil { // one that leaves still acknowledges its removal
		return nil, err
	}
	return &peerpb.AckResponse{}, s.member.HandleAck(r.GetNode(), r.GetAppliedIndex())
}

func (s *peerServer) Progress(ctx context.Context, _ *peerpb.ProgressRequest) (*peerpb.ProgressResponse, error) {
	if err := s.asAnyMember(ctx); err != nil {
		return nil, err
	}
	all, err := s.member.HandleProgress()
	return &peerpb.ProgressResponse{Failure: failure(err), Members: each(all, func(p cluster.Progress) *peerpb.MemberProgress {
		return &peerpb.MemberProgress{Node: p.Node, AppliedIndex: p.Applied, Ago: durationpb.New(p.Ago), LeaseLeft: durationpb.New(p.LeaseLeft)}
	})}, nil
}

// asAnyMember refuses nodes that are no active member.
func (s *peerServer) asAnyMember(ctx context.Context) error {
	caller, err := callerOf(ctx)
	if err != nil {
		return err
	}
	if m := s.member.State().MemberByName(caller.Name); m == nil || !m.Serves() {
		return fmt.Errorf("%w: %s is no active member", kms.ErrDenied, caller.Principal)
	}
	return nil
}

func (s *peerServer) TransferLeadership(ctx context.Context, r *peerpb.TransferRequest) (*peerpb.TransferResponse, error) {
	if err := s.asAnyMember(ctx); err != nil {
		return nil, err
	}
	leader, err := s.member.HandleTransfer(ctx, r.GetNode())
	return &peerpb.TransferResponse{LeaderId: leader, Failure: failure(err)}, nil
}

func (s *peerServer) Survey(ctx context.Context, r *peerpb.SurveyRequest) (*peerpb.SurveyResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	history, err := historyFrom(r.GetHistory())
	if err != nil {
		return nil, err
	}
	found, err := s.member.HandleSurvey(cluster.SurveyRequest{
		Cluster: idFrom(r.GetClusterId()), Node: r.GetNode(), History: history, Proof: r.GetProof(),
	}, caller.Name)
	if err != nil {
		return &peerpb.SurveyResponse{Failure: failure(err)}, nil
	}
	return &peerpb.SurveyResponse{
		ClusterId: found.Cluster[:], Node: found.Node, History: historyTo(found.History),
		LastLogTerm: found.LastTerm, LastLogIndex: found.LastIndex, AppliedIndex: found.Applied, LeaderId: found.Leader,
	}, nil
}

func historyTo(h fsm.History) *peerpb.History {
	if h.ID == uuid.Nil {
		return &peerpb.History{RecoveryEpoch: h.Epoch}
	}
	return &peerpb.History{RecoveryEpoch: h.Epoch, Id: h.ID[:]}
}

func historyFrom(h *peerpb.History) (fsm.History, error) {
	if n := len(h.GetId()); n != 0 && n != len(fsm.ID{}) {
		return fsm.History{}, fmt.Errorf("%w: a history's id has %d bytes, want 16", fsm.ErrInvalid, n)
	}
	return fsm.History{Epoch: h.GetRecoveryEpoch(), ID: idFrom(h.GetId())}, nil
}

// idFrom is an id of 16 bytes, or else none.
func idFrom(b []byte) fsm.ID {
	id, err := uuid.FromBytes(b)
	if err != nil {
		return uuid.Nil
	}
	return id
}

// kindFrom is what a peer says of a key. What no key can be is of no class.
func kindFrom(k *peerpb.NewKey) hsm.Kind {
	if k.GetClass() > math.MaxUint8 || k.GetBits() > math.MaxUint16 {
		return hsm.Kind{}
	}
	return hsm.Kind{Class: hsm.Class(k.GetClass()), Bits: uint16(k.GetBits()), Decrypts: k.GetDecrypts()} //nolint:gosec // compared above
}

func (s *peerServer) Open(ctx context.Context, r *peerpb.OpenRequest) (*peerpb.OpenResponse, error) {
	if err := s.asActiveMember(ctx, r.GetNode()); err != nil {
		return nil, err
	}
	results, err := s.member.HandleOpen(ctx, cluster.OpenRequest{
		Node: r.GetNode(), Cluster: idFrom(r.GetClusterId()),
		Openings: each(r.GetKeys(), func(k *peerpb.NewKey) cluster.Opening {
			return cluster.Opening{
				Key: idFrom(k.GetKeyId()), Version: k.GetVersion(), Kind: kindFrom(k),
				Made: hsm.NewKey{Token: k.GetToken(), SPKI: k.GetPublicKey()},
			}
		}),
	})
	return &peerpb.OpenResponse{
		Problems: each(results, func(r cluster.OpenResult) string { return r.Problem }),
		Passing:  each(results, func(r cluster.OpenResult) bool { return r.Passing }), Failure: failure(err),
	}, nil
}

func (s *peerServer) Domain(ctx context.Context, r *peerpb.DomainRequest) (*peerpb.DomainResponse, error) {
	if err := s.asActiveMember(ctx, r.GetNode()); err != nil {
		return nil, err
	}
	h, err := s.member.HandleDomain()
	out := &peerpb.DomainResponse{Holds: h.Holds, Problem: h.Problem, Failure: failure(err)}
	if w := h.Waiting; w != nil {
		out.Waiting = &peerpb.DomainWait{Generation: w.Generation, Fingerprint: w.Fingerprint, Donors: w.Donors}
	}
	return out, nil
}

func (s *peerServer) Join(stream peerpb.PeerService_JoinServer) error {
	caller, err := callerOf(stream.Context())
	if err != nil {
		return toStatus(err, nil)
	}
	wire := &donorWire{stream: stream, own: s.own}
	act, err := s.member.HandleJoin(stream.Context(), wire, caller.Name, s.announce)
	if act != "" {
		if recorded := s.kms.Event(act, caller.Principal, caller.Source, caller.Name, err); recorded != nil {
			err = recorded
		}
	}
	if err == nil {
		return nil
	}
	return stream.Send(&peerpb.JoinResponse{Step: &peerpb.JoinResponse_Failure{Failure: failure(err)}})
}

// failure carries a refusal between nodes; nil for none.
func failure(err error) *peerpb.Failure {
	if err == nil {
		return nil
	}
	return &peerpb.Failure{Code: cluster.Code(err), Text: err.Error()}
}

// failed restores it.
func failed(f *peerpb.Failure) error {
	if f == nil {
		return nil
	}
	return cluster.FromCode(f.GetCode(), f.GetText())
}

func sourceOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}

// notSent tells whether a failed call cannot have reached the other node's
// handler.
func notSent(err error) bool {
	code := status.Code(err)
	return code == codes.PermissionDenied || code == codes.Unauthenticated || code == codes.Unimplemented
}
