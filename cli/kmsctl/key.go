package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const maxPage = 1000 // items a call returns at most

func (a *app) keyCommand() *cobra.Command {
	g := group("key", "Create keys and govern their life",
		a.keyCreate(), a.keyDescribe(), a.keyList(), a.keySetDescription(),
		a.keyEnable(), a.keyDisable(), a.keyDecryptOnly(), a.keyRotate(), a.keyRotations(), a.rotationCommand(),
		a.keyVersions(), a.keyVersionCommand(),
		a.keyImport(), a.keyImportParameters(), a.keyImportMaterial(), a.keyDeleteMaterial(),
		a.keyScheduleDeletion(), a.keyCancelDeletion(), a.keyProtect("protect", true), a.keyProtect("unprotect", false),
		a.keyRequireContext(), a.keyResources(), a.keyBind(), a.keyRelease(), a.aliasCommand(), a.tagCommand())
	g.Long = `Create keys and govern their life.

KEY is a key's id, its ARN, or an alias such as alias/volumes.`
	return g
}

func (a *app) keyCreate() *cobra.Command {
	var description, alias, spec, usage, protection, origin string
	var tags pairs
	c := &cobra.Command{
		Use:   "create",
		Short: "Create a key in the HSM",
		Long: `Create a key in the HSM. It is stored by a majority of nodes when this returns.

Symmetric keys encrypt, HMAC keys are for kmsctl mac, ECC keys sign; RSA keys sign or
encrypt: say which with --usage. Only symmetric keys are rotated.

With --protection hsm-resident a symmetric key encrypts in the HSM itself, for those whose
rules demand it: slower, and rotated by the cluster before its 2^31st message. The level
is fixed for life.

With --origin external the key is made without material: kmsctl key import brings it.

An alias is made by a second call: if that fails, the key is there without it.`,
		Example: `  kmsctl key create --alias alias/volumes --description "block volumes" --tag team=storage
  kmsctl key create --alias alias/cards --protection hsm-resident
  kmsctl key create --alias alias/releases --spec ecc-nist-p256
  kmsctl key create --alias alias/letters --spec rsa-3072 --usage encrypt-decrypt`,
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			if alias != "" && !strings.HasPrefix(alias, aliasPrefix) {
				return usagef("--alias %q: want a name that begins with %s", alias, aliasPrefix)
			}
			kind, err := specs.parse("spec", spec)
			if err != nil {
				return err
			}
			purpose, err := usages.parse("usage", usage)
			if err != nil {
				return err
			}
			level, err := protections.parse("protection", protection)
			if err != nil {
				return err
			}
			from, err := origins.parse("origin", origin)
			if err != nil {
				return err
			}
			r, err := kms.Keys().CreateKey(ctx, &quorumkmsv1.CreateKeyRequest{
				Origin: quorumkmsv1.KeyOrigin(from), ProtectionLevel: quorumkmsv1.ProtectionLevel(level),
				Spec: quorumkmsv1.KeySpec(kind), Usage: quorumkmsv1.KeyUsage(purpose),
				Description: description, Tags: tags.tags(), DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			id := r.GetKey().GetKeyId()
			if alias != "" {
				_, err := kms.Keys().CreateAlias(ctx, &quorumkmsv1.CreateAliasRequest{
					AliasName: alias, KeyId: id, RequestId: a.requestID + "/alias",
				})
				if err != nil {
					return fmt.Errorf("key %s was created, but not its alias; see kmsctl key alias create: %w", id, err)
				}
				r.GetKey().Aliases = append(r.GetKey().GetAliases(), alias)
			}
			return a.print(r, func(w io.Writer) error { return writeKey(w, r.GetKey()) })
		}),
	}
	c.Flags().StringVar(&description, "description", "", "what the key is for")
	c.Flags().Var(&tags, "tag", "tag as key=value; may be repeated")
	enumFlag(c, &spec, "spec", specs, "kind of key (default symmetric)")
	enumFlag(c, &origin, "origin", origins, "where the material comes from (default kms: the HSM makes it)")
	enumFlag(c, &usage, "usage", usages, "what it is for (default: the only one of the kind)")
	enumFlag(c, &protection, "protection", protections, "where symmetric keys encrypt (default hsm-rooted; hsm-resident: in the HSM itself)")
	c.Flags().StringVar(&alias, "alias", "", "a second name, "+aliasPrefix+"NAME")
	return a.mutates(c)
}

