package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
	"github.com/quorumkms/quorumkms/rpc/client/rewrapfile"
)

// Keys are moved away from an earlier generation of the domain key without the cluster: a
// partition that holds the generations takes a backup's tokens and writes new ones into a
// file, which kmsctl brings to a node.

const (
	// rewrapBatch is how many tokens are in work between two pieces of the file.
	rewrapBatch = 256
	// rewrapAtOnce is how many of them a partition works on side by side.
	rewrapAtOnce = 8
	// maxNamed is how many key versions that were left out are named.
	maxNamed = 20
)

// RewrapSummary says what became of a backup's key versions.
type RewrapSummary struct {
	From       uint32 // generation of the tokens that are to be replaced
	Generation uint32 // of the new ones
	Rewrapped  int
	Failed     int     // tokens that do not open
	Failures   []error // the first of them
}

// RewrapBackup has a partition wrap the keys that a backup has under one generation under
// another, and writes what kmsctl takes to the cluster. Where from is 0 it is the only one
// with a twin in the partition; where to is 0 it is the active one. A token that does not open
// is left out and fails no other: ErrCorrupt is an alarm, and the summary names it.
func RewrapBackup(ctx context.Context, p hsm.Partition, file io.ReadSeeker, from, to uint32, out io.Writer, progress func(done, of int)) (RewrapSummary, error) {
	s, err := openBackup(ctx, p, file)
	if err != nil {
		return RewrapSummary{}, err
	}
	result := RewrapSummary{Generation: to}
	if to == 0 {
		active, err := s.ActiveGeneration()
		if err != nil {
			return result, err
		}
		result.Generation = active.Number
	}
	if err := holdsGeneration(ctx, p, s, result.Generation); err != nil {
		return result, err
	}
	if result.From, err = twinHere(ctx, p, s, from, result.Generation); err != nil {
		return result, err
	}
	work := wrappedUnder(s, result.From)
	w, err := rewrapfile.NewWriter(out, rewrapfile.Header{
		Cluster: s.Cluster().ID.String(), From: result.From, Generation: result.Generation, Index: s.Index(),
	})
	if err != nil {
		return result, err
	}
	for at := 0; at < len(work); at += rewrapBatch {
		batch := work[at:min(at+rewrapBatch, len(work))]
		tokens, errs := rewrapAll(ctx, p, s, batch, result.Generation)
		for i, v := range batch {
			switch err := errs[i]; {
			case err == nil:
				result.Rewrapped++
				old := sha256.Sum256(v.version.Token)
				if err := w.Add(rewrapfile.Item{Key: v.key.ID.String(), Version: v.version.Version, Old: old[:], Token: tokens[i]}); err != nil {
					return result, err
				}
			case errors.Is(err, hsm.ErrCorrupt), errors.Is(err, hsm.ErrRefused), errors.Is(err, hsm.ErrUnsupported):
				result.Failed++
				if len(result.Failures) < maxNamed {
					result.Failures = append(result.Failures, fmt.Errorf("key %s, version %d: %w", v.key.ID, v.version.Version, err))
				}
			default:
				return result, fmt.Errorf("key %s, version %d: %w", v.key.ID, v.version.Version, err)
			}
		}
		progress(at+len(batch), len(work))
	}
	return result, w.Close()
}

// openBackup reads a backup of the cluster whose log key the partition has.
func openBackup(ctx context.Context, p hsm.Partition, file io.ReadSeeker) (*fsm.State, error) {
	b, err := backup.NewReader(file)
	if err != nil {
		return nil, err
	}
	cluster, err := uuid.Parse(b.Header().Cluster)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", backup.ErrRefused, err)
	}
	key, err := p.LogKey(ctx, hsm.ID(cluster))
	if err != nil {
		return nil, fmt.Errorf("this partition is not of cluster %s: %w", cluster, err)
	}
	defer clear(key)
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	s, _, err := archive.Open(file, key)
	return s, err
}

// holdsGeneration refuses to wrap under a generation that is not the cluster's.
func holdsGeneration(ctx context.Context, p hsm.Partition, s *fsm.State, number uint32) error {
	held, err := p.Generations(ctx, hsm.ID(s.Cluster().ID))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(held, func(g hsm.Generation) bool { return g.Number == number })
	if i < 0 {
		return fmt.Errorf("this partition does not hold generation %d: %w", number, hsm.ErrNotFound)
	}
	known, ok := s.Generation(number)
	if !ok {
		return nil // made after the backup: the cluster finds out
	}
	same := slices.EqualFunc(held[i].Checks, known.Checks, func(a hsm.KeyCheck, b fsm.DomainCheck) bool {
		return uint8(a.Kind) == b.Kind && string(a.Value[:]) == string(b.Value)
	})
	if !same {
		return fmt.Errorf("%w: this partition holds another generation %d than the cluster", hsm.ErrRefused, number)
	}
	return nil
}

// wrappedVersion is a key version of a backup.
type wrappedVersion struct {
	key     *fsm.Key
	version *fsm.KeyVersion
}

