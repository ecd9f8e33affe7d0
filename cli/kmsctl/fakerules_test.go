package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// callerOf is the caller's SPIFFE URI.
func callerOf(ctx context.Context) string {
	p, _ := peer.FromContext(ctx)
	return p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].URIs[0].String()
}

func isOperator(ctx context.Context) bool { return callerOf(ctx) == operatorURI }

func (f *fake) CreateGrant(ctx context.Context, r *quorumkmsv1.CreateGrantRequest) (*quorumkmsv1.CreateGrantResponse, error) {
	k, err := f.change(r.GetKeyId(), r.GetExpectedRevision(), func(*fakeKey) error { return nil })
	if err != nil {
		return nil, err
	}
	if r.GetName() == "lost" {
		return nil, fakeError(codes.Unavailable, quorumkmsv1.Reason_REASON_OUTCOME_UNKNOWN, "lost")
	}
	id := fmt.Sprintf("grant-%d", len(f.grants)+1)
	f.grants = append(f.grants, &quorumkmsv1.Grant{
		GrantId: id, KeyId: k.meta.GetArn(), Name: r.GetName(), GranteePrincipal: r.GetGranteePrincipal(),
		RetiringPrincipal: r.GetRetiringPrincipal(), Operations: r.GetOperations(), Constraints: r.GetConstraints(),
		IssuingPrincipal: callerOf(ctx), ParentGrantId: r.GetParentGrantId(),
		CreationDate: timestamppb.New(fakeEpoch), ExpirationDate: r.GetExpirationDate(),
	})
	return &quorumkmsv1.CreateGrantResponse{GrantId: id}, nil
}

func (f *fake) ListGrants(_ context.Context, r *quorumkmsv1.ListGrantsRequest) (*quorumkmsv1.ListGrantsResponse, error) {
	arn := ""
	if r.GetKeyId() != "" || r.GetGranteePrincipal() == "" {
		k, err := f.find(r.GetKeyId())
		if err != nil {
			return nil, err
		}
		arn = k.meta.GetArn()
	}
	var all []*quorumkmsv1.Grant
	for _, g := range f.grants {
		if (arn == "" || g.GetKeyId() == arn) && (r.GetGrantId() == "" || r.GetGrantId() == g.GetGrantId()) &&
			(r.GetGranteePrincipal() == "" || r.GetGranteePrincipal() == g.GetGranteePrincipal()) {
			all = append(all, g)
		}
	}
	items, next := paged(all, r.GetLimit(), r.GetMarker())
	return &quorumkmsv1.ListGrantsResponse{Grants: items, NextMarker: next}, nil
}

func (f *fake) ListRetirableGrants(ctx context.Context, r *quorumkmsv1.ListRetirableGrantsRequest) (*quorumkmsv1.ListRetirableGrantsResponse, error) {
	who := r.GetRetiringPrincipal()
	if who == "" {
		who = callerOf(ctx)
	}
	var all []*quorumkmsv1.Grant
	for _, g := range f.grants {
		if g.GetRetiringPrincipal() == who {
			all = append(all, g)
		}
	}
	items, next := paged(all, r.GetLimit(), r.GetMarker())
	return &quorumkmsv1.ListRetirableGrantsResponse{Grants: items, NextMarker: next}, nil
}

func (f *fake) endGrant(key, grant string) error {
	if _, err := f.find(key); err != nil {
		return err
	}
	i := slices.IndexFunc(f.grants, func(g *quorumkmsv1.Grant) bool { return g.GetGrantId() == grant })
	if i < 0 {
		return fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, fmt.Sprintf("grant %q not found", grant))
	}
	f.grants = slices.Delete(f.grants, i, i+1)
	return nil
}

func (f *fake) RetireGrant(_ context.Context, r *quorumkmsv1.RetireGrantRequest) (*quorumkmsv1.RetireGrantResponse, error) {
	return &quorumkmsv1.RetireGrantResponse{}, f.endGrant(r.GetKeyId(), r.GetGrantId())
}

func (f *fake) RevokeGrant(_ context.Context, r *quorumkmsv1.RevokeGrantRequest) (*quorumkmsv1.RevokeGrantResponse, error) {
	return &quorumkmsv1.RevokeGrantResponse{}, f.endGrant(r.GetKeyId(), r.GetGrantId())
}

const defaultPolicy = "permit (principal, action, resource);\n"

// problemsOf: every "!" of a policy is one.
func problemsOf(text string) []*quorumkmsv1.PolicyProblem {
	var out []*quorumkmsv1.PolicyProblem
	for i, line := range strings.Split(text, "\n") {
		for j, r := range line {
			if r == '!' {
				out = append(out, &quorumkmsv1.PolicyProblem{Line: uint32(i) + 1, Column: uint32(j) + 1, Text: "unexpected \"!\"\x1b"})
			}
		}
	}
	return out
}

