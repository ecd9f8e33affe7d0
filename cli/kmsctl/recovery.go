package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (a *app) recoveryCommand() *cobra.Command {
	g := group("recovery", "Make recovery keys, and govern who can recover the domain key",
		a.recoveryInit(), a.recoveryShow(), a.recoveryShare(), a.recoveryReport(), a.recoveryRecipients(), a.recoverySettings())
	g.Long = `Make recovery keys, and govern who can recover the domain key.

A recovery key opens the domain key when every HSM is lost: with it, any backup of the
cluster is restored. It is made on a machine without a network: its private half is split
among people (init), or it is in another HSM token (kmsd recovery init-token). What it is
used for is done there too, with kmsd: kmsd recovery verify tries it on a backup, kmsd
recovery release gives the domain key to new nodes.`
	return g
}

func (a *app) recoveryInit() *cobra.Command {
	var name, out string
	var threshold int
	var holders []string
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a recovery key and split it among its holders",
		Long: `Make a recovery key and split it among its holders. It asks no node: do it on a machine
that has no network and is wiped afterwards.

The key is RSA-4096. Each holder gets one share, encrypted to his or her own key: age
("age1…") or SSH ("ssh-ed25519 …", "ssh-rsa …"). --threshold of them open the recovery
key together; fewer learn nothing. The private half is stored nowhere else.

NAME.recovery is public: give it to the cluster (kmsctl cluster init
--recovery-recipient) and to the Security Officers of its nodes. Everybody who was there
notes the fingerprint: they compare it.

The directory of the files appears when all of them are written and synced, or not at all.
It must not be there yet, or be empty.`,
		Example: "  kmsctl recovery init --name vault --threshold 2 --holder age1… --holder age1… --holder 'ssh-ed25519 AAAA…' --out shares",
		RunE: a.local(func(cmd *cobra.Command, _ []string) error {
			if err := recovery.ValidName(name); err != nil {
				return usagef("--name: %s", err)
			}
			var to []recovery.Holder
			for _, text := range holders {
				h, err := recovery.ParseHolder(text)
				if err != nil {
					return usagef("--holder: %s", err)
				}
				to = append(to, h)
			}
			if len(to) < recovery.MinThreshold || len(to) > recovery.MaxShares || threshold < recovery.MinThreshold || threshold > len(to) {
				return usagef("--threshold %d of %d holders: want %d to %d holders, and a threshold of %d to as many", threshold, len(to), recovery.MinThreshold, recovery.MaxShares, recovery.MinThreshold)
			}
			return a.makeRecoveryKey(cmd.Context(), name, threshold, to, cmp.Or(out, name))
		}),
	}
	c.Flags().StringVar(&name, "name", "", "name of the recovery key")
	c.Flags().IntVar(&threshold, "threshold", 0, "holders who open it together")
	c.Flags().StringArrayVar(&holders, "holder", nil, "public key of a holder; once for each")
	c.Flags().StringVar(&out, "out", "", "directory for the files, which is made (default: the recovery key's name)")
	return c
}

func (a *app) makeRecoveryKey(ctx context.Context, name string, threshold int, holders []recovery.Holder, dir string) error {
	if err := absent(dir); err != nil {
		return err
	}
	var key *recovery.PublicKey
	err := wholeDir(ctx, dir, func(dir string) (err error) {
		key, err = recoveryFiles(ctx, name, threshold, holders, dir)
		return err
	})
	if err != nil {
		return err
	}
	return a.printRecoveryKey(key, filepath.Join(dir, name+publicEnd))
}

// publicEnd ends the name of a recovery key's public half.
const publicEnd = ".recovery"

// recoveryFiles makes a recovery key, and its files in a directory.
func recoveryFiles(ctx context.Context, name string, threshold int, holders []recovery.Holder, dir string) (*recovery.PublicKey, error) {
	key, shares, err := recovery.New(name, threshold, len(holders))
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, s := range shares {
			s.Wipe()
		}
	}()
	for i, s := range shares {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		file, err := s.Encrypt(holders[i])
		if err != nil {
			return nil, err
		}
		if err := writeNew(filepath.Join(dir, fmt.Sprintf("%s-%d-of-%d.share.age", name, s.Number, len(holders))), file); err != nil {
			return nil, err
		}
	}
	file, err := key.Encode()
	if err != nil {
		return nil, err
	}
	return key, writeNew(filepath.Join(dir, name+publicEnd), file)
}

