package rpc

import (
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	peerpb "github.com/quorumkms/quorumkms/rpc/peerv1"
)

// loop is both ends of a stream: what the joiner sent last is what the donor
// receives.
type loop struct{ request *peerpb.JoinRequest }

type joinerStream struct {
	peerpb.PeerService_JoinClient
	*loop
}

type donorStream struct {
	peerpb.PeerService_JoinServer
	*loop
}

func (s joinerStream) Send(r *peerpb.JoinRequest) error {
	s.request = r
	return nil
}

func (s donorStream) Recv() (*peerpb.JoinRequest, error) { return s.request, nil }

func TestJoinProofOnTheWire(t *testing.T) {
	l := &loop{}
	joiner, donor := joinerWire{stream: joinerStream{loop: l}}, donorWire{stream: donorStream{loop: l}}
	sent := cluster.JoinProof{
		TicketID: "ticket", RaftID: "node-b.01", Name: "node-b", PeerAddress: "b:1", ClientAddress: "b:2",
		Identity:        []byte("identity"),
		Transfer:        hsm.Transfer{SPKI: []byte("key"), OAEPHash: hsm.OAEPSHA256, Signature: []byte("signature")},
		HoldsGeneration: 7, TicketSignature: []byte("ticket's"), IdentitySignature: []byte("identity's"),
	}
	if err := joiner.Send(sent); err != nil {
		t.Fatal(err)
	}
	if got, err := donor.Receive(); err != nil || !reflect.DeepEqual(got, sent) {
		t.Errorf("received %+v, %v\nsent %+v", got, err, sent)
	}
	for _, hash := range []uint32{math.MaxUint8 + 1 + hsm.OAEPSHA1, math.MaxUint32} {
		l.request.GetProof().OaepHash = hash
		if got, err := donor.Receive(); !errors.Is(err, cluster.ErrJoin) {
			t.Errorf("oaep hash %d: %+v, %v", hash, got, err)
		}
	}
}
