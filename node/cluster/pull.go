package cluster

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// A member that lacks a generation of the domain key asks one that has it, on a
// connection of its own:
//
//	member  JoinPull        which generation, and a transfer key, signed with its HSM's
//	                        key; the whole of it too, over PullTranscript, which names
//	                        the connection
//	donor   JoinWaiting     the donor's Security Officer has not trusted that key: the
//	                        conversation is over, and is begun again later
//	donor   JoinTransfer    the generation, wrapped for that key, and a nonce
//	member  JoinPossession
//	donor   (InstallGeneration is committed)
//	donor   JoinAccepted
//
// Unlike a joiner it knows the cluster's state: who the donor is, with which HSM, and
// which generation is to come. It asks every member that may have it, so that the
// Security Officer of any one of them will do. In the transfer profile cloned it finds the
// generation in its partition, put there by the vendor's cloning, and only proves it.

// JoinPull asks for a generation.
type JoinPull struct {
	Cluster    fsm.ID
	Node       string // raft id of the member that asks
	Generation uint32
	Transfer   hsm.Transfer
	Holds      bool   // it holds the generation and only proves it
	Signature  []byte // of the node identity key over PullTranscript
}

const pullLabel = "quorumkms/pull/v1"

// PullTranscript is what a member signs that asks for a generation: label, cluster 16,
// SHA-256 of both TLS keys, exporter 32, generation u32, whether it holds it u8, then,
// each with its length u16, raft id and transfer key; the OAEP hash, u8.
func PullTranscript(ch Channel, p JoinPull) []byte {
	b := []byte(pullLabel)
	for _, fixed := range [][]byte{p.Cluster[:], ch.DonorKey, ch.JoinerKey, ch.Exporter} {
		b = append(b, fixed...)
	}
	b = binary.BigEndian.AppendUint32(b, p.Generation)
	holds := byte(0)
	if p.Holds {
		holds = 1
	}
	b = append(b, holds)
	for _, v := range [][]byte{[]byte(p.Node), p.Transfer.SPKI} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(v))) //nolint:gosec // check bounds them
		b = append(b, v...)
	}
	return append(b, p.Transfer.OAEPHash)
}

// check bounds what is taken from another node before anything is done with it.
func (p JoinPull) check(channel Channel) error {
	if len(p.Node) > fsm.MaxRaftID || len(p.Transfer.SPKI) > maxSPKI || len(p.Transfer.Signature) > maxSignature || len(p.Signature) > maxSignature {
		return fmt.Errorf("%w: raft id of %d bytes, transfer key of %d, signatures of %d and %d: must be %d, %d and %d at most", ErrJoin,
			len(p.Node), len(p.Transfer.SPKI), len(p.Transfer.Signature), len(p.Signature), fsm.MaxRaftID, maxSPKI, maxSignature)
	}
	if len(channel.Exporter) != ExporterSize {
		return fmt.Errorf("%w: exporter of %d bytes", ErrJoin, len(channel.Exporter))
	}
	return nil
}

// pullFromAny installs a generation from whoever gives it; more tells that others are to
// follow. An error that wraps hsm.ErrNotTrusted means: donors wait for their Security
// Officers.
func (e *engine) pullFromAny(s *fsm.State, g fsm.Generation, more bool) error {
	holds := slices.ContainsFunc(e.domain.now(), sameAs(g))
	if !holds && e.member.cloned() {
		return e.awaitClone(s, g)
	}
	if e.member.transfer.SPKI == nil && !holds {
		made, err := e.config.Domain.NewTransfer(e.ctx)
		if err != nil {
			return fmt.Errorf("making the transfer key: %w", err)
		}
		e.member.transfer = made
	}
	var failures []error
	var waiting []string
	for _, donor := range s.Members() {
		if !donor.Serves() || donor.ID == e.id || g.State == fsm.GenerationProposed && !slices.Contains(g.Installed, donor.ID) {
			continue
		}
		err := e.pull(s, g, donor, holds, more)
		if err == nil {
			return nil
		}
		if errors.Is(err, hsm.ErrNotTrusted) {
			waiting = append(waiting, donor.Name)
		} else {
			failures = append(failures, fmt.Errorf("from %s: %w", donor.Name, err))
		}
	}
	if len(waiting) > 0 {
		e.waits(DomainWait{Generation: g.Number, Fingerprint: hsm.Fingerprint(e.member.transfer.SPKI), Donors: waiting})
		return hsm.ErrNotTrusted
	}
	if len(failures) == 0 {
		return fmt.Errorf("%w: no member has it", hsm.ErrNotFound)
	}
	return errors.Join(failures...)
}

