package cluster

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// Copies of the domain key for recovery recipients lie in the state, and so in every
// backup. They are made by any node that holds the generation and whose Security Officer
// has trusted the recipient's key: at the founding before the first entry, and later as a
// duty of every node, which takes nothing but the state to be gone on with.

// RecoveryRecipient is what a recovery key is called in DKX1; no raft id has a slash.
func RecoveryRecipient(name string) string { return "recovery/" + name }

// TrustsRecovery fails unless this node's Security Officer has trusted recovery keys, none of
// which is in this node's own partition; it wraps hsm.ErrNotTrusted or fsm.ErrIdentity and
// names the one.
func (m *Member) TrustsRecovery(ctx context.Context, keys []fsm.FirstRecipient) error {
	for _, k := range keys {
		if err := k.Apart(m.id, m.config.Domain.Identity()); err != nil {
			return err
		}
		if err := m.config.Domain.Trusted(ctx, k.SPKI); err != nil {
			return fmt.Errorf("recovery recipient %s: %w: this node's Security Officer must compare the fingerprint with the one of the ceremony and trust it, on this host: kmsd hsm trust --recovery <file> %s", k.Name, err, hsm.Fingerprint(k.SPKI))
		}
	}
	return nil
}

// recoverable makes the copies of a new cluster's first generation.
func (m *Member) recoverable(ctx context.Context, id identity, g hsm.Generation, r *fsm.FirstRecovery) (*fsm.FirstRecovery, error) {
	if r == nil {
		return nil, nil //nolint:nilnil // nothing was said
	}
	made := *r
	made.Recipients = slices.Clone(r.Recipients)
	for i := range made.Recipients {
		x := &made.Recipients[i]
		var err error
		x.Message, err = m.config.Domain.ExportRecovery(ctx, hsm.RecoveryRequest{
			Cluster: hsm.ID(id.Cluster), Generation: g.Number, Donor: m.id, Recipient: RecoveryRecipient(x.Name), SPKI: x.SPKI, OAEPHash: x.OAEPHash,
		})
		if err != nil {
			return nil, fmt.Errorf("wrapping the domain key for recovery recipient %s: %w", x.Name, err)
		}
		err = checkCopy(x.Message, x.SPKI, hsm.ImportExpectation{
			Cluster: hsm.ID(id.Cluster), Donor: m.id, DonorIdentity: m.config.Domain.Identity(), Recipient: RecoveryRecipient(x.Name), Generation: g,
		})
		if err != nil {
			return nil, fmt.Errorf("wrapping the domain key for recovery recipient %s: %w", x.Name, err)
		}
	}
	return &made, nil
}

// A copy is opened by nobody until everything is lost: what is wrong with it by then is
// found too late. So whoever makes one looks at it as the one who recovers will, and so does
// the leader, before it is committed. The state itself knows no DKX1. That the ciphertexts
// hold the key nobody but the recipient sees: kmsd recovery verify.

// checkCopy says what is wrong with a recovery copy that is to be for a recovery key, as far
// as it can be seen without that key's private half; it wraps fsm.ErrInvalid.
func checkCopy(message, spki []byte, want hsm.ImportExpectation) error {
	m, err := hsm.ParseTransfer(message)
	if err == nil {
		err = m.Verify(want, hsm.Transfer{SPKI: spki, OAEPHash: m.OAEPHash})
	}
	if err == nil && len(message) > fsm.MaxRecoveryCopy {
		err = fmt.Errorf("%d bytes, at most %d", len(message), fsm.MaxRecoveryCopy)
	}
	if err == nil {
		err = fillsModulus(m, spki)
	}
	if err != nil {
		return fmt.Errorf("%w: the recovery copy of generation %d for %s is not what it should be: %w", fsm.ErrInvalid, want.Generation.Number, want.Recipient, err)
	}
	return nil
}

// fillsModulus refuses ciphertexts that are none of the recovery key's.
func fillsModulus(m hsm.TransferMessage, spki []byte) error {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return fmt.Errorf("recovery key: %w", err)
	}
	public, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("recovery key is a %T", parsed)
	}
	for _, k := range m.Keys {
		if len(k.Ciphertext) != public.Size() {
			return fmt.Errorf("ciphertext of %d bytes, the recovery key makes %d", len(k.Ciphertext), public.Size())
		}
	}
	return nil
}

