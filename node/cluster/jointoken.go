package cluster

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// A join token is base32 (RFC 4648, no padding) of
//
//	version u8 = 1 | cluster id 16 | ticket seed 32 | pin 32 | log key check 16 | checksum 4
//
// The seed is that of the ticket's Ed25519 key; the state holds the public key
// only. The pin is SHA-256 of the node CA's keys: the joiner talks to no cluster
// with another CA. The log key check is the check value of the cluster's log root
// key, the same in every generation of the domain key: a donor that makes up a domain
// key of its own is found out before it is taken in. The checksum is the first 4 bytes of SHA-256 of all before it
// and finds typing errors; it protects nothing.
const (
	joinTokenVersion = 1
	checkSize        = 16
	joinTokenSize    = 1 + 16 + ed25519.SeedSize + sha256.Size + checkSize + 4
)

// JoinToken is what a join token says.
type JoinToken struct {
	Cluster fsm.ID
	Ticket  ed25519.PrivateKey
	Pin     []byte          // SHA-256 over the node CA's keys, 32 bytes
	LogKey  [checkSize]byte // check value of the log root key
}

// names tells whether a generation is one of the cluster's that sent the token.
func (t JoinToken) names(g hsm.Generation) bool {
	return slices.Contains(g.Checks, hsm.KeyCheck{Kind: hsm.KindLog, Value: t.LogKey})
}

// TicketID is the name of a ticket in the state.
func TicketID(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:8])
}

// ID is the name of the token's ticket.
func (t JoinToken) ID() string { return TicketID(t.public()) }

func (t JoinToken) public() ed25519.PublicKey { return t.Ticket.Public().(ed25519.PublicKey) }

// String gives the token's text form: a secret.
func (t JoinToken) String() string {
	b := make([]byte, 0, joinTokenSize)
	b = append(b, joinTokenVersion)
	b = append(b, t.Cluster[:]...)
	b = append(b, t.Ticket.Seed()...)
	b = append(b, t.Pin...)
	b = append(b, t.LogKey[:]...)
	sum := sha256.Sum256(b)
	return joinTokenText.EncodeToString(append(b, sum[:4]...))
}

var joinTokenText = base32.StdEncoding.WithPadding(base32.NoPadding)

// ParseJoinToken reads a join token. White space around it and lower case are
// forgiven.
func ParseJoinToken(text string) (JoinToken, error) {
	refused := func(why string) (JoinToken, error) {
		return JoinToken{}, fmt.Errorf("%w: join token: %s; paste the whole token that `kmsctl cluster invite` printed", ErrJoin, why)
	}
	text = strings.ToUpper(strings.TrimSpace(text))
	b, err := joinTokenText.DecodeString(text)
	if err != nil || joinTokenText.EncodeToString(b) != text { // the decoder forgives bits and characters at the end
		return refused("it is not base32")
	}
	if len(b) != joinTokenSize {
		return refused(fmt.Sprintf("%d bytes, a token has %d", len(b), joinTokenSize))
	}
	sum := sha256.Sum256(b[:joinTokenSize-4])
	if !bytes.Equal(sum[:4], b[joinTokenSize-4:]) {
		return refused("the checksum does not fit, a character is wrong")
	}
	if b[0] != joinTokenVersion {
		return refused(fmt.Sprintf("version %d, this release knows %d", b[0], joinTokenVersion))
	}
	return JoinToken{
		Cluster: fsm.ID(b[1:17]),
		Ticket:  ed25519.NewKeyFromSeed(b[17:49]),
		Pin:     b[49:81],
		LogKey:  [checkSize]byte(b[81:97]),
	}, nil
}
