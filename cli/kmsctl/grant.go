package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// grantOperations are what a grant may allow.
var grantOperations = []string{
	"Decrypt", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo",
	"DescribeKey", "CreateGrant", "RetireGrant",
	"Sign", "Verify", "GetPublicKey", "GenerateMac", "VerifyMac", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
}

func (a *app) grantCommand() *cobra.Command {
	g := group("grant", "Let one principal use one key",
		a.grantCreate(), a.grantList(), a.grantShow(), a.grantRetirable(), a.grantRetire(), a.grantRevoke())
	g.Long = `Let one principal use one key: for some operations, narrowed to encryption contexts,
for a time. A policy that forbids beats every grant.

KEY is a key's id, its ARN, or an alias such as alias/volumes. GRANT is a grant's id.`
	return g
}

func (a *app) grantCreate() *cobra.Command {
	var grantee, retiring principal
	var operations []string
	var equals, subset pairs
	var name, expires, parent string
	c := &cobra.Command{
		Use:   "create KEY",
		Short: "Let a principal use a key",
		Long: `Let a principal use a key. The grant is usable on every node when this returns.

--context-equals allows calls whose encryption context is these pairs and no others,
--context-subset those whose context has at least these pairs: one or the other. A
grant to a service must fix tenant, to the key's tenant, and resource.

--name makes the grant idempotent: made again with the same name and the same rest, it
is the same grant. Then give --expires as a time: a duration would end at another time
when the command is repeated. --retiring names who may end the grant, besides
administrators. --parent is a grant that you hold and that this one follows from; it is
found by itself where it is needed.

Operations:
` + wrapped("", grantOperations) + `
A key takes what it is used for: an encryption key no Sign, Verify, GetPublicKey,
GenerateMac or VerifyMac.`,
		Example: `  kmsctl grant create alias/volumes --grantee spiffe://kms.example.org/service/volumes --operations Decrypt,GenerateDataKey --context-subset tenant=blue --context-subset resource=v-17
  kmsctl grant create alias/volumes --grantee spiffe://kms.example.org/tenant/blue/user/backup --operations Decrypt --expires 24h
  kmsctl grant create alias/audit --grantee spiffe://kms.example.org/node/kms-1 --operations GenerateDataKey,Decrypt --context-subset purpose=audit-trail`,
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		if err := checkGrant(grantee, operations, equals, subset); err != nil {
			return err
		}
		r := &quorumkmsv1.CreateGrantRequest{
			KeyId: args[0], GranteePrincipal: string(grantee), RetiringPrincipal: string(retiring), Operations: operations,
			Name: name, ParentGrantId: parent,
			ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
		}
		if equals != nil || subset != nil {
			r.Constraints = &quorumkmsv1.GrantConstraints{EncryptionContextEquals: equals, EncryptionContextSubset: subset}
		}
		if expires != "" {
			at, relative, err := parseWhen(expires, time.Now())
			if err != nil {
				return usagef("--expires %w", err)
			}
			if relative { // a repetition must not ask for another time
				a.repeat = " --expires " + at.Format(time.RFC3339)
			}
			r.ExpirationDate = timestamppb.New(at)
		}
		made, err := kms.Grants().CreateGrant(ctx, r)
		if err != nil {
			return err
		}
		return a.print(made, func(w io.Writer) error {
			return writeGrant(w, &quorumkmsv1.Grant{
				GrantId: made.GetGrantId(), KeyId: args[0], Name: name,
				GranteePrincipal: r.GetGranteePrincipal(), RetiringPrincipal: r.GetRetiringPrincipal(),
				Operations: operations, Constraints: r.GetConstraints(), ExpirationDate: r.GetExpirationDate(), ParentGrantId: parent,
			})
		})
	})
	c.Flags().Var(&grantee, "grantee", "who may use the key, "+spiffeForm)
	c.Flags().StringSliceVar(&operations, "operations", nil, "what the grantee may do, separated by commas")
	c.Flags().Var(&retiring, "retiring", "who may end the grant, "+spiffeForm)
	c.Flags().Var(&equals, "context-equals", "the encryption context is key=value, and such pairs only; may be repeated")
	c.Flags().Var(&subset, "context-subset", "the encryption context has key=value; may be repeated")
	c.Flags().StringVar(&name, "name", "", "name of the grant, at most 256 bytes")
	c.Flags().StringVar(&expires, "expires", "", "when the grant ends: in 24h, in 7d, or at 2027-01-31T00:00:00Z (default: never)")
	c.Flags().StringVar(&parent, "parent", "", "id of the grant that this one follows from")
	complete(c, "operations", grantOperations...)
	return a.mutatesKey(c)
}

