package hsm

import (
	"bytes"
	"context"
)

type slotID struct {
	key     ID
	version uint32
}

// slot is one loaded key version, or one being loaded: an AES key in the coalescer, or
// another.
type slot struct {
	coalescer
	secret SecretKey
	inside resident
	public *PublicKey    // of a pair that signs
	ref    Ref           // what it was opened with
	ready  chan struct{} // closed when loading has ended
	err    error         // set before ready is closed: loading failed

	link link[*slot] // guarded by Keyring.mu, as is refs
	refs int         // callers that use the slot
}

// isBlockKey tells whether the key is an AES key.
func (r Ref) isBlockKey() bool { return r.Kind == Kind{} || r.Kind == Kind{Class: ClassAES} }

// open opens the key of a slot.
func (s *slot) open(ctx context.Context, o Opener) (err error) {
	if s.ref.isBlockKey() {
		if s.key, err = o.Open(ctx, s.ref.Token, s.ref.Want); err != nil {
			return err
		}
		return s.load(ctx)
	}
	if s.ref.isResident() {
		if s.inside.key, err = o.OpenResident(ctx, s.ref.Token, s.ref.Want); err != nil {
			return err
		}
		return s.inside.load(ctx)
	}
	if s.secret, err = o.OpenSecret(ctx, s.ref); err == nil && s.ref.Kind.pair() {
		s.public, err = s.ref.Public()
	}
	return err
}

// TryOpen opens a key of any kind and closes it again.
func TryOpen(ctx context.Context, o Opener, ref Ref) error {
	var key closer
	var err error
	switch {
	case ref.isBlockKey():
		key, err = o.Open(ctx, ref.Token, ref.Want)
	case ref.isResident():
		key, err = o.OpenResident(ctx, ref.Token, ref.Want)
	default:
		key, err = o.OpenSecret(ctx, ref)
	}
	if err != nil {
		return err
	}
	key.Close()
	return nil
}

// closer is a loaded key of any kind.
type closer interface{ Close() }

// loaded is the key of a slot; nil if there is none.
func (s *slot) loaded() closer {
	switch {
	case s.key != nil:
		return s.key
	case s.inside.key != nil:
		return s.inside.key
	case s.secret != nil:
		return s.secret
	}
	return nil
}

func closeKeys(keys ...closer) {
	for _, key := range keys {
		if key != nil {
			key.Close()
		}
	}
}

func (s *slot) id() slotID { return slotID{s.ref.Want.Key, s.ref.Want.Version} }

// serves tells whether the slot was opened with this token for this expectation.
func (s *slot) serves(ref Ref) bool {
	want := s.ref.Want
	want.Created = ref.Want.Created // not compared when a token is opened either
	return want == ref.Want && s.ref.Kind == ref.Kind && bytes.Equal(s.ref.Token, ref.Token) && bytes.Equal(s.ref.SPKI, ref.SPKI)
}
