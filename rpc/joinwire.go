package rpc

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	peerpb "github.com/quorumkms/quorumkms/rpc/peerv1"
	"github.com/quorumkms/quorumkms/transport"
)

// joinerWire is the joiner's end of the conversation.
type joinerWire struct {
	stream peerpb.PeerService_JoinClient
	conn   *grpc.ClientConn
	own    *transport.Credentials
}

func (w *joinerWire) Send(m cluster.JoinMessage) error {
	r := &peerpb.JoinRequest{}
	switch x := m.(type) {
	case cluster.JoinHello:
		r.Step = &peerpb.JoinRequest_Hello{Hello: &peerpb.JoinHello{ClusterId: x.Cluster[:], Release: uint32(x.Release), Profile: x.Profile}} //nolint:gosec // a small number
	case cluster.JoinPull:
		r.Step = &peerpb.JoinRequest_Pull{Pull: &peerpb.JoinPull{
			ClusterId: x.Cluster[:], Node: x.Node, Generation: x.Generation, Holds: x.Holds,
			TransferKey: x.Transfer.SPKI, TransferSignature: x.Transfer.Signature, OaepHash: uint32(x.Transfer.OAEPHash),
			IdentitySignature: x.Signature,
		}}
	case cluster.JoinProof:
		r.Step = &peerpb.JoinRequest_Proof{Proof: &peerpb.JoinProof{
			TicketId: x.TicketID, RaftId: x.RaftID, Name: x.Name, PeerAddress: x.PeerAddress, ClientAddress: x.ClientAddress,
			Identity: x.Identity, TransferKey: x.Transfer.SPKI, TransferSignature: x.Transfer.Signature, OaepHash: uint32(x.Transfer.OAEPHash),
			HoldsGeneration: x.HoldsGeneration, TicketSignature: x.TicketSignature, IdentitySignature: x.IdentitySignature,
		}}
	case cluster.JoinPossession:
		r.Step = &peerpb.JoinRequest_Possession{Possession: &peerpb.JoinPossession{Proof: x.Proof}}
	default:
		return fmt.Errorf("rpc: a joiner does not send %T", m)
	}
	return w.stream.Send(r)
}

func (w *joinerWire) Receive() (cluster.JoinMessage, error) {
	r, err := w.stream.Recv()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", cluster.ErrNoLeader, err)
	}
	switch x := r.GetStep().(type) {
	case *peerpb.JoinResponse_Challenge:
		history, err := historyFrom(&peerpb.History{RecoveryEpoch: x.Challenge.GetRecoveryEpoch(), Id: x.Challenge.GetRecoveryId()})
		return cluster.JoinChallenge{Nonce: x.Challenge.GetNonce(), Donor: x.Challenge.GetDonor(), History: history}, err
	case *peerpb.JoinResponse_Pending:
		return cluster.JoinPending{Fingerprint: x.Pending.GetFingerprint(), Expires: x.Pending.GetExpires()}, nil
	case *peerpb.JoinResponse_Waiting:
		return cluster.JoinWaiting{Fingerprint: x.Waiting.GetFingerprint(), DonorName: x.Waiting.GetDonorName()}, nil
	case *peerpb.JoinResponse_Transfer:
		return transferFrom(x.Transfer)
	case *peerpb.JoinResponse_Accepted:
		return cluster.JoinAccepted{PeerAddresses: x.Accepted.GetPeerAddresses()}, nil
	case *peerpb.JoinResponse_Failure:
		return nil, failed(x.Failure)
	}
	return nil, fmt.Errorf("%w: an answer this release does not know", cluster.ErrJoin)
}

func transferFrom(t *peerpb.JoinTransfer) (cluster.JoinMessage, error) {
	out := cluster.JoinTransfer{
		Message: t.GetMessage(), DonorIdentity: t.GetDonorIdentity(), Nonce: t.GetNonce(),
		Generation: hsm.Generation{Number: t.GetGeneration()}, More: t.GetMore(),
	}
	for _, c := range t.GetChecks() {
		k := hsm.KeyCheck{Kind: hsm.KeyKind(c.GetKind())} //nolint:gosec // an unknown kind is refused with the check values
		if copy(k.Value[:], c.GetValue()) != len(k.Value) {
			return nil, fmt.Errorf("%w: a check value of %d bytes", cluster.ErrJoin, len(c.GetValue()))
		}
		out.Generation.Checks = append(out.Generation.Checks, k)
	}
	return out, nil
}

func (w *joinerWire) Channel() (cluster.Channel, error) {
	state, err := streamState(w.stream.Context())
	if err != nil {
		return cluster.Channel{}, err
	}
	return channel(state, keyHash(state.PeerCertificates[0]), w.own.KeyHash())
}

func (w *joinerWire) Close() error { return errors.Join(w.stream.CloseSend(), w.conn.Close()) }

// donorWire is the donor's end.
type donorWire struct {
	stream peerpb.PeerService_JoinServer
	own    *transport.Credentials
}

