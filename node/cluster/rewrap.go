package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// Key versions are moved from an older generation of the domain key to the active one by
// the node that the state names (fsm.Rewrap). It makes the generation's twin in its own
// partition, by a transfer to itself that its own Security Officer must allow, and destroys
// it as soon as the state does not ask for it any more: after a restart, and whoever leads,
// it knows from the state and its partition alone where it stands. The key service does the
// moving (kms.RunRewraps).

// keepTwin has this node's partition hold the twin that the state asks for, and no other. A
// generation that wraps nothing any more needs none, though the key service has still to end
// the ceremony. ErrNotTrusted means: it waits for the Security Officer.
func (e *engine) keepTwin(s *fsm.State) error {
	asked, ours := s.Rewrapping()
	if ours = ours && asked.Node == e.id; !ours {
		e.domain.movingIs(nil)
	}
	ours = ours && s.Wraps(asked.Generation)
	keep := uint32(0)
	if ours {
		keep = asked.Generation
	}
	there, err := e.onlyTwin(keep)
	if err != nil {
		return err
	}
	if !ours {
		return nil
	}
	if !there {
		if err := e.installTwin(s, asked.Generation); err != nil {
			return err
		}
	}
	if e.twin.Swap(asked.Generation) == asked.Generation {
		return nil
	}
	e.log.Warn("the twin of a generation of the domain key is in this node's partition: until it is destroyed, whoever has the PIN can take keys out", "generation", asked.Generation)
	return nil
}

// onlyTwin destroys every twin in this node's partition but that of one generation, of which
// it tells whether it is there; 0: every one.
func (e *engine) onlyTwin(keep uint32) (there bool, err error) {
	held, err := e.config.Domain.Twins(e.ctx, hsm.ID(e.cluster))
	if err != nil {
		return false, fmt.Errorf("looking for twins of domain keys: %w", err)
	}
	for _, number := range held {
		if number == keep {
			there = true
			continue
		}
		e.twin.CompareAndSwap(number, 0)
		if err := e.config.Domain.DestroyTwin(e.ctx, hsm.ID(e.cluster), number); err != nil {
			return there, fmt.Errorf("destroying the twin of generation %d of the domain key: %w", number, err)
		}
		e.log.Info("the twin of a generation of the domain key was destroyed in this node's partition", "generation", number)
	}
	return there, nil
}

// installTwin makes the twin of a generation that this node holds.
func (e *engine) installTwin(s *fsm.State, number uint32) error {
	g, ok := s.Generation(number)
	if !ok || !slices.ContainsFunc(e.domain.now(), sameAs(g)) {
		return fmt.Errorf("%w: generation %d", hsm.ErrNotFound, number)
	}
	if e.member.transfer.SPKI == nil {
		made, err := e.config.Domain.NewTransfer(e.ctx)
		if err != nil {
			return fmt.Errorf("making the transfer key: %w", err)
		}
		e.member.transfer = made
	}
	transfer, epoch, self := e.member.transfer, s.Cluster().RecoveryEpoch, e.config.Domain.Identity()
	message, err := e.config.Domain.Export(e.ctx, hsm.ExportRequest{
		Cluster: hsm.ID(e.cluster), Epoch: epoch, Generation: number, Donor: e.id, Recipient: e.id, Transfer: transfer, RecipientIdentity: self,
	})
	if errors.Is(err, hsm.ErrNotTrusted) {
		if err := e.config.Announce(transfer.SPKI); err != nil {
			return err
		}
		e.waits(DomainWait{Generation: number, Fingerprint: hsm.Fingerprint(transfer.SPKI), Donors: []string{e.config.Name}, Twin: true})
		return hsm.ErrNotTrusted
	}
	if err != nil {
		return fmt.Errorf("making the twin of generation %d of the domain key: %w", number, err)
	}
	err = e.config.Domain.InstallTwin(e.ctx, message, hsm.ImportExpectation{
		Cluster: hsm.ID(e.cluster), Epoch: epoch, Donor: e.id, Recipient: e.id, DonorIdentity: self, Generation: hsmGeneration(g),
	})
	if err != nil {
		return fmt.Errorf("making the twin of generation %d of the domain key: %w", number, err)
	}
	e.member.transfer = hsm.Transfer{} // it is destroyed
	return nil
}

// Rewrapping is the ceremony that names this node, if one does; ready tells that its
// partition has the twin.
func (m *Member) Rewrapping() (asked fsm.Rewrap, ready, ok bool) {
	e, err := m.engine()
	if err != nil {
		return fsm.Rewrap{}, false, false
	}
	asked, ok = e.machine.State().Rewrapping()
	ok = ok && asked.Node == e.id
	return asked, ok && asked.Generation == e.twin.Load(), ok
}

// Rewrap makes the token of a key version under another generation (hsm.Rewrapper).
func (m *Member) Rewrap(ctx context.Context, ref hsm.Ref, to uint32) ([]byte, error) {
	e, err := m.engine()
	if err != nil {
		return nil, err
	}
	return e.config.Domain.Rewrap(ctx, ref, to)
}

// OpenHere opens a token that another partition has made with this node's own.
func (m *Member) OpenHere(ctx context.Context, key fsm.ID, version uint32, kind hsm.Kind, made hsm.NewKey) error {
	e, err := m.engine()
	if err != nil {
		return err
	}
	return e.open(ctx, Opening{Key: key, Version: version, Kind: kind, Made: made})
}

// RewrapProblem says, for operators, why this node does not get on with moving key
// versions; nil: it does.
func (m *Member) RewrapProblem(err error) {
	if e, none := m.engine(); none == nil {
		e.domain.movingIs(err)
	}
}