func checkGrant(grantee principal, operations []string, equals, subset pairs) error {
	switch {
	case grantee == "":
		return usagef("--grantee is missing: who may use the key, %s", spiffeForm)
	case len(operations) == 0:
		return usagef("--operations is missing: some of %s", strings.Join(grantOperations, ", "))
	case equals != nil && subset != nil:
		return usagef("--context-equals and --context-subset: want one or the other")
	}
	for _, o := range operations {
		if slices.Contains(grantOperations, o) {
			continue
		}
		for _, known := range grantOperations {
			if strings.EqualFold(known, o) {
				return usagef("--operations %q: did you mean %s?", o, known)
			}
		}
		return usagef("--operations %q: want some of %s", o, strings.Join(grantOperations, ", "))
	}
	return nil
}

// listGrants lists grants of a key: those of a grantee, or one, if they are named.
func listGrants(ctx context.Context, kms *client.Client, key, grantee, grant string, p page) (*quorumkmsv1.ListGrantsResponse, error) {
	all := &quorumkmsv1.ListGrantsResponse{}
	var err error
	all.Grants, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.Grant, string, error) {
		r, err := kms.Grants().ListGrants(ctx, &quorumkmsv1.ListGrantsRequest{
			KeyId: key, GranteePrincipal: grantee, GrantId: grant, Limit: limit, Marker: marker,
		})
		all.IndexToken = r.GetIndexToken()
		return r.GetGrants(), r.GetNextMarker(), err
	})
	return all, err
}

func (a *app) grantList() *cobra.Command {
	var p page
	var grantee principal
	c := &cobra.Command{
		Use:   "list [KEY]",
		Short: "List the grants of a key, or what a grantee holds of all keys",
		Long: `List the grants of a key. Without KEY, list what --grantee holds of all keys of the
tenant.`,
		Example: `  kmsctl grant list alias/volumes
  kmsctl grant list --grantee spiffe://kms.example.org/tenant/isv/user/backup`,
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			if len(args) == 0 && grantee == "" {
				return usagef("KEY is missing; without it, --grantee says whose grants of all keys")
			}
			all, err := listGrants(ctx, kms, first(args), string(grantee), "", p)
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				of := "GRANTEE"
				if len(args) == 0 {
					of = "KEY"
				}
				rows := [][]string{{"GRANT", of, "OPERATIONS", "CONTEXT", "EXPIRES", "NAME"}}
				for _, g := range all.GetGrants() {
					who := g.GetGranteePrincipal()
					if len(args) == 0 {
						who = g.GetKeyId()
					}
					rows = append(rows, []string{
						g.GetGrantId(), who, strings.Join(g.GetOperations(), ","),
						constraintsText(g.GetConstraints()), timeText(g.GetExpirationDate()), g.GetName(),
					})
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	c.Flags().Var(&grantee, "grantee", "of this principal only")
	p.flags(c)
	return c
}

func (a *app) grantShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show KEY GRANT",
		Short:   "Show a grant",
		Example: "  kmsctl grant show alias/volumes 7d0c1a52-6f0e-4a7b-9a55-0e6f0c9d2f11",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := listGrants(ctx, kms, args[0], "", args[1], page{limit: 1})
			if err != nil {
				return err
			}
			if len(r.GetGrants()) == 0 {
				return fmt.Errorf("%s has no grant %q: kmsctl grant list %s lists those it has", args[0], args[1], args[0])
			}
			g := r.GetGrants()[0]
			return a.print(g, func(w io.Writer) error { return writeGrant(w, g) })
		}),
	}
}

