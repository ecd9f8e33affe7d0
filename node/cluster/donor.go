package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// The acts that HandleJoin tells of, for the record.
const (
	ActJoin    = "JoinNode"
	ActInstall = "InstallGeneration"
)

// HandleJoin is the donor's side. peer is the name in the other's certificate. announce
// is told the transfer key that waits for the Security Officer. The act is empty if there
// is nothing to record.
func (m *Member) HandleJoin(ctx context.Context, stream JoinStream, peer string, announce func(spki []byte) error) (act string, err error) {
	e, err := m.engine()
	if err != nil {
		return ActJoin, err
	}
	first, err := stream.Receive()
	if err != nil {
		return ActJoin, err
	}
	switch x := first.(type) {
	case JoinHello:
		err := e.handleJoin(ctx, x, stream, peer, announce)
		if Permanent(err) {
			m.refusedJoins.Add(1)
		}
		return ActJoin, err
	case JoinPull:
		return e.handlePull(ctx, x, stream, peer, announce)
	}
	return ActJoin, fmt.Errorf("%w: unexpected message %T", ErrJoin, first)
}

func (e *engine) handleJoin(ctx context.Context, hello JoinHello, stream JoinStream, peer string, announce func(spki []byte) error) error {
	s := e.machine.State()
	cluster := s.Cluster()
	if hello.Cluster != cluster.ID {
		return fmt.Errorf("%w: the invitation is to cluster %s, this is %s", ErrJoin, hello.Cluster, cluster.ID)
	}
	if hello.Release < cluster.Release {
		return fmt.Errorf("%w: the node knows release %d, the cluster is at %d: upgrade the node", ErrJoin, hello.Release, cluster.Release)
	}
	if want := cluster.TransferProfile(); cmp.Or(hello.Profile, fsm.ProfileGeneric) != want {
		return fmt.Errorf("%w: the node is configured for %.80q, the cluster's is %s: set hsm.profile", ErrProfile, hello.Profile, want)
	}
	nonce, err := freshNonce()
	if err != nil {
		return err
	}
	if err := stream.Send(JoinChallenge{Nonce: nonce, Donor: e.id, History: s.History()}); err != nil {
		return err
	}
	proof, err := receive[JoinProof](stream)
	if err != nil {
		return err
	}
	channel, err := stream.Channel()
	if err != nil {
		return err
	}
	if err := e.admit(ctx, stream, cluster, proof, peer, channel, nonce); err != nil {
		return err
	}
	return e.handOver(ctx, stream, cluster, proof, channel, announce)
}

// admit checks the joiner's proofs, has it approved if need be, and commits AdmitNode.
func (e *engine) admit(ctx context.Context, stream JoinStream, cluster fsm.Cluster, p JoinProof, peer string, channel Channel, nonce []byte) error {
	cloned := cluster.TransferProfile() == fsm.ProfileCloned
	if err := p.check(channel, nonce, cloned); err != nil {
		return err
	}
	if p.Name != peer {
		return fmt.Errorf("%w: the certificate is of node %s, the request of %s", ErrJoin, peer, p.Name)
	}
	public, err := e.ticketKey(p)
	if err != nil {
		return err
	}
	transcript := JoinTranscript(cluster.ID, public, channel, nonce, p)
	if !ed25519.Verify(public, transcript, p.TicketSignature) {
		return fmt.Errorf("%w: the ticket's signature does not verify", fsm.ErrTicket)
	}
	if err := hsm.VerifyIdentitySignature(p.Identity, transcript, p.IdentitySignature); err != nil {
		return fmt.Errorf("%w: the HSM key is not the one announced: %w", ErrJoin, err)
	}
	if !cloned {
		if _, err := p.Transfer.Verify(p.Identity); err != nil {
			return fmt.Errorf("%w: %w", ErrJoin, err)
		}
	}
	if err := e.awaitApproval(ctx, stream, p, public); err != nil {
		return err
	}
	_, err = e.member.Propose(ctx, fsm.Proposal{Principal: e.principal(), Command: &fsm.AdmitNode{
		ID: p.RaftID, Name: p.Name, PeerAddress: p.PeerAddress, ClientAddress: p.ClientAddress,
		Identity: p.Identity, Ticket: p.TicketID, TicketKey: public,
	}})
	return err
}

