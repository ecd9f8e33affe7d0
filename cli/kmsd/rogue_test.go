package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/soft"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc"
	peerpb "github.com/quorumkms/quorumkms/rpc/peerv1"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

// rogue is a machine with a node certificate that plays the donor. What it says to a
// joiner is talk's.
type rogue struct {
	peerpb.UnimplementedPeerServiceServer
	address string
	talk    func(peerpb.PeerService_JoinServer) error
}

func (r *rogue) Join(stream peerpb.PeerService_JoinServer) error { return r.talk(stream) }

// acceptedTLS are the credentials of connections whose handshake the mux has done.
type acceptedTLS struct {
	credentials.TransportCredentials
}

func (acceptedTLS) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nil, nil, errors.New("not TLS")
	}
	return c, credentials.TLSInfo{State: t.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

func (acceptedTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (a acceptedTLS) Clone() credentials.TransportCredentials { return a }

func (c *testCluster) credentials(name string) *transport.Credentials {
	c.t.Helper()
	creds, err := transport.Load(transport.Files{
		Cert: filepath.Join(c.certs(), name+".crt"), Key: filepath.Join(c.certs(), name+".key"), CA: filepath.Join(c.certs(), transport.DevCACert),
	}, testDomain)
	must(c.t, err)
	return creds
}

func (c *testCluster) startRogue(certificate string, talk func(peerpb.PeerService_JoinServer) error) *rogue {
	c.t.Helper()
	r := &rogue{address: freeAddress(c.t), talk: talk}
	mux, err := transport.Listen(r.address, c.credentials(certificate), transport.Limits{Handshakes: 16, Connections: 16})
	must(c.t, err)
	server := grpc.NewServer(grpc.Creds(acceptedTLS{}))
	peerpb.RegisterPeerServiceServer(server, r)
	listener := mux.Protocol(transport.ALPNPeer, transport.OnlyNodes)
	ctx, stop := context.WithCancel(c.t.Context())
	go func() { _ = mux.Serve(ctx) }()
	go func() { _ = server.Serve(listener) }()
	c.t.Cleanup(func() {
		stop()
		server.Stop()
		_ = mux.Close()
	})
	return r
}

// dialDonor opens a conversation with a donor, of which the messages are sent as they are.
func (c *testCluster) dialDonor(ctx context.Context, certificate string, donor *process) peerpb.PeerService_JoinClient {
	c.t.Helper()
	creds := c.credentials(certificate)
	config := creds.ClientPinned([]string{transport.ALPNPeer}, creds.CAKeysHash(), nil)
	stream, err := peerpb.NewPeerServiceClient(c.connect(donor.peer, config)).Join(ctx)
	must(c.t, err)
	return stream
}

// through has a node join through an address alone.
func (p *process) through(address, token string) {
	p.c.t.Helper()
	p.configure(token)
	for _, o := range p.c.nodes {
		if o != p && o.cmd != nil {
			p.edit(o.peer, address)
		}
	}
}

// TestRogueDonors has a node join through whoever pretends to be a member.
func TestRogueDonors(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	c.addNode("kms-2")
	c.issue("/node/rogue", "rogue")
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"DomainKeyOfItsOwn", testRogueDomain},
		{"Lies", testRogueLies},
		{"Relayed", testRelayed},
		{"OtherCluster", testOtherCluster},
	} {
		if !c.run(s.name, s.f) {
			break
		}
	}
}

// rogueDomain is a partition with a domain key of its own for a cluster's id.
func (c *testCluster) rogueDomain(ctx context.Context) (*soft.Partition, hsm.Generation, hsm.ID) {
	c.t.Helper()
	p, err := soft.Open(soft.Config{TrustAll: true})
	must(c.t, err)
	c.t.Cleanup(func() { must(c.t, p.Close()) })
	id := hsm.ID(uuid.MustParse(c.clusterID()))
	g, err := p.CreateDomain(ctx, id, 1)
	must(c.t, err)
	return p, g, id
}

