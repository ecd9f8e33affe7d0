package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const journalEnd = ".qkj"

func (a *app) backupRestore() *cobra.Command {
	var to, confirmed string
	var journals []string
	var r client.Restore
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a new node the whole cluster again, from a backup",
		Long: `Make a new node the whole cluster again, from a backup: when every node is lost.

--to is the node: it runs with an empty data directory, belongs to no cluster, and its
HSM token holds the cluster's domain key, as the token of any former node does. It
becomes the only member, under the same cluster id; other nodes join it as new ones.
While a single node is left, use kmsctl cluster recover instead: it loses less.

--journal names directories with the journal of restrictions that the nodes wrote
beside the backups (backup.dir); it may be repeated. What was revoked after the backup
is revoked again. Without it, or where it has a gap, every key comes back disabled,
since nobody can say which ones were revoked: enable them one by one. --disable-keys
wants that in any case.

If the cluster was recovered or restored after the backup, and no journal tells of it,
--epoch must name a recovery epoch later than any it has had.

The command shows what the restore comes to and asks to type the cluster's id;
--confirm gives it in scripts. It shows who recovers the domain key in the backup, and
again in the restored cluster: look for a recovery key there that is not yours.`,
		Example: `  kmsctl backup restore kms.qkb --journal /mnt/backup --to kms1.example.org:7300 --dry-run
  kmsctl backup restore kms.qkb --journal /mnt/backup --to kms1.example.org:7300`,
		RunE: a.to(&to, func(ctx context.Context, args []string) error {
			segments, err := journalFiles(journals)
			if err != nil {
				return err
			}
			r.Backup = client.RestoreFile{Open: func() (io.ReadCloser, error) { return os.Open(args[0]) }}
			r.Journals, r.DryRun, r.RequestID = segments, a.dryRun, a.requestID
			r.Confirm = func(p *quorumkmsv1.RestorePlan) error {
				return a.confirmRestore(ctx, args[0], p, len(segments), confirmed)
			}
			return a.restore(ctx, to, r)
		}),
	}
	c.Flags().StringVar(&to, "to", "", "address of the new node, host:port")
	c.Flags().StringArrayVar(&journals, "journal", nil, "directory with the journal of restrictions; may be repeated")
	c.Flags().StringVar(&confirmed, "confirm", "", "the cluster's id: do not ask for it")
	c.Flags().BoolVar(&r.DisableKeys, "disable-keys", false, "bring every key back disabled")
	c.Flags().Uint32Var(&r.Epoch, "epoch", 0, "recovery epoch to begin, at least")
	return a.mutates(c)
}

// to is the RunE of a command that asks one node, which it names itself.
func (a *app) to(address *string, f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if *address == "" {
			return usagef("--to is missing: the address of the new node")
		}
		for i := range a.settings {
			if a.settings[i].Name == setAddresses {
				a.settings[i].Value, a.settings[i].Source = *address, "--to"
			}
		}
		if _, err := a.clientConfig(); err != nil {
			return err
		}
		a.started = true
		return f(cmd.Context(), args)
	}
}

// journalFiles finds the segments in the directories.
func journalFiles(dirs []string) ([]client.RestoreFile, error) {
	var out []client.RestoreFile
	seen := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, &usageError{err}
		}
		before := len(out)
		for _, e := range entries {
			if !e.Type().IsRegular() || filepath.Ext(e.Name()) != journalEnd {
				continue
			}
			if other, double := seen[e.Name()]; double {
				return nil, fmt.Errorf("%s is in %s and in %s: name each directory of the journal once", e.Name(), other, dir)
			}
			seen[e.Name()] = dir
			path := filepath.Join(dir, e.Name())
			out = append(out, client.RestoreFile{Name: e.Name(), Open: func() (io.ReadCloser, error) { return os.Open(path) }})
		}
		if len(out) == before {
			return nil, fmt.Errorf("%s holds no journal of restrictions (no file ends in %s)", dir, journalEnd)
		}
	}
	return out, nil
}

func (a *app) restore(ctx context.Context, to string, r client.Restore) (err error) {
	kms, err := a.only(to, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kms.Close()) }()
	progress, done := a.restoreProgress()
	r.Progress = progress
	restored, err := kms.RestoreBackup(ctx, r)
	done()
	if err != nil {
		return err
	}
	return a.print(restored, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Cluster %s lives in %s alone, in recovery epoch %d; %d restrictions concerned nothing that is in the backup. Invite the other nodes: kmsctl cluster invite NAME.\n\n",
			clean(restored.GetClusterId()), clean(restored.GetRaftId()), restored.GetRecoveryEpoch(), restored.GetRefused())
		return errors.Join(err, writeFields(w, recoveredBy(restored.GetRecoveryRecipients())), strangers(w, restored.GetRecoveryRecipients()))
	})
}

