package rpc

import (
	"cmp"
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (s *clusterServer) RecoveryPlan(ctx context.Context, r *pb.RecoveryPlanRequest) (*pb.RecoveryPlanResponse, error) {
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.RecoveryPlanResponse]{
		Name: "RecoveryPlan", Target: s.node.Name, Call: call(ctx, r),
		Check:  func() error { return nil },
		Repeat: func(fsm.Result) (*pb.RecoveryPlanResponse, error) { return nil, fsm.ErrRequestReused },
		Run: func(ctx context.Context, _ fsm.Proposal, _ kms.Propose) (*pb.RecoveryPlanResponse, error) {
			p, err := s.member.PlanRecovery(ctx)
			if err != nil {
				return nil, err
			}
			missed, err := s.missed(p)
			if err != nil {
				return nil, err
			}
			return s.plan(p, missed), nil
		},
	})
}

// missed is what the journals know and this node lacks.
func (s *clusterServer) missed(p cluster.RecoveryPlan) (archive.Missed, error) {
	last := uint64(0)
	for _, m := range p.Members {
		if m.ID == s.member.ID() {
			last = m.Found.LastIndex
		}
	}
	return s.archive.Missed(p.State, last)
}

func (s *clusterServer) plan(p cluster.RecoveryPlan, missed archive.Missed) *pb.RecoveryPlanResponse {
	c := p.State.Cluster()
	out := &pb.RecoveryPlanResponse{
		ClusterId: c.ID.String(), RecoveryEpoch: c.RecoveryEpoch, RaftId: s.member.ID(), NodeName: s.node.Name,
		Wait: durationpb.New(p.Wait), KeyCount: uint64(p.State.KeyCount()), IndexToken: kms.IndexToken(s.member.State()), //nolint:gosec // not negative
		Members: each(p.Members, func(m cluster.Survivor) *pb.Survivor {
			return &pb.Survivor{
				RaftId: m.ID, Name: m.Name, PeerAddress: m.PeerAddress, ClientAddress: m.ClientAddress, Votes: m.Votes,
				Answers: m.Answers, Problem: m.Problem, LastLogTerm: m.Found.LastTerm, LastLogIndex: m.Found.LastIndex,
				AppliedIndex: m.Found.Applied, LeaderId: m.Found.Leader,
			}
		}),
	}
	out.JournalDirectory, out.JournalProblem, out.MissedRestrictions = missed.Dir, missed.Problem, uint64(len(missed.Replay))
	if !missed.Until.IsZero() {
		out.JournalTime = timestamppb.New(missed.Until)
	}
	if p.Refusal != nil {
		out.Refusal = p.Refusal.Error()
	}
	return out
}

func (s *clusterServer) Recover(ctx context.Context, r *pb.RecoverRequest) (*pb.RecoverResponse, error) {
	want := cluster.Recovery{Epoch: r.GetRecoveryEpoch(), Node: r.GetNode(), Dead: r.GetDeadNodes()}
	want.Cluster, _ = uuid.Parse(r.GetClusterId()) // what is none is not the cluster's
	answer := func() *pb.RecoverResponse {
		st := s.member.State()
		return &pb.RecoverResponse{RaftId: s.member.ID(), RecoveryEpoch: st.Cluster().RecoveryEpoch, IndexToken: kms.IndexToken(st)}
	}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.RecoverResponse]{
		Name: "Recover", Target: r.GetNode(), Call: call(ctx, r),
		Params: []any{r.GetClusterId(), r.GetRecoveryEpoch(), r.GetNode(), r.GetDeadNodes(), r.GetMissedRestrictions(), r.GetJournalProblem()},
		Check: func() error {
			p, err := s.member.CheckRecovery(ctx, want)
			if err != nil {
				return err
			}
			missed, err := s.missed(p)
			if err != nil {
				return err
			}
			if uint64(len(missed.Replay)) != r.GetMissedRestrictions() || missed.Problem != r.GetJournalProblem() {
				return fmt.Errorf("%w: the journals hold something else than was shown (now %d restrictions to make again; %s): look again with --dry-run",
					cluster.ErrRecovery, len(missed.Replay), cmp.Or(missed.Problem, "no problem"))
			}
			want.Replay = missed.Replay
			return nil
		},
		Repeat: func(fsm.Result) (*pb.RecoverResponse, error) {
			if err := s.member.WaitRetired(ctx); err != nil {
				return nil, err
			}
			return answer(), nil
		},
		Run: func(ctx context.Context, p fsm.Proposal, _ kms.Propose) (*pb.RecoverResponse, error) {
			want.Proposal = p
			if _, err := s.member.Recover(ctx, want); err != nil {
				return nil, err
			}
			return answer(), nil
		},
	})
}
