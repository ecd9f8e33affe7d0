package rpc

import (
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/quorumkms/quorumkms/fsm"
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

// TestJoinRequestsOnTheWire: what a joiner and a member that pulls say arrives as it was
// sent.
func TestJoinRequestsOnTheWire(t *testing.T) {
	l := &loop{}
	joiner, donor := joinerWire{stream: joinerStream{loop: l}}, donorWire{stream: donorStream{loop: l}}
	for _, sent := range []cluster.JoinMessage{
		cluster.JoinHello{Cluster: fsm.ID{1, 2}, Release: 2, Profile: fsm.ProfileCloned},
		cluster.JoinPull{
			Cluster: fsm.ID{3}, Node: "node-b.01", Generation: 7, Holds: true, Signature: []byte("identity's"),
			Transfer: hsm.Transfer{SPKI: []byte("key"), OAEPHash: hsm.OAEPSHA1, Signature: []byte("signature")},
		},
		cluster.JoinPossession{Proof: []byte("proof")},
	} {
		if err := joiner.Send(sent); err != nil {
			t.Fatal(err)
		}
		if got, err := donor.Receive(); err != nil || !reflect.DeepEqual(got, sent) {
			t.Errorf("received %+v, %v\nsent %+v", got, err, sent)
		}
	}
}

// answers is both ends of a stream in the other direction.
type answers struct{ response *peerpb.JoinResponse }

type answeringStream struct {
	peerpb.PeerService_JoinServer
	*answers
}

type answeredStream struct {
	peerpb.PeerService_JoinClient
	*answers
}

func (s answeringStream) Send(r *peerpb.JoinResponse) error {
	s.response = r
	return nil
}

func (s answeredStream) Recv() (*peerpb.JoinResponse, error) { return s.response, nil }

func TestJoinAnswersOnTheWire(t *testing.T) {
	a := &answers{}
	donor, joiner := donorWire{stream: answeringStream{answers: a}}, joinerWire{stream: answeredStream{answers: a}}
	for _, sent := range []cluster.JoinMessage{
		cluster.JoinPending{Fingerprint: "SHA256:12", Expires: 1 << 40},
		cluster.JoinWaiting{Fingerprint: "SHA256:34", DonorName: "node-a"},
		cluster.JoinAccepted{PeerAddresses: []string{"a:1", "b:1"}},
	} {
		if err := donor.Send(sent); err != nil {
			t.Fatal(err)
		}
		if got, err := joiner.Receive(); err != nil || !reflect.DeepEqual(got, sent) {
			t.Errorf("received %+v, %v\nsent %+v", got, err, sent)
		}
	}
}