func (a *app) printRecoveryKey(key *recovery.PublicKey, path string) error {
	v := struct {
		Name        string `json:"name"`
		Kind        string `json:"kind"`
		Threshold   int    `json:"threshold,omitempty"`
		Shares      int    `json:"shares,omitempty"`
		Token       string `json:"token_identity,omitempty"`
		Fingerprint string `json:"fingerprint"`
		File        string `json:"file"`
	}{key.Name, key.Kind, key.Threshold, key.Shares, tokenIdentity(key), key.Fingerprint(), path}
	return a.printValue(v, func(w io.Writer) error {
		return writeFields(w, [][2]string{
			{"Recovery key", v.Name},
			{"Kind", v.Kind},
			{"Opens with", opensWith(v.Kind, v.Threshold, v.Shares, v.Token)},
			{"Fingerprint", v.Fingerprint},
			{"Public half", v.File},
		})
	})
}

// writeNew writes a file that is not there yet, for its owner alone.
func writeNew(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, secretMode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func (a *app) recoveryShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show FILE",
		Short:   "Show a recovery key's public half, and check its file",
		Long:    "Show a recovery key's public half, and check that its file is as it was made. It asks no\nnode.",
		Example: "  kmsctl recovery show vault.recovery",
		RunE: a.local(func(cmd *cobra.Command, args []string) error {
			b, err := a.readSmall(cmd.Context(), args[0], recovery.MaxFile, "")
			if err != nil {
				return err
			}
			key, err := recovery.ParsePublicKey(b)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.printRecoveryKey(key, args[0])
		}),
	}
}

func (a *app) recoveryShare() *cobra.Command {
	var identity, out string
	c := &cobra.Command{
		Use:   "share FILE",
		Short: "Open one's share, on the machine of a recovery",
		Long: `Open one's share with one's own key: a file of age identities, or an SSH private key
without a passphrase. It asks no node. The result is in clear, and one of the shares that
open the recovery key: do it on the machine of the recovery only, which has no network
and is wiped afterwards. Who keeps the key in another way (a passphrase, a hardware
token) opens the file with age itself: age -d.`,
		Example: "  kmsctl recovery share vault-1-of-3.share.age --identity key.txt --out share-1",
		RunE: a.local(func(cmd *cobra.Command, args []string) error {
			file, err := a.readSmall(cmd.Context(), args[0], recovery.MaxFile, "")
			if err != nil {
				return err
			}
			defer clear(file) // it may be in clear
			key, err := a.readSmall(cmd.Context(), identity, recovery.MaxFile, "")
			if err != nil {
				return err
			}
			defer clear(key)
			identities, err := recovery.ParseIdentities(key)
			if err != nil {
				return err
			}
			s, err := recovery.OpenShare(file, identities)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			defer s.Wipe()
			plain, err := s.Encode()
			if err != nil {
				return err
			}
			defer clear(plain)
			return a.writeSecret(out, plain)
		}),
	}
	c.Flags().StringVar(&identity, "identity", "", "file of the holder's own key")
	c.Flags().StringVar(&out, "out", "", "file to write the share to (default: standard output)")
	return c
}

func (a *app) recoveryReport() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "report FILE",
		Short: "Record what a drill has opened",
		Long: `Record what a drill has opened: the report that kmsd recovery verify has written and the
recovery key has signed, or the token that it is in. The cluster's status shows the last one of each recipient, and
warns when it is old.`,
		Example: "  kmsctl recovery report vault-2026-01-02.report",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			b, err := a.readSmall(ctx, args[0], recovery.MaxFile, "")
			if err != nil {
				return err
			}
			report, err := recovery.ParseReport(b)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			r, err := kms.Recovery().RecordRecoveryReport(ctx, &quorumkmsv1.RecordRecoveryReportRequest{Report: b, DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			return a.printLine(r, "Recorded: %s opened %d of %d key versions of a backup on %s.", r.GetRecipient(), report.Opened, report.Tokens, time.Unix(report.Created, 0).UTC().Format(time.RFC3339))
		}),
	})
}

func (a *app) recoveryRecipients() *cobra.Command {
	g := group("recipients", "See and change who can recover the domain key",
		a.recipientsList(), a.recipientsAdd(), a.recipientsRemove(), a.recipientsApprove(), a.recipientsCancel())
	g.Long = `See and change who can recover the domain key.

A change is made when as many operators approve it as kmsctl recovery settings says; who
proposes it counts as one. It waits for 7 days.`
	return g
}

func (a *app) recipientsList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "Show the recovery recipients, and the change that waits",
		Long:    "Show the recovery recipients, when each was last tried on a backup, and the change of\nthem that waits for approvals.",
		Example: "  kmsctl recovery recipients list",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			r, err := kms.Recovery().DescribeRecovery(ctx, &quorumkmsv1.DescribeRecoveryRequest{})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) error { return writeRecovery(w, r) })
		}),
	}
}

