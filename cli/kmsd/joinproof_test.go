package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"path/filepath"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/soft"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

// forger holds a conversation of joining with whatever proof it likes. It has a
// node certificate, an HSM and a join token, all valid.
type forger struct {
	c        *testCluster
	donor    *process
	peers    *rpc.Peers
	hsm      *soft.Partition
	other    *soft.Partition // another HSM
	token    cluster.JoinToken
	transfer hsm.Transfer
}

func newForger(ctx context.Context, c *testCluster, donor *process) *forger {
	c.t.Helper()
	creds, err := transport.Load(transport.Files{
		Cert: filepath.Join(c.certs(), "kms-5.crt"), Key: filepath.Join(c.certs(), "kms-5.key"), CA: filepath.Join(c.certs(), transport.DevCACert),
	}, testDomain)
	must(c.t, err)
	f := &forger{c: c, donor: donor, peers: rpc.NewPeers(creds, func(string) (string, bool) { return "", false })}
	c.t.Cleanup(func() { must(c.t, f.peers.Close()) })
	for _, p := range []**soft.Partition{&f.hsm, &f.other} {
		*p, err = soft.Open(soft.Config{})
		must(c.t, err)
		c.t.Cleanup(func() { must(c.t, (*p).Close()) })
	}
	f.transfer, err = f.hsm.NewTransfer(ctx)
	must(c.t, err)
	f.token, err = cluster.ParseJoinToken(c.inviteAt(ctx, donor, &pb.InviteRequest{NodeName: "kms-5", Identity: hsm.Fingerprint(f.hsm.Identity())}))
	must(c.t, err)
	return f
}

// conversation is one connection on which the donor's challenge has come.
type conversation struct {
	stream    cluster.JoinStream
	challenge cluster.JoinChallenge
	channel   cluster.Channel
}

func (f *forger) hello(ctx context.Context, h cluster.JoinHello) (conversation, error) {
	f.c.t.Helper()
	stream, err := f.peers.Join(ctx, f.donor.peer, f.token.Pin)
	must(f.c.t, err)
	f.c.t.Cleanup(func() { _ = stream.Close() })
	must(f.c.t, stream.Send(h))
	m, err := stream.Receive()
	if err != nil {
		return conversation{}, err
	}
	channel, err := stream.Channel()
	must(f.c.t, err)
	return conversation{stream, m.(cluster.JoinChallenge), channel}, nil
}

func (f *forger) open(ctx context.Context) conversation {
	f.c.t.Helper()
	x, err := f.hello(ctx, cluster.JoinHello{Cluster: f.token.Cluster, Release: fsm.NewestRelease})
	must(f.c.t, err)
	return x
}

// honest is a proof that is as it should be, but for what edit does to it before
// it is signed.
func (f *forger) honest(ctx context.Context, x conversation, edit func(*cluster.JoinProof)) cluster.JoinProof {
	f.c.t.Helper()
	p := cluster.JoinProof{
		TicketID: f.token.ID(), RaftID: "kms-5.0123456789abcdef", Name: "kms-5", PeerAddress: "127.0.0.1:1", ClientAddress: "127.0.0.1:2",
		Identity: f.hsm.Identity(), Transfer: f.transfer,
	}
	edit(&p)
	public := f.token.Ticket.Public().(ed25519.PublicKey)
	transcript := cluster.JoinTranscript(f.token.Cluster, public, x.channel, x.challenge.Nonce, p)
	p.TicketSignature = ed25519.Sign(f.token.Ticket, transcript)
	var err error
	p.IdentitySignature, err = f.hsm.SignIdentity(ctx, transcript)
	must(f.c.t, err)
	return p
}

// refused sends a proof that the donor must refuse.
func (f *forger) refused(what string, x conversation, p cluster.JoinProof, is error, text string) {
	f.c.t.Helper()
	must(f.c.t, x.stream.Send(p))
	m, err := x.stream.Receive()
	if !errors.Is(err, is) || !strings.Contains(err.Error(), text) {
		f.c.t.Errorf("%s: %T, %v; want %v and a text with %q", what, m, err, is, text)
	}
}