func (a *app) keyDescribe() *cobra.Command {
	return &cobra.Command{
		Use:     "describe KEY",
		Short:   "Show a key",
		Example: "  kmsctl key describe alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().DescribeKey(ctx, &quorumkmsv1.DescribeKeyRequest{KeyId: args[0]})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) error { return writeKey(w, r.GetKey()) })
		}),
	}
}

// keyRow is a key in a list. Of one that the caller may not describe the id alone is told.
func keyRow(k *quorumkmsv1.KeyMetadata) []string {
	if k.GetState() == quorumkmsv1.KeyState_KEY_STATE_UNSPECIFIED {
		return []string{k.GetKeyId(), "not shown", "", "", "", "", ""}
	}
	return []string{
		k.GetKeyId(), enumName(k.GetState(), "KEY_STATE_"), specs.text(int32(k.GetSpec())), number(k.GetCurrentVersion()),
		timeText(k.GetCreationDate()), strings.Join(k.GetAliases(), " "), k.GetDescription(),
	}
}

func (a *app) keyList() *cobra.Command {
	var p page
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the tenant's keys",
		Long:    "List the tenant's keys. Of a key that you may not describe, the id alone is shown.",
		Example: "  kmsctl key list --limit 20",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			all := &quorumkmsv1.ListKeysResponse{}
			var err error
			all.Keys, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.KeyMetadata, string, error) {
				r, err := kms.Keys().ListKeys(ctx, &quorumkmsv1.ListKeysRequest{Limit: limit, Marker: marker})
				all.IndexToken = r.GetIndexToken()
				return r.GetKeys(), r.GetNextMarker(), err
			})
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				rows := [][]string{{"KEY", "STATE", "SPEC", "VERSION", "CREATED", "ALIASES", "DESCRIPTION"}}
				for _, k := range all.GetKeys() {
					rows = append(rows, keyRow(k))
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	p.flags(c)
	return c
}

func (a *app) keySetDescription() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "set-description KEY " + mayBeEmpty,
		Short:   "Say what a key is for",
		Example: `  kmsctl key set-description alias/volumes "block volumes of zone 2"`,
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().UpdateKeyDescription(ctx, &quorumkmsv1.UpdateKeyDescriptionRequest{
				KeyId: args[0], Description: args[1],
				ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "The description of %s is changed.", args[0])
		}),
	})
}

func (a *app) keyEnable() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "enable KEY",
		Short:   "Make a key that is disabled, or only decrypts, usable again",
		Example: "  kmsctl key enable alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().EnableKey(ctx, &quorumkmsv1.EnableKeyRequest{
				KeyId: args[0], ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is enabled.", args[0])
		}),
	})
}

func (a *app) keyDisable() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:   "disable KEY",
		Short: "Make a key unusable until it is enabled again",
		Long: `Make a key unusable until it is enabled again.

When this returns, no node uses the key any more. It may take some seconds while a
node cannot be reached. What the key protects, and when it was last used, is shown
first, on standard error.`,
		Example: "  kmsctl key disable alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			a.showUse(ctx, kms, args[0])
			r, err := kms.Keys().DisableKey(ctx, &quorumkmsv1.DisableKeyRequest{
				KeyId: args[0], ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is disabled: no node uses it any more.", args[0])
		}),
	})
}

func (a *app) keyRotate() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:   "rotate KEY",
		Short: "Give a key a new version",
		Long: `Give a key a new version.

New ciphertexts are made with the new version. Old ones still open, each with the
version it was made with; kmsctl reencrypt and kmsctl object rewrap move them.`,
		Example: "  kmsctl key rotate alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().RotateKeyOnDemand(ctx, &quorumkmsv1.RotateKeyOnDemandRequest{
				KeyId: args[0], ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is now at version %d.", args[0], r.GetCurrentVersion())
		}),
	})
}

