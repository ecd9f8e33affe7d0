package main

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// fakeDomain is the domain key: generation 2 is proposed, and becomes active when it was
// looked at three times.
type fakeDomain struct {
	proposed, retired bool
	moved             bool
	looks             int
	moves             int // looks until the rewrapping ends
}

func (n *fakeNode) DescribeDomain(context.Context, *quorumkmsv1.DescribeDomainRequest) (*quorumkmsv1.DescribeDomainResponse, error) {
	d := &n.f.domain
	first := &quorumkmsv1.DomainGeneration{
		Number: 1, State: quorumkmsv1.GenerationState_GENERATION_STATE_ACTIVE, Created: timestamppb.New(fakeEpoch), KeyVersions: 7, NoRecovery: true,
	}
	out := &quorumkmsv1.DescribeDomainResponse{
		Generations: []*quorumkmsv1.DomainGeneration{first},
		Nodes:       []*quorumkmsv1.DomainNode{{RaftId: "raft-n1", Name: "n1", Holds: []uint32{1}}, {RaftId: "raft-n2", Name: "n2", Holds: []uint32{1}}},
		ExposedTo:   []string{"n4\x1b"},
		Rewrap:      d.rewrap(),
	}
	if d.moves > 0 {
		d.moves--
		out.Nodes[0].WaitsForGeneration, out.Nodes[0].Fingerprint, out.Nodes[0].Donors = 1, "SHA256:abcd", []string{"n1"}
		d.moved = d.moves == 0
	}
	if d.moved && out.Rewrap == nil {
		first.KeyVersions = 0
	}
	if !d.proposed {
		return out, nil
	}
	second := &quorumkmsv1.DomainGeneration{Number: 2, Created: timestamppb.New(fakeEpoch), RecoveryRecipients: 2}
	out.Generations, out.ExposedTo = append(out.Generations, second), nil
	switch d.looks++; {
	case d.retired:
		second.State, second.RecoveryRecipients = quorumkmsv1.GenerationState_GENERATION_STATE_RETIRED, 0
	case d.looks < 3:
		second.State, second.WaitsFor = quorumkmsv1.GenerationState_GENERATION_STATE_PROPOSED, "nodes that have not installed generation 2: n2, n3"
		out.Nodes[0].Holds = []uint32{1, 2}
		out.Nodes[1].WaitsForGeneration, out.Nodes[1].Fingerprint, out.Nodes[1].Donors = 2, "SHA256:abcd", []string{"n1", "n5"}
		out.Nodes = append(out.Nodes, &quorumkmsv1.DomainNode{RaftId: "raft-n3", Name: "n3", Problem: "it does not say what it holds:\x1b down"},
			&quorumkmsv1.DomainNode{RaftId: "raft-n4", Name: "n4", WaitsForGeneration: 2, Donors: []string{"n1", "n5"}}) // of the transfer profile cloned
	default:
		first.State, second.State = quorumkmsv1.GenerationState_GENERATION_STATE_DECRYPT_ONLY, quorumkmsv1.GenerationState_GENERATION_STATE_ACTIVE
	}
	return out, nil
}

func (n *fakeNode) RotateDomain(_ context.Context, r *quorumkmsv1.RotateDomainRequest) (*quorumkmsv1.RotateDomainResponse, error) {
	if !r.GetNoRecovery() {
		return nil, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID, "say no_recovery (--no-recovery) to accept that")
	}
	n.f.domain.proposed = true
	return &quorumkmsv1.RotateDomainResponse{Generation: 2}, nil
}

func (n *fakeNode) RetireGeneration(_ context.Context, r *quorumkmsv1.RetireGenerationRequest) (*quorumkmsv1.RetireGenerationResponse, error) {
	switch r.GetGeneration() {
	case 2:
	case 9:
		return nil, fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, "domain key generation 9")
	default:
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_GENERATION_REFUSED, "generation 1 wraps 7 key versions")
	}
	n.f.domain.retired = true
	return &quorumkmsv1.RetireGenerationResponse{Generation: 2}, nil
}

// StartRewrap begins a ceremony that ends when it was looked at three times.
func (n *fakeNode) StartRewrap(_ context.Context, r *quorumkmsv1.StartRewrapRequest) (*quorumkmsv1.StartRewrapResponse, error) {
	if r.GetGeneration() != 1 {
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_GENERATION_REFUSED, "generation 2 is ACTIVE")
	}
	n.f.domain.moves = 3
	return &quorumkmsv1.StartRewrapResponse{Rewrap: n.f.domain.rewrap()}, nil
}

func (n *fakeNode) StopRewrap(context.Context, *quorumkmsv1.StopRewrapRequest) (*quorumkmsv1.StopRewrapResponse, error) {
	n.f.domain.moves = 0
	return &quorumkmsv1.StopRewrapResponse{Remaining: 5}, nil
}

// ApplyRewraps has one outcome after the other, whatever the items are; problems tell the
// request id.
func (n *fakeNode) ApplyRewraps(_ context.Context, r *quorumkmsv1.ApplyRewrapsRequest) (*quorumkmsv1.ApplyRewrapsResponse, error) {
	out := &quorumkmsv1.ApplyRewrapsResponse{}
	for i := range r.GetItems() {
		x := &quorumkmsv1.RewrapResult{Outcome: quorumkmsv1.RewrapOutcome(1 + i%5)} //nolint:gosec // a small number
		if x.GetOutcome() == quorumkmsv1.RewrapOutcome_REWRAP_OUTCOME_REFUSED {
			x.Problem = "other material\x1b, " + r.GetRequestId()
			if r.GetDryRun() {
				x.Problem += ", tried"
			}
		}
		out.Results = append(out.Results, x)
	}
	return out, nil
}

func (d *fakeDomain) rewrap() *quorumkmsv1.Rewrap {
	if d.moves == 0 {
		return nil
	}
	return &quorumkmsv1.Rewrap{Generation: 1, RaftId: "raft-n1", Operator: "olga", Since: timestamppb.New(fakeEpoch), Remaining: uint64(d.moves)} //nolint:gosec // a small number
}
