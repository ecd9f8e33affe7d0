package cluster

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// Joining is one conversation between the node that joins and a member, its
// donor, on one TLS connection between two certificates of class node:
//
//	joiner  JoinHello       which cluster it was invited to
//	donor   JoinChallenge   a nonce
//	joiner  JoinProof       signed with the ticket's key and with the HSM's: both
//	                        over JoinTranscript, which names the connection
//	donor   (AdmitNode is committed: before any key leaves)
//	donor   JoinWaiting     until the donor's Security Officer trusts the joiner's
//	                        transfer key; repeated
//	donor   JoinTransfer    the domain key, wrapped for that key, and a nonce
//	joiner  JoinPossession  an HMAC that only a holder of the domain key can make
//	donor   (ActivateNode is committed)
//	donor   JoinAccepted
//
// A joiner that lost the connection begins again with the same ticket; a domain
// key that its HSM holds already is not sent twice.

// JoinMessage is one of the messages below.
type JoinMessage any

// JoinHello opens the conversation.
type JoinHello struct {
	Cluster fsm.ID
	Release int
}

// JoinChallenge answers it.
type JoinChallenge struct {
	Nonce []byte // 32 bytes
	Donor string // raft id
	Epoch uint32
}

// JoinProof says who the joiner is, and proves it.
type JoinProof struct {
	TicketID          string
	RaftID            string
	Name              string
	PeerAddress       string
	ClientAddress     string
	Identity          []byte // SPKI of the node identity key
	Transfer          hsm.Transfer
	HoldsGeneration   uint32 // 0: none
	TicketSignature   []byte
	IdentitySignature []byte
}

// JoinWaiting says what the donor waits for.
type JoinWaiting struct {
	Fingerprint string
	DonorName   string
}

// JoinTransfer brings the domain key.
type JoinTransfer struct {
	Message       []byte // DKX1; empty if the joiner holds the generation
	DonorIdentity []byte // SPKI
	Generation    hsm.Generation
	Nonce         []byte // 32 bytes
}

// JoinPossession proves that the joiner's HSM holds the domain key.
type JoinPossession struct{ Proof []byte }

// JoinAccepted ends the conversation.
type JoinAccepted struct{ PeerAddresses []string }

// JoinStream carries the conversation. Receive returns the other side's refusal
// as an error.
type JoinStream interface {
	Send(JoinMessage) error
	Receive() (JoinMessage, error)
	// Channel names the connection both sides talk over.
	Channel() (Channel, error)
	Close() error
}

// Channel is what is unique to one TLS connection.
type Channel struct {
	Exporter  []byte // RFC 8446 exporter under ExporterLabel, no context, ExporterSize bytes
	DonorKey  []byte // SHA-256 of the donor's TLS key (SPKI)
	JoinerKey []byte // SHA-256 of the joiner's
}

// ExporterLabel is the label of Channel's exporter value, ExporterSize its length in
// bytes.
const (
	ExporterLabel = "EXPORTER-quorumkms-join-v1"
	ExporterSize  = 32
)

const (
	joinLabel   = "quorumkms/join/v1"
	joinNonce   = 32
	trustPoll   = 500 * time.Millisecond
	trustAtMost = 30 * time.Minute // how long a donor waits for its Security Officer
)

// JoinTranscript is what the joiner signs: label, cluster 16, ticket's public key
// 32, SHA-256 of both TLS keys, nonce 32, exporter 32, then, each with its length
// u16, raft id, name, both addresses, identity key, transfer key; the OAEP hash the
// transfer key asks for, u8; and the generation it holds, u32.
func JoinTranscript(cluster fsm.ID, ticket ed25519.PublicKey, ch Channel, nonce []byte, p JoinProof) []byte {
	b := []byte(joinLabel)
	for _, fixed := range [][]byte{cluster[:], ticket, ch.DonorKey, ch.JoinerKey, nonce, ch.Exporter} {
		b = append(b, fixed...)
	}
	for _, v := range [][]byte{
		[]byte(p.RaftID), []byte(p.Name), []byte(p.PeerAddress), []byte(p.ClientAddress), p.Identity, p.Transfer.SPKI,
	} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(v))) //nolint:gosec // check bounds them
		b = append(b, v...)
	}
	b = append(b, p.Transfer.OAEPHash)
	return binary.BigEndian.AppendUint32(b, p.HoldsGeneration)
}

// Joining says how to join.
type Joining struct {
	Token     JoinToken
	Addresses []string // peer addresses of members; tried in turn
	// Waiting is told what the donor's Security Officer must do.
	Waiting func(JoinWaiting)
}

