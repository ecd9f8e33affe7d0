package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (a *app) principalCommand() *cobra.Command {
	g := group("principal", "Say who may do nothing any more", a.principalDisable(), a.principalEnable(), a.principalList())
	g.Long = `Say who may do nothing any more, whatever their certificates, policies and grants say.

PRINCIPAL is a SPIFFE URI. Cluster operators, and a tenant's key administrators,
disable principals: each side for itself, nobody enables whom the other disabled.`
	return g
}

func (a *app) principalDisable() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:     "disable PRINCIPAL",
		Short:   "Let a principal do nothing any more: on every node when this returns",
		Example: "  kmsctl principal disable spiffe://kms.example.org/tenant/blue/user/mallory",
		RunE: a.onPrincipal(func(ctx context.Context, kms *client.Client, who string) error {
			r, err := kms.Tenants().DisablePrincipal(ctx, &quorumkmsv1.DisablePrincipalRequest{
				Principal: who, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is disabled: no node lets it do anything.", who)
		}),
	})
}

func (a *app) principalEnable() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:     "enable PRINCIPAL",
		Short:   "Let a principal that was disabled act again",
		Example: "  kmsctl principal enable spiffe://kms.example.org/tenant/blue/user/mallory",
		RunE: a.onPrincipal(func(ctx context.Context, kms *client.Client, who string) error {
			r, err := kms.Tenants().EnablePrincipal(ctx, &quorumkmsv1.EnablePrincipalRequest{
				Principal: who, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is enabled.", who)
		}),
	})
}

// onPrincipal is remote for commands with the argument PRINCIPAL.
func (a *app) onPrincipal(f func(ctx context.Context, kms *client.Client, who string) error) func(*cobra.Command, []string) error {
	return a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		var who principal
		if err := who.Set(args[0]); err != nil {
			return usagef("PRINCIPAL %w", err)
		}
		return f(ctx, kms, string(who))
	})
}

func (a *app) principalList() *cobra.Command {
	var p page
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the principals that are disabled",
		Example: "  kmsctl principal list",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			all := &quorumkmsv1.ListDisabledPrincipalsResponse{}
			var err error
			all.Principals, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.DisabledPrincipal, string, error) {
				r, err := kms.Tenants().ListDisabledPrincipals(ctx, &quorumkmsv1.ListDisabledPrincipalsRequest{Limit: limit, Marker: marker})
				all.IndexToken = r.GetIndexToken()
				return r.GetPrincipals(), r.GetNextMarker(), err
			})
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				rows := [][]string{{"PRINCIPAL", "SINCE", "SIDE", "DISABLED BY"}}
				for _, d := range all.GetPrincipals() {
					side := "operators"
					if d.GetTenant() != "" {
						side = "tenant " + d.GetTenant()
					}
					rows = append(rows, []string{d.GetPrincipal(), timeText(d.GetSince()), side, d.GetDisabledBy()})
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	p.flags(c)
	return c
}
