package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
)

const (
	defaultSample = 1000 // key versions that a drill opens
	shownFailures = 20   // of those that did not open
	secretFile    = 0o600
)

func recoveryCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "recovery", Short: "Recover the domain key from a backup and a recovery key",
		Long: `Recovers the domain key of a cluster whose HSM tokens are all lost, from a backup and a
recovery key, and tries beforehand whether that would work. The recovery key opens with
enough of its shares (kmsctl recovery init), or is in another HSM token (init-token).

init-token, verify and release belong on a machine without a network. With shares it is
wiped afterwards: there the domain key is in clear, in the memory of the process. With a
token (--token) the domain key stays in that. request and install belong on the host of a
new node, while it is stopped.

rewrap moves a backup's keys to another generation of the domain key, away from the
cluster.`,
	}
	c.AddCommand(recoveryInitTokenCommand(), recoveryVerifyCommand(), recoveryRequestCommand(), recoveryReleaseCommand(), recoveryInstallCommand(), rewrapCommand(), twinCommand())
	return c
}

func recoveryVerifyCommand() *cobra.Command {
	var flags recoveryFlags
	var sample int
	var report string
	c := &cobra.Command{
		Use: "verify", Short: "Try a recovery: open a backup with a recovery key", Args: cobra.NoArgs,
		Long: `Opens every generation of the domain key in a backup with the shares of a recovery key
(--share), or in the HSM token that it is in (--token), verifies the whole backup, and opens
a sample of its keys, each against its check value (--sample 0: all). What opened is
written into a report that the recovery key signs, or the token; kmsctl recovery report
records it in the cluster. If anything does not open, it is named, and there is no report.

A token opens each generation from its copy in the backup, whatever else it holds, and
stores none: when the command has ended, however it did, the token is as it was.`,
		Example: "  kmsd recovery verify --backup kms-2026-01-02.qkb --share share-1 --share share-2 --report vault.report\n" +
			"  kmsd recovery verify --backup kms-2026-01-02.qkb --token recovery.yaml --report vault.report",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if sample < 0 {
				return fmt.Errorf("--sample %d: want 0 (all) or more", sample)
			}
			r, err := openRecovered(c.Context(), flags, c.ErrOrStderr())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, r.Close()) }()
			if len(r.missing) > 0 {
				return fmt.Errorf("generations %v of the domain key are in use, and not wrapped for recovery key %s in this backup", r.missing, r.recipient.Name)
			}
			total, opened, err := r.tryKeys(c.Context(), sample, c.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := r.summary(c.OutOrStdout(), flags.backup, [2]string{"Key versions", fmt.Sprintf("%d of %d opened", opened, total)}); err != nil {
				return err
			}
			return r.report(c.Context(), report, total, opened, c.OutOrStdout())
		},
	}
	flags.add(c)
	c.Flags().IntVar(&sample, "sample", defaultSample, "key versions to open, drawn at random; 0: all")
	c.Flags().StringVar(&report, "report", "", "file to write the report to (default: none is written)")
	return c
}

// tryKeys opens key versions with the recovered domain key.
func (r *recovered) tryKeys(ctx context.Context, sample int, progress io.Writer) (total, opened int, err error) {
	var refs []hsm.Ref
	for tenant := range tenants(r.state) {
		for k := range keysOf(r.state, tenant) {
			for i := range k.Versions {
				if v := &k.Versions[i]; v.Token != nil {
					refs = append(refs, kms.RefOf(r.state, k, v))
				}
			}
		}
	}
	total = len(refs)
	if sample > 0 && sample < total {
		rand.Shuffle(total, func(i, j int) { refs[i], refs[j] = refs[j], refs[i] }) //nolint:gosec // a sample, no secret
		refs = refs[:sample]
	}
	bar := progressbar.NewOptions(len(refs), progressbar.OptionSetWriter(progress), progressbar.OptionSetDescription("opening keys"),
		progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionShowCount(), progressbar.OptionClearOnFinish())
	var failures []error
	for _, ref := range refs {
		if err := ctx.Err(); err != nil {
			return total, 0, err
		}
		if err := hsm.TryOpen(ctx, r, ref); err != nil {
			failures = append(failures, fmt.Errorf("key %s, version %d: %w", uuid.UUID(ref.Want.Key), ref.Want.Version, err))
		}
		_ = bar.Add(1) // for people
	}
	_ = bar.Finish()
	if n := len(failures); n > 0 {
		return total, 0, fmt.Errorf("%d of %d key versions do not open:\n%w", n, len(refs), errors.Join(failures[:min(n, shownFailures)]...))
	}
	return total, len(refs), nil
}

