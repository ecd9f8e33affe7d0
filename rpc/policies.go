package rpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/node/policy"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

type policyServer struct {
	pb.UnimplementedPolicyServiceServer
	kms *kms.Service
}

func (s *policyServer) PutPolicy(ctx context.Context, r *pb.PutPolicyRequest) (*pb.PutPolicyResponse, error) {
	if r.GetText() == "" {
		return nil, s.kms.Refuse("PutPolicy", call(ctx, r), fmt.Errorf("%w: the policy's text is empty; DeletePolicy takes a policy away", fsm.ErrInvalid))
	}
	n, st, err := s.kms.PutPolicy(ctx, call(ctx, r), r.GetKeyId(), r.GetText(), r.ExpectedPolicyRevision)
	if err != nil {
		return nil, err
	}
	return &pb.PutPolicyResponse{Revision: n, IndexToken: kms.IndexToken(st)}, nil
}

func (s *policyServer) DeletePolicy(ctx context.Context, r *pb.DeletePolicyRequest) (*pb.DeletePolicyResponse, error) {
	_, st, err := s.kms.PutPolicy(ctx, call(ctx, r), r.GetKeyId(), "", r.ExpectedPolicyRevision)
	if err != nil {
		return nil, err
	}
	return &pb.DeletePolicyResponse{IndexToken: kms.IndexToken(st)}, nil
}

func policyView(p kms.PolicyView) *pb.Policy {
	out := &pb.Policy{Tenant: p.Tenant, Revision: p.Number, Text: p.Text, CreatedBy: p.By, CreationDate: date(p.Created), Present: p.Present}
	if p.Key != uuid.Nil {
		out.KeyId = p.Key.String()
	}
	return out
}

func (s *policyServer) GetPolicy(ctx context.Context, r *pb.GetPolicyRequest) (*pb.GetPolicyResponse, error) {
	p, st, err := s.kms.GetPolicy(ctx, call(ctx, r), r.GetKeyId(), r.GetRevision())
	if err != nil {
		return nil, err
	}
	return &pb.GetPolicyResponse{Policy: policyView(p), IndexToken: kms.IndexToken(st)}, nil
}

func (s *policyServer) ListPolicyRevisions(ctx context.Context, r *pb.ListPolicyRevisionsRequest) (*pb.ListPolicyRevisionsResponse, error) {
	all, st, err := s.kms.ListPolicyRevisions(ctx, call(ctx, r), r.GetKeyId())
	if err != nil {
		return nil, err
	}
	return &pb.ListPolicyRevisionsResponse{Policies: each(all, policyView), IndexToken: kms.IndexToken(st)}, nil
}

func (s *policyServer) ValidatePolicy(ctx context.Context, r *pb.ValidatePolicyRequest) (*pb.ValidatePolicyResponse, error) {
	wrong, st, err := s.kms.ValidatePolicy(ctx, call(ctx, r), r.GetText())
	if err != nil {
		return nil, err
	}
	out := &pb.ValidatePolicyResponse{IndexToken: kms.IndexToken(st)}
	var all *policy.Error
	switch {
	case errors.As(wrong, &all):
		out.Problems = each(all.Problems, func(p policy.Problem) *pb.PolicyProblem {
			return &pb.PolicyProblem{Line: uint32(p.Line), Column: uint32(p.Column), Text: p.Text} //nolint:gosec // bounded by the text's size
		})
	case wrong != nil:
		out.Problems = []*pb.PolicyProblem{{Line: 1, Column: 1, Text: wrong.Error()}}
	}
	return out, nil
}

func (s *policyServer) ExplainPolicy(ctx context.Context, r *pb.ExplainPolicyRequest) (*pb.ExplainPolicyResponse, error) {
	x, st, err := s.kms.ExplainPolicy(ctx, call(ctx, r), r.GetKeyId(), r.GetPrincipal(), r.GetOperation(), pairs(r.GetEncryptionContext()))
	if err != nil {
		return nil, err
	}
	return &pb.ExplainPolicyResponse{Allowed: x.Allowed, DecidedBy: x.DecidedBy, Reason: x.Reason, Steps: x.Steps, IndexToken: kms.IndexToken(st)}, nil
}
