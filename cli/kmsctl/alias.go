package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const aliasPrefix = "alias/"

func (a *app) aliasCommand() *cobra.Command {
	g := group("alias", "Give keys second names", a.aliasCreate(), a.aliasUpdate(), a.aliasDelete(), a.aliasList())
	g.Long = `Give keys second names, which stay when another key takes over.

NAME begins with alias/. KEY is a key's id or its ARN.`
	return g
}

func (a *app) aliasCreate() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "create NAME KEY",
		Short:   "Give a key an alias",
		Example: "  kmsctl key alias create alias/volumes 5b1c6a52-6f0e-4a7b-9a55-0e6f0c9d2f11",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().CreateAlias(ctx, &quorumkmsv1.CreateAliasRequest{
				AliasName: args[0], KeyId: args[1],
				ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s names %s.", args[0], args[1])
		}),
	})
}

func (a *app) aliasUpdate() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "update NAME KEY",
		Short:   "Let an alias name another key",
		Example: "  kmsctl key alias update alias/volumes 0d0c7d65-3f0b-4c43-b0a8-4d4d3f7d9e52",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().UpdateAlias(ctx, &quorumkmsv1.UpdateAliasRequest{
				AliasName: args[0], KeyId: args[1],
				ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s now names %s.", args[0], args[1])
		}),
	})
}

func (a *app) aliasDelete() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:     "delete NAME",
		Short:   "Delete an alias; the key stays",
		Example: "  kmsctl key alias delete alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().DeleteAlias(ctx, &quorumkmsv1.DeleteAliasRequest{
				AliasName: args[0], DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is deleted.", args[0])
		}),
	})
}

func (a *app) aliasList() *cobra.Command {
	var p page
	c := &cobra.Command{
		Use:     "list [KEY]",
		Short:   "List the aliases of a key, or of all keys of the tenant",
		Example: "  kmsctl key alias list",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			all := &quorumkmsv1.ListAliasesResponse{}
			var err error
			all.Aliases, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.Alias, string, error) {
				r, err := kms.Keys().ListAliases(ctx, &quorumkmsv1.ListAliasesRequest{KeyId: first(args), Limit: limit, Marker: marker})
				all.IndexToken = r.GetIndexToken()
				return r.GetAliases(), r.GetNextMarker(), err
			})
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				rows := [][]string{{"ALIAS", "KEY", "UPDATED"}}
				for _, alias := range all.GetAliases() {
					rows = append(rows, []string{alias.GetName(), alias.GetKeyId(), timeText(alias.GetLastUpdatedDate())})
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	p.flags(c)
	return c
}

// first is an optional argument.
func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