// recoveredBy are the recovery recipients of a state that was in a backup.
func recoveredBy(all []*quorumkmsv1.RecoveryRecipient) (fields [][2]string) {
	if len(all) == 0 {
		return [][2]string{{"Recovery", "NOBODY recovers the domain key"}}
	}
	for _, x := range all {
		fields = append(fields, [2]string{"Recovery", clean(fmt.Sprintf("%s, %s, %s", x.GetName(), x.GetKind(), x.GetFingerprint()))})
	}
	return fields
}

// strangers says what to do with recipients that nobody knows.
func strangers(w io.Writer, all []*quorumkmsv1.RecoveryRecipient) error {
	text := "\nWhoever has one of these recovery keys recovers the domain key. If one is not yours: kmsctl recovery recipients remove NAME.\n"
	if len(all) == 0 {
		text = "\nAdd somebody who recovers the domain key: kmsctl recovery recipients add FILE.\n"
	}
	_, err := io.WriteString(w, text)
	return err
}

// restoreProgress shows on a terminal how many restrictions have been made again.
func (a *app) restoreProgress() (func(done, of uint64), func()) {
	if !isTerminal(a.stderr) {
		return nil, func() {}
	}
	bar := progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(a.stderr), progressbar.OptionThrottle(progressPeriod), progressbar.OptionShowCount(),
		progressbar.OptionSetSpinnerChangeInterval(0), progressbar.OptionClearOnFinish(),
		progressbar.OptionSetDescription("restrictions made again"))
	return func(done, of uint64) {
		if bar.GetMax64() < 0 {
			bar.ChangeMax64(int64(max(of, 1))) //nolint:gosec // a count
		}
		_ = bar.Set64(int64(done)) //nolint:gosec // a count; what cannot be shown is no reason to stop
	}, func() { _ = bar.Finish() }
}

func (a *app) confirmRestore(ctx context.Context, path string, p *quorumkmsv1.RestorePlan, files int, confirmed string) error {
	if err := writeRestorePlan(a.stderr, path, p, files); err != nil {
		return err
	}
	switch {
	case a.dryRun, confirmed == p.GetClusterId():
		return nil
	case confirmed != "":
		return fmt.Errorf("--confirm %s is not the cluster's id (%s); nothing was changed", confirmed, p.GetClusterId())
	case !isTerminal(a.stdin):
		return usagef("this asks for confirmation, and standard input is no terminal: add --confirm CLUSTER-ID if you are sure")
	}
	return a.confirm(ctx, "Are all former nodes powered off, and kept so? Type the cluster's id: ", p.GetClusterId())
}

func writeRestorePlan(w io.Writer, path string, p *quorumkmsv1.RestorePlan, files int) error {
	journal := "none"
	if files > 0 {
		journal = fmt.Sprintf("%d of %d files are of this cluster", p.GetJournalSegments(), files)
	}
	known := "NOT KNOWN: " + p.GetDoubt()
	if p.GetDoubt() == "" {
		known = fmt.Sprintf("known up to %s UTC (index %d); NOT what was revoked later", p.GetJournalTime().AsTime().UTC().Format(time.DateTime), p.GetJournalIndex())
	}
	keys := fmt.Sprintf("%d, of which %d enabled: they stay so, unless they were revoked", p.GetKeyCount(), p.GetEnabledKeys())
	if p.GetDisableKeys() {
		keys = fmt.Sprintf("%d, of which %d enabled: ALL COME BACK DISABLED", p.GetKeyCount(), p.GetEnabledKeys())
	}
	lost := "every change after the backup but the restrictions; keys made since, and all that is encrypted under them"
	if n := p.GetUnknownKeys(); n > 0 {
		lost += fmt.Sprintf(" (%d that the journal names)", n)
	}
	err := writeFields(w, append([][2]string{
		{"Backup", fmt.Sprintf("%s: made %s by %s, index %d, recovery epoch %d", path, timeText(p.GetCreated()), p.GetSignerName(), p.GetIndex(), p.GetBackupEpoch())},
		{"Signed by", p.GetSignerFingerprint()},
		{"Journal", journal},
		{"What was revoked", known},
		{"Made again", fmt.Sprintf("%d restrictions", p.GetRestrictions())},
		{"Keys", keys},
		{"LOST", lost},
	}, recoveredBy(p.GetRecoveryRecipients())...))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, `
Cluster %s will live in node %s alone, in recovery epoch %d.
  - Every former node must be powered off NOW and stay so until its data directory
    is emptied: together they could be a second cluster.
  - It takes %s, until nothing that they may still hold can be valid.

`, p.GetClusterId(), clean(p.GetNodeName()), p.GetRecoveryEpoch(), p.GetWait().AsDuration())
	return err
}
