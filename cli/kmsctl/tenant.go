package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (a *app) tenantCommand() *cobra.Command {
	g := group("tenant", "Make tenants, bound and freeze them",
		a.tenantCreate(), a.tenantList(), a.tenantShow(), a.tenantQuota(), a.tenantFreeze(), a.tenantThaw())
	g.Long = `Make tenants, bound and freeze them.

Cluster operators make tenants and set quotas. Operators, and a tenant's key
administrators, freeze the tenant: each side for itself, nobody thaws what the other
froze. NAME is a tenant's name; where it may be missing, it is your own.

Another thing is --tenant: the tenant that a call acts for, if you belong to none.`
	return g
}

func (a *app) tenantCreate() *cobra.Command {
	var administrator principal
	var maxKeys uint64
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a tenant",
		Long: `Make a tenant. --administrator is its first key administrator, whose certificate
says so: ` + tenantAdminForm("NAME") + `.`,
		Example: "  kmsctl tenant create blue --administrator spiffe://kms.example.org/tenant/blue/admin/bob --max-keys 1000",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			if !strings.Contains(string(administrator), "/tenant/"+args[0]+"/admin/") {
				return usagef("--administrator %q: want %s", administrator, tenantAdminForm(args[0]))
			}
			r, err := kms.Tenants().CreateTenant(ctx, &quorumkmsv1.CreateTenantRequest{
				Name: args[0], Administrator: string(administrator), MaxKeys: maxKeys, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "Tenant %s is there; %s administers it.", args[0], administrator)
		}),
	}
	c.Flags().Var(&administrator, "administrator", "SPIFFE URI of the first key administrator, "+tenantAdminForm("NAME"))
	c.Flags().Uint64Var(&maxKeys, "max-keys", 0, "how many keys it may have (0: as many as the cluster holds)")
	return a.mutates(c)
}

func tenantAdminForm(tenant string) string {
	return "spiffe://TRUST-DOMAIN/tenant/" + tenant + "/admin/ADMINISTRATOR"
}

func (a *app) tenantList() *cobra.Command {
	var p page
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the tenants",
		Example: "  kmsctl tenant list",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			all := &quorumkmsv1.ListTenantsResponse{}
			var err error
			all.Tenants, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.Tenant, string, error) {
				r, err := kms.Tenants().ListTenants(ctx, &quorumkmsv1.ListTenantsRequest{Limit: limit, Marker: marker})
				all.IndexToken = r.GetIndexToken()
				return r.GetTenants(), r.GetNextMarker(), err
			})
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				rows := [][]string{{"TENANT", "KEYS", "QUOTA", "FROZEN", "POLICY", "CREATED", "ADMINISTRATOR"}}
				for _, t := range all.GetTenants() {
					quota := ""
					if t.GetMaxKeys() != 0 {
						quota = strconv.FormatUint(t.GetMaxKeys(), 10)
					}
					rows = append(rows, []string{
						t.GetName(), strconv.FormatUint(t.GetKeyCount(), 10), quota, frozenText(t),
						tenantPolicy(t), timeText(t.GetCreationDate()), t.GetAdministrator(),
					})
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	p.flags(c)
	return c
}

func (a *app) tenantShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show [NAME]",
		Short:   "Show a tenant",
		Example: "  kmsctl tenant show blue",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Tenants().DescribeTenant(ctx, &quorumkmsv1.DescribeTenantRequest{Name: first(args)})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) error { return writeTenant(w, r.GetDescription()) })
		}),
	}
}

func writeTenant(w io.Writer, t *quorumkmsv1.Tenant) error {
	quota := "as many as the cluster holds"
	if t.GetMaxKeys() != 0 {
		quota = strconv.FormatUint(t.GetMaxKeys(), 10)
	}
	return writeFields(w, [][2]string{
		{"Tenant", t.GetName()},
		{"Administrator", t.GetAdministrator()},
		{"Created", timeText(t.GetCreationDate())},
		{"Keys", strconv.FormatUint(t.GetKeyCount(), 10)},
		{"At most", quota},
		{"Frozen", frozenText(t)},
		{"Policy", tenantPolicy(t)},
	})
}