func (a *app) grantRetirable() *cobra.Command {
	var p page
	var who principal
	c := &cobra.Command{
		Use:   "retirable",
		Short: "List the grants that you may retire",
		Long: `List the grants that you may retire, of all keys. Administrators and auditors may ask
for another principal of their tenant's keys.`,
		Example: "  kmsctl grant retirable",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			all := &quorumkmsv1.ListRetirableGrantsResponse{}
			var err error
			all.Grants, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.Grant, string, error) {
				r, err := kms.Grants().ListRetirableGrants(ctx, &quorumkmsv1.ListRetirableGrantsRequest{
					RetiringPrincipal: string(who), Limit: limit, Marker: marker,
				})
				all.IndexToken = r.GetIndexToken()
				return r.GetGrants(), r.GetNextMarker(), err
			})
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				rows := [][]string{{"GRANT", "KEY", "GRANTEE", "OPERATIONS", "EXPIRES"}}
				for _, g := range all.GetGrants() {
					rows = append(rows, []string{
						g.GetGrantId(), g.GetKeyId(), g.GetGranteePrincipal(), strings.Join(g.GetOperations(), ","), timeText(g.GetExpirationDate()),
					})
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	c.Flags().Var(&who, "principal", "who may retire them (default: you)")
	p.flags(c)
	return c
}

func (a *app) grantRetire() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "retire KEY GRANT",
		Short: "End a grant that is not needed any more, and what follows from it",
		Long: `End a grant that is not needed any more, and what follows from it. The retiring
principal may, and the grantee if the grant allows RetireGrant.`,
		Example: "  kmsctl grant retire alias/volumes 7d0c1a52-6f0e-4a7b-9a55-0e6f0c9d2f11",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Grants().RetireGrant(ctx, &quorumkmsv1.RetireGrantRequest{
				KeyId: args[0], GrantId: args[1], DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "Grant %s is retired.", args[1])
		}),
	})
}

func (a *app) grantRevoke() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "revoke KEY GRANT",
		Short: "End a grant, and what follows from it",
		Long: `End a grant, and what follows from it: on every node when this returns. Key
administrators may.`,
		Example: "  kmsctl grant revoke alias/volumes 7d0c1a52-6f0e-4a7b-9a55-0e6f0c9d2f11",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Grants().RevokeGrant(ctx, &quorumkmsv1.RevokeGrantRequest{
				KeyId: args[0], GrantId: args[1], DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "Grant %s is revoked: no node honours it any more.", args[1])
		}),
	})
}

func writeGrant(w io.Writer, g *quorumkmsv1.Grant) error {
	expires := "never"
	if g.GetExpirationDate() != nil {
		expires = expiryText(g.GetExpirationDate(), time.Now())
	}
	fields := [][2]string{
		{"Grant", g.GetGrantId()},
		{"Key", g.GetKeyId()},
		{"Name", g.GetName()},
		{"Grantee", g.GetGranteePrincipal()},
		{"Operations", strings.Join(g.GetOperations(), ", ")},
		{"Context", constraintsText(g.GetConstraints())},
		{"Retiring", g.GetRetiringPrincipal()},
		{"Expires", expires},
		{"Follows from", g.GetParentGrantId()},
	}
	if g.GetCreationDate() != nil {
		fields = append(fields, [2]string{"Created", timeText(g.GetCreationDate())}, [2]string{"Issued by", g.GetIssuingPrincipal()})
	}
	return writeFields(w, fields)
}

// constraintsText is what the encryption context must be, or have.
func constraintsText(c *quorumkmsv1.GrantConstraints) string {
	verb, all := "is", c.GetEncryptionContextEquals()
	if len(all) == 0 {
		verb, all = "has", c.GetEncryptionContextSubset()
	}
	if len(all) == 0 {
		return ""
	}
	var texts []string
	for _, p := range all {
		texts = append(texts, p.GetKey()+"="+p.GetValue())
	}
	return verb + " " + strings.Join(texts, ", ")
}
