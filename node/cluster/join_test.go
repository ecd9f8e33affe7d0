package cluster

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

func testProof() (Channel, []byte, JoinProof) {
	channel := Channel{
		Exporter: bytes.Repeat([]byte{'e'}, 32), DonorKey: bytes.Repeat([]byte{'d'}, 32), JoinerKey: bytes.Repeat([]byte{'j'}, 32),
	}
	return channel, bytes.Repeat([]byte{'n'}, joinNonce), JoinProof{
		TicketID: "id", RaftID: "node-b.01", Name: "node-b", PeerAddress: "b:1", ClientAddress: "b:2",
		Identity: []byte("identity key"), HoldsGeneration: 0x01020304,
		Transfer: hsm.Transfer{SPKI: []byte("transfer key"), OAEPHash: hsm.OAEPSHA256, Signature: []byte("signature")},
	}
}

// TestJoinTranscript pins the format: a node of one release joins a cluster of the
// next.
func TestJoinTranscript(t *testing.T) {
	token := testToken()
	channel, nonce, proof := testProof()
	got := string(JoinTranscript(token.Cluster, token.public(), channel, nonce, proof))
	want := "quorumkms/join/v1" + string(token.Cluster[:]) + string(token.public()) +
		strings.Repeat("d", 32) + strings.Repeat("j", 32) + strings.Repeat("n", 32) + strings.Repeat("e", 32) +
		"\x00\x09node-b.01\x00\x06node-b\x00\x03b:1\x00\x03b:2\x00\x0cidentity key\x00\x0ctransfer key\x02\x01\x02\x03\x04"
	if got != want {
		t.Errorf("transcript %q\nwant %q", got, want)
	}
	for name, change := range map[string]func(p *JoinProof, c *Channel){
		"raft id":        func(p *JoinProof, _ *Channel) { p.RaftID += "2" },
		"name":           func(p *JoinProof, _ *Channel) { p.Name = "node-c" },
		"both names":     func(p *JoinProof, _ *Channel) { p.RaftID, p.Name = p.RaftID+"n", p.Name[1:] },
		"peer address":   func(p *JoinProof, _ *Channel) { p.PeerAddress = "c:1" },
		"client address": func(p *JoinProof, _ *Channel) { p.ClientAddress = "c:2" },
		"identity key":   func(p *JoinProof, _ *Channel) { p.Identity = p.Identity[1:] },
		"transfer key":   func(p *JoinProof, _ *Channel) { p.Transfer.SPKI = p.Transfer.SPKI[1:] },
		"oaep hash":      func(p *JoinProof, _ *Channel) { p.Transfer.OAEPHash = hsm.OAEPSHA1 },
		"generation":     func(p *JoinProof, _ *Channel) { p.HoldsGeneration++ },
		"exporter":       func(_ *JoinProof, c *Channel) { c.Exporter = bytes.Repeat([]byte{'x'}, 32) },
		"tls keys":       func(_ *JoinProof, c *Channel) { c.DonorKey, c.JoinerKey = c.JoinerKey, c.DonorKey },
	} {
		channel, nonce, proof := testProof()
		change(&proof, &channel)
		if string(JoinTranscript(token.Cluster, token.public(), channel, nonce, proof)) == want {
			t.Errorf("the transcript does not bind: %s", name)
		}
	}
}

// TestPullTranscript pins the format, and that it binds everything.
func TestPullTranscript(t *testing.T) {
	channel, _, proof := testProof()
	pull := JoinPull{Cluster: testToken().Cluster, Node: "node-b.01", Generation: 0x01020304, Transfer: proof.Transfer, Holds: true}
	want := "quorumkms/pull/v1" + string(pull.Cluster[:]) + strings.Repeat("d", 32) + strings.Repeat("j", 32) + strings.Repeat("e", 32) +
		"\x01\x02\x03\x04\x01\x00\x09node-b.01\x00\x0ctransfer key\x02"
	if got := string(PullTranscript(channel, pull)); got != want {
		t.Errorf("transcript %q\nwant %q", got, want)
	}
	for name, change := range map[string]func(p *JoinPull, c *Channel){
		"cluster":      func(p *JoinPull, _ *Channel) { p.Cluster[0] ^= 1 },
		"node":         func(p *JoinPull, _ *Channel) { p.Node += "2" },
		"generation":   func(p *JoinPull, _ *Channel) { p.Generation++ },
		"holding":      func(p *JoinPull, _ *Channel) { p.Holds = false },
		"transfer key": func(p *JoinPull, _ *Channel) { p.Transfer.SPKI = p.Transfer.SPKI[1:] },
		"oaep hash":    func(p *JoinPull, _ *Channel) { p.Transfer.OAEPHash = hsm.OAEPSHA1 },
		"exporter":     func(_ *JoinPull, c *Channel) { c.Exporter = bytes.Repeat([]byte{'x'}, 32) },
		"tls keys":     func(_ *JoinPull, c *Channel) { c.DonorKey, c.JoinerKey = c.JoinerKey, c.DonorKey },
	} {
		channel, p := channel, pull
		change(&p, &channel)
		if string(PullTranscript(channel, p)) == want {
			t.Errorf("the transcript does not bind: %s", name)
		}
	}
}

// TestPullBounds: what another node sends is bounded before anything is done with it.
func TestPullBounds(t *testing.T) {
	channel, _, _ := testProof()
	for what, p := range map[string]JoinPull{
		"raft id":            {Node: strings.Repeat("x", fsm.MaxRaftID+1)},
		"transfer key":       {Transfer: hsm.Transfer{SPKI: make([]byte, maxSPKI+1)}},
		"transfer signature": {Transfer: hsm.Transfer{Signature: make([]byte, maxSignature+1)}},
		"signature":          {Signature: make([]byte, maxSignature+1)},
	} {
		if err := p.check(channel); !errors.Is(err, ErrJoin) {
			t.Errorf("%s that is too long: %v", what, err)
		}
	}
	longest := JoinPull{
		Node: strings.Repeat("x", fsm.MaxRaftID), Signature: make([]byte, maxSignature),
		Transfer: hsm.Transfer{SPKI: make([]byte, maxSPKI), Signature: make([]byte, maxSignature)},
	}
	if err := longest.check(channel); err != nil {
		t.Error(err)
	}
	if err := (JoinPull{}).check(Channel{}); !errors.Is(err, ErrJoin) {
		t.Errorf("no exporter: %v", err)
	}
}

// TestTransferKeyOfProfile: a joiner has a transfer key in the profile generic and none in
// cloned.
func TestTransferKeyOfProfile(t *testing.T) {
	channel, nonce, p := testProof()
	p.TicketSignature, p.IdentitySignature = make([]byte, 64), make([]byte, 70)
	without := p
	without.Transfer = hsm.Transfer{}
	for _, row := range []struct {
		proof  JoinProof
		cloned bool
		ok     bool
	}{{p, false, true}, {p, true, false}, {without, false, false}, {without, true, true}} {
		if err := row.proof.check(channel, nonce, row.cloned); (err == nil) != row.ok || err != nil && !errors.Is(err, ErrJoin) {
			t.Errorf("a transfer key of %d bytes, cloned %t: %v", len(row.proof.Transfer.SPKI), row.cloned, err)
		}
	}
}