func (a *app) keyRotations() *cobra.Command {
	var p page
	c := &cobra.Command{
		Use:     "rotations KEY",
		Short:   "List when a key was rotated, and why",
		Example: "  kmsctl key rotations alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			all := &quorumkmsv1.ListKeyRotationsResponse{}
			var err error
			all.Rotations, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.KeyRotation, string, error) {
				r, err := kms.Keys().ListKeyRotations(ctx, &quorumkmsv1.ListKeyRotationsRequest{KeyId: args[0], Limit: limit, Marker: marker})
				all.IndexToken = r.GetIndexToken()
				return r.GetRotations(), r.GetNextMarker(), err
			})
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				rows := [][]string{{"VERSION", "SINCE", "CAUSE"}}
				for _, r := range all.GetRotations() {
					rows = append(rows, []string{number(r.GetVersion()), timeText(r.GetRotationDate()), enumName(r.GetCause(), "ROTATION_CAUSE_")})
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	p.flags(c)
	return c
}

func (a *app) keyDecryptOnly() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:   "decrypt-only KEY",
		Short: "Let a key open what it has sealed, and seal nothing more",
		Long: `Let an enabled key open what it has sealed, and seal nothing more: on every node when
this returns. kmsctl key enable and kmsctl key disable end it.`,
		Example: "  kmsctl key decrypt-only alias/volumes-2024",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().SetKeyDecryptOnly(ctx, &quorumkmsv1.SetKeyDecryptOnlyRequest{
				KeyId: args[0], ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s only decrypts: no node seals with it any more.", args[0])
		}),
	})
}

func (a *app) keyRequireContext() *cobra.Command {
	var none bool
	c := &cobra.Command{
		Use:   "require-context KEY [CONTEXTKEY...]",
		Short: "Say which keys the encryption context of every call must have",
		Long: `Say which keys the encryption context of every call must have. They replace those
that were required before; --none requires none. A call without them is refused,
also to open what was sealed earlier.`,
		Example: `  kmsctl key require-context alias/volumes tenant resource
  kmsctl key require-context alias/volumes --none`,
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		wanted := args[1:]
		switch {
		case none && len(wanted) > 0:
			return usagef("--none requires no context keys, and %q is one: want one or the other", wanted[0])
		case !none && len(wanted) == 0:
			return usagef("CONTEXTKEY is missing: name the context keys that every call must have, or --none to require none")
		}
		r, err := kms.Keys().SetRequiredContext(ctx, &quorumkmsv1.SetRequiredContextRequest{
			KeyId: args[0], ContextKeys: wanted,
			ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
		})
		if err != nil {
			return err
		}
		if none {
			return a.printLine(r, "%s requires no encryption context.", args[0])
		}
		return a.printLine(r, "%s is used only with an encryption context that has %s.", args[0], strings.Join(wanted, ", "))
	})
	c.Flags().BoolVar(&none, "none", false, "require no context keys")
	return a.mutatesKey(c)
}

func writeKey(w io.Writer, k *quorumkmsv1.KeyMetadata) error {
	fields := [][2]string{
		{"Key", k.GetKeyId()},
		{"ARN", k.GetArn()},
		{"Aliases", strings.Join(k.GetAliases(), " ")},
		{"Description", k.GetDescription()},
		{"State", enumName(k.GetState(), "KEY_STATE_")},
	}
	if k.GetDeletionDate() != nil {
		fields = append(fields, [2]string{"Deletion", timeText(k.GetDeletionDate())})
	}
	if k.GetRefusedUse() != nil {
		fields = append(fields, [2]string{"Refused use", timeText(k.GetRefusedUse()) + ", while pending deletion: SOMETHING STILL NEEDS IT"})
	}
	if k.GetOrigin() == quorumkmsv1.KeyOrigin_KEY_ORIGIN_EXTERNAL {
		fields = append(fields, [2]string{"Material", materialText(k)})
	}
	return writeFields(w, append(fields, [][2]string{
		{"Version", number(k.GetCurrentVersion())},
		{"Created", timeText(k.GetCreationDate())},
		{"Usage", usages.text(int32(k.GetUsage()))},
		{"Spec", specs.text(int32(k.GetSpec()))},
		{"Origin", origins.text(int32(k.GetOrigin()))},
		{"Protection", protections.text(int32(k.GetProtectionLevel()))},
		{"Manager", managerText(k)},
		{"Tenant", tenantText(k)},
		{"Protected", protectedText(k)},
		{"Context", contextText(k)},
		{"Resources", strconv.FormatUint(k.GetResourceCount(), 10)},
		{"Last used", usedText(k.GetLastUsed())},
		{"Next rotation", timeText(k.GetNextRotation())},
		{"Policy", revisionText(k.GetPolicyRevision())},
		{"Revision", strconv.FormatUint(k.GetRevision(), 10)},
	}...))
}

