package rpc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func generationTarget(number uint32) string {
	return "generation " + strconv.FormatUint(uint64(number), 10)
}

// rewrapView is the ceremony under way; nil: none.
func rewrapView(st *fsm.State) *pb.Rewrap {
	now, ok := st.Rewrapping()
	if !ok {
		return nil
	}
	return &pb.Rewrap{
		Generation: now.Generation, RaftId: now.Node, Operator: now.By, Since: date(now.Since),
		Remaining: uint64(st.CountTokens()[now.Generation]), //nolint:gosec // not negative
	}
}

func (s *clusterServer) StartRewrap(ctx context.Context, r *pb.StartRewrapRequest) (*pb.StartRewrapResponse, error) {
	answer := func() *pb.StartRewrapResponse {
		st := s.member.State()
		return &pb.StartRewrapResponse{Rewrap: rewrapView(st), IndexToken: kms.IndexToken(st)}
	}
	command := &fsm.BeginRewrap{Generation: r.GetGeneration(), Node: s.member.ID()}
	target := generationTarget(r.GetGeneration())
	if r.GetNode() != "" {
		target += " by " + r.GetNode()
	}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.StartRewrapResponse]{
		Name: "StartRewrap", Target: target, Call: call(ctx, r), Params: []any{r.GetGeneration(), r.GetNode()},
		Check: func() error {
			if r.GetNode() != "" {
				m := s.member.State().MemberByName(r.GetNode())
				if m == nil {
					var ok bool
					if m, ok = s.member.State().Member(r.GetNode()); !ok {
						return fmt.Errorf("%w: node %q", fsm.ErrNotFound, r.GetNode())
					}
				}
				command.Node = m.ID
			}
			return second(s.member.State().Try(command))
		},
		Repeat: func(fsm.Result) (*pb.StartRewrapResponse, error) { return answer(), nil },
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.StartRewrapResponse, error) {
			if _, err := propose(ctx, command); err != nil {
				return nil, err
			}
			return answer(), nil
		},
	})
}

func (s *clusterServer) StopRewrap(ctx context.Context, r *pb.StopRewrapRequest) (*pb.StopRewrapResponse, error) {
	answer := func() *pb.StopRewrapResponse {
		st := s.member.State()
		return &pb.StopRewrapResponse{Remaining: uint64(st.CountTokens()[r.GetGeneration()]), IndexToken: kms.IndexToken(st)} //nolint:gosec // not negative
	}
	command := &fsm.EndRewrap{Generation: r.GetGeneration()}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.StopRewrapResponse]{
		Name: "StopRewrap", Target: generationTarget(r.GetGeneration()), Call: call(ctx, r), Params: r.GetGeneration(),
		Check:  func() error { return second(s.member.State().Try(command)) },
		Repeat: func(fsm.Result) (*pb.StopRewrapResponse, error) { return answer(), nil },
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.StopRewrapResponse, error) {
			if _, err := propose(ctx, command); err != nil {
				return nil, err
			}
			return answer(), nil
		},
	})
}

func (s *clusterServer) ApplyRewraps(ctx context.Context, r *pb.ApplyRewrapsRequest) (*pb.ApplyRewrapsResponse, error) {
	var items []kms.RewrapItem
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.ApplyRewrapsResponse]{
		Name: "ApplyRewraps", Target: strconv.Itoa(len(r.GetItems())) + " key versions", Call: call(ctx, r), Params: r.GetItems(),
		Check: func() (err error) {
			items, err = rewrapItems(r.GetItems())
			return err
		},
		Try: func(ctx context.Context) (*pb.ApplyRewrapsResponse, error) {
			return s.rewrapResults(s.kms.TryRewraps(ctx, items))
		},
		// What was applied is seen in the state: asked again, the items say so.
		Repeat: func(fsm.Result) (*pb.ApplyRewrapsResponse, error) {
			items, err := rewrapItems(r.GetItems())
			if err != nil {
				return nil, err
			}
			return s.rewrapResults(s.kms.RepeatRewraps(items))
		},
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.ApplyRewrapsResponse, error) {
			return s.rewrapResults(s.kms.ApplyRewraps(ctx, items, propose))
		},
	})
}

func (s *clusterServer) rewrapResults(results []kms.RewrapResult, err error) (*pb.ApplyRewrapsResponse, error) {
	if err != nil {
		return nil, err
	}
	out := &pb.ApplyRewrapsResponse{IndexToken: kms.IndexToken(s.member.State())}
	for _, x := range results {
		result := &pb.RewrapResult{Outcome: pb.RewrapOutcome(x.Outcome)} //nolint:gosec // the same numbers: TestRewrapOutcomes
		if x.Problem != nil {
			result.Problem = x.Problem.Error()
		}
		out.Results = append(out.Results, result)
	}
	return out, nil
}

func rewrapItems(all []*pb.RewrapItem) ([]kms.RewrapItem, error) {
	if len(all) == 0 || len(all) > kms.MaxRewraps {
		return nil, fmt.Errorf("%w: %d items: must be 1 to %d", fsm.ErrInvalid, len(all), kms.MaxRewraps)
	}
	items := make([]kms.RewrapItem, len(all))
	for i, x := range all {
		id, err := uuid.Parse(x.GetKeyId())
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: item %d: key id %.100q is no UUID", fsm.ErrInvalid, i, x.GetKeyId())
		case x.GetVersion() == 0:
			return nil, fmt.Errorf("%w: item %d: version is missing", fsm.ErrInvalid, i)
		case len(x.GetOldSha256()) != sha256.Size:
			return nil, fmt.Errorf("%w: item %d: old_sha256 has %d bytes, must be %d", fsm.ErrInvalid, i, len(x.GetOldSha256()), sha256.Size)
		case len(x.GetToken()) == 0 || len(x.GetToken()) > fsm.MaxToken:
			return nil, fmt.Errorf("%w: item %d: token has %d bytes, must be 1 to %d", fsm.ErrInvalid, i, len(x.GetToken()), fsm.MaxToken)
		}
		items[i] = kms.RewrapItem{Key: id, Version: x.GetVersion(), Old: x.GetOldSha256(), Token: x.GetToken()}
	}
	return items, nil
}