// page is how much of a list is looked at a time.
const page = 1000

func tenants(s *fsm.State) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for after := ""; ; {
			some := s.Tenants(after, page)
			for _, n := range some {
				if after = n.Name; !yield(after) {
					return
				}
			}
			if len(some) < page {
				return
			}
		}
	}
}

func keysOf(s *fsm.State, tenant string) func(yield func(*fsm.Key) bool) {
	return func(yield func(*fsm.Key) bool) {
		for after := (fsm.ID{}); ; {
			some := s.Keys(tenant, after, page)
			for _, k := range some {
				if after = k.ID; !yield(k) {
					return
				}
			}
			if len(some) < page {
				return
			}
		}
	}
}

// summary tells a person what was opened.
func (r *recovered) summary(w io.Writer, file string, more ...[2]string) error {
	h, active := r.header, r.active()
	return writeFields(w, append([][2]string{
		{"Backup", fmt.Sprintf("%s, index %d, made %s by node %s", file, h.Index, utc(h.Created), h.Name)},
		{"Signed by", h.Fingerprint()},
		{"Cluster", h.Cluster},
		{"Recovery key", fmt.Sprintf("%s, of kind %s, %s", r.recipient.Name, r.recipient.Kind, hsm.Fingerprint(r.recipient.SPKI))},
		{"Generations", fmt.Sprintf("%v of the domain key opened, %d is active", r.opened, active)},
		{"Keys", fmt.Sprint(r.state.KeyCount())},
	}, slices.Concat(recipients(r.state), more)...))
}

// recipients are who recover the domain key in a backup's state, each shown: a stranger
// among them is seen by people only.
func recipients(s *fsm.State) (fields [][2]string) {
	for _, x := range s.Recovery().Recipients {
		fields = append(fields, [2]string{"Recipient", fmt.Sprintf("%s, %s, %s", x.Name, x.Kind, hsm.Fingerprint(x.SPKI))})
	}
	if fields == nil {
		fields = [][2]string{{"Recipient", "NONE: nobody recovers the domain key"}}
	}
	return fields
}

func (r *recovered) active() uint32 {
	g, err := r.state.ActiveGeneration()
	if err != nil {
		return 0
	}
	return g.Number
}

func utc(unix int64) string { return time.Unix(unix, 0).UTC().Format(time.RFC3339) }

func writeFields(w io.Writer, fields [][2]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range fields {
		if _, err := fmt.Fprintf(t, "%s:\t%s\n", f[0], f[1]); err != nil {
			return err
		}
	}
	return t.Flush()
}

func (r *recovered) report(ctx context.Context, path string, total, opened int, w io.Writer) error {
	if path == "" {
		return nil
	}
	report := &recovery.Report{
		Format: recovery.Format, Cluster: r.header.Cluster, Recipient: r.recipient.Name, Key: hsm.Fingerprint(r.recipient.SPKI), Created: time.Now().Unix(),
		Backup: r.sha256, BackupIndex: r.header.Index, BackupCreated: r.header.Created, Generations: r.opened, Active: r.active(),
		Tokens: uint64(total), Opened: uint64(opened), //nolint:gosec // not negative
	}
	if g, err := r.state.ActiveGeneration(); err == nil {
		report.Checks = g.ChecksHash()
	}
	b, err := r.key.sign(ctx, report)
	if err != nil {
		return err
	}
	if err := writeNew(path, b); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "Report:       %s; record it in the cluster: kmsctl recovery report %s\n", path, path)
	return err
}

