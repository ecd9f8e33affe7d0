package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// partialEnd is what a file is called by while it is no backup yet.
const partialEnd = ".partial"

func (a *app) backupCommand() *cobra.Command {
	g := group("backup", "Make backups of the cluster, check them, and restore them",
		a.backupCreate(), a.backupVerify(), a.backupRestore())
	g.Long = `Make backups of the cluster, check them, and restore them.

A backup holds the whole state: keys, wrapped under the domain key as they are on the
nodes' disks, their metadata, aliases and members. It opens nothing without an HSM
that holds the domain key.`
	return g
}

func (a *app) backupCreate() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "create FILE",
		Short: "Write a backup of the cluster's state to a file",
		Long: `Write a backup of the cluster's state to a file.

It holds everything that was acknowledged anywhere in the cluster before the command
was given. The node that made it signs it. While it is written it is called
FILE.partial; FILE appears when the backup is complete and has been checked.`,
		Example: "  kmsctl backup create kms-2026-01-02.qkb",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			path := args[0]
			if _, err := os.Lstat(path); err == nil && !force {
				return fmt.Errorf("%s exists: choose another name, or replace it with --force", path)
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			s, err := a.receiveBackup(ctx, kms, path, force)
			if err != nil {
				return err
			}
			v := viewBackup(path, s)
			return a.printValue(v, func(w io.Writer) error { return writeFields(w, v.fields()) })
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "replace FILE, and a FILE.partial that was left behind")
	return c
}

// receiveBackup writes a backup to a file, which appears when the backup is complete.
func (a *app) receiveBackup(ctx context.Context, kms *client.Client, path string, force bool) (backup.Summary, error) {
	partial := path + partialEnd
	if force {
		if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return backup.Summary{}, err
		}
	}
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_EXCL|os.O_WRONLY, secretMode)
	if errors.Is(err, fs.ErrExist) {
		return backup.Summary{}, fmt.Errorf("%w: another backup is being written to it, or one broke off: remove it, or use --force", err)
	}
	if err != nil {
		return backup.Summary{}, err
	}
	s, err := a.checkedCopy(ctx, kms, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(partial, path)
	}
	if err != nil {
		return s, errors.Join(err, os.Remove(partial))
	}
	return s, syncDir(filepath.Dir(path))
}

// checkedCopy writes a backup to f and checks it on the way.
func (a *app) checkedCopy(ctx context.Context, kms *client.Client, f io.Writer) (backup.Summary, error) {
	progress, done := a.backupProgress()
	defer done()
	through, into := io.Pipe()
	checked := make(chan error, 1)
	var s backup.Summary
	go func() {
		var err error
		s, err = backup.Check(through, progress)
		checked <- err
		_ = through.CloseWithError(err) // nil: what still comes is too much
	}()
	err := kms.CreateBackup(ctx, io.MultiWriter(f, into))
	if err == nil {
		err = into.Close()
	} else {
		_ = into.CloseWithError(err)
	}
	if bad := <-checked; err == nil {
		err = bad
	}
	return s, err
}

// backupProgress shows on a terminal how much of a backup has been read.
func (a *app) backupProgress() (backup.Progress, func()) {
	if !isTerminal(a.stderr) {
		return nil, func() {}
	}
	bar := progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(a.stderr),
		progressbar.OptionThrottle(progressPeriod),
		progressbar.OptionShowCount(),
		progressbar.OptionSetSpinnerChangeInterval(0),
		progressbar.OptionClearOnFinish())
	return func(records, of uint64, bytes int64) {
		if bar.GetMax64() < 0 {
			bar.ChangeMax64(int64(max(of, 1))) //nolint:gosec // a count
		}
		bar.Describe(fmt.Sprintf("%.1f MiB, records", float64(bytes)/(1<<20)))
		_ = bar.Set64(int64(records)) //nolint:gosec // a count; what cannot be shown is no reason to stop
	}, func() { _ = bar.Finish() }
}

func (a *app) backupVerify() *cobra.Command {
	var signer string
	var online, offline bool
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a backup: by itself, and against the cluster",
		Long: `Check a backup: by itself, and against the cluster.

Without any key, the file's structure, exact length, checksums and counts are checked,
and its signature by the node identity key that it names. Who that key belongs to is
not known from the file: compare the fingerprint with kmsctl cluster status --output
json, or give it with --signer.

Where a cluster is configured, a node also checks the MAC under the cluster's log key,
every record, and that the signer is or was a member. --online wants that, --offline
does without.`,
		Example: `  kmsctl backup verify kms-2026-01-02.qkb
  kmsctl backup verify kms-2026-01-02.qkb --offline --signer SHA256:5f1d…`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if online && offline {
				return errors.New("--online and --offline exclude each other")
			}
			if !online && !offline {
				online = a.value(setAddresses) != ""
			}
			if args[0] == stdio {
				return errors.New("a backup is read twice: give a file, not standard input")
			}
			check := func(ctx context.Context, kms *client.Client) error { return a.verifyBackup(ctx, kms, args[0], signer) }
			if online {
				return a.remote(func(ctx context.Context, kms *client.Client, _ []string) error { return check(ctx, kms) })(cmd, args)
			}
			return a.local(func(cmd *cobra.Command, _ []string) error { return check(cmd.Context(), nil) })(cmd, args)
		},
	}
	c.Flags().StringVar(&signer, "signer", "", "fingerprint of the identity key that must have signed")
	c.Flags().BoolVar(&online, "online", false, "have a node check it too")
	c.Flags().BoolVar(&offline, "offline", false, "ask no node")
	return c
}

