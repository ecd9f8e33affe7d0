package rpc

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// identityHash reads the fingerprint of a node identity key; nil of none.
func identityHash(fingerprint string) ([]byte, error) {
	if fingerprint == "" {
		return nil, nil
	}
	text, err := hsm.ParseFingerprint(fingerprint)
	if err != nil {
		return nil, fmt.Errorf("%w: identity %.100q: want SHA256: and 64 hex digits, as `kmsd hsm identity` shows them on the node's own console", fsm.ErrInvalid, fingerprint)
	}
	return hex.DecodeString(text[strings.LastIndexByte(text, ':')+1:])
}

// joinState is how far the one who holds a ticket has come.
func joinState(t *fsm.Ticket) pb.JoinState {
	switch {
	case t.Waits():
		return pb.JoinState_JOIN_STATE_WAITING
	case t.Request != nil:
		return pb.JoinState_JOIN_STATE_APPROVED
	case len(t.Identity) != 0:
		return pb.JoinState_JOIN_STATE_PINNED
	}
	return pb.JoinState_JOIN_STATE_INVITED
}

func (s *clusterServer) ListJoins(ctx context.Context, r *pb.ListJoinsRequest) (*pb.ListJoinsResponse, error) {
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.ListJoinsResponse]{
		Name: "ListJoins", Call: call(ctx, r),
		Check:  func() error { return nil },
		Repeat: func(fsm.Result) (*pb.ListJoinsResponse, error) { return nil, fsm.ErrRequestReused },
		Run: func(context.Context, fsm.Proposal, kms.Propose) (*pb.ListJoinsResponse, error) {
			st := s.member.State()
			if !st.Initialized() {
				return nil, fsm.ErrNotInitialized
			}
			out := &pb.ListJoinsResponse{IndexToken: kms.IndexToken(st)}
			for _, t := range st.Tickets() {
				if t.Expires <= s.node.Now().Unix() {
					continue
				}
				x := &pb.Join{NodeName: t.Name, TicketId: t.ID, State: joinState(t), Expires: date(t.Expires), NonVoter: !t.Voter}
				if q := t.Request; q != nil {
					x.RaftId, x.PeerAddress, x.ClientAddress, x.Since = q.ID, q.PeerAddress, q.ClientAddress, date(q.Since)
				}
				out.Joins = append(out.Joins, x)
			}
			return out, nil
		},
	})
}

func (s *clusterServer) ApproveJoin(ctx context.Context, r *pb.ApproveJoinRequest) (*pb.ApproveJoinResponse, error) {
	identity, malformed := identityHash(r.GetIdentity())
	answer := func(first fsm.Result) *pb.ApproveJoinResponse {
		return &pb.ApproveJoinResponse{RaftId: first.ID, IndexToken: kms.IndexToken(s.member.State())}
	}
	command := &fsm.ApproveJoin{Name: r.GetNodeName(), Identity: identity}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.ApproveJoinResponse]{
		Name: "ApproveJoin", Target: r.GetNodeName(), Call: call(ctx, r), Params: []any{r.GetNodeName(), identity},
		Check: func() error {
			if malformed != nil {
				return malformed
			}
			return second(s.member.State().Try(command))
		},
		Repeat: func(first fsm.Result) (*pb.ApproveJoinResponse, error) { return answer(first), nil },
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.ApproveJoinResponse, error) {
			result, err := propose(ctx, command)
			if err != nil {
				return nil, err
			}
			return answer(result), nil
		},
	})
}

func (s *clusterServer) RejectJoin(ctx context.Context, r *pb.RejectJoinRequest) (*pb.RejectJoinResponse, error) {
	answer := func() *pb.RejectJoinResponse {
		return &pb.RejectJoinResponse{IndexToken: kms.IndexToken(s.member.State())}
	}
	command := &fsm.RejectJoin{Name: r.GetNodeName()}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.RejectJoinResponse]{
		Name: "RejectJoin", Target: r.GetNodeName(), Call: call(ctx, r), Params: r.GetNodeName(),
		Check:  func() error { return second(s.member.State().Try(command)) },
		Repeat: func(fsm.Result) (*pb.RejectJoinResponse, error) { return answer(), nil },
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.RejectJoinResponse, error) {
			if _, err := propose(ctx, command); err != nil {
				return nil, err
			}
			return answer(), nil
		},
	})
}
