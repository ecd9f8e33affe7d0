package rpc

import (
	"context"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

var generationStates = map[fsm.GenerationState]pb.GenerationState{
	fsm.GenerationProposed:    pb.GenerationState_GENERATION_STATE_PROPOSED,
	fsm.GenerationActive:      pb.GenerationState_GENERATION_STATE_ACTIVE,
	fsm.GenerationDecryptOnly: pb.GenerationState_GENERATION_STATE_DECRYPT_ONLY,
	fsm.GenerationRetired:     pb.GenerationState_GENERATION_STATE_RETIRED,
}

func (s *clusterServer) DescribeDomain(ctx context.Context, r *pb.DescribeDomainRequest) (*pb.DescribeDomainResponse, error) {
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.DescribeDomainResponse]{
		Name: "DescribeDomain", Call: call(ctx, r),
		Check:  func() error { return nil },
		Repeat: func(fsm.Result) (*pb.DescribeDomainResponse, error) { return nil, fsm.ErrRequestReused },
		Run: func(ctx context.Context, _ fsm.Proposal, _ kms.Propose) (*pb.DescribeDomainResponse, error) {
			holdings, err := s.member.Domain(ctx)
			if err != nil {
				return nil, err
			}
			return describeDomain(s.member.State(), holdings), nil
		},
	})
}

func describeDomain(st *fsm.State, holdings map[string]cluster.DomainHolding) *pb.DescribeDomainResponse {
	out := &pb.DescribeDomainResponse{ExposedTo: st.Exposed(), Rewrap: rewrapView(st), IndexToken: kms.IndexToken(st)}
	tokens := st.CountTokens()
	for _, g := range st.Cluster().Generations {
		x := &pb.DomainGeneration{
			Number: g.Number, State: generationStates[g.State], Created: date(g.Created), KeyVersions: uint64(tokens[g.Number]), //nolint:gosec // not negative
			Installed: g.Installed, RecoveryRecipients: uint32(len(g.Recipients)), NoRecovery: g.NoRecovery, //nolint:gosec // a small number
			RecoveryHolders: g.Recipients, RecoveryLacking: st.Uncopied(g),
		}
		if g.Since != 0 {
			x.Since = date(g.Since)
		}
		if g.State == fsm.GenerationProposed {
			x.WaitsFor = waitsFor(st, g)
		}
		out.Generations = append(out.Generations, x)
	}
	for _, m := range st.Members() {
		h, asked := holdings[m.ID]
		if !asked {
			continue
		}
		x := &pb.DomainNode{RaftId: m.ID, Name: m.Name, Holds: h.Holds, Problem: h.Problem}
		if w := h.Waiting; w != nil {
			x.WaitsForGeneration, x.Fingerprint, x.Donors = w.Generation, w.Fingerprint, w.Donors
		}
		out.Nodes = append(out.Nodes, x)
	}
	return out
}

// waitsFor says why a proposed generation is not active yet; empty: nothing is against it.
func waitsFor(st *fsm.State, g fsm.Generation) string {
	err := st.Activable(g)
	if err == nil {
		return ""
	}
	return strings.TrimPrefix(err.Error(), fsm.ErrGeneration.Error()+": ")
}

func (s *clusterServer) RotateDomain(ctx context.Context, r *pb.RotateDomainRequest) (*pb.RotateDomainResponse, error) {
	answer := func(number uint32, err error) (*pb.RotateDomainResponse, error) {
		if err != nil {
			return nil, err
		}
		return &pb.RotateDomainResponse{Generation: number, IndexToken: kms.IndexToken(s.member.State())}, nil
	}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.RotateDomainResponse]{
		Name: "RotateDomain", Call: call(ctx, r), Params: r.GetNoRecovery(),
		Check: func() error {
			return s.member.MayRotateDomain(r.GetNoRecovery())
		},
		Repeat: func(first fsm.Result) (*pb.RotateDomainResponse, error) { return answer(cluster.GenerationOf(first)) },
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.RotateDomainResponse, error) {
			return answer(s.member.RotateDomain(ctx, r.GetNoRecovery(), propose))
		},
	})
}

func (s *clusterServer) RetireGeneration(ctx context.Context, r *pb.RetireGenerationRequest) (*pb.RetireGenerationResponse, error) {
	answer := func() *pb.RetireGenerationResponse {
		return &pb.RetireGenerationResponse{Generation: r.GetGeneration(), IndexToken: kms.IndexToken(s.member.State())}
	}
	command := &fsm.RetireGeneration{Number: r.GetGeneration()}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.RetireGenerationResponse]{
		Name: "RetireGeneration", Target: generationTarget(r.GetGeneration()), Call: call(ctx, r), Params: r.GetGeneration(),
		Check:  func() error { return second(s.member.State().Try(command)) },
		Repeat: func(fsm.Result) (*pb.RetireGenerationResponse, error) { return answer(), nil },
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.RetireGenerationResponse, error) {
			if _, err := propose(ctx, command); err != nil {
				return nil, err
			}
			return answer(), nil
		},
	})
}

// second is what remains of an answer whose error only counts.
func second[T any](_ T, err error) error { return err }