// policyKey is the name of a policy in f.policies, and its history.
func (f *fake) policyKey(key string) (string, []*quorumkmsv1.Policy, error) {
	if key == "" {
		return "", f.policies[""], nil
	}
	k, err := f.find(key)
	if err != nil {
		return "", nil, err
	}
	return k.meta.GetKeyId(), f.policies[k.meta.GetKeyId()], nil
}

// setPolicy appends a revision; text "" deletes.
func (f *fake) setPolicy(ctx context.Context, key, text string, expected *uint32) (uint32, error) {
	id, all, err := f.policyKey(key)
	if err != nil {
		return 0, err
	}
	n := uint32(len(all))
	present := n
	if n > 0 && all[n-1].GetText() == "" {
		present = 0
	}
	if expected != nil && *expected != present {
		return 0, fakeError(codes.Aborted, quorumkmsv1.Reason_REASON_CONFLICT, fmt.Sprintf("the policy is at revision %d", present))
	}
	if text == "" && present == 0 {
		return 0, fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, "no policy")
	}
	f.policies[id] = append(all, &quorumkmsv1.Policy{
		KeyId: id, Tenant: "default", Revision: n + 1, Text: text, CreatedBy: callerOf(ctx), CreationDate: timestamppb.New(fakeEpoch),
	})
	return n + 1, nil
}

func (f *fake) PutPolicy(ctx context.Context, r *quorumkmsv1.PutPolicyRequest) (*quorumkmsv1.PutPolicyResponse, error) {
	switch {
	case len(problemsOf(r.GetText())) > 0:
		return nil, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_POLICY_INVALID, "policy is invalid")
	case strings.HasPrefix(r.GetText(), "forbid (principal,"):
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_POLICY_LOCKOUT, "nobody could change it again")
	}
	n, err := f.setPolicy(ctx, r.GetKeyId(), r.GetText(), r.ExpectedPolicyRevision)
	return &quorumkmsv1.PutPolicyResponse{Revision: n}, err
}

func (f *fake) DeletePolicy(ctx context.Context, r *quorumkmsv1.DeletePolicyRequest) (*quorumkmsv1.DeletePolicyResponse, error) {
	_, err := f.setPolicy(ctx, r.GetKeyId(), "", r.ExpectedPolicyRevision)
	return &quorumkmsv1.DeletePolicyResponse{}, err
}

func (f *fake) GetPolicy(_ context.Context, r *quorumkmsv1.GetPolicyRequest) (*quorumkmsv1.GetPolicyResponse, error) {
	id, all, err := f.policyKey(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	n := r.GetRevision()
	if n == 0 {
		n = uint32(len(all))
	}
	switch {
	case n == 0 && id == "":
		return &quorumkmsv1.GetPolicyResponse{Policy: &quorumkmsv1.Policy{Tenant: "default", Text: defaultPolicy, Present: true}}, nil
	case n == 0:
		return &quorumkmsv1.GetPolicyResponse{Policy: &quorumkmsv1.Policy{KeyId: id, Tenant: "default"}}, nil
	case int(n) > len(all):
		return nil, fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, fmt.Sprintf("no revision %d", n))
	}
	return &quorumkmsv1.GetPolicyResponse{Policy: all[n-1]}, nil
}

func (f *fake) ListPolicyRevisions(_ context.Context, r *quorumkmsv1.ListPolicyRevisionsRequest) (*quorumkmsv1.ListPolicyRevisionsResponse, error) {
	_, all, err := f.policyKey(r.GetKeyId())
	if err != nil {
		return nil, err
	}
	out := &quorumkmsv1.ListPolicyRevisionsResponse{}
	for i, p := range slices.Backward(all) {
		p.Present = i == len(all)-1 && p.GetText() != ""
		out.Policies = append(out.Policies, p)
	}
	return out, nil
}

func (f *fake) ValidatePolicy(_ context.Context, r *quorumkmsv1.ValidatePolicyRequest) (*quorumkmsv1.ValidatePolicyResponse, error) {
	return &quorumkmsv1.ValidatePolicyResponse{Problems: problemsOf(r.GetText())}, nil
}

func (f *fake) ExplainPolicy(_ context.Context, r *quorumkmsv1.ExplainPolicyRequest) (*quorumkmsv1.ExplainPolicyResponse, error) {
	out := &quorumkmsv1.ExplainPolicyResponse{
		Allowed: r.GetPrincipal() == adminURI, DecidedBy: "the tenant's policy, line 1",
		Steps: []string{"tenant default is not frozen", fmt.Sprintf("%s on %q with %d pairs", r.GetOperation(), r.GetKeyId(), len(r.GetEncryptionContext()))},
	}
	if !out.GetAllowed() {
		out.DecidedBy, out.Reason = "", "no statement permits it"
	}
	return out, nil
}