// Join makes this node a member of a cluster. It returns when the node takes part
// in Raft; it catches up and gets its vote by itself.
func (m *Member) Join(ctx context.Context, j Joining) error {
	release, err := m.reserve()
	if err != nil {
		return err
	}
	defer release()
	if len(j.Addresses) == 0 {
		return fmt.Errorf("%w: no address of a member is configured (join.addresses)", ErrJoin)
	}
	var failures []error
	for _, address := range j.Addresses {
		if address == m.config.PeerAddress {
			continue
		}
		err := m.joinThrough(ctx, j, address)
		if err == nil {
			return m.enter(ctx, j.Token.Cluster)
		}
		failures = append(failures, fmt.Errorf("through %s: %w", address, err))
	}
	if len(failures) == 0 {
		return fmt.Errorf("%w: join.addresses names this node only", ErrJoin)
	}
	for _, err := range failures {
		if !Permanent(err) {
			return &retryable{errors.Join(failures...)}
		}
	}
	return errors.Join(failures...)
}

// Permanent tells whether trying to join again with the same token is pointless.
func Permanent(err error) bool {
	var again *retryable
	return !errors.As(err, &again) &&
		(errors.Is(err, fsm.ErrTicket) || errors.Is(err, fsm.ErrMember) || errors.Is(err, ErrJoin) || errors.Is(err, hsm.ErrRefused))
}

// retryable wraps failures of which at least one may pass.
type retryable struct{ error }

func (r *retryable) Unwrap() error { return r.error }

func (m *Member) enter(ctx context.Context, cluster fsm.ID) error {
	id := m.identity
	if id.Stage != stageEntering || id.Cluster != cluster {
		if err := id.clear(m.config.DataDir); err != nil { // Raft has never run under this id
			return err
		}
		id.Cluster, id.Stage = cluster, stageEntering
		if err := id.save(m.config.DataDir); err != nil {
			return err
		}
		m.identity = id // from here on Raft may have run
	}
	e, err := m.start(ctx, cluster, false)
	if err != nil {
		return err
	}
	return m.become(e, id)
}

func (m *Member) joinThrough(ctx context.Context, j Joining, address string) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := m.config.Peers.Join(ctx, address, j.Token.Pin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	if err := stream.Send(JoinHello{Cluster: j.Token.Cluster, Release: fsm.FirstRelease}); err != nil {
		return err
	}
	challenge, err := receive[JoinChallenge](stream)
	if err != nil {
		return err
	}
	if len(challenge.Nonce) != joinNonce {
		return fmt.Errorf("%w: a nonce of %d bytes", ErrJoin, len(challenge.Nonce))
	}
	channel, err := stream.Channel()
	if err != nil {
		return err
	}
	proof, err := m.prove(ctx, j.Token, challenge, channel)
	if err != nil {
		return err
	}
	if err := stream.Send(proof); err != nil {
		return err
	}
	transfer, err := awaitTransfer(stream, j.Waiting)
	if err != nil {
		return err
	}
	if !j.Token.names(transfer.Generation) {
		return fmt.Errorf("%w: the donor's domain key is not that of the cluster that sent the invitation", ErrJoin)
	}
	if proof.HoldsGeneration != transfer.Generation.Number {
		if _, err := m.config.Domain.Import(ctx, transfer.Message, hsm.ImportExpectation{
			Cluster: hsm.ID(j.Token.Cluster), Epoch: challenge.Epoch, Donor: challenge.Donor, Recipient: m.ID(),
			DonorIdentity: transfer.DonorIdentity, Generation: transfer.Generation,
		}); err != nil {
			return fmt.Errorf("taking the domain key in: %w", err)
		}
	}
	possession, err := m.config.Domain.Possess(ctx, hsm.Possession{
		Cluster: hsm.ID(j.Token.Cluster), Generation: transfer.Generation.Number, Verifier: challenge.Donor, Prover: m.ID(),
		Exporter: channel.Exporter, Nonce: transfer.Nonce,
	})
	if err != nil {
		return fmt.Errorf("proving possession of the domain key: %w", err)
	}
	if err := stream.Send(JoinPossession{Proof: possession}); err != nil {
		return err
	}
	_, err = receive[JoinAccepted](stream)
	return err
}

func (m *Member) prove(ctx context.Context, token JoinToken, challenge JoinChallenge, channel Channel) (JoinProof, error) {
	held, err := m.config.Domain.Generations(ctx, hsm.ID(token.Cluster))
	if err != nil {
		return JoinProof{}, err
	}
	p := JoinProof{
		TicketID: token.ID(), RaftID: m.ID(), Name: m.config.Name,
		PeerAddress: m.config.PeerAddress, ClientAddress: m.config.ClientAddress, Identity: m.config.Domain.Identity(),
	}
	if len(held) > 0 {
		p.HoldsGeneration = held[len(held)-1].Number
	}
	if m.transfer.SPKI == nil { // kept over attempts, so that the Security Officer's trust is not lost
		if m.transfer, err = m.config.Domain.NewTransfer(ctx); err != nil {
			return JoinProof{}, fmt.Errorf("making the transfer key: %w", err)
		}
	}
	p.Transfer = m.transfer
	transcript := JoinTranscript(token.Cluster, token.public(), channel, challenge.Nonce, p)
	p.TicketSignature = ed25519.Sign(token.Ticket, transcript)
	p.IdentitySignature, err = m.config.Domain.SignIdentity(ctx, transcript)
	return p, err
}