// materialText is what is known of imported material.
func materialText(k *quorumkmsv1.KeyMetadata) string {
	text := enumName(k.GetExpirationModel(), "EXPIRATION_MODEL_KEY_MATERIAL_")
	switch {
	case k.GetState() == quorumkmsv1.KeyState_KEY_STATE_PENDING_IMPORT:
		text = "missing: kmsctl key import"
	case k.GetValidTo() != nil:
		text += " at " + timeText(k.GetValidTo())
	}
	if k.GetMaterialWaits() {
		text += "; new material waits for kmsctl key rotate"
	}
	return text
}

func managerText(k *quorumkmsv1.KeyMetadata) string {
	text := enumName(k.GetManager(), "KEY_MANAGER_")
	if k.GetService() != "" {
		text += " " + k.GetService()
	}
	return text
}

func tenantText(k *quorumkmsv1.KeyMetadata) string {
	if k.GetTenantFrozen() != "" {
		return k.GetTenant() + " (FROZEN: " + k.GetTenantFrozen() + ")"
	}
	return k.GetTenant()
}

func protectedText(k *quorumkmsv1.KeyMetadata) string {
	if k.GetDeletionProtection() {
		return "against deletion"
	}
	return "no"
}

func contextText(k *quorumkmsv1.KeyMetadata) string {
	if len(k.GetRequiredContext()) == 0 {
		return ""
	}
	return "must have " + strings.Join(k.GetRequiredContext(), ", ")
}

// usedText is a last use: the cluster knows it to the hour.
func usedText(t *timestamppb.Timestamp) string {
	if t == nil {
		return "not as far as is known"
	}
	return timeText(t) + ", or up to an hour later"
}

// revisionText is a policy's revision; zero: there is none.
func revisionText(n uint32) string {
	if n == 0 {
		return ""
	}
	return "revision " + number(n)
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// page is which part of a list to show.
type page struct {
	limit  uint32 // 0: all
	marker string
}

func (p *page) flags(c *cobra.Command) {
	c.Flags().Uint32Var(&p.limit, "limit", 0, "show at most so many (0: all)")
	c.Flags().StringVar(&p.marker, "marker", "", "go on where a list that was limited ended")
}

// collect calls fetch for page after page.
func collect[T any](p page, fetch func(limit uint32, marker string) ([]T, string, error)) (all []T, next string, err error) {
	left := p.limit
	if left == 0 {
		left = math.MaxUint32
	}
	next = p.marker
	for {
		items, after, err := fetch(min(left, maxPage), next)
		if err != nil {
			return nil, "", err
		}
		all = append(all, items...)
		if uint64(len(items)) >= uint64(left) || after == "" {
			return all, after, nil
		}
		if len(items) == 0 || after == next {
			return nil, "", fmt.Errorf("the list does not end: marker %q leads nowhere", after)
		}
		left, next = left-uint32(len(items)), after //nolint:gosec // fewer than left
	}
}

// writePage is writeTable, with a note if there is more.
func writePage(w io.Writer, rows [][]string, next string) error {
	if err := writeTable(w, rows); err != nil || next == "" {
		return err
	}
	_, err := fmt.Fprintf(w, "There is more: --marker %s\n", clean(next))
	return err
}
