package rpc

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

type grantServer struct {
	pb.UnimplementedGrantServiceServer
	kms *kms.Service
}

func (s *grantServer) CreateGrant(ctx context.Context, r *pb.CreateGrantRequest) (*pb.CreateGrantResponse, error) {
	p := kms.GrantParams{
		Grantee: r.GetGranteePrincipal(), Retiring: r.GetRetiringPrincipal(), Name: r.GetName(), Parent: r.GetParentGrantId(),
		Expect:     r.GetExpectedRevision(),
		Operations: each(r.GetOperations(), func(op string) fsm.GrantOperation { return fsm.GrantOperation(op) }),
		Constraints: fsm.Constraints{
			Equals: contextTags(r.GetConstraints().GetEncryptionContextEquals()),
			Subset: contextTags(r.GetConstraints().GetEncryptionContextSubset()),
		},
	}
	if r.GetExpirationDate() != nil {
		if err := r.GetExpirationDate().CheckValid(); err != nil {
			return nil, s.kms.Refuse("CreateGrant", call(ctx, r), fmt.Errorf("%w: expiration date: %w", fsm.ErrInvalid, err))
		}
		if p.Expires = r.GetExpirationDate().AsTime(); p.Expires.IsZero() {
			p.Expires = p.Expires.Add(1) // a date all the same
		}
	}
	id, st, err := s.kms.CreateGrant(ctx, call(ctx, r), r.GetKeyId(), p)
	if err != nil {
		return nil, err
	}
	return &pb.CreateGrantResponse{GrantId: id, IndexToken: kms.IndexToken(st)}, nil
}

func contextTags(list []*pb.ContextPair) []fsm.Tag {
	return each(list, func(p *pb.ContextPair) fsm.Tag { return fsm.Tag{Key: p.GetKey(), Value: p.GetValue()} })
}

func contextPairs(list []fsm.Tag) []*pb.ContextPair {
	return each(list, func(t fsm.Tag) *pb.ContextPair { return &pb.ContextPair{Key: t.Key, Value: t.Value} })
}

func grants(st *fsm.State, list []*fsm.Grant) []*pb.Grant {
	cluster := st.Cluster().ID
	return each(list, func(g *fsm.Grant) *pb.Grant {
		out := &pb.Grant{
			GrantId: g.ID.String(), KeyId: kms.KeyARN(cluster, g.Tenant, g.Key), Name: g.Name, GranteePrincipal: g.Grantee, RetiringPrincipal: g.Retiring,
			Operations: each(g.Operations, func(op fsm.GrantOperation) string { return string(op) }),
			Constraints: &pb.GrantConstraints{
				EncryptionContextEquals: contextPairs(g.Constraints.Equals), EncryptionContextSubset: contextPairs(g.Constraints.Subset),
			},
			IssuingPrincipal: g.Issuer, CreationDate: date(g.Created), ExpirationDate: date(g.Expires),
		}
		if g.Parent != uuid.Nil {
			out.ParentGrantId = g.Parent.String()
		}
		return out
	})
}

func (s *grantServer) ListGrants(ctx context.Context, r *pb.ListGrantsRequest) (*pb.ListGrantsResponse, error) {
	p, st, err := s.kms.ListGrants(ctx, call(ctx, r), r.GetKeyId(), r.GetGranteePrincipal(), r.GetGrantId(), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	return &pb.ListGrantsResponse{Grants: grants(st, p.Items), NextMarker: p.Next, IndexToken: kms.IndexToken(st)}, nil
}

func (s *grantServer) ListRetirableGrants(ctx context.Context, r *pb.ListRetirableGrantsRequest) (*pb.ListRetirableGrantsResponse, error) {
	p, st, err := s.kms.ListRetirableGrants(ctx, call(ctx, r), r.GetRetiringPrincipal(), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	return &pb.ListRetirableGrantsResponse{Grants: grants(st, p.Items), NextMarker: p.Next, IndexToken: kms.IndexToken(st)}, nil
}

func (s *grantServer) RetireGrant(ctx context.Context, r *pb.RetireGrantRequest) (*pb.RetireGrantResponse, error) {
	st, err := s.kms.RetireGrant(ctx, call(ctx, r), r.GetKeyId(), r.GetGrantId())
	if err != nil {
		return nil, err
	}
	return &pb.RetireGrantResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *grantServer) RevokeGrant(ctx context.Context, r *pb.RevokeGrantRequest) (*pb.RevokeGrantResponse, error) {
	st, err := s.kms.RevokeGrant(ctx, call(ctx, r), r.GetKeyId(), r.GetGrantId())
	if err != nil {
		return nil, err
	}
	return &pb.RevokeGrantResponse{IndexToken: kms.IndexToken(st)}, nil
}