// frozenText says who froze a tenant.
func frozenText(t *quorumkmsv1.Tenant) string {
	var by []string
	if t.GetFrozenByOperator() {
		by = append(by, "by an operator")
	}
	if t.GetFrozenByTenant() {
		by = append(by, "by the tenant")
	}
	return strings.Join(by, " and ")
}

func tenantPolicy(t *quorumkmsv1.Tenant) string {
	if t.GetPolicyRevision() == 0 {
		return "default"
	}
	return revisionText(t.GetPolicyRevision())
}

func (a *app) tenantQuota() *cobra.Command {
	var maxKeys uint64
	c := &cobra.Command{
		Use:     "quota NAME",
		Short:   "Bound how many keys a tenant may have",
		Long:    "Bound how many keys a tenant may have. What it has stays.",
		Example: "  kmsctl tenant quota blue --max-keys 1000",
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		if !c.Flags().Changed("max-keys") {
			return usagef("--max-keys is missing: how many keys, or 0 for as many as the cluster holds")
		}
		r, err := kms.Tenants().SetTenantQuota(ctx, &quorumkmsv1.SetTenantQuotaRequest{
			Name: args[0], MaxKeys: maxKeys, DryRun: a.dryRun, RequestId: a.requestID,
		})
		if err != nil {
			return err
		}
		if maxKeys == 0 {
			return a.printLine(r, "Tenant %s may have as many keys as the cluster holds.", args[0])
		}
		return a.printLine(r, "Tenant %s may have %d keys.", args[0], maxKeys)
	})
	c.Flags().Uint64Var(&maxKeys, "max-keys", 0, "how many keys it may have (0: as many as the cluster holds)")
	return a.mutates(c)
}

func (a *app) tenantFreeze() *cobra.Command {
	return a.yesFlag(a.mutates(&cobra.Command{
		Use:   "freeze [NAME]",
		Short: "Make every key of a tenant unusable",
		Long: `Make every key of a tenant unusable, those that services manage too: on every node
when this returns. kmsctl tenant thaw ends it. The command asks to type the tenant's
name; --yes does without.`,
		Example: "  kmsctl tenant freeze blue",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			if !a.yes && !a.dryRun {
				if err := a.confirmFreeze(ctx, kms, first(args)); err != nil {
					return err
				}
			}
			r, err := kms.Tenants().FreezeTenant(ctx, &quorumkmsv1.FreezeTenantRequest{
				Name: first(args), DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is frozen: no node uses a key of it any more.", tenantOrOwn(args))
		}),
	}))
}

// confirmFreeze shows the tenant and lets the user type its name.
func (a *app) confirmFreeze(ctx context.Context, kms *client.Client, name string) error {
	if !isTerminal(a.stdin) {
		return a.confirm(ctx, "")
	}
	r, err := kms.Tenants().DescribeTenant(ctx, &quorumkmsv1.DescribeTenantRequest{Name: name})
	if err != nil {
		return err
	}
	t := r.GetDescription()
	if err := writeTenant(a.stderr, t); err != nil {
		return err
	}
	return a.confirm(ctx, fmt.Sprintf("No key of tenant %s will be usable.\nType its name: ", clean(t.GetName())), t.GetName())
}

func (a *app) tenantThaw() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "thaw [NAME]",
		Short: "Make the keys of a frozen tenant usable again",
		Long: `Make the keys of a frozen tenant usable again. An operator's freeze is thawed by an
operator, a tenant's own by its key administrators; while one of both stands, the
keys stay unusable. No key changes its own state.`,
		Example: "  kmsctl tenant thaw blue",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Tenants().ThawTenant(ctx, &quorumkmsv1.ThawTenantRequest{
				Name: first(args), DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is thawed, from your side.", tenantOrOwn(args))
		}),
	})
}

// tenantOrOwn names a tenant, at the beginning of a sentence.
func tenantOrOwn(args []string) string {
	if len(args) == 0 {
		return "Your tenant"
	}
	return "Tenant " + args[0]
}
