package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (a *app) keyProtect(name string, on bool) *cobra.Command {
	c := &cobra.Command{
		Use:     name + " KEY",
		Short:   "Protect a key, and its versions, against deletion",
		Example: "  kmsctl key protect alias/volumes",
	}
	done := "%s is protected: neither it nor a version of it can be deleted until kmsctl key unprotect."
	if !on {
		c.Short = "End a key's protection against deletion"
		c.Example = "  kmsctl key unprotect alias/volumes"
		done = "%s is not protected against deletion any more."
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		r, err := kms.Keys().SetDeletionProtection(ctx, &quorumkmsv1.SetDeletionProtectionRequest{
			KeyId: args[0], Enabled: on, ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
		})
		if err != nil {
			return err
		}
		return a.printLine(r, done, args[0])
	})
	return a.mutatesKey(c)
}

func (a *app) keyScheduleDeletion() *cobra.Command {
	var days uint32
	c := a.yesFlag(a.mutatesKey(&cobra.Command{
		Use:   "schedule-deletion KEY",
		Short: "Make a key unusable now and delete it after a waiting time",
		Long: `Make a key unusable now and delete it after a waiting time.

Until then kmsctl key cancel-deletion keeps the key. Afterwards everything that is
encrypted under it is lost. What the key protects, and when it was last used, is
shown first, on standard error. The command asks to type KEY, an alias of the key,
or its id; --yes does without.`,
		Example: "  kmsctl key schedule-deletion alias/volumes --days 14",
	}))
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		question := fmt.Sprintf("This key will be deleted after %d days, and with it all that is encrypted under it.\n", days)
		if err := a.preflight(func() error {
			_, err := kms.Keys().ScheduleKeyDeletion(ctx, &quorumkmsv1.ScheduleKeyDeletionRequest{KeyId: args[0], PendingWindowDays: days, DryRun: true})
			return err
		}); err != nil {
			return err
		}
		if err := a.confirmKey(ctx, kms, args[0], question); err != nil {
			return err
		}
		r, err := kms.Keys().ScheduleKeyDeletion(ctx, &quorumkmsv1.ScheduleKeyDeletionRequest{
			KeyId: args[0], PendingWindowDays: days,
			ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
		})
		if err != nil {
			return err
		}
		return a.printLine(r, "%s is unusable, and will be deleted at %s.", args[0], timeText(r.GetDeletionDate()))
	})
	daysFlag(c, &days)
	return c
}

// preflight has refused what would be, before the user is asked to type a name for it.
func (a *app) preflight(dryRun func() error) error {
	if a.yes || a.dryRun || !isTerminal(a.stdin) {
		return nil
	}
	if err := dryRun(); !errors.Is(err, client.ErrDryRun) {
		return err
	}
	return nil
}

func daysFlag(c *cobra.Command, days *uint32) {
	c.Flags().Uint32Var(days, "days", 30, "waiting time in days, 7 to 30")
}

// confirmKey shows a key and what it protects before what cannot be undone, lets the
// user type its name, and pins the change to what was shown.
func (a *app) confirmKey(ctx context.Context, kms *client.Client, key, question string) error {
	switch {
	case a.yes, a.dryRun:
		a.showUse(ctx, kms, key)
		return nil
	case !isTerminal(a.stdin):
		return a.confirm(ctx, "")
	}
	r, err := kms.Keys().DescribeKey(ctx, &quorumkmsv1.DescribeKeyRequest{KeyId: key})
	if err != nil {
		return err
	}
	k := r.GetKey()
	if err := writeKey(a.stderr, k); err != nil {
		return err
	}
	fmt.Fprintln(a.stderr)                                              //nolint:errcheck // as below
	fmt.Fprint(a.stderr, useText(key, k, a.protects(ctx, kms, key, k))) //nolint:errcheck // what it protects is a courtesy
	names := append([]string{key, k.GetKeyId()}, k.GetAliases()...)
	if err := a.confirm(ctx, question+"Type one of its aliases, or its id: ", names...); err != nil {
		return err
	}
	if a.revision == 0 {
		a.revision = k.GetRevision()
		a.repeat = fmt.Sprintf(" --if-revision %d", a.revision)
	}
	return nil
}

func (a *app) keyCancelDeletion() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "cancel-deletion KEY",
		Short:   "Keep a key that is to be deleted; it stays disabled",
		Example: "  kmsctl key cancel-deletion 5b1c6a52-6f0e-4a7b-9a55-0e6f0c9d2f11",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().CancelKeyDeletion(ctx, &quorumkmsv1.CancelKeyDeletionRequest{
				KeyId: args[0], ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s will not be deleted. It is disabled: kmsctl key enable makes it usable.", args[0])
		}),
	})
}