// realChecks are the check values of the cluster's domain key, which are no secret: the
// state has them, and every backup.
func (c *testCluster) realChecks(ctx context.Context) hsm.Generation {
	c.t.Helper()
	f := newForger(ctx, c, c.nodes[0])
	talk := f.open(ctx)
	must(c.t, talk.stream.Send(f.honest(ctx, talk, func(p *cluster.JoinProof) { p.HoldsGeneration, p.RaftID = 1, "kms-5."+uuid.NewString() })))
	m, err := talk.stream.Receive()
	must(c.t, err)
	must(c.t, talk.stream.Close())
	must(c.t, second(c.dial(operatorID, c.nodes[0]).Cluster().Remove(ctx, &pb.RemoveRequest{Node: "kms-5"})))
	return m.(cluster.JoinTransfer).Generation
}

// testRogueDomain gives a joiner a domain key that the rogue has made itself. It never
// takes it in, whatever the rogue says of it.
func testRogueDomain(ctx context.Context, c *testCluster) {
	c.issue("/node/kms-5", "kms-5")
	joiner := c.nodes[1]
	partition, own, id := c.rogueDomain(ctx)
	real := c.realChecks(ctx)
	export := func(p *peerpb.JoinProof) hsm.TransferMessage {
		b, err := partition.Export(ctx, hsm.ExportRequest{
			Cluster: id, Generation: 1, Donor: "kms-1.rogue", Recipient: p.GetRaftId(), RecipientIdentity: p.GetIdentity(),
			Transfer: hsm.Transfer{SPKI: p.GetTransferKey(), OAEPHash: uint8(p.GetOaepHash()), Signature: p.GetTransferSignature()},
		})
		must(c.t, err)
		m, err := hsm.ParseTransfer(b)
		must(c.t, err)
		return m
	}
	token := ""
	for _, row := range []struct {
		what    string
		says    hsm.Generation
		message func(*peerpb.JoinProof) []byte
		text    string
	}{
		{
			"its own key", own,
			func(p *peerpb.JoinProof) []byte { return encoded(c, export(p)) },
			"the donor's domain key is not that of the cluster that sent the invitation",
		},
		{
			"its own key under the cluster's check values", real,
			func(p *peerpb.JoinProof) []byte { return encoded(c, export(p)) },
			"unexpected check value",
		},
		{
			"its own key, with the cluster's check values in the message", real,
			func(p *peerpb.JoinProof) []byte {
				m := export(p)
				for i := range m.Keys {
					m.Keys[i].Check = real.Checks[i].Value
				}
				var err error
				m.Signature, err = partition.SignIdentity(ctx, m.Signed())
				must(c.t, err)
				return encoded(c, m)
			},
			"is not the announced one",
		},
		{
			"a key that it knows, wrapped for the joiner", real,
			func(p *peerpb.JoinProof) []byte {
				m := export(p)
				parsed, err := x509.ParsePKIXPublicKey(p.GetTransferKey())
				must(c.t, err)
				for i := range m.Keys {
					h, err := hsm.NewOAEPHash(uint8(p.GetOaepHash()))
					must(c.t, err)
					m.Keys[i].Check = real.Checks[i].Value
					m.Keys[i].Ciphertext, err = rsa.EncryptOAEP(h, rand.Reader, parsed.(*rsa.PublicKey), make([]byte, hsm.DomainKeySize), nil)
					must(c.t, err)
				}
				m.Signature, err = partition.SignIdentity(ctx, m.Signed())
				must(c.t, err)
				return encoded(c, m)
			},
			"is not the announced one",
		},
		{
			"nothing", real,
			func(*peerpb.JoinProof) []byte { return nil },
			"not a DKX1 message",
		},
	} {
		r := c.startRogue("rogue", func(stream peerpb.PeerService_JoinServer) error {
			if _, err := stream.Recv(); err != nil {
				return err
			}
			if err := stream.Send(&peerpb.JoinResponse{Step: &peerpb.JoinResponse_Challenge{
				Challenge: &peerpb.JoinChallenge{Nonce: bytes.Repeat([]byte{7}, 32), Donor: "kms-1.rogue"},
			}}); err != nil {
				return err
			}
			answer, err := stream.Recv()
			if err != nil {
				return err
			}
			t := &peerpb.JoinTransfer{Message: row.message(answer.GetProof()), DonorIdentity: partition.Identity(), Generation: 1, Nonce: make([]byte, 32)}
			for _, k := range row.says.Checks {
				t.Checks = append(t.Checks, &peerpb.DomainCheck{Kind: uint32(k.Kind), Value: k.Value[:]})
			}
			if err := stream.Send(&peerpb.JoinResponse{Step: &peerpb.JoinResponse_Transfer{Transfer: t}}); err != nil {
				return err
			}
			if got, err := stream.Recv(); err == nil {
				c.t.Errorf("a rogue donor that gives %s was sent %v", row.what, got)
			}
			return nil
		})
		token = c.inviteAt(ctx, c.nodes[0], &pb.InviteRequest{NodeName: "kms-2", Identity: c.nik(joiner)})
		joiner.through(r.address, token)
		c.failsToStart("a rogue donor that gives "+row.what, joiner, exitFailed, row.text)
	}
	if m := c.member(c.nodes[0], "kms-2"); m != nil {
		c.t.Errorf("kms-2 is a member: %v", m)
	}
	joiner.configure(token) // and the cluster takes it in
	joiner.start()
	c.trustFirst(joiner)
	c.until("kms-2 serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, joiner)
	c.removeAgain(ctx, joiner)
}

// testRogueLies tells a joiner, whose partition holds the cluster's domain key already, what
// it can know better.
func testRogueLies(ctx context.Context, c *testCluster) {
	joiner := c.nodes[1]
	other := c.realChecks(ctx)
	for i, k := range other.Checks {
		if k.Kind != hsm.KindLog {
			other.Checks[i].Value[0] ^= 1
		}
	}
	transfer := &peerpb.JoinTransfer{DonorIdentity: []byte("x"), Generation: 1, Nonce: make([]byte, 32)}
	for _, k := range other.Checks {
		transfer.Checks = append(transfer.Checks, &peerpb.DomainCheck{Kind: uint32(k.Kind), Value: k.Value[:]})
	}
	fingerprint := "SHA256:" + strings.Repeat("6", 64)
	for _, row := range []struct {
		what string
		says *peerpb.JoinResponse
		text string
	}{
		{
			"that generation 1 is another", &peerpb.JoinResponse{Step: &peerpb.JoinResponse_Transfer{Transfer: transfer}},
			"is not the generation 1 that this node's HSM partition holds",
		},
		{
			"another fingerprint of the transfer key", &peerpb.JoinResponse{Step: &peerpb.JoinResponse_Waiting{Waiting: &peerpb.JoinWaiting{Fingerprint: fingerprint, DonorName: "kms-1"}}},
			"the donor asks for trust in",
		},
		{
			"another fingerprint of the identity", &peerpb.JoinResponse{Step: &peerpb.JoinResponse_Pending{Pending: &peerpb.JoinPending{Fingerprint: fingerprint, Expires: 1 << 40}}},
			"the donor asks for the approval of",
		},
	} {
		r := c.startRogue("rogue", func(stream peerpb.PeerService_JoinServer) error {
			if _, err := stream.Recv(); err != nil {
				return err
			}
			if err := stream.Send(&peerpb.JoinResponse{Step: &peerpb.JoinResponse_Challenge{
				Challenge: &peerpb.JoinChallenge{Nonce: bytes.Repeat([]byte{7}, 32), Donor: "kms-1.rogue"},
			}}); err != nil {
				return err
			}
			answer, err := stream.Recv()
			if err != nil {
				return err
			}
			if answer.GetProof().GetHoldsGeneration() != 1 {
				c.t.Errorf("the joiner's partition holds generation %d, this test needs 1", answer.GetProof().GetHoldsGeneration())
			}
			if err := stream.Send(row.says); err != nil {
				return err
			}
			if got, err := stream.Recv(); err == nil {
				c.t.Errorf("a rogue donor that says %s was sent %v", row.what, got)
			}
			return nil
		})
		token := c.inviteAt(ctx, c.nodes[0], &pb.InviteRequest{NodeName: "kms-2", Identity: c.nik(joiner)})
		joiner.through(r.address, token)
		c.failsToStart("a rogue donor that says "+row.what, joiner, exitFailed, row.text)
		if strings.Contains(joiner.output(), fingerprint+"\n\n") {
			c.t.Errorf("the console shows what a rogue says:\n%s", joiner.output())
		}
	}
}

// removeAgain takes a node out, so that it can join once more.
func (c *testCluster) removeAgain(ctx context.Context, p *process) {
	c.t.Helper()
	must(c.t, second(c.dial(operatorID, c.nodes[0]).Cluster().Remove(ctx, &pb.RemoveRequest{Node: p.name})))
	p.waitExit()
	must(c.t, os.RemoveAll(p.path("data")))
}

func encoded(c *testCluster, m hsm.TransferMessage) []byte {
	b, err := m.Encode()
	must(c.t, err)
	return b
}

// testRelayed puts a man in the middle, with the joiner's own certificate on the donor's
// side: each side's messages reach the other as they are, on two connections. Then it sends
// what it has recorded once more.
func testRelayed(ctx context.Context, c *testCluster) {
	donor, joiner := c.nodes[0], c.nodes[1]
	recorded := make(chan *peerpb.JoinRequest, 16)
	r := c.startRogue("rogue", func(stream peerpb.PeerService_JoinServer) error {
		up := c.dialDonor(stream.Context(), "kms-2", donor)
		for range 2 {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			recorded <- m
			if err := up.Send(m); err != nil {
				return err
			}
			answer, err := up.Recv()
			if err != nil {
				return err
			}
			if answer.GetTransfer() != nil || answer.GetWaiting() != nil {
				c.t.Errorf("the donor takes the man in the middle for the joiner: %v", answer)
			}
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
		return nil
	})
	token := c.inviteAt(ctx, donor, &pb.InviteRequest{NodeName: "kms-2", Identity: c.nik(joiner)})
	joiner.through(r.address, token)
	c.failsToStart("a man in the middle", joiner, exitFailed, "join ticket refused", "the ticket's signature does not verify")
	if m := c.member(donor, "kms-2"); m != nil {
		c.t.Fatalf("kms-2 is a member: %v", m)
	}
	hello, proof := <-recorded, <-recorded
	again := c.dialDonor(ctx, "kms-2", donor)
	must(c.t, again.Send(hello))
	must(c.t, second(again.Recv()))
	must(c.t, again.Send(proof))
	answer, err := again.Recv()
	if err != nil || !strings.Contains(answer.GetFailure().GetText(), "signature does not verify") {
		c.t.Errorf("a recorded proof, sent again: %v, %v", answer, err)
	}
	huge := c.dialDonor(ctx, "kms-2", donor)
	if err := huge.Send(&peerpb.JoinRequest{Step: &peerpb.JoinRequest_Hello{Hello: &peerpb.JoinHello{ClusterId: make([]byte, 8<<20)}}}); err == nil {
		if answer, err = huge.Recv(); err == nil {
			c.t.Errorf("a hello of 8 MiB is answered: %v", answer)
		}
	}
	s, err := c.status(donor)
	if err != nil || !s.GetServing() {
		c.t.Errorf("afterwards the donor does not serve: %v, %v", s, err)
	}
}

// testOtherCluster points a joiner at a cluster of the same names, with a CA of its own.
func testOtherCluster(ctx context.Context, c *testCluster) {
	other := startCluster(c.t, 1)
	other.issue("/node/kms-2", "kms-2")
	joiner := c.nodes[1]
	token := c.inviteAt(ctx, c.nodes[0], &pb.InviteRequest{NodeName: "kms-2", Identity: c.nik(joiner)})
	joiner.through(other.nodes[0].peer, token)
	joiner.start()
	c.eventually("the joiner finds no member there", func() bool { return strings.Count(joiner.output(), "not joined yet") >= 2 }, joiner)
	joiner.kill()
	if strings.Contains(joiner.output(), "asks node") || !strings.Contains(joiner.output(), "certificate") {
		c.t.Errorf("the joiner talked to a cluster of another CA:\n%s", joiner.output())
	}
	if m := other.member(other.nodes[0], "kms-2"); m != nil {
		c.t.Errorf("kms-2 is a member of the other cluster: %v", m)
	}
	joiner.through(other.nodes[0].peer, token)
	for _, f := range []string{"kms-2.crt", "kms-2.key", transport.DevCACert} { // the rogue has given it certificates of its own, too
		joiner.edit(filepath.Join(c.certs(), f), filepath.Join(other.certs(), f))
	}
	c.failsToStart("with the other cluster's certificates", joiner, exitFailed, "the CA keys are not those the join token pins")
}

// TestPullProofs asks a donor for a generation with the HSM partition of a member that is
// away: with the right one, which only an embedded partition lends.
func TestPullProofs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	donor, p := c.nodes[0], c.nodes[1]
	donor.hsm, p.hsm = ", kind: embedded, trust_all: true", ", kind: embedded"
	donor.configure("")
	donor.start()
	c.found(donor)
	c.startJoining(p, &pb.InviteRequest{NonVoter: true}, donor)
	c.until("kms-2 serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	ctx, id := t.Context(), c.member(donor, "kms-2").GetRaftId()
	p.kill()
	own, err := soft.Open(soft.Config{Dir: p.path("data/hsm"), PIN: []byte(testPIN)})
	must(t, err)
	defer func() { must(t, own.Close()) }()
	cid := uuid.MustParse(c.clusterID())
	honest := cluster.JoinPull{Cluster: cid, Node: id, Generation: 1, Holds: true}
	for _, row := range []struct {
		what string
		edit func(*cluster.JoinPull)
		is   error
		text string
	}{
		{"a generation that there is not", func(p *cluster.JoinPull) { p.Generation = 77 }, hsm.ErrNotFound, "generation 77"},
		{"a false proof", func(*cluster.JoinPull) {}, cluster.ErrJoin, "did not prove possession"},
		{"no transfer key", func(p *cluster.JoinPull) { p.Holds = false }, cluster.ErrJoin, "transfer key"},
	} {
		x := honest
		row.edit(&x)
		err := c.pullAs(ctx, "kms-2", donor, own, x)
		if !errors.Is(err, row.is) || !strings.Contains(err.Error(), row.text) {
			c.t.Errorf("%s: %v; want %v and a text with %q", row.what, err, row.is, row.text)
		}
	}
	peers := rpc.NewPeers(c.credentials("kms-2"), func(string) (string, bool) { return "", false })
	defer func() { must(c.t, peers.Close()) }()
	send := func(edit func(*cluster.JoinPull), channel func(cluster.Channel) cluster.Channel) error {
		stream, err := peers.Join(ctx, donor.peer, c.credentials("kms-2").CAKeysHash())
		must(c.t, err)
		defer func() { _ = stream.Close() }()
		ch, err := stream.Channel()
		must(c.t, err)
		x := honest
		x.Signature, err = own.SignIdentity(ctx, cluster.PullTranscript(channel(ch), x))
		must(c.t, err)
		edit(&x)
		must(c.t, stream.Send(x))
		return second(stream.Receive())
	}
	var first cluster.Channel
	must(c.t, send(func(*cluster.JoinPull) {}, func(ch cluster.Channel) cluster.Channel { first = ch; return ch }))
	same := func(ch cluster.Channel) cluster.Channel { return ch }
	for what, err := range map[string]error{
		"recorded on another connection": send(func(*cluster.JoinPull) {}, func(cluster.Channel) cluster.Channel { return first }),
		"signed for another generation":  send(func(p *cluster.JoinPull) { p.Generation = 2 }, same),
		"signed for another purpose":     send(func(p *cluster.JoinPull) { p.Holds = false }, same),
		"with another transfer key":      send(func(p *cluster.JoinPull) { p.Transfer.SPKI = []byte("x") }, same),
		"without a signature":            send(func(p *cluster.JoinPull) { p.Signature = nil }, same),
	} {
		if !errors.Is(err, fsm.ErrIdentity) {
			t.Errorf("a request %s: %v", what, err)
		}
	}
}