// twinHere is the generation whose keys are to be moved: it has a twin in the partition.
func twinHere(ctx context.Context, p hsm.Partition, s *fsm.State, from, to uint32) (uint32, error) {
	twins, err := p.Twins(ctx, hsm.ID(s.Cluster().ID))
	switch {
	case err != nil:
		return 0, err
	case from != 0 && from == to:
		return 0, fmt.Errorf("%w: from generation %d to itself", hsm.ErrRefused, to)
	case from == 0 && len(twins) > 1:
		return 0, fmt.Errorf("%w: the partition has twins of generations %v: name one (--from)", hsm.ErrRefused, twins)
	case from == 0 && len(twins) == 1:
		return twins[0], nil
	case !slices.Contains(twins, from):
		return 0, fmt.Errorf("%w: the partition has no twin of the generation whose keys are to be moved: kmsd recovery twin install", hsm.ErrNotFound)
	}
	return from, nil
}

// wrappedUnder are the key versions that a generation wraps, by key and version.
func wrappedUnder(s *fsm.State, generation uint32) (work []wrappedVersion) {
	keys, _, _ := s.WrappedUnder(generation, fsm.ID{}, fsm.MaxKeys, fsm.MaxKeys)
	for _, k := range keys {
		for i := range k.Versions {
			if v := &k.Versions[i]; v.Token != nil && v.Generation == generation {
				work = append(work, wrappedVersion{k, v})
			}
		}
	}
	return work
}

func rewrapAll(ctx context.Context, p hsm.Rewrapper, s *fsm.State, batch []wrappedVersion, to uint32) ([][]byte, []error) {
	tokens, errs := make([][]byte, len(batch)), make([]error, len(batch))
	places := make(chan struct{}, rewrapAtOnce)
	var all sync.WaitGroup
	for i, v := range batch {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			tokens[i], errs[i] = p.Rewrap(ctx, kms.RefOf(s, v.key, v.version), to)
			if errs[i] == nil {
				_, errs[i] = hsm.Rewrapped(v.version.Token, tokens[i])
			}
		})
	}
	all.Wait()
	return tokens, errs
}

// twinParty is what a partition calls itself that hands a generation to itself.
const twinParty = "twin"

// InstallTwin makes the twin of a generation in a partition that holds it: the partition
// hands the generation to itself, and its Security Officer trusts the key for that. A
// token does not let its Security Officer in while this process is its user, so it is
// opened twice.
func InstallTwin(ctx context.Context, c HSM, log *slog.Logger, cluster fsm.ID, number uint32, soPIN []byte) (err error) {
	if c.Kind == KindEmbedded {
		return fmt.Errorf("%w: an embedded partition has a twin only as long as its process runs", hsm.ErrRefused)
	}
	var transfer hsm.Transfer
	if err := usingPartition(ctx, c, log, func(p hsm.Partition) error {
		if _, err := heldHere(ctx, p, cluster, number); err != nil {
			return err
		}
		twins, err := p.Twins(ctx, hsm.ID(cluster))
		if err != nil {
			return err
		}
		if slices.Contains(twins, number) {
			return fmt.Errorf("twin of generation %d: %w", number, hsm.ErrExists)
		}
		transfer, err = p.NewTransfer(ctx)
		return err
	}); err != nil {
		return err
	}
	if err := TrustTransfer(ctx, c, soPIN, transfer.SPKI); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, UntrustTransfer(ctx, c, soPIN, hsm.Fingerprint(transfer.SPKI))) }()
	return usingPartition(ctx, c, log, func(p hsm.Partition) error { return TwinOfOwn(ctx, p, cluster, number, transfer) })
}

// TwinOfOwn makes the twin of a generation that a partition holds, by a transfer key of its
// own that it trusts.
func TwinOfOwn(ctx context.Context, p hsm.Partition, cluster fsm.ID, number uint32, transfer hsm.Transfer) error {
	g, err := heldHere(ctx, p, cluster, number)
	if err != nil {
		return err
	}
	message, err := p.Export(ctx, hsm.ExportRequest{
		Cluster: hsm.ID(cluster), Generation: number, Donor: twinParty, Recipient: twinParty, Transfer: transfer, RecipientIdentity: p.Identity(),
	})
	if err != nil {
		return err
	}
	return p.InstallTwin(ctx, message, hsm.ImportExpectation{
		Cluster: hsm.ID(cluster), Donor: twinParty, Recipient: twinParty, DonorIdentity: p.Identity(), Generation: g,
	})
}

func heldHere(ctx context.Context, p hsm.Partition, cluster fsm.ID, number uint32) (hsm.Generation, error) {
	held, err := p.Generations(ctx, hsm.ID(cluster))
	if err != nil {
		return hsm.Generation{}, err
	}
	for _, g := range held {
		if g.Number == number {
			return g, nil
		}
	}
	return hsm.Generation{}, fmt.Errorf("this partition does not hold generation %d of cluster %s: %w", number, cluster, hsm.ErrNotFound)
}

// Twins lists the generations that have a twin in a partition.
func Twins(ctx context.Context, c HSM, log *slog.Logger, cluster fsm.ID) (numbers []uint32, err error) {
	err = usingPartition(ctx, c, log, func(p hsm.Partition) error {
		numbers, err = p.Twins(ctx, hsm.ID(cluster))
		return err
	})
	return numbers, err
}

// DestroyTwin destroys the twin of a generation in a partition.
func DestroyTwin(ctx context.Context, c HSM, log *slog.Logger, cluster fsm.ID, number uint32) error {
	return usingPartition(ctx, c, log, func(p hsm.Partition) error { return p.DestroyTwin(ctx, hsm.ID(cluster), number) })
}

func usingPartition(ctx context.Context, c HSM, log *slog.Logger, f func(hsm.Partition) error) (err error) {
	p, err := openPartition(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return f(p)
}