func (a *app) recipientsAdd() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "add FILE",
		Short: "Propose one recovery recipient more",
		Long: `Propose one recovery recipient more: the file of a recovery key (kmsctl recovery init, or
kmsd recovery init-token). When it is one, each node whose Security Officer has trusted
the key (kmsd hsm trust --recovery) wraps the generations of the domain key for it.`,
		Example: "  kmsctl recovery recipients add vault.recovery",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			keys, err := a.readRecoveryKeys(ctx, args)
			if err != nil {
				return err
			}
			r, err := kms.Recovery().AddRecoveryRecipient(ctx, &quorumkmsv1.AddRecoveryRecipientRequest{RecoveryKey: keys[0], DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s", changeText(r.GetChange(), r.GetDone()))
		}),
	})
}

func (a *app) recipientsRemove() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "remove NAME",
		Short: "Propose one recovery recipient less",
		Long: `Propose one recovery recipient less. Its copies leave the state; backups that were made
before have them still, and open with its key. If that must end, make another generation
of the domain key, rotate the keys and let the old backups go.`,
		Example: "  kmsctl recovery recipients remove vault",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Recovery().RemoveRecoveryRecipient(ctx, &quorumkmsv1.RemoveRecoveryRecipientRequest{Name: args[0], DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s", changeText(r.GetChange(), r.GetDone()))
		}),
	})
}

func (a *app) recipientsApprove() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:     "approve CHANGE",
		Short:   "Approve a change of the recovery recipients, or of the settings",
		Long:    "Approve a change of the recovery recipients or of the settings, as another operator than\nthose who have: see kmsctl recovery recipients list, and compare the fingerprint with the\none of the ceremony.",
		Example: "  kmsctl recovery recipients approve 1234",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			id, err := parseChange(args[0])
			if err != nil {
				return err
			}
			r, err := kms.Recovery().ApproveRecipientChange(ctx, &quorumkmsv1.ApproveRecipientChangeRequest{Change: id, DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s", changeText(r.GetChange(), r.GetDone()))
		}),
	})
}

func (a *app) recipientsCancel() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:     "cancel CHANGE",
		Short:   "Give a change of the recovery recipients, or of the settings, up",
		Long:    "Give a change of the recovery recipients or of the settings up that waits for approvals.",
		Example: "  kmsctl recovery recipients cancel 1234",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			id, err := parseChange(args[0])
			if err != nil {
				return err
			}
			r, err := kms.Recovery().CancelRecipientChange(ctx, &quorumkmsv1.CancelRecipientChangeRequest{Change: id, DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			return a.printLine(r, "Change %d is given up.", id)
		}),
	})
}

func (a *app) recoverySettings() *cobra.Command {
	flags := []*struct {
		name, usage string
		set         *uint32
	}{
		{"required", "recovery recipients that must hold a generation of the domain key before it becomes active", new(uint32)},
		{"approvals", "operators who approve a change of the recipients or of these settings", new(uint32)},
		{"drill-days", "days after which the last trial of a recovery is old", new(uint32)},
	}
	c := &cobra.Command{
		Use:   "settings",
		Short: "Show what holds for the recovery of the domain key, or propose other settings",
		Long: `Show what holds for the recovery of the domain key: how many recovery recipients must hold
a generation before it becomes active, how many operators approve a change, and after how
many days the last trial of a recovery is old.

With flags, propose others; what is not named stays. That is a change like one of the
recipients: as many operators approve it as the settings in force say, also where fewer are
to approve later, and it is approved and cancelled with kmsctl recovery recipients approve
and cancel. There must be as many recipients as are required, and should be more operators
than approve, or none of this can be changed once one of them is gone.`,
		Example: "  kmsctl recovery settings\n  kmsctl recovery settings --required 2 --approvals 3",
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
		change := &quorumkmsv1.RecoverySettings{Required: *flags[0].set, Approvals: *flags[1].set, DrillDays: *flags[2].set}
		named := false
		for _, f := range flags {
			given := c.Flags().Changed(f.name)
			if named = named || given; given && *f.set == 0 {
				return usagef("--%s 0: want 1 or more", f.name)
			}
		}
		if !named {
			r, err := kms.Recovery().DescribeRecovery(ctx, &quorumkmsv1.DescribeRecoveryRequest{})
			if err != nil {
				return err
			}
			return a.printSettings(r)
		}
		r, err := kms.Recovery().ChangeRecoverySettings(ctx, &quorumkmsv1.ChangeRecoverySettingsRequest{Settings: change, DryRun: a.dryRun, RequestId: a.requestID})
		if err != nil {
			return err
		}
		return a.printLine(r, "%s", changeText(r.GetChange(), r.GetDone()))
	})
	for _, f := range flags {
		c.Flags().Uint32Var(f.set, f.name, 0, f.usage)
	}
	return a.mutates(c)
}

