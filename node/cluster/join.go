package cluster

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
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
//	donor   JoinPending     until an operator approves the joiner's HSM key, if the
//	                        invitation did not pin it; repeated
//	donor   (AdmitNode is committed: before any key leaves)
//	donor   JoinWaiting     until the donor's Security Officer trusts the joiner's
//	                        transfer key; repeated
//	donor   JoinTransfer    the domain key, wrapped for that key, and a nonce
//	joiner  JoinPossession  an HMAC that only a holder of the domain key can make
//	donor   (ActivateNode is committed)
//	donor   JoinAccepted
//
// A joiner that lost the connection begins again with the same ticket; a domain
// key that its HSM holds already is not sent twice. In the transfer profile cloned none
// is sent at all: the joiner's HSM holds it already, by the vendor's cloning.

// JoinMessage is one of the messages below.
type JoinMessage any

// JoinHello opens the conversation.
type JoinHello struct {
	Cluster fsm.ID
	Release int
	Profile string // transfer profile of the joiner's configuration
}

// JoinChallenge answers it.
type JoinChallenge struct {
	Nonce   []byte // 32 bytes
	Donor   string // raft id
	History fsm.History
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

// JoinPending says that an operator must approve the joiner.
type JoinPending struct {
	Fingerprint string // of the joiner's node identity key: the joiner shows its own
	Expires     int64  // unix seconds: until when
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
	More          bool   // the cluster uses further generations: the joiner keeps its transfer key, and pulls them
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
	joinLabel = "quorumkms/join/v1"
	joinNonce = 32
	trustPoll = 500 * time.Millisecond
	// approvalPoll is between two looks at whether an operator has approved a joiner.
	approvalPoll = 500 * time.Millisecond
	trustAtMost  = 30 * time.Minute // how long a donor waits for its Security Officer
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
	// Pending is told what an operator must do, Waiting what the donor's Security Officer.
	Pending func(JoinPending)
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
	if !bytes.Equal(m.config.Pin(), j.Token.Pin) {
		return fmt.Errorf("%w: the CA keys are not those the join token pins: tls.ca is another than that of the cluster that sent the invitation", ErrJoin)
	}
	var failures []error
	for _, address := range j.Addresses {
		if address == m.config.PeerAddress {
			continue
		}
		history, err := m.joinThrough(ctx, j, address)
		if err == nil {
			return m.enter(ctx, j.Token.Cluster, history)
		}
		failures = append(failures, fmt.Errorf("through %s: %w", address, err))
	}
	if len(failures) == 0 {
		return fmt.Errorf("%w: join.addresses names this node only", ErrJoin)
	}
	return errors.Join(failures...)
}

// Permanent tells whether trying to join again with the same token is pointless: a
// member that was reached refused it for good, whether or not others were reached.
func Permanent(err error) bool {
	return errors.Is(err, fsm.ErrTicket) || errors.Is(err, fsm.ErrMember) || errors.Is(err, fsm.ErrIdentity) || errors.Is(err, ErrJoin) ||
		errors.Is(err, ErrProfile) || errors.Is(err, hsm.ErrRefused)
}

func (m *Member) enter(ctx context.Context, cluster fsm.ID, history fsm.History) error {
	id := m.identity
	if id.Stage != stageEntering || id.Cluster != cluster || id.History != history {
		if err := id.clear(m.config.DataDir); err != nil { // Raft has never run under this id
			return err
		}
		id.Cluster, id.History, id.Stage = cluster, history, stageEntering
		if err := id.save(m.config.DataDir); err != nil {
			return err
		}
		m.identity = id // from here on Raft may have run
	}
	e, err := m.start(ctx, id, nil)
	if err != nil {
		return err
	}
	return m.become(e, id)
}

// joinThrough joins through the member at an address and returns the history of the
// cluster it is in.
func (m *Member) joinThrough(ctx context.Context, j Joining, address string) (history fsm.History, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := m.config.Peers.Join(ctx, address, j.Token.Pin)
	if err != nil {
		return history, err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	if err := stream.Send(JoinHello{Cluster: j.Token.Cluster, Release: fsm.NewestRelease, Profile: m.Profile()}); err != nil {
		return history, err
	}
	challenge, err := receive[JoinChallenge](stream)
	if err != nil {
		return history, err
	}
	if len(challenge.Nonce) != joinNonce {
		return history, fmt.Errorf("%w: a nonce of %d bytes", ErrJoin, len(challenge.Nonce))
	}
	channel, err := stream.Channel()
	if err != nil {
		return history, err
	}
	proof, err := m.prove(ctx, j.Token, challenge, channel)
	if err != nil {
		return history, err
	}
	if err := stream.Send(proof); err != nil {
		return history, err
	}
	transfer, err := m.awaitTransfer(stream, j)
	if err != nil {
		return history, err
	}
	if !j.Token.names(transfer.Generation) {
		return history, fmt.Errorf("%w: the donor's domain key is not that of the cluster that sent the invitation", ErrJoin)
	}
	held, err := m.config.Domain.Generations(ctx, hsm.ID(j.Token.Cluster))
	if err != nil {
		return history, err
	}
	switch {
	case m.cloned() && !slices.ContainsFunc(held, transfer.Generation.Equal):
		return history, fmt.Errorf("%w: this node's HSM partition does not hold generation %d of the domain key as node %s does: clone it from a member's partition with the vendor's tools", ErrJoin, transfer.Generation.Number, challenge.Donor)
	case m.cloned():
	case proof.HoldsGeneration == transfer.Generation.Number:
		if !slices.ContainsFunc(held, transfer.Generation.Equal) {
			return history, fmt.Errorf("%w: the donor's domain key is not the generation %d that this node's HSM partition holds", ErrJoin, transfer.Generation.Number)
		}
	default:
		if _, err := m.config.Domain.Import(ctx, transfer.Message, hsm.ImportExpectation{
			Cluster: hsm.ID(j.Token.Cluster), Epoch: challenge.History.Epoch, Donor: challenge.Donor, Recipient: m.ID(),
			DonorIdentity: transfer.DonorIdentity, Generation: transfer.Generation, More: transfer.More,
		}); err != nil {
			return history, fmt.Errorf("taking the domain key in: %w", err)
		}
		if !transfer.More {
			m.transfer = hsm.Transfer{} // it is destroyed
		}
	}
	possession, err := m.config.Domain.Possess(ctx, hsm.Possession{
		Cluster: hsm.ID(j.Token.Cluster), Generation: transfer.Generation.Number, Verifier: challenge.Donor, Prover: m.ID(),
		Exporter: channel.Exporter, Nonce: transfer.Nonce,
	})
	if err != nil {
		return history, fmt.Errorf("proving possession of the domain key: %w", err)
	}
	if err := stream.Send(JoinPossession{Proof: possession}); err != nil {
		return history, err
	}
	_, err = receive[JoinAccepted](stream)
	return challenge.History, err
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
	if m.cloned() && len(held) == 0 {
		return JoinProof{}, fmt.Errorf("%w: this node's HSM partition holds no domain key of cluster %s, and in the transfer profile %s none is sent: clone it from a member's partition with the vendor's tools, and run kmsd hsm adopt", ErrJoin, token.Cluster, fsm.ProfileCloned)
	}
	if m.transfer.SPKI == nil && !m.cloned() { // kept over attempts, so that the Security Officer's trust is not lost
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

// awaitTransfer tells people what the donor waits for, until the domain key comes.
func (m *Member) awaitTransfer(stream JoinStream, j Joining) (JoinTransfer, error) {
	for {
		message, err := stream.Receive()
		if err != nil {
			return JoinTransfer{}, err
		}
		switch x := message.(type) {
		case JoinPending: // what people compare is this node's own key, whatever the donor says
			if own := hsm.Fingerprint(m.config.Domain.Identity()); x.Fingerprint != own {
				return JoinTransfer{}, fmt.Errorf("%w: the donor asks for the approval of %.200q, this node's identity is %s", ErrJoin, x.Fingerprint, own)
			}
			j.Pending(x)
		case JoinWaiting:
			if own := hsm.Fingerprint(m.transfer.SPKI); x.Fingerprint != own {
				return JoinTransfer{}, fmt.Errorf("%w: the donor asks for trust in %.200q, this node's transfer key is %s", ErrJoin, x.Fingerprint, own)
			}
			j.Waiting(x)
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