// verifyBackup checks a file; kms is nil where no node is to be asked.
func (a *app) verifyBackup(ctx context.Context, kms *client.Client, path, signer string) error {
	s, err := a.checkFile(ctx, path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	v := viewBackup(path, s)
	if signer != "" && !backup.SameFingerprint(signer, v.Signer) {
		return fmt.Errorf("%s was signed by the key %s, not by %s", path, v.Signer, signer)
	}
	v.SignerPinned = signer != ""
	if kms == nil {
		return a.printVerified(v, nil)
	}
	r, err := kms.VerifyBackup(ctx, func() (io.ReadCloser, error) { return a.open(ctx, path) })
	switch e, ok := errors.AsType[*client.Error](err); {
	case ok && e.Code == codes.InvalidArgument:
		return fmt.Errorf("%s: the node refuses it: %w", path, err)
	case err != nil:
		return fmt.Errorf("%s is sound by itself; no node could check the rest: %w", path, err)
	}
	return a.printVerified(v, r)
}

func (a *app) checkFile(ctx context.Context, path string) (backup.Summary, error) {
	f, err := a.open(ctx, path)
	if err != nil {
		return backup.Summary{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	progress, done := a.backupProgress()
	defer done()
	return backup.Check(f, progress)
}

// backupView is what is printed of a backup.
type backupView struct {
	File          string    `json:"file"`
	ClusterID     string    `json:"cluster_id"`
	RecoveryEpoch uint32    `json:"recovery_epoch"`
	Index         uint64    `json:"index"`
	Term          uint64    `json:"term"`
	Created       time.Time `json:"created"`
	Keys          uint64    `json:"keys"`
	Records       uint64    `json:"records"`
	NodeID        string    `json:"node_id"`
	NodeName      string    `json:"node_name"`
	Signer        string    `json:"signer"` // fingerprint
	Bytes         int64     `json:"bytes"`
	SHA256        string    `json:"sha256"`
	SignerPinned  bool      `json:"signer_pinned"` // it is the one that was asked for
}

func viewBackup(path string, s backup.Summary) backupView {
	return backupView{
		File: path, ClusterID: s.Cluster, RecoveryEpoch: s.RecoveryEpoch, Index: s.Index, Term: s.Term,
		Created: time.Unix(s.Created, 0).UTC(), Keys: s.Keys, Records: s.Records, NodeID: s.Node, NodeName: s.Name,
		Signer: s.Fingerprint(), Bytes: s.Bytes, SHA256: hex.EncodeToString(s.SHA256),
	}
}

func (v backupView) fields() [][2]string {
	return [][2]string{
		{"Backup", v.File},
		{"Cluster", fmt.Sprintf("%s, recovery epoch %d", v.ClusterID, v.RecoveryEpoch)},
		{"Index", fmt.Sprintf("%d, term %d", v.Index, v.Term)},
		{"Keys", fmt.Sprintf("%d, in %d records", v.Keys, v.Records)},
		{"Made", fmt.Sprintf("%s UTC by %s (%s)", v.Created.Format(time.DateTime), v.NodeName, v.NodeID)},
		{"Signed by", v.Signer},
		{"Size", strconv.FormatInt(v.Bytes, 10) + " bytes"},
		{"SHA-256", v.SHA256},
	}
}

// printVerified prints what was found; r is nil if no node was asked.
func (a *app) printVerified(v backupView, r *quorumkmsv1.VerifyBackupResponse) error {
	var node *clusterView
	if r != nil {
		node = &clusterView{enumName(r.GetSignerState(), "MEMBER_STATE_"), r.GetAppliedIndex(), r.GetAppliedEpoch()}
	}
	return a.printValue(struct {
		backupView
		Cluster *clusterView `json:"cluster_check"` // null: no node was asked
	}{v, node}, func(w io.Writer) error {
		whole := [2]string{"Structure", "complete; checksums, counts and signature fit"}
		return writeFields(w, append(v.fields(), whole, [2]string{"Signer", v.signerText(node)}, [2]string{"Cluster check", node.text()}))
	})
}

// clusterView is what a node says of a backup.
type clusterView struct {
	SignerState  string `json:"signer_state"`
	AppliedIndex uint64 `json:"applied_index"`
	AppliedEpoch uint32 `json:"applied_epoch"`
}

func (c *clusterView) text() string {
	if c == nil {
		return "not asked: the MAC and the records were not checked"
	}
	return fmt.Sprintf("MAC, every record and the signer fit; the cluster is at index %d, recovery epoch %d", c.AppliedIndex, c.AppliedEpoch)
}

func (v backupView) signerText(node *clusterView) string {
	switch {
	case node != nil:
		return fmt.Sprintf("node %s, a member of the cluster: %s", v.NodeName, node.SignerState)
	case v.SignerPinned:
		return "it is the key given with --signer"
	default:
		return "NOT KNOWN: compare the fingerprint with kmsctl cluster status --output json, or give --signer"
	}
}

// backupFields is how the backups that a node writes by itself do, for its status.
func backupFields(b *quorumkmsv1.BackupStatus) [][2]string {
	if b.GetDirectory() == "" {
		return [][2]string{{"  backups", "none are scheduled: backup.dir is not set"}}
	}
	last, journal := "none yet", "none yet"
	if b.GetLastBackup() != nil {
		last = fmt.Sprintf("%s, index %d, in %s", timeText(b.GetLastBackup()), b.GetLastIndex(), b.GetDirectory())
	}
	if b.GetJournalIndex() != 0 {
		journal = fmt.Sprintf("up to %s, index %d", orDash(timeText(b.GetJournalTime())), b.GetJournalIndex())
	}
	if p := b.GetBackupProblem(); p != "" {
		last = "FAILED: " + p + "; last: " + last
	}
	if p := b.GetJournalProblem(); p != "" {
		journal = "FAILED: " + p + "; written: " + journal
	}
	return [][2]string{{"  backups", last}, {"  journal", journal}}
}