// copyFits says what is wrong with a copy that is to be recorded, by what a state knows of
// its recipient, its generation and the node that made it. What the state refuses by itself
// is left to it.
func copyFits(s *fsm.State, c *fsm.AddRecoveryCopy) error {
	r, isRecipient := s.Recovery().Recipient(c.Recipient)
	node, isMember := s.Member(c.Node)
	g, isGeneration := s.Generation(c.Generation)
	if sum := sha256.Sum256(r.SPKI); !isRecipient || !isMember || !isGeneration || g.Retired() || !bytes.Equal(sum[:], c.Key) {
		return nil
	}
	x := s.Cluster()
	return checkCopy(c.Message, r.SPKI, hsm.ImportExpectation{
		Cluster: hsm.ID(x.ID), Epoch: x.RecoveryEpoch, Donor: node.ID, DonorIdentity: node.Identity, Recipient: RecoveryRecipient(r.Name), Generation: hsmGeneration(g),
	})
}

// copyForRecovery makes the recovery copies that this node can; done tells that none is
// missing. Its Security Officer may trust a recipient's key at any time.
func (e *engine) copyForRecovery(s *fsm.State) (done bool) {
	done = true
	var problem *string
	for _, g := range s.Cluster().Generations {
		lacking := s.Uncopied(g)
		if len(lacking) == 0 {
			continue
		}
		done = false
		if !slices.ContainsFunc(e.domain.now(), sameAs(g)) {
			continue
		}
		for _, name := range lacking {
			err := e.copyFor(s, g, name)
			if err == nil || errors.Is(err, hsm.ErrNotTrusted) || e.ctx.Err() != nil {
				continue
			}
			text := fmt.Sprintf("generation %d for %s: %s", g.Number, name, err)
			if problem == nil {
				problem = &text
			}
			if last := e.notCopied.Load(); last == nil || *last != *problem { // it is tried again each second
				e.log.Warn("the domain key was not wrapped for a recovery recipient", "generation", g.Number, "recipient", name, "error", err)
			}
		}
	}
	e.notCopied.Store(problem)
	return done
}

// RecoveryCopyProblem is why this node could not make a recovery copy that is missing, though
// its Security Officer trusts the recovery key; empty: it could, or that is what it lacks.
func (m *Member) RecoveryCopyProblem() string {
	e, err := m.engine()
	if err != nil {
		return ""
	}
	if text := e.notCopied.Load(); text != nil {
		return *text
	}
	return ""
}

func (e *engine) copyFor(s *fsm.State, g fsm.Generation, name string) error {
	ctx, cancel := context.WithTimeout(e.ctx, dutyTimeout)
	defer cancel()
	r, ok := s.Recovery().Recipient(name)
	if !ok {
		return nil // it was removed
	}
	if err := e.config.Domain.Trusted(ctx, r.SPKI); err != nil {
		return err
	}
	message, err := e.config.Domain.ExportRecovery(ctx, hsm.RecoveryRequest{
		Cluster: hsm.ID(e.cluster), Epoch: s.Cluster().RecoveryEpoch, Generation: g.Number, Donor: e.id, Recipient: RecoveryRecipient(name), SPKI: r.SPKI,
		OAEPHash: r.OAEPHash,
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(r.SPKI)
	command := &fsm.AddRecoveryCopy{Generation: g.Number, Recipient: name, Key: sum[:], Node: e.id, Message: message}
	if err := copyFits(s, command); err != nil {
		return err
	}
	if _, err := e.member.Propose(ctx, fsm.Proposal{Command: command, Principal: e.principal()}); err != nil {
		return err
	}
	e.log.Info("the domain key was wrapped for a recovery recipient", "generation", g.Number, "recipient", name)
	return nil
}

// GenerationInHSM is a generation as a partition knows it.
func GenerationInHSM(g fsm.Generation) hsm.Generation { return hsmGeneration(g) }
