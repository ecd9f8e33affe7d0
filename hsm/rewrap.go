package hsm

import (
	"context"
	"fmt"
)

// Rewrapper moves keys from one generation of the domain key to another. A domain key
// imposes on what it unwraps that it cannot be wrapped again: only its twin, the same key
// value without that condition, lets go of a key, and only into the wrapping of another
// generation. A twin is installed for the length of a ceremony and destroyed at its end:
// while it is there, whoever has the partition's PIN can wrap keys of its generation out
// under a key that he knows.
type Rewrapper interface {
	// InstallTwin makes the twin of a generation that the partition holds, from a DKX1
	// message to this partition, and destroys the transfer key. ErrNotFound if it does not
	// hold the generation; ErrExists if the twin is there; otherwise as Import.
	InstallTwin(ctx context.Context, message []byte, want ImportExpectation) error
	// Twins lists the generations of the cluster that have a twin here, by number. What an
	// InstallTwin that was cut short has left is destroyed.
	Twins(ctx context.Context, cluster ID) ([]uint32, error)
	// DestroyTwin destroys the twin of a generation. ErrNotFound if there is none.
	DestroyTwin(ctx context.Context, cluster ID, number uint32) error
	// Rewrap checks a token as Open does and wraps the key in it under another generation:
	// the token that it returns differs in the generation, the wrapped key and the MAC, and
	// has been opened. ErrNotFound if the token's generation has no twin here, or the other
	// one is not held.
	Rewrap(ctx context.Context, ref Ref, to uint32) ([]byte, error)
}

// WrappingKinds are the keys of a generation that wrap others, in the order of DKX1.
func WrappingKinds() []KeyKind {
	var kinds []KeyKind
	for _, kind := range DomainKinds() {
		if kind != KindMAC && kind != KindLog {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// Rewrapped tells whether a token carries the same key of the same version as another, of
// a generation of its own: every field of the header but the generation is equal, and so is
// the check value. It proves nothing before the token was opened. ErrRefused names what
// differs.
func Rewrapped(old, token []byte) (TokenHeader, error) {
	before, err := ParseToken(old)
	if err != nil {
		return TokenHeader{}, err
	}
	after, err := ParseToken(token)
	if err != nil {
		return TokenHeader{}, err
	}
	same := before.Header
	same.Generation = after.Header.Generation
	switch {
	case same != after.Header:
		return TokenHeader{}, fmt.Errorf("%w: the new token is of another key, version, class or time than the old one", ErrRefused)
	case before.Check != after.Check:
		return TokenHeader{}, fmt.Errorf("%w: the new token's check value is another: it holds other material", ErrRefused)
	case before.Header.Generation == after.Header.Generation:
		return TokenHeader{}, fmt.Errorf("%w: both tokens are of generation %d", ErrRefused, after.Header.Generation)
	}
	return after.Header, nil
}