// writeNew writes a file that is not there yet.
func writeNew(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, secretFile)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func recoveryRequestCommand() *cobra.Command {
	var config, out string
	c := &cobra.Command{
		Use: "request", Short: "Ask for the domain key, on the host of a new node", Args: cobra.NoArgs,
		Long: `Makes a transfer key in the token of a new node, whose data directory is empty and which
is stopped, and writes its public half to a file. Note the fingerprint: it is given to
kmsd recovery release, by a person who has read it here.`,
		Example: "  kmsd recovery request --config /etc/quorumkms/kmsd.yaml --out kms1.request",
		RunE: func(c *cobra.Command, _ []string) error {
			return withToken(c, config, func(ctx context.Context, cfg node.Config, p hsm.Partition) error {
				if out == "" {
					return errors.New("no file for the request: name one with --out")
				}
				t, err := p.NewTransfer(ctx)
				if err != nil {
					return err
				}
				request := &recovery.Request{
					Format: recovery.Format, Node: cfg.Name, Identity: p.Identity(), SPKI: t.SPKI, OAEPHash: t.OAEPHash, Signature: t.Signature,
				}
				b, err := request.Encode()
				if err != nil {
					return err
				}
				if err := writeNew(out, b); err != nil {
					return err
				}
				return writeFields(c.OutOrStdout(), [][2]string{{"Request", out}, {"Node", cfg.Name}, {"Fingerprint", request.Fingerprint()}})
			})
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/quorumkms/kmsd.yaml", "configuration file of the new node")
	c.Flags().StringVar(&out, "out", "", "file to write the request to")
	return c
}

// withToken runs f with the token of a node that is stopped.
func withToken(c *cobra.Command, config string, f func(ctx context.Context, cfg node.Config, p hsm.Partition) error) (err error) {
	cfg, err := node.LoadConfig(config)
	if err != nil {
		return err
	}
	if cfg.HSM.Kind == node.KindEmbedded {
		return fmt.Errorf("%w: the embedded partition keeps no transfer key while nothing runs: this needs a PKCS#11 token", node.ErrConfig)
	}
	log, _, err := newLog(cfg.Log, c.ErrOrStderr())
	if err != nil {
		return err
	}
	p, err := node.OpenPartition(c.Context(), cfg.HSM, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return f(c.Context(), cfg, p)
}

func recoveryReleaseCommand() *cobra.Command {
	var flags recoveryFlags
	var request, fingerprint, out string
	c := &cobra.Command{
		Use: "release", Short: "Give the domain key of a backup to a new node", Args: cobra.NoArgs,
		Long: `Opens the domain key in a backup with the shares of a recovery key (--share), or in the HSM
token that it is in (--token), and wraps each of its generations for the transfer key of
one new node (kmsd recovery request), in a file that only that node's token opens. --fingerprint is that of the transfer key, as the node's own
console has shown it: without that comparison whoever has handed over the request might
get the domain key. A token wraps only for a transfer key that its own Security Officer
has trusted, as any donor's: kmsd hsm trust --request.

It shows the fingerprints that kmsd recovery install asks for: that of the key that has
signed this release (the donor), and that of the backup's signer. Note both.`,
		Example: "  kmsd recovery release --backup kms-2026-01-02.qkb --share share-1 --share share-2 --for kms1.request --fingerprint SHA256:9f2c… --out kms1.release\n" +
			"  kmsd recovery release --backup kms-2026-01-02.qkb --token recovery.yaml --for kms1.request --fingerprint SHA256:9f2c… --out kms1.release",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			to, err := readRequest(request, fingerprint)
			if err != nil {
				return err
			}
			if out == "" {
				return errors.New("no file for the release: name one with --out")
			}
			r, err := openRecovered(c.Context(), flags, c.ErrOrStderr())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, r.Close()) }()
			for _, g := range r.missing {
				if _, err := fmt.Fprintf(c.ErrOrStderr(), "WARNING: generation %d of the domain key is not wrapped for recovery key %s in this backup: the keys under it do not open\n", g, r.recipient.Name); err != nil {
					return err
				}
			}
			b, err := r.release(c.Context(), to)
			if err != nil {
				return trustHint(err, flags, request, to)
			}
			if err := writeNew(out, b); err != nil {
				return err
			}
			return r.summary(c.OutOrStdout(), flags.backup, [2]string{"Released to", fmt.Sprintf("node %s, %s", to.Node, to.Fingerprint())}, [2]string{"Release", out},
				[2]string{"Donor", hsm.Fingerprint(r.Identity()) + "; note it: kmsd recovery install asks for it, and for the backup's signer"})
		},
	}
	flags.add(c)
	c.Flags().StringVar(&request, "for", "", "file of the node's request")
	c.Flags().StringVar(&fingerprint, "fingerprint", "", "of the request, as the node's own console has shown it")
	c.Flags().StringVar(&out, "out", "", "file to write the release to")
	return c
}