func (a *app) printSettings(r *quorumkmsv1.DescribeRecoveryResponse) error {
	v := struct {
		Required   uint32 `json:"required"`
		Approvals  uint32 `json:"approvals"`
		DrillDays  uint32 `json:"drill_days"`
		Recipients int    `json:"recipients"`
	}{r.GetRequired(), r.GetApprovals(), r.GetDrillDays(), len(r.GetRecipients())}
	return a.printValue(v, func(w io.Writer) error {
		fields := [][2]string{
			{"Required", fmt.Sprintf("%d of %d recovery recipients hold a generation before it becomes active", v.Required, v.Recipients)},
			{"Approvals", fmt.Sprintf("%d operators approve a change", v.Approvals)},
			{"Drills", fmt.Sprintf("a recovery is tried each %d days", v.DrillDays)},
		}
		if c := r.GetChange(); c != nil {
			fields = append(fields, [2]string{"Waits", changeWaits(c)})
		}
		return writeFields(w, fields)
	})
}

// changeWaits is a change that waits for approvals.
func changeWaits(c *quorumkmsv1.RecipientChange) string {
	what := "remove " + c.GetRemove()
	if x := c.GetAdd(); x != nil {
		what = fmt.Sprintf("add %s, %s, %s", x.GetName(), recipientOpensWith(x), x.GetFingerprint())
	}
	if x := c.GetSettings(); x != nil {
		var parts []string
		for _, p := range []struct {
			n    uint32
			text string
		}{{x.GetRequired(), "%d recipients are required"}, {x.GetApprovals(), "%d operators approve"}, {x.GetDrillDays(), "a trial each %d days"}} {
			if p.n != 0 {
				parts = append(parts, fmt.Sprintf(p.text, p.n))
			}
		}
		what = "settings: " + strings.Join(parts, ", ")
	}
	return clean(fmt.Sprintf("Change %d waits until %s: %s; approved by %s.", c.GetId(), timeText(c.GetExpires()), what, strings.Join(c.GetApprovedBy(), ", ")))
}

func parseChange(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil || id == 0 {
		return 0, usagef("CHANGE %q: want a number from 1 on", s)
	}
	return id, nil
}

// readRecoveryKeys reads and checks the files of recovery keys.
func (a *app) readRecoveryKeys(ctx context.Context, paths []string) (files [][]byte, err error) {
	for _, path := range paths {
		b, err := a.readSmall(ctx, path, recovery.MaxFile, "")
		if err != nil {
			return nil, err
		}
		if _, err := recovery.ParsePublicKey(bytes.Clone(b)); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		files = append(files, b)
	}
	return files, nil
}

func changeText(id uint64, done bool) string {
	if done {
		return fmt.Sprintf("Change %d is made.", id)
	}
	return fmt.Sprintf("Change %d waits for another operator: kmsctl recovery recipients approve %d.", id, id)
}

func recipientsText(n int) string {
	if n == 0 {
		return "NONE: nothing recovers the domain key"
	}
	return fmt.Sprintf("the domain key is wrapped for %d recovery recipients", n)
}

func drillText(d *quorumkmsv1.RecoveryDrill) string {
	if d == nil {
		return "NEVER"
	}
	return fmt.Sprintf("%s, generation %d, %d of %d key versions", timeText(d.GetTime()), d.GetGeneration(), d.GetOpened(), d.GetKeyVersions())
}

// recoveryFields is what a status says of the recovery of the domain key.
func recoveryFields(s *quorumkmsv1.StatusResponse) (fields [][2]string) {
	for _, r := range s.GetRecoveryRecipients() {
		fields = append(fields, [2]string{"Recovery", clean(fmt.Sprintf("%s, %s, last tried: %s", r.GetName(), recipientOpensWith(r), drillText(r.GetDrill())))})
	}
	return fields
}

func writeRecovery(w io.Writer, r *quorumkmsv1.DescribeRecoveryResponse) error {
	rows := [][]string{{"RECIPIENT", "KIND", "OPENS WITH", "SINCE", "LAST TRIED", "FINGERPRINT"}}
	for _, x := range r.GetRecipients() {
		rows = append(rows, []string{
			x.GetName(), x.GetKind(), recipientOpensWith(x), timeText(x.GetAdded()), drillText(x.GetDrill()), x.GetFingerprint(),
		})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	notes := []string{fmt.Sprintf("%d of them must hold a generation of the domain key before it becomes active; %d operators approve a change; a recovery is tried each %d days.", r.GetRequired(), r.GetApprovals(), r.GetDrillDays())}
	if c := r.GetChange(); c != nil {
		notes = append(notes, changeWaits(c))
	}
	for _, alarm := range r.GetAlarms() {
		notes = append(notes, "WARNING: "+alarm)
	}
	for _, note := range notes {
		if _, err := fmt.Fprintf(w, "\n%s\n", clean(note)); err != nil {
			return err
		}
	}
	return nil
}