func (f *fake) tenant(ctx context.Context, name string) (*quorumkmsv1.Tenant, error) {
	if name == "" {
		if name = tenantOf(ctx, nil); isOperator(ctx) {
			name = "default"
		}
	}
	for _, t := range f.tenants {
		if t.GetName() == name {
			return t, nil
		}
	}
	return nil, fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, fmt.Sprintf("tenant %q not found", name))
}

func (f *fake) CreateTenant(ctx context.Context, r *quorumkmsv1.CreateTenantRequest) (*quorumkmsv1.CreateTenantResponse, error) {
	if !isOperator(ctx) {
		return nil, fakeError(codes.PermissionDenied, quorumkmsv1.Reason_REASON_DENIED, "operators may")
	}
	if _, err := f.tenant(ctx, r.GetName()); err == nil {
		return nil, fakeError(codes.AlreadyExists, quorumkmsv1.Reason_REASON_EXISTS, "tenant exists")
	}
	f.tenants = append(f.tenants, &quorumkmsv1.Tenant{
		Name: r.GetName(), Administrator: r.GetAdministrator(), MaxKeys: r.GetMaxKeys(), CreationDate: timestamppb.New(fakeEpoch), PolicyRevision: 2,
	})
	return &quorumkmsv1.CreateTenantResponse{}, nil
}

func (f *fake) DescribeTenant(ctx context.Context, r *quorumkmsv1.DescribeTenantRequest) (*quorumkmsv1.DescribeTenantResponse, error) {
	t, err := f.tenant(ctx, r.GetName())
	return &quorumkmsv1.DescribeTenantResponse{Description: t}, err
}

func (f *fake) ListTenants(_ context.Context, r *quorumkmsv1.ListTenantsRequest) (*quorumkmsv1.ListTenantsResponse, error) {
	items, next := paged(f.tenants, r.GetLimit(), r.GetMarker())
	return &quorumkmsv1.ListTenantsResponse{Tenants: items, NextMarker: next}, nil
}

func (f *fake) SetTenantQuota(ctx context.Context, r *quorumkmsv1.SetTenantQuotaRequest) (*quorumkmsv1.SetTenantQuotaResponse, error) {
	t, err := f.tenant(ctx, r.GetName())
	if err == nil {
		t.MaxKeys = r.GetMaxKeys()
	}
	return &quorumkmsv1.SetTenantQuotaResponse{}, err
}

func (f *fake) freeze(ctx context.Context, name string, on bool) error {
	t, err := f.tenant(ctx, name)
	if err != nil {
		return err
	}
	if isOperator(ctx) {
		t.FrozenByOperator = on
	} else {
		t.FrozenByTenant = on
	}
	return nil
}

func (f *fake) FreezeTenant(ctx context.Context, r *quorumkmsv1.FreezeTenantRequest) (*quorumkmsv1.FreezeTenantResponse, error) {
	return &quorumkmsv1.FreezeTenantResponse{}, f.freeze(ctx, r.GetName(), true)
}

func (f *fake) ThawTenant(ctx context.Context, r *quorumkmsv1.ThawTenantRequest) (*quorumkmsv1.ThawTenantResponse, error) {
	return &quorumkmsv1.ThawTenantResponse{}, f.freeze(ctx, r.GetName(), false)
}

func (f *fake) DisablePrincipal(ctx context.Context, r *quorumkmsv1.DisablePrincipalRequest) (*quorumkmsv1.DisablePrincipalResponse, error) {
	d := &quorumkmsv1.DisabledPrincipal{Principal: r.GetPrincipal(), DisabledBy: callerOf(ctx), Since: timestamppb.New(fakeEpoch)}
	if !isOperator(ctx) {
		d.Tenant = "default"
	}
	f.disabled = append(f.disabled, d)
	return &quorumkmsv1.DisablePrincipalResponse{}, nil
}

func (f *fake) EnablePrincipal(_ context.Context, r *quorumkmsv1.EnablePrincipalRequest) (*quorumkmsv1.EnablePrincipalResponse, error) {
	before := len(f.disabled)
	f.disabled = slices.DeleteFunc(f.disabled, func(d *quorumkmsv1.DisabledPrincipal) bool { return d.GetPrincipal() == r.GetPrincipal() })
	if len(f.disabled) == before {
		return nil, fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, "principal is not disabled")
	}
	return &quorumkmsv1.EnablePrincipalResponse{}, nil
}

func (f *fake) ListDisabledPrincipals(_ context.Context, r *quorumkmsv1.ListDisabledPrincipalsRequest) (*quorumkmsv1.ListDisabledPrincipalsResponse, error) {
	items, next := paged(f.disabled, r.GetLimit(), r.GetMarker())
	return &quorumkmsv1.ListDisabledPrincipalsResponse{Principals: items, NextMarker: next}, nil
}