func readRequest(path, fingerprint string) (*recovery.Request, error) {
	if path == "" || fingerprint == "" {
		return nil, errors.New("a request and its fingerprint are needed: --for and --fingerprint")
	}
	b, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	r, err := recovery.ParseRequest(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	want, err := hsm.ParseFingerprint(fingerprint)
	if err != nil {
		return nil, err
	}
	if r.Fingerprint() != want {
		return nil, fmt.Errorf("%w: the fingerprint of the request in %s is %s, not %s: compare it with the node's own console, character by character", recovery.ErrRefused, path, r.Fingerprint(), want)
	}
	return r, nil
}

// recoveryDonor is what signs a release; no raft id has a slash.
const recoveryDonor = "recovery/donor"

// release wraps every generation for a request.
func (r *recovered) release(ctx context.Context, to *recovery.Request) ([]byte, error) {
	out := &recovery.Release{Format: recovery.Format, Cluster: r.header.Cluster, Node: to.Node, Donor: recoveryDonor, Identity: r.Identity()}
	c := r.state.Cluster()
	for _, g := range r.opened {
		m, err := r.Export(ctx, hsm.ExportRequest{
			Cluster: hsm.ID(c.ID), Epoch: c.RecoveryEpoch, Generation: g, Donor: recoveryDonor, Recipient: to.Node,
			Transfer: hsm.Transfer{SPKI: to.SPKI, OAEPHash: to.OAEPHash, Signature: to.Signature}, RecipientIdentity: to.Identity,
		})
		if err != nil {
			return nil, err
		}
		out.Messages = append(out.Messages, m)
	}
	return out.Encode()
}

func recoveryInstallCommand() *cobra.Command {
	var config string
	var from installFlags
	c := &cobra.Command{
		Use: "install RELEASE", Short: "Take the domain key in, on the host of a new node", Args: cobra.ExactArgs(1),
		Long: `Takes the domain key in that kmsd recovery release has wrapped for this node, checks each
generation against what the backup says of it, and verifies the backup with it. The node
is stopped; afterwards it is started and the backup is restored into it: kmsctl backup
restore. Further nodes join it as usual.

The files alone prove nothing: whoever brings a release and a backup of his own making
would have the node take a domain key in that he knows. So --donor names the key that has
signed the release, as the machine of kmsd recovery release has shown it, and --signer the
one that has signed the backup, as kmsctl cluster status has shown the nodes' keys while
the cluster lived. Nothing is taken in if either is another.`,
		Example: "  kmsd recovery install --config /etc/quorumkms/kmsd.yaml --backup kms-2026-01-02.qkb --signer SHA256:5f1d… --donor SHA256:c07a… kms1.release",
		RunE: func(c *cobra.Command, args []string) error {
			if err := from.check(); err != nil {
				return err
			}
			return withToken(c, config, func(ctx context.Context, cfg node.Config, p hsm.Partition) error {
				s, installed, err := install(ctx, cfg, p, args[0], from)
				if err != nil {
					return err
				}
				return writeFields(c.OutOrStdout(), slices.Concat([][2]string{
					{"Cluster", s.Cluster().ID.String()},
					{"Generations", fmt.Sprintf("%v of the domain key installed", installed)},
					{"Backup", fmt.Sprintf("%s, index %d, %d keys: verified", from.backup, s.Index(), s.KeyCount())},
				}, recipients(s), [][2]string{
					{"Next", "start the node, then kmsctl backup restore " + from.backup + "; if a recipient is not yours, remove it then: kmsctl recovery recipients remove NAME"},
				}))
			})
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/quorumkms/kmsd.yaml", "configuration file of the new node")
	c.Flags().StringVar(&from.backup, "backup", "", "file of the backup")
	c.Flags().StringVar(&from.signer, "signer", "", "fingerprint of the identity key that must have signed the backup")
	c.Flags().StringVar(&from.donor, "donor", "", "fingerprint of the key that must have signed the release")
	return c
}

// installFlags name a backup, and who must have signed it and the release.
type installFlags struct{ backup, signer, donor string }

// check fails unless both keys are named, in the form of fingerprints.
func (f installFlags) check() error {
	if f.backup == "" {
		return errors.New("no backup: name its file with --backup")
	}
	for _, x := range []struct{ flag, value, whose string }{
		{"--signer", f.signer, "the backup's signer, as kmsctl backup create or kmsctl cluster status --output json has shown it"},
		{"--donor", f.donor, "the release's signer, as kmsd recovery release has shown it"},
	} {
		if x.value == "" {
			return fmt.Errorf("%s is missing: the fingerprint of %s; without it whoever has made the files could have this node take in a domain key that he knows", x.flag, x.whose)
		}
		if _, err := hsm.ParseFingerprint(x.value); err != nil {
			return fmt.Errorf("%s: %w", x.flag, err)
		}
	}
	return nil
}

// readRelease reads a release that is for this node and of the donor that was named.
func (f installFlags) readRelease(path, node string) (*recovery.Release, error) {
	b, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	release, err := recovery.ParseRelease(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if is := hsm.Fingerprint(release.Identity); !backup.SameFingerprint(f.donor, is) {
		return nil, fmt.Errorf("%w: the release in %s is of the donor %s, not of %s: compare it with what kmsd recovery release has shown, character by character", recovery.ErrRefused, path, is, f.donor)
	}
	if release.Node != node {
		return nil, fmt.Errorf("%w: the release is for node %.80s, this is %s", recovery.ErrRefused, release.Node, node)
	}
	return release, nil
}

// peek reads what a backup of the signer that was named says of the domain key. Its
// signature has been verified, its MAC not yet.
func (f installFlags) peek(file io.Reader) (*fsm.State, error) {
	reader, err := backup.NewReader(file)
	if err != nil {
		return nil, err
	}
	h := reader.Header()
	if is := h.Fingerprint(); !backup.SameFingerprint(f.signer, is) {
		return nil, fmt.Errorf("%w: %s signed it, not %s", backup.ErrRefused, is, f.signer)
	}
	s, err := fsm.PeekRecovery(reader)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, reader) // the signature is at the end
	return s, err
}

// install imports every generation of a release into a node's token. One that is there
// already, of an attempt before, is left as it is.
func install(ctx context.Context, cfg node.Config, p hsm.Partition, path string, from installFlags) (*fsm.State, []uint32, error) {
	release, err := from.readRelease(path, cfg.Name)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(from.backup)
	if err != nil {
		return nil, nil, fmt.Errorf("--backup: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	peeked, err := from.peek(f)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", from.backup, err)
	}
	if id := peeked.Cluster().ID.String(); id != release.Cluster {
		return nil, nil, fmt.Errorf("%w: the release is of cluster %s, the backup of %s", recovery.ErrRefused, release.Cluster, id)
	}
	installed, err := importAll(ctx, p, release, peeked)
	if err != nil {
		return nil, nil, err
	}
	id := hsm.ID(peeked.Cluster().ID)
	key, err := p.LogKey(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	defer clear(key)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, nil, err
	}
	s, _, err := archive.Open(f, key)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", from.backup, err)
	}
	return s, installed, nil
}

// importAll takes the generations of a release in, by the check values of a backup.
func importAll(ctx context.Context, p hsm.Partition, release *recovery.Release, s *fsm.State) (installed []uint32, err error) {
	c := s.Cluster()
	held, err := p.Generations(ctx, hsm.ID(c.ID))
	if err != nil {
		return nil, err
	}
	var todo []hsm.ImportExpectation
	var messages [][]byte
	for _, message := range release.Messages {
		m, err := hsm.ParseTransfer(message)
		if err != nil {
			return nil, err
		}
		g, ok := s.Generation(m.Generation)
		if !ok || !g.InUse() {
			return nil, fmt.Errorf("%w: generation %d of the domain key is not in use in this backup", recovery.ErrRefused, m.Generation)
		}
		want := cluster.GenerationInHSM(g)
		installed = append(installed, g.Number)
		if slices.ContainsFunc(held, func(h hsm.Generation) bool { return h.Number == want.Number && slices.Equal(h.Checks, want.Checks) }) {
			continue
		}
		todo = append(todo, hsm.ImportExpectation{
			Cluster: hsm.ID(c.ID), Epoch: c.RecoveryEpoch, Donor: release.Donor, Recipient: release.Node, DonorIdentity: release.Identity, Generation: want,
		})
		messages = append(messages, message)
	}
	for i, want := range todo {
		want.More = i < len(todo)-1
		if _, err := p.Import(ctx, messages[i], want); err != nil {
			return nil, fmt.Errorf("generation %d of the domain key: %w", want.Generation.Number, err)
		}
	}
	return installed, nil
}

func parseCluster(id string) (uuid.UUID, error) {
	c, err := uuid.Parse(id)
	if err != nil {
		return c, fmt.Errorf("%w: cluster %.60q: %w", backup.ErrRefused, strings.ToValidUTF8(id, "?"), err)
	}
	return c, nil
}