// testForgedProofs tries to join with proofs that are false in one place each. The
// ticket stays good for who has a true one.
func testForgedProofs(ctx context.Context, c *testCluster) {
	donor := c.nodes[1]
	f := newForger(ctx, c, donor)
	keep := func(*cluster.JoinProof) {}
	otherTransfer, err := f.other.NewTransfer(ctx)
	must(c.t, err)
	for what, x := range map[string]struct {
		before, after func(*cluster.JoinProof)
		is            error
		text          string
	}{
		"a name that is not the certificate's": {func(p *cluster.JoinProof) { p.Name = "kms-1" }, keep, cluster.ErrJoin, "the certificate is of node kms-5, the request of kms-1"},
		"an HSM key that is not the one announced": {
			func(p *cluster.JoinProof) { p.Identity, p.Transfer = f.other.Identity(), otherTransfer }, keep,
			cluster.ErrJoin, "the HSM key is not the one announced",
		},
		"an HSM key changed on the way":     {keep, func(p *cluster.JoinProof) { p.Identity = f.other.Identity() }, fsm.ErrTicket, "signature does not verify"},
		"no HSM key":                        {func(p *cluster.JoinProof) { p.Identity = nil }, keep, cluster.ErrJoin, "identity key of 0 bytes"},
		"a transfer key of another HSM":     {func(p *cluster.JoinProof) { p.Transfer = otherTransfer }, keep, cluster.ErrJoin, "transfer key"},
		"an address changed on the way":     {keep, func(p *cluster.JoinProof) { p.PeerAddress = "127.0.0.1:3" }, fsm.ErrTicket, "signature does not verify"},
		"a raft id changed on the way":      {keep, func(p *cluster.JoinProof) { p.RaftID = "kms-5.ffffffffffffffff" }, fsm.ErrTicket, "signature does not verify"},
		"a generation changed on the way":   {keep, func(p *cluster.JoinProof) { p.HoldsGeneration = 1 }, fsm.ErrTicket, "signature does not verify"},
		"a ticket signature with a bit off": {keep, func(p *cluster.JoinProof) { p.TicketSignature[5] ^= 4 }, fsm.ErrTicket, "signature does not verify"},
		"no ticket signature":               {keep, func(p *cluster.JoinProof) { p.TicketSignature = nil }, cluster.ErrJoin, "ticket's signature of 0 bytes"},
		"an HSM signature with a bit off":   {keep, func(p *cluster.JoinProof) { p.IdentitySignature[9] ^= 4 }, cluster.ErrJoin, "the HSM key is not the one announced"},
		"a ticket that is not there":        {func(p *cluster.JoinProof) { p.TicketID = "0011223344556677" }, keep, fsm.ErrTicket, "unknown or used"},
		"the raft id of a member": {
			func(p *cluster.JoinProof) { p.RaftID = c.member(donor, "kms-1").GetRaftId() }, keep, fsm.ErrMember, "is a member already",
		},
		"the peer address of a member":     {func(p *cluster.JoinProof) { p.PeerAddress = donor.peer }, keep, fsm.ErrMember, "belongs to node"},
		"an HSM key of too many bytes":     {func(p *cluster.JoinProof) { p.Identity = make([]byte, 1025) }, keep, cluster.ErrJoin, "identity key of 1025 bytes: must be 1 to 1024"},
		"a transfer key of too many bytes": {func(p *cluster.JoinProof) { p.Transfer.SPKI = make([]byte, 1025) }, keep, cluster.ErrJoin, "transfer key of 1025 bytes"},
		"a name of too many bytes":         {func(p *cluster.JoinProof) { p.Name = strings.Repeat("k", 65) }, keep, cluster.ErrJoin, "name of 65 bytes"},
		"an address of too many bytes":     {func(p *cluster.JoinProof) { p.PeerAddress = strings.Repeat("k", 257) }, keep, cluster.ErrJoin, "peer address of 257 bytes"},
		"a signature of too many bytes":    {keep, func(p *cluster.JoinProof) { p.IdentitySignature = make([]byte, 257) }, cluster.ErrJoin, "identity's signature of 257 bytes"},
		"no raft id":                       {func(p *cluster.JoinProof) { p.RaftID = "" }, keep, cluster.ErrJoin, "raft id of 0 bytes"},
		"no address":                       {func(p *cluster.JoinProof) { p.ClientAddress = "" }, keep, cluster.ErrJoin, "client address of 0 bytes"},
	} {
		talk := f.open(ctx)
		p := f.honest(ctx, talk, x.before)
		x.after(&p)
		f.refused(what, talk, p, x.is, x.text)
	}
	first, next := f.open(ctx), f.open(ctx)
	f.refused("a proof of another connection", next, f.honest(ctx, first, keep), fsm.ErrTicket, "signature does not verify")
	thief := *f // it has the ticket, the certificate and an HSM partition, but not the one invited
	thief.hsm, thief.transfer = f.other, otherTransfer
	talk := thief.open(ctx)
	thief.refused("a thief of the ticket", talk, thief.honest(ctx, talk, keep), fsm.ErrIdentity, "another node identity key")
	_, err = f.hello(ctx, cluster.JoinHello{Cluster: fsm.ID{1}, Release: fsm.NewestRelease})
	if !errors.Is(err, cluster.ErrJoin) || !strings.Contains(err.Error(), "the invitation is to cluster") {
		c.t.Errorf("another cluster's id: %v", err)
	}
	_, err = f.hello(ctx, cluster.JoinHello{Cluster: f.token.Cluster, Release: fsm.NewestRelease - 1})
	if !errors.Is(err, cluster.ErrJoin) || !strings.Contains(err.Error(), "upgrade the node") {
		c.t.Errorf("an old release: %v", err)
	}
	_, err = f.hello(ctx, cluster.JoinHello{Cluster: f.token.Cluster, Release: fsm.NewestRelease, Profile: fsm.ProfileCloned})
	if !errors.Is(err, cluster.ErrProfile) || !strings.Contains(err.Error(), "the cluster's is generic") {
		c.t.Errorf("another transfer profile: %v", err)
	}
	if m := c.member(donor, "kms-5"); m != nil {
		c.t.Fatalf("a forged proof made a member: %v", m)
	}
	f.liar(ctx)
}

