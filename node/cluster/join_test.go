package cluster

import (
	"bytes"
	"strings"
	"testing"

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
