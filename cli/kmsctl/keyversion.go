package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (a *app) keyVersions() *cobra.Command {
	var p page
	c := &cobra.Command{
		Use:     "versions KEY",
		Short:   "List the versions of a key and their states",
		Example: "  kmsctl key versions alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			all, err := listVersions(ctx, kms, args[0], p)
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				rows := [][]string{{"VERSION", "STATE", "CAUSE", "CREATED", "LAST USED", "DESTRUCTION"}}
				counts := slices.ContainsFunc(all.GetVersions(), func(v *quorumkmsv1.KeyVersion) bool { return v.GetReservedMessages() > 0 })
				if counts { // of keys that encrypt in the HSM
					rows[0] = append(rows[0], "MESSAGES")
				}
				for _, v := range all.GetVersions() {
					state := enumName(v.GetState(), "KEY_VERSION_STATE_")
					if v.GetCurrent() {
						state += ", current"
					}
					row := []string{
						number(v.GetVersion()), state, enumName(v.GetCause(), "ROTATION_CAUSE_"),
						timeText(v.GetCreationDate()), timeText(v.GetLastUsed()), timeText(v.GetDestructionDate()),
					}
					if counts {
						row = append(row, strconv.FormatUint(v.GetReservedMessages(), 10))
					}
					rows = append(rows, row)
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	p.flags(c)
	return c
}

func listVersions(ctx context.Context, kms *client.Client, key string, p page) (*quorumkmsv1.ListKeyVersionsResponse, error) {
	all := &quorumkmsv1.ListKeyVersionsResponse{}
	var err error
	all.Versions, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.KeyVersion, string, error) {
		r, err := kms.Keys().ListKeyVersions(ctx, &quorumkmsv1.ListKeyVersionsRequest{KeyId: key, Limit: limit, Marker: marker})
		all.IndexToken = r.GetIndexToken()
		return r.GetVersions(), r.GetNextMarker(), err
	})
	return all, err
}

func (a *app) keyVersionCommand() *cobra.Command {
	g := group("version", "Govern single versions of a key",
		a.versionEnable(), a.versionDisable(), a.versionScheduleDestruction(), a.versionCancelDestruction())
	g.Long = `Govern single versions of a key: kmsctl key versions lists them.

VERSION is a version's number. The current version is the one that seals; the others
open what they have sealed.`
	return g
}

// onVersion is remote for commands with the arguments KEY and VERSION.
func (a *app) onVersion(f func(ctx context.Context, kms *client.Client, key string, version uint32) error) func(*cobra.Command, []string) error {
	return a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		version, err := strconv.ParseUint(args[1], 10, 32)
		if err != nil || version == 0 {
			return usagef("VERSION %q: want a number from 1 on; kmsctl key versions %s lists them", args[1], args[0])
		}
		return f(ctx, kms, args[0], uint32(version))
	})
}

func (a *app) versionEnable() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "enable KEY VERSION",
		Short:   "Make a disabled version usable again",
		Example: "  kmsctl key version enable alias/volumes 2",
		RunE: a.onVersion(func(ctx context.Context, kms *client.Client, key string, version uint32) error {
			r, err := kms.Keys().EnableKeyVersion(ctx, &quorumkmsv1.EnableKeyVersionRequest{
				KeyId: key, Version: version, ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "Version %d of %s is enabled.", version, key)
		}),
	})
}

func (a *app) versionDisable() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:   "disable KEY VERSION",
		Short: "Make a version unusable until it is enabled again",
		Long: `Make a version unusable until it is enabled again: on every node when this returns.

What the version has sealed does not open. While the current version is disabled,
nothing is sealed.`,
		Example: "  kmsctl key version disable alias/volumes 2",
		RunE: a.onVersion(func(ctx context.Context, kms *client.Client, key string, version uint32) error {
			r, err := kms.Keys().DisableKeyVersion(ctx, &quorumkmsv1.DisableKeyVersionRequest{
				KeyId: key, Version: version, ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "Version %d of %s is disabled: no node uses it any more.", version, key)
		}),
	})
}

func (a *app) versionScheduleDestruction() *cobra.Command {
	var days uint32
	c := a.yesFlag(a.mutatesKey(&cobra.Command{
		Use:   "schedule-destruction KEY VERSION",
		Short: "Make a version unusable now and destroy it after a waiting time",
		Long: `Make a version that is not the current one unusable now and destroy its material
after a waiting time.

Until then kmsctl key version cancel-destruction keeps the version. Afterwards
everything that it has sealed is lost: kmsctl reencrypt and kmsctl object rewrap move
it to the current version. When the version was last used is shown first, on standard
error. The command asks to type KEY, an alias of the key, or its
id; --yes does without.`,
		Example: "  kmsctl key version schedule-destruction alias/volumes 1 --days 14",
	}))
	c.RunE = a.onVersion(func(ctx context.Context, kms *client.Client, key string, version uint32) error {
		if err := a.preflight(func() error {
			_, err := kms.Keys().ScheduleKeyVersionDestruction(ctx, &quorumkmsv1.ScheduleKeyVersionDestructionRequest{
				KeyId: key, Version: version, PendingWindowDays: days, DryRun: true,
			})
			return err
		}); err != nil {
			return err
		}
		if a.yes || a.dryRun || isTerminal(a.stdin) {
			a.showVersionUse(ctx, kms, key, version)
		}
		question := fmt.Sprintf("Version %d of this key will be destroyed after %d days, and with it all that only it can open.\n", version, days)
		if err := a.confirmKey(ctx, kms, key, question); err != nil {
			return err
		}
		r, err := kms.Keys().ScheduleKeyVersionDestruction(ctx, &quorumkmsv1.ScheduleKeyVersionDestructionRequest{
			KeyId: key, Version: version, PendingWindowDays: days,
			ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
		})
		if err != nil {
			return err
		}
		return a.printLine(r, "Version %d of %s is unusable, and will be destroyed at %s.", version, key, timeText(r.GetDestructionDate()))
	})
	daysFlag(c, &days)
	return c
}

// showVersionUse tells when a version was last used.
func (a *app) showVersionUse(ctx context.Context, kms *client.Client, key string, version uint32) {
	ctx, cancel := context.WithTimeout(ctx, maxLook)
	defer cancel()
	all, err := listVersions(ctx, kms, key, page{})
	text := fmt.Sprintf("When version %d was last used is not known: %v\n", version, err)
	if err == nil {
		i := slices.IndexFunc(all.GetVersions(), func(v *quorumkmsv1.KeyVersion) bool { return v.GetVersion() == version })
		if i < 0 {
			return // the command itself will say so
		}
		text = fmt.Sprintf("Version %d was last used: %s.\n", version, usedText(all.GetVersions()[i].GetLastUsed()))
	}
	fmt.Fprint(a.stderr, text) //nolint:errcheck // a courtesy
}

func (a *app) versionCancelDestruction() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "cancel-destruction KEY VERSION",
		Short:   "Keep a version that is to be destroyed; it stays disabled",
		Example: "  kmsctl key version cancel-destruction alias/volumes 1",
		RunE: a.onVersion(func(ctx context.Context, kms *client.Client, key string, version uint32) error {
			r, err := kms.Keys().CancelKeyVersionDestruction(ctx, &quorumkmsv1.CancelKeyVersionDestructionRequest{
				KeyId: key, Version: version, ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "Version %d of %s will not be destroyed. It is disabled: kmsctl key version enable makes it usable.", version, key)
		}),
	})
}
