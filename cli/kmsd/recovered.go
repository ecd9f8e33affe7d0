package main

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/soft"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
)

// recoveryFlags name what a recovery begins with: a backup, and enough shares of one of
// its recovery recipients' keys.
type recoveryFlags struct {
	backup     string
	signer     string
	shares     []string
	identities []string
}

func (f *recoveryFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.backup, "backup", "", "file of the backup")
	c.Flags().StringVar(&f.signer, "signer", "", "fingerprint of the identity key that must have signed the backup (default: any)")
	c.Flags().StringArrayVar(&f.shares, "share", nil, "file of a share, in clear or encrypted to an --identity; once for each")
	c.Flags().StringArrayVar(&f.identities, "identity", nil, "file of a holder's own key, to open shares with; may be repeated")
}

// recovered is what a recovery key has opened: the domain key, in a partition that is in
// memory only, and the whole state of the backup, verified with it.
type recovered struct {
	*soft.Partition
	state     *fsm.State
	header    backup.Header
	sha256    []byte // of the backup
	key       *rsa.PrivateKey
	recipient fsm.Recipient
	opened    []uint32 // generations of the domain key, rising
	missing   []uint32 // generations that wrap keys, or are to, and that the recipient has no copy of
}

// Close overwrites what is secret.
func (r *recovered) Close() error {
	recovery.Wipe(r.key)
	return r.Partition.Close()
}

// openRecovered opens a backup with the shares of a recovery key. Whoever has the result
// closes it.
func openRecovered(ctx context.Context, f recoveryFlags) (*recovered, error) {
	if f.backup == "" {
		return nil, errors.New("no backup: name its file with --backup")
	}
	key, name, err := combineShares(f)
	if err != nil {
		return nil, err
	}
	r := &recovered{key: key}
	if r.Partition, err = soft.Open(soft.Config{TrustAll: true, Label: "recovery"}); err != nil {
		recovery.Wipe(key)
		return nil, err
	}
	if err := r.read(ctx, f, name); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", f.backup, err), r.Close())
	}
	return r, nil
}

// read opens and verifies the backup.
func (r *recovered) read(ctx context.Context, f recoveryFlags, name string) error {
	file, err := os.Open(f.backup)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read
	if err := r.openDomain(ctx, file, f, name); err != nil {
		return err
	}
	return r.readState(ctx, file)
}

// combineShares opens the recovery key; name is what its ceremony has called it.
func combineShares(f recoveryFlags) (key *rsa.PrivateKey, name string, err error) {
	var identities []recovery.Identity
	for _, path := range f.identities {
		b, err := readSmall(path)
		if err != nil {
			return nil, "", err
		}
		more, err := recovery.ParseIdentities(b)
		clear(b)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", path, err)
		}
		identities = append(identities, more...)
	}
	var given []recovery.Given
	defer func() {
		for _, g := range given {
			g.Wipe()
		}
	}()
	for _, path := range f.shares {
		b, err := readSmall(path)
		if err != nil {
			return nil, "", err
		}
		share, err := recovery.OpenShare(b, identities)
		clear(b)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", path, err)
		}
		given = append(given, recovery.Given{Source: path, Share: share})
	}
	if key, err = recovery.Combine(given); err != nil {
		return nil, "", err
	}
	return key, given[0].Key.Name, nil
}

// openDomain takes in every generation that the backup has a copy of for the key. What it
// reads of the backup is not verified yet: that needs the log key, which is among what it
// opens.
func (r *recovered) openDomain(ctx context.Context, file io.Reader, f recoveryFlags, name string) error {
	sum := sha256.New()
	whole := io.TeeReader(file, sum)
	b, err := backup.NewReader(whole)
	if err != nil {
		return err
	}
	r.header = b.Header()
	if f.signer != "" && !backup.SameFingerprint(f.signer, r.header.Fingerprint()) {
		return fmt.Errorf("%w: %s signed it, not %s", backup.ErrRefused, r.header.Fingerprint(), f.signer)
	}
	s, err := fsm.PeekRecovery(b)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, whole); err != nil {
		return err
	}
	r.sha256 = sum.Sum(nil)
	if err := r.findRecipient(s, name); err != nil {
		return err
	}
	for _, g := range s.Cluster().Generations {
		c, ok := s.RecoveryCopy(g.Number, r.recipient.Name)
		if !ok || !g.InUse() {
			continue
		}
		if err := r.take(ctx, s.Cluster(), g, c); err != nil {
			return fmt.Errorf("generation %d of the domain key: %w", g.Number, err)
		}
		r.opened = append(r.opened, g.Number)
	}
	if len(r.opened) == 0 {
		return fmt.Errorf("%w: no generation of the domain key is wrapped for recovery key %s in this backup", recovery.ErrRefused, name)
	}
	return nil
}

func (r *recovered) findRecipient(s *fsm.State, name string) error {
	var names []string
	for _, x := range s.Recovery().Recipients {
		public, err := hsm.RecoveryPublicKey(x.SPKI)
		if err == nil && public.Equal(&r.key.PublicKey) {
			r.recipient = x
			return nil
		}
		names = append(names, fmt.Sprintf("%s (%s)", x.Name, hsm.Fingerprint(x.SPKI)))
	}
	if len(names) == 0 {
		names = []string{"there is none"}
	}
	return fmt.Errorf("%w: recovery key %s is no recipient in this backup of cluster %s, whose recipients are: %s", recovery.ErrRefused, name, r.header.Cluster, strings.Join(names, ", "))
}

func (r *recovered) take(ctx context.Context, c fsm.Cluster, g fsm.Generation, x *fsm.RecoveryCopy) error {
	m, err := hsm.ParseTransfer(x.Message)
	if err != nil {
		return err
	}
	_, err = r.Recover(ctx, r.key, x.Message, hsm.ImportExpectation{
		Cluster: hsm.ID(c.ID), Epoch: m.Epoch, // of its time
		Donor: x.Donor, DonorIdentity: x.Identity, Recipient: cluster.RecoveryRecipient(x.Recipient), Generation: cluster.GenerationInHSM(g),
	})
	return err
}

// readState reads the backup again, all of it verified.
func (r *recovered) readState(ctx context.Context, file io.ReadSeeker) error {
	id, err := parseCluster(r.header.Cluster)
	if err != nil {
		return err
	}
	key, err := r.LogKey(ctx, hsm.ID(id))
	if err != nil {
		return err
	}
	defer clear(key)
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if r.state, _, err = archive.Open(file, key); err != nil {
		return err
	}
	wrapped := r.state.CountTokens()
	for _, g := range r.state.Cluster().Generations {
		if (g.State == fsm.GenerationActive || wrapped[g.Number] > 0) && !slices.Contains(r.opened, g.Number) {
			r.missing = append(r.missing, g.Number)
		}
	}
	return nil
}

// readSmall reads a file of a ceremony.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()                       //nolint:errcheck // only read
	b := make([]byte, recovery.MaxFile+1) // in one piece: it may be secret, and io.ReadAll leaves behind what became too small
	n, err := io.ReadFull(f, b)
	switch {
	case err == nil:
		err = fmt.Errorf("%s is larger than %d bytes", path, recovery.MaxFile)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return b[:n], nil
	}
	clear(b)
	return nil, err
}
