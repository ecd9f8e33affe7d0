package rpc

import (
	"context"
	"fmt"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

type tenantServer struct {
	pb.UnimplementedTenantServiceServer
	kms *kms.Service
}

// quota reads a number of keys.
func quota(n uint64) (int, error) {
	if n > fsm.MaxKeys {
		return 0, fmt.Errorf("%w: quota of %d keys: must be 0 (none) to %d", fsm.ErrInvalid, n, fsm.MaxKeys)
	}
	return int(n), nil
}

func (s *tenantServer) CreateTenant(ctx context.Context, r *pb.CreateTenantRequest) (*pb.CreateTenantResponse, error) {
	keys, err := quota(r.GetMaxKeys())
	if err != nil {
		return nil, s.kms.Refuse("CreateTenant", call(ctx, r), err)
	}
	st, err := s.kms.CreateTenant(ctx, call(ctx, r), r.GetName(), r.GetAdministrator(), keys)
	if err != nil {
		return nil, err
	}
	return &pb.CreateTenantResponse{IndexToken: kms.IndexToken(st)}, nil
}

func tenantView(t kms.TenantView) *pb.Tenant {
	return &pb.Tenant{
		Name: t.Name, Administrator: t.Administrator, CreationDate: date(t.Created), FrozenByOperator: t.FrozenByOperator, FrozenByTenant: t.FrozenByTenant,
		MaxKeys: uint64(t.MaxKeys), KeyCount: uint64(t.Keys), PolicyRevision: t.Policy, //nolint:gosec // not negative
	}
}

func (s *tenantServer) DescribeTenant(ctx context.Context, r *pb.DescribeTenantRequest) (*pb.DescribeTenantResponse, error) {
	t, st, err := s.kms.DescribeTenant(ctx, call(ctx, r), r.GetName())
	if err != nil {
		return nil, err
	}
	return &pb.DescribeTenantResponse{Description: tenantView(t), IndexToken: kms.IndexToken(st)}, nil
}

func (s *tenantServer) ListTenants(ctx context.Context, r *pb.ListTenantsRequest) (*pb.ListTenantsResponse, error) {
	p, st, err := s.kms.ListTenants(ctx, call(ctx, r), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	return &pb.ListTenantsResponse{Tenants: each(p.Items, tenantView), NextMarker: p.Next, IndexToken: kms.IndexToken(st)}, nil
}

func (s *tenantServer) SetTenantQuota(ctx context.Context, r *pb.SetTenantQuotaRequest) (*pb.SetTenantQuotaResponse, error) {
	keys, err := quota(r.GetMaxKeys())
	if err != nil {
		return nil, s.kms.Refuse("SetTenantQuota", call(ctx, r), err)
	}
	st, err := s.kms.SetTenantQuota(ctx, call(ctx, r), r.GetName(), keys)
	if err != nil {
		return nil, err
	}
	return &pb.SetTenantQuotaResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *tenantServer) FreezeTenant(ctx context.Context, r *pb.FreezeTenantRequest) (*pb.FreezeTenantResponse, error) {
	st, err := s.kms.FreezeTenant(ctx, call(ctx, r), r.GetName())
	if err != nil {
		return nil, err
	}
	return &pb.FreezeTenantResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *tenantServer) ThawTenant(ctx context.Context, r *pb.ThawTenantRequest) (*pb.ThawTenantResponse, error) {
	st, err := s.kms.ThawTenant(ctx, call(ctx, r), r.GetName())
	if err != nil {
		return nil, err
	}
	return &pb.ThawTenantResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *tenantServer) DisablePrincipal(ctx context.Context, r *pb.DisablePrincipalRequest) (*pb.DisablePrincipalResponse, error) {
	st, err := s.kms.DisablePrincipal(ctx, call(ctx, r), r.GetPrincipal())
	if err != nil {
		return nil, err
	}
	return &pb.DisablePrincipalResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *tenantServer) EnablePrincipal(ctx context.Context, r *pb.EnablePrincipalRequest) (*pb.EnablePrincipalResponse, error) {
	st, err := s.kms.EnablePrincipal(ctx, call(ctx, r), r.GetPrincipal())
	if err != nil {
		return nil, err
	}
	return &pb.EnablePrincipalResponse{IndexToken: kms.IndexToken(st)}, nil
}

func (s *tenantServer) ListDisabledPrincipals(ctx context.Context, r *pb.ListDisabledPrincipalsRequest) (*pb.ListDisabledPrincipalsResponse, error) {
	p, st, err := s.kms.ListDisabledPrincipals(ctx, call(ctx, r), r.GetLimit(), r.GetMarker())
	if err != nil {
		return nil, err
	}
	return &pb.ListDisabledPrincipalsResponse{
		Principals: each(p.Items, func(d *fsm.DisabledPrincipal) *pb.DisabledPrincipal {
			return &pb.DisabledPrincipal{Principal: d.Principal, Tenant: d.Tenant, DisabledBy: d.By, Since: date(d.Since)}
		}),
		NextMarker: p.Next, IndexToken: kms.IndexToken(st),
	}, nil
}