// liar proves all that it can and claims to hold the domain key: it is admitted
// and never becomes active.
func (f *forger) liar(ctx context.Context) {
	c := f.c
	c.t.Helper()
	talk := f.open(ctx)
	must(c.t, talk.stream.Send(f.honest(ctx, talk, func(p *cluster.JoinProof) { p.HoldsGeneration = 1 })))
	m, err := talk.stream.Receive()
	must(c.t, err)
	if transfer, ok := m.(cluster.JoinTransfer); !ok || len(transfer.Message) != 0 {
		c.t.Fatalf("the donor sent %T", m)
	}
	must(c.t, talk.stream.Send(cluster.JoinPossession{Proof: make([]byte, 32)}))
	if _, err = talk.stream.Receive(); !errors.Is(err, cluster.ErrJoin) || !strings.Contains(err.Error(), "did not prove possession") {
		c.t.Errorf("a false proof of possession: %v", err)
	}
	if m := c.member(f.donor, "kms-5"); m.GetState() != pb.MemberState_MEMBER_STATE_ADMITTED || m.GetVoter() {
		c.t.Errorf("the liar is %v", m)
	}
	_, err = f.peers.Lease(ctx, c.leader(f.donor).peer, cluster.LeaseRequest{Node: "kms-5.0123456789abcdef"})
	if !errors.Is(err, fsm.ErrMember) || !strings.Contains(err.Error(), "no active member") {
		c.t.Errorf("a lease for the liar: %v", err)
	}
	_, err = c.dial(operatorID, f.donor).Cluster().Remove(ctx, &pb.RemoveRequest{Node: "kms-5"})
	must(c.t, err)
	talk = f.open(ctx)
	f.refused("the liar again", talk, f.honest(ctx, talk, func(*cluster.JoinProof) {}), fsm.ErrTicket, "unknown or used")
}