// awaitApproval waits, if the ticket wants it, until an operator has approved the
// joiner's node identity key: the request stands in the state, for any node to show.
func (e *engine) awaitApproval(ctx context.Context, stream JoinStream, p JoinProof, public ed25519.PublicKey) error {
	request := &fsm.RequestJoin{
		ID: p.RaftID, Name: p.Name, PeerAddress: p.PeerAddress, ClientAddress: p.ClientAddress,
		Identity: p.Identity, Ticket: p.TicketID, TicketKey: public,
	}
	poll := time.NewTicker(approvalPoll)
	defer poll.Stop()
	for asked := false; ; asked = true {
		s := e.machine.State()
		t, open := s.Ticket(p.TicketID)
		switch {
		case !open && asked:
			if m, ok := s.Member(p.RaftID); !ok || m.Ticket != p.TicketID {
				return fmt.Errorf("%w: an operator has rejected the node, or its invitation has ended", fsm.ErrTicket)
			}
			return nil // through another donor
		case !open, !t.Guarded, len(t.Identity) != 0:
			return nil // AdmitNode decides
		case t.Expires <= e.config.Now().Unix():
			return fmt.Errorf("%w: expired before an operator approved the node", fsm.ErrTicket)
		case !request.StandsIn(t):
			if _, err := s.Try(request); err != nil {
				return err
			}
			if _, err := e.member.Propose(ctx, fsm.Proposal{Principal: e.principal(), Command: request}); err != nil {
				return err
			}
		}
		if err := e.member.Usable(); err != nil { // it would not learn of the approval: another member may
			return err
		}
		if err := stream.Send(JoinPending{Fingerprint: hsm.Fingerprint(p.Identity), Expires: t.Expires}); err != nil {
			return err
		}
		select {
		case <-poll.C:
		case <-e.ctx.Done():
			return ErrShutdown
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Limits of a proof's fields, in bytes; the addresses' and the names' are fsm's.
const (
	maxSPKI      = 1024
	maxSignature = 256
)

// check bounds what a stranger may send before anything is done with it. In the profile
// cloned there is no transfer key.
func (p JoinProof) check(channel Channel, nonce []byte, cloned bool) error {
	leastTransfer, topSPKI, topSignature := 1, maxSPKI, maxSignature
	if cloned {
		leastTransfer, topSPKI, topSignature = 0, 0, 0
	}
	for _, f := range []struct {
		name          string
		n, least, top int
	}{
		{"ticket id", len(p.TicketID), 1, 64},
		{"raft id", len(p.RaftID), 1, fsm.MaxRaftID},
		{"name", len(p.Name), 1, 64},
		{"peer address", len(p.PeerAddress), 1, fsm.MaxAddress},
		{"client address", len(p.ClientAddress), 1, fsm.MaxAddress},
		{"identity key", len(p.Identity), 1, maxSPKI},
		{"transfer key", len(p.Transfer.SPKI), leastTransfer, topSPKI},
		{"transfer key's signature", len(p.Transfer.Signature), leastTransfer, topSignature},
		{"ticket's signature", len(p.TicketSignature), ed25519.SignatureSize, ed25519.SignatureSize},
		{"identity's signature", len(p.IdentitySignature), 1, maxSignature},
		{"nonce", len(nonce), joinNonce, joinNonce},
		{"exporter", len(channel.Exporter), ExporterSize, ExporterSize},
	} {
		if f.n < f.least || f.n > f.top {
			return fmt.Errorf("%w: %s of %d bytes: must be %d to %d", ErrJoin, f.name, f.n, f.least, f.top)
		}
	}
	return nil
}

// ticketKey finds the public key of the ticket: open, or used by this very node.
func (e *engine) ticketKey(p JoinProof) (ed25519.PublicKey, error) {
	s := e.machine.State()
	if t, ok := s.Ticket(p.TicketID); ok {
		if t.Expires <= e.config.Now().Unix() {
			return nil, fmt.Errorf("%w: expired", fsm.ErrTicket)
		}
		return t.PublicKey, nil
	}
	m, ok := s.Member(p.RaftID)
	if ok && m.Alive() && m.Ticket == p.TicketID && len(m.TicketKey) == ed25519.PublicKeySize && bytes.Equal(m.Identity, p.Identity) {
		return m.TicketKey, nil
	}
	if err := e.member.Usable(); err != nil { // what this node knows may be old
		return nil, err
	}
	return nil, fmt.Errorf("%w: unknown or used", fsm.ErrTicket)
}

// handOver brings the domain key over and activates the node.
func (e *engine) handOver(ctx context.Context, stream JoinStream, cluster fsm.Cluster, p JoinProof, channel Channel, announce func([]byte) error) error {
	g, err := e.machine.State().ActiveGeneration()
	if err != nil {
		return err
	}
	transfer := JoinTransfer{DonorIdentity: e.config.Domain.Identity(), Generation: hsmGeneration(g)}
	for _, other := range cluster.Generations {
		transfer.More = transfer.More || other.InUse() && other.Number != g.Number
	}
	if p.HoldsGeneration != g.Number && cluster.TransferProfile() != fsm.ProfileCloned {
		if transfer.Message, err = e.export(ctx, stream, cluster, g.Number, p, announce); err != nil {
			return err
		}
	}
	if err := e.demandPossession(ctx, stream, transfer, p.RaftID, channel); err != nil {
		return err
	}
	if _, err := e.member.Propose(ctx, fsm.Proposal{Command: &fsm.ActivateNode{ID: p.RaftID}, Principal: e.principal()}); err != nil {
		return err
	}
	var addresses []string
	for _, m := range e.machine.State().Members() {
		if m.Serves() {
			addresses = append(addresses, m.PeerAddress)
		}
	}
	return stream.Send(JoinAccepted{PeerAddresses: addresses})
}

// demandPossession sends a transfer, with a nonce, and has the other side prove that its
// HSM holds the generation.
func (e *engine) demandPossession(ctx context.Context, stream JoinStream, transfer JoinTransfer, prover string, channel Channel) error {
	var err error
	if transfer.Nonce, err = freshNonce(); err != nil {
		return err
	}
	if err := stream.Send(transfer); err != nil {
		return err
	}
	possession, err := receive[JoinPossession](stream)
	if err != nil {
		return err
	}
	want, err := e.config.Domain.Possess(ctx, hsm.Possession{
		Cluster: hsm.ID(e.cluster), Generation: transfer.Generation.Number, Verifier: e.id, Prover: prover,
		Exporter: channel.Exporter, Nonce: transfer.Nonce,
	})
	if err != nil {
		return err
	}
	if !hmac.Equal(want, possession.Proof) {
		return fmt.Errorf("%w: the node did not prove possession of the domain key", ErrJoin)
	}
	return nil
}

// export waits for the Security Officer and wraps the domain key for the joiner.
func (e *engine) export(ctx context.Context, stream JoinStream, cluster fsm.Cluster, generation uint32, p JoinProof, announce func([]byte) error) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, trustAtMost)
	defer cancel()
	told := false
	poll := time.NewTicker(trustPoll)
	defer poll.Stop()
	for {
		message, err := e.config.Domain.Export(ctx, hsm.ExportRequest{
			Cluster: hsm.ID(cluster.ID), Epoch: cluster.RecoveryEpoch, Generation: generation,
			Donor: e.id, Recipient: p.RaftID, Transfer: p.Transfer, RecipientIdentity: p.Identity,
		})
		if !errors.Is(err, hsm.ErrNotTrusted) {
			return message, err
		}
		if !told { // the key is a sound one, only not trusted yet
			if err := announce(p.Transfer.SPKI); err != nil {
				return nil, err
			}
			told = true
		}
		if err := stream.Send(JoinWaiting{Fingerprint: hsm.Fingerprint(p.Transfer.SPKI), DonorName: e.config.Name}); err != nil {
			return nil, err
		}
		select {
		case <-poll.C:
		case <-e.ctx.Done():
			return nil, ErrShutdown
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: the transfer key was not trusted in time: %w", ErrJoin, ctx.Err())
		}
	}
}

func hsmGeneration(g fsm.Generation) hsm.Generation {
	out := hsm.Generation{Number: g.Number}
	for _, c := range g.Checks {
		k := hsm.KeyCheck{Kind: hsm.KeyKind(c.Kind)}
		copy(k.Value[:], c.Value)
		out.Checks = append(out.Checks, k)
	}
	return out
}

func freshNonce() ([]byte, error) {
	b := make([]byte, joinNonce)
	_, err := rand.Read(b)
	return b, err
}
