package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const defaultPeriod = 365 * day // between rotations

func (a *app) rotationCommand() *cobra.Command {
	g := group("rotation", "Have keys rotated by themselves", a.rotationEnable(), a.rotationDisable(), a.rotationStatus())
	g.Long = `Have keys rotated by themselves, each after a period of its own.

kmsctl key rotate rotates a key now; kmsctl key rotations lists what was done.`
	return g
}

func (a *app) rotationEnable() *cobra.Command {
	period := span(defaultPeriod)
	c := &cobra.Command{
		Use:   "enable KEY",
		Short: "Have a key rotated each period",
		Long: `Have a key rotated each period: the first time a period from now.

--period is 90 to 2560 days, shorter where the operators allow it. Another period
begins now; the same one again changes nothing.`,
		Example: "  kmsctl key rotation enable alias/volumes --period 90d",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().EnableKeyRotation(ctx, &quorumkmsv1.EnableKeyRotationRequest{
				KeyId: args[0], Period: durationpb.New(time.Duration(period)),
				ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is rotated every %s, next at %s.", args[0], spanText(time.Duration(period)), timeText(r.GetNextRotation()))
		}),
	}
	c.Flags().Var(&period, "period", "time between rotations, such as 90d, 12w or 2160h")
	return a.mutatesKey(c)
}

func (a *app) rotationDisable() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "disable KEY",
		Short:   "Have a key not rotated by itself any more",
		Example: "  kmsctl key rotation disable alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().DisableKeyRotation(ctx, &quorumkmsv1.DisableKeyRotationRequest{
				KeyId: args[0], ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is not rotated by itself any more.", args[0])
		}),
	})
}

func (a *app) rotationStatus() *cobra.Command {
	return &cobra.Command{
		Use:     "status KEY",
		Short:   "Show when a key is rotated",
		Example: "  kmsctl key rotation status alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().GetKeyRotationStatus(ctx, &quorumkmsv1.GetKeyRotationStatusRequest{KeyId: args[0]})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) error { return writeRotation(w, r, time.Now()) })
		}),
	}
}

func writeRotation(w io.Writer, r *quorumkmsv1.GetKeyRotationStatusResponse, now time.Time) error {
	state, period, next := "off", "", timeText(r.GetNextRotation())
	if r.GetEnabled() {
		state = "on"
	}
	if r.GetPeriod() != nil {
		period = spanText(r.GetPeriod().AsDuration())
	}
	if r.GetNextRotation() != nil && r.GetNextRotation().AsTime().Before(now) {
		next += " (OVERDUE: it comes when the key is enabled)"
	}
	last := timeText(r.GetLastRotation())
	if last == "" {
		last = "never"
	}
	return writeFields(w, [][2]string{
		{"Key", r.GetKeyId()},
		{"Schedule", state},
		{"Period", period},
		{"Next", next},
		{"Last", last},
	})
}