func awaitTransfer(stream JoinStream, waiting func(JoinWaiting)) (JoinTransfer, error) {
	for {
		message, err := stream.Receive()
		if err != nil {
			return JoinTransfer{}, err
		}
		switch x := message.(type) {
		case JoinWaiting:
			waiting(x)
		case JoinTransfer:
			return x, nil
		default:
			return JoinTransfer{}, fmt.Errorf("%w: unexpected message %T", ErrJoin, message)
		}
	}
}

func receive[T any](stream JoinStream) (T, error) {
	var none T
	message, err := stream.Receive()
	if err != nil {
		return none, err
	}
	x, ok := message.(T)
	if !ok {
		return none, fmt.Errorf("%w: unexpected message %T, want %T", ErrJoin, message, none)
	}
	return x, nil
}

// HandleJoin is the donor's side. peer is the name in the joiner's certificate.
// announce is told the transfer key that waits for the Security Officer.
func (m *Member) HandleJoin(ctx context.Context, stream JoinStream, peer string, announce func(spki []byte) error) error {
	e, err := m.engine()
	if err != nil {
		return err
	}
	cluster := e.machine.State().Cluster()
	hello, err := receive[JoinHello](stream)
	if err != nil {
		return err
	}
	if hello.Cluster != cluster.ID {
		return fmt.Errorf("%w: the invitation is to cluster %s, this is %s", ErrJoin, hello.Cluster, cluster.ID)
	}
	if hello.Release < cluster.Release {
		return fmt.Errorf("%w: the node knows release %d, the cluster is at %d: upgrade the node", ErrJoin, hello.Release, cluster.Release)
	}
	nonce, err := freshNonce()
	if err != nil {
		return err
	}
	if err := stream.Send(JoinChallenge{Nonce: nonce, Donor: e.id, Epoch: cluster.RecoveryEpoch}); err != nil {
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
	if err := e.admit(ctx, cluster.ID, proof, peer, channel, nonce); err != nil {
		return err
	}
	return e.handOver(ctx, stream, cluster, proof, channel, announce)
}

// admit checks the joiner's proofs and commits AdmitNode.
func (e *engine) admit(ctx context.Context, cluster fsm.ID, p JoinProof, peer string, channel Channel, nonce []byte) error {
	if err := p.check(channel, nonce); err != nil {
		return err
	}
	if p.Name != peer {
		return fmt.Errorf("%w: the certificate is of node %s, the request of %s", ErrJoin, peer, p.Name)
	}
	public, err := e.ticketKey(p)
	if err != nil {
		return err
	}
	transcript := JoinTranscript(cluster, public, channel, nonce, p)
	if !ed25519.Verify(public, transcript, p.TicketSignature) {
		return fmt.Errorf("%w: the ticket's signature does not verify", fsm.ErrTicket)
	}
	if err := hsm.VerifyIdentitySignature(p.Identity, transcript, p.IdentitySignature); err != nil {
		return fmt.Errorf("%w: the HSM key is not the one announced: %w", ErrJoin, err)
	}
	if _, err := p.Transfer.Verify(p.Identity); err != nil {
		return fmt.Errorf("%w: %w", ErrJoin, err)
	}
	_, err = e.member.Propose(ctx, fsm.Proposal{Principal: e.principal(), Command: &fsm.AdmitNode{
		ID: p.RaftID, Name: p.Name, PeerAddress: p.PeerAddress, ClientAddress: p.ClientAddress,
		Identity: p.Identity, Ticket: p.TicketID, TicketKey: public,
	}})
	return err
}

// Limits of a proof's fields, in bytes; the addresses' and the names' are fsm's.
const (
	maxSPKI      = 1024
	maxSignature = 256
)

// check bounds what a stranger may send before anything is done with it.
func (p JoinProof) check(channel Channel, nonce []byte) error {
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
		{"transfer key", len(p.Transfer.SPKI), 1, maxSPKI},
		{"transfer key's signature", len(p.Transfer.Signature), 1, maxSignature},
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
	return nil, fmt.Errorf("%w: unknown or used", fsm.ErrTicket)
}

// handOver brings the domain key over and activates the node.
func (e *engine) handOver(ctx context.Context, stream JoinStream, cluster fsm.Cluster, p JoinProof, channel Channel, announce func([]byte) error) error {
	g, err := e.machine.State().ActiveGeneration()
	if err != nil {
		return err
	}
	transfer := JoinTransfer{DonorIdentity: e.config.Domain.Identity(), Generation: hsmGeneration(g)}
	if p.HoldsGeneration != g.Number {
		if transfer.Message, err = e.export(ctx, stream, cluster, g.Number, p, announce); err != nil {
			return err
		}
	}
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
		Cluster: hsm.ID(cluster.ID), Generation: g.Number, Verifier: e.id, Prover: p.RaftID,
		Exporter: channel.Exporter, Nonce: transfer.Nonce,
	})
	if err != nil {
		return err
	}
	if !hmac.Equal(want, possession.Proof) {
		return fmt.Errorf("%w: the node did not prove possession of the domain key", ErrJoin)
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