func (w *donorWire) Send(m cluster.JoinMessage) error {
	r := &peerpb.JoinResponse{}
	switch x := m.(type) {
	case cluster.JoinChallenge:
		h := historyTo(x.History)
		r.Step = &peerpb.JoinResponse_Challenge{Challenge: &peerpb.JoinChallenge{
			Nonce: x.Nonce, Donor: x.Donor, RecoveryEpoch: h.GetRecoveryEpoch(), RecoveryId: h.GetId(),
		}}
	case cluster.JoinPending:
		r.Step = &peerpb.JoinResponse_Pending{Pending: &peerpb.JoinPending{Fingerprint: x.Fingerprint, Expires: x.Expires}}
	case cluster.JoinWaiting:
		r.Step = &peerpb.JoinResponse_Waiting{Waiting: &peerpb.JoinWaiting{Fingerprint: x.Fingerprint, DonorName: x.DonorName}}
	case cluster.JoinTransfer:
		t := &peerpb.JoinTransfer{Message: x.Message, DonorIdentity: x.DonorIdentity, Generation: x.Generation.Number, Nonce: x.Nonce, More: x.More}
		for _, c := range x.Generation.Checks {
			t.Checks = append(t.Checks, &peerpb.DomainCheck{Kind: uint32(c.Kind), Value: c.Value[:]})
		}
		r.Step = &peerpb.JoinResponse_Transfer{Transfer: t}
	case cluster.JoinAccepted:
		r.Step = &peerpb.JoinResponse_Accepted{Accepted: &peerpb.JoinAccepted{PeerAddresses: x.PeerAddresses}}
	default:
		return fmt.Errorf("rpc: a donor does not send %T", m)
	}
	return w.stream.Send(r)
}

func (w *donorWire) Receive() (cluster.JoinMessage, error) {
	r, err := w.stream.Recv()
	if err != nil {
		return nil, err
	}
	switch x := r.GetStep().(type) {
	case *peerpb.JoinRequest_Hello:
		h := cluster.JoinHello{Release: int(x.Hello.GetRelease()), Profile: x.Hello.GetProfile()}
		if copy(h.Cluster[:], x.Hello.GetClusterId()) != len(fsm.ID{}) {
			return nil, fmt.Errorf("%w: a cluster id of %d bytes", cluster.ErrJoin, len(x.Hello.GetClusterId()))
		}
		return h, nil
	case *peerpb.JoinRequest_Proof:
		return proofFrom(x.Proof)
	case *peerpb.JoinRequest_Pull:
		return pullFrom(x.Pull)
	case *peerpb.JoinRequest_Possession:
		return cluster.JoinPossession{Proof: x.Possession.GetProof()}, nil
	}
	return nil, fmt.Errorf("%w: a message this release does not know", cluster.ErrJoin)
}

func pullFrom(p *peerpb.JoinPull) (cluster.JoinMessage, error) {
	transfer, err := announcedFrom(p.GetTransferKey(), p.GetTransferSignature(), p.GetOaepHash())
	return cluster.JoinPull{
		Cluster: idFrom(p.GetClusterId()), Node: p.GetNode(), Generation: p.GetGeneration(), Transfer: transfer, Holds: p.GetHolds(), Signature: p.GetIdentitySignature(),
	}, err
}

func announcedFrom(spki, signature []byte, hash uint32) (hsm.Transfer, error) {
	if hash > math.MaxUint8 {
		return hsm.Transfer{}, fmt.Errorf("%w: an oaep hash numbered %d", cluster.ErrJoin, hash)
	}
	return hsm.Transfer{SPKI: spki, OAEPHash: uint8(hash), Signature: signature}, nil
}

func proofFrom(p *peerpb.JoinProof) (cluster.JoinMessage, error) {
	transfer, err := announcedFrom(p.GetTransferKey(), p.GetTransferSignature(), p.GetOaepHash())
	if err != nil {
		return nil, err
	}
	return cluster.JoinProof{
		TicketID: p.GetTicketId(), RaftID: p.GetRaftId(), Name: p.GetName(),
		PeerAddress: p.GetPeerAddress(), ClientAddress: p.GetClientAddress(), Identity: p.GetIdentity(),
		Transfer: transfer, HoldsGeneration: p.GetHoldsGeneration(), TicketSignature: p.GetTicketSignature(), IdentitySignature: p.GetIdentitySignature(),
	}, nil
}

func (w *donorWire) Channel() (cluster.Channel, error) {
	state, err := streamState(w.stream.Context())
	if err != nil {
		return cluster.Channel{}, err
	}
	return channel(state, w.own.KeyHash(), keyHash(state.PeerCertificates[0]))
}

func (w *donorWire) Close() error { return nil }

// streamState is the connection of a stream, at either end of it.
func streamState(ctx context.Context) (tls.ConnectionState, error) {
	var state tls.ConnectionState
	p, ok := peer.FromContext(ctx)
	if ok {
		switch info := p.AuthInfo.(type) {
		case *accepted:
			state = info.State
		case credentials.TLSInfo: // dialled
			state = info.State
		default:
			ok = false
		}
	}
	switch {
	case !ok:
		return state, fmt.Errorf("%w: the connection is not known", cluster.ErrJoin)
	case len(state.PeerCertificates) == 0:
		return state, fmt.Errorf("%w: the connection has no certificate", cluster.ErrJoin)
	}
	return state, nil
}

// channel names the connection by its exporter value and both ends' keys.
func channel(state tls.ConnectionState, donor, joiner []byte) (cluster.Channel, error) {
	exporter, err := state.ExportKeyingMaterial(cluster.ExporterLabel, nil, cluster.ExporterSize)
	if err != nil {
		return cluster.Channel{}, err
	}
	return cluster.Channel{Exporter: exporter, DonorKey: donor, JoinerKey: joiner}, nil
}

func keyHash(c *x509.Certificate) []byte {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return sum[:]
}