// awaitClone tells people that they must clone a generation into this node's partition.
func (e *engine) awaitClone(s *fsm.State, g fsm.Generation) error {
	var donors []string
	for _, m := range s.Members() {
		if m.Serves() && m.ID != e.id && (g.State != fsm.GenerationProposed || slices.Contains(g.Installed, m.ID)) {
			donors = append(donors, m.Name)
		}
	}
	e.waits(DomainWait{Generation: g.Number, Donors: donors})
	return fmt.Errorf("%w: generation %d is not in this node's partition yet", hsm.ErrNotTrusted, g.Number)
}

// waits notes, and tells a person once, what this node waits for.
func (e *engine) waits(w DomainWait) {
	d := &e.domain
	d.mu.Lock()
	about := cmp.Or(w.Fingerprint, fmt.Sprint(w.Generation))
	tell := d.told != about
	d.waiting, d.told = &w, about
	d.mu.Unlock()
	if tell && e.config.Waiting != nil {
		e.config.Waiting(w)
	}
}

// pull asks one donor for a generation and takes it in.
func (e *engine) pull(s *fsm.State, g fsm.Generation, donor *fsm.Member, holds, more bool) (err error) {
	ctx, cancel := context.WithTimeout(e.ctx, pullTimeout)
	defer cancel()
	stream, err := e.config.Peers.Join(ctx, donor.PeerAddress, e.config.Pin())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	request := JoinPull{Cluster: e.cluster, Node: e.id, Generation: g.Number, Transfer: e.member.transfer, Holds: holds}
	channel, err := stream.Channel()
	if err != nil {
		return err
	}
	if request.Signature, err = e.config.Domain.SignIdentity(ctx, PullTranscript(channel, request)); err != nil {
		return err
	}
	if err := stream.Send(request); err != nil {
		return err
	}
	message, err := stream.Receive()
	if err != nil {
		return err
	}
	if _, waiting := message.(JoinWaiting); waiting {
		return hsm.ErrNotTrusted
	}
	transfer, ok := message.(JoinTransfer)
	if !ok {
		return fmt.Errorf("%w: unexpected message %T", ErrJoin, message)
	}
	if !holds {
		if err := e.takeIn(ctx, transfer.Message, hsm.ImportExpectation{
			Cluster: hsm.ID(e.cluster), Epoch: s.Cluster().RecoveryEpoch, Donor: donor.ID, Recipient: e.id,
			DonorIdentity: donor.Identity, Generation: hsmGeneration(g), More: more,
		}); err != nil {
			return err
		}
	}
	return e.provePossession(ctx, stream, channel, transfer.Nonce, g.Number, donor.ID)
}

func (e *engine) takeIn(ctx context.Context, message []byte, want hsm.ImportExpectation) error {
	made, err := e.config.Domain.Import(ctx, message, want)
	if err != nil {
		return fmt.Errorf("taking the domain key in: %w", err)
	}
	e.domain.add(made)
	if !want.More {
		e.member.transfer = hsm.Transfer{} // it is destroyed
	}
	return nil
}

func (e *engine) provePossession(ctx context.Context, stream JoinStream, channel Channel, nonce []byte, generation uint32, verifier string) error {
	proof, err := e.config.Domain.Possess(ctx, hsm.Possession{
		Cluster: hsm.ID(e.cluster), Generation: generation, Verifier: verifier, Prover: e.id, Exporter: channel.Exporter, Nonce: nonce,
	})
	if err != nil {
		return fmt.Errorf("proving possession of the domain key: %w", err)
	}
	if err := stream.Send(JoinPossession{Proof: proof}); err != nil {
		return err
	}
	_, err = receive[JoinAccepted](stream)
	return err
}

// handlePull is the donor's side. The lease makes sure that the member has not been
// removed without this node's knowledge. The act is empty unless a key was given or
// proved, or somebody asked who may not.
func (e *engine) handlePull(ctx context.Context, p JoinPull, stream JoinStream, peer string, announce func([]byte) error) (act string, err error) {
	if err := e.member.Usable(); err != nil {
		return "", err
	}
	s := e.machine.State()
	member, ok := s.Member(p.Node)
	switch {
	case p.Cluster != e.cluster:
		return ActInstall, fmt.Errorf("%w: a generation of cluster %s is asked for, this is %s", ErrJoin, p.Cluster, e.cluster)
	case !ok || !member.Serves() || member.Name != peer:
		return ActInstall, fmt.Errorf("%w: %s is not the active member %.200q", ErrJoin, peer, p.Node)
	}
	channel, err := stream.Channel()
	if err != nil {
		return "", err
	}
	if err := p.check(channel); err != nil {
		return ActInstall, err
	}
	if err := hsm.VerifyIdentitySignature(member.Identity, PullTranscript(channel, p), p.Signature); err != nil {
		return ActInstall, fmt.Errorf("%w: %s did not sign with the HSM key that the cluster knows: %w", fsm.ErrIdentity, peer, err)
	}
	g, ok := s.Generation(p.Generation)
	if !ok || g.Retired() || !slices.ContainsFunc(e.domain.now(), sameAs(g)) {
		return "", fmt.Errorf("%w: generation %d", hsm.ErrNotFound, p.Generation)
	}
	transfer := JoinTransfer{DonorIdentity: e.config.Domain.Identity(), Generation: hsmGeneration(g)}
	if !p.Holds {
		if _, err := p.Transfer.Verify(member.Identity); err != nil {
			return ActInstall, fmt.Errorf("%w: %w", ErrJoin, err)
		}
		transfer.Message, err = e.config.Domain.Export(ctx, hsm.ExportRequest{
			Cluster: hsm.ID(e.cluster), Epoch: s.Cluster().RecoveryEpoch, Generation: g.Number,
			Donor: e.id, Recipient: p.Node, Transfer: p.Transfer, RecipientIdentity: member.Identity,
		})
		if errors.Is(err, hsm.ErrNotTrusted) {
			if err := announce(p.Transfer.SPKI); err != nil {
				return "", err
			}
			return "", stream.Send(JoinWaiting{Fingerprint: hsm.Fingerprint(p.Transfer.SPKI), DonorName: e.config.Name})
		}
		if err != nil {
			return "", err
		}
	}
	return ActInstall, e.witness(ctx, stream, g, transfer, p.Node, channel)
}

// witness hands a generation over, has its possession proved and records that.
func (e *engine) witness(ctx context.Context, stream JoinStream, g fsm.Generation, transfer JoinTransfer, node string, channel Channel) error {
	if err := e.demandPossession(ctx, stream, transfer, node, channel); err != nil {
		return err
	}
	if g.State == fsm.GenerationProposed {
		command := &fsm.InstallGeneration{Number: g.Number, Node: node}
		if _, err := e.member.Propose(ctx, fsm.Proposal{Command: command, Principal: e.principal()}); err != nil {
			return err
		}
	}
	return stream.Send(JoinAccepted{})
}
