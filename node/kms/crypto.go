package kms

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/gate"
)

// MaxRandom is the largest request of GenerateRandom and the largest data key, in
// bytes.
const MaxRandom = 1024

// Sealed is an answer that holds a new ciphertext.
type Sealed struct {
	Ciphertext []byte
	Plaintext  []byte // of GenerateDataKey only
	KeyARN     string
	Version    uint32
	IndexToken []byte
}

// Opened is the answer of Decrypt.
type Opened struct {
	Plaintext  []byte
	KeyARN     string
	Version    uint32
	IndexToken []byte
}

// Moved is the answer of ReEncrypt.
type Moved struct {
	Sealed
	SourceARN     string
	SourceVersion uint32
	Unchanged     bool
}

// target is a key that a cryptographic call is about to use: how it was named,
// what it was when the call began, and the one rule that is asked twice.
type target struct {
	ref    reference
	tenant string
	key    *fsm.Key
}

// find resolves a reference and asks whether the key may be used.
func find(st *fsm.State, tenant string, ref reference) (target, error) {
	t := target{ref: ref, tenant: tenant}
	k, err := ref.resolve(st, tenant)
	if err != nil {
		return t, err
	}
	t.key = k
	return t, k.Allows(fsm.OpUse)
}

// authorise asks a state whether the key may be used. It is asked before the work
// and, by the gate, after it.
func (t target) authorise(st *fsm.State) error {
	k, err := t.ref.resolve(st, t.tenant)
	if err != nil {
		return err
	}
	if k.ID != t.key.ID {
		return fmt.Errorf("%w: %s names another key now", fsm.ErrConflict, t.ref.alias)
	}
	return k.Allows(fsm.OpUse)
}

func (t target) arn(st *fsm.State) string { return KeyARN(st.Cluster().ID, t.tenant, t.key.ID) }

func (t target) describe(e *audit.Event, version uint32) {
	e.KeyID, e.KeyVersion, e.Alias = t.key.ID.String(), version, t.ref.alias
}

// hsmRef names a key version for the HSM.
func hsmRef(st *fsm.State, k *fsm.Key, v *fsm.KeyVersion) hsm.Ref {
	return hsm.Ref{Token: v.Token, Want: hsm.TokenHeader{
		Class: hsm.ClassAES, Generation: v.Generation,
		Cluster: hsm.ID(st.Cluster().ID), Key: hsm.ID(k.ID), Version: v.Version, Created: time.Unix(v.Created, 0).UTC(),
	}}
}

// enter is the way in of every cryptographic call: class, lease and state. The
// early look at the lease only saves work; the gate's decides.
func (s *Service) enter(ctx context.Context, c Call, e *audit.Event) (*fsm.State, string, error) {
	tenant, rule, err := c.allow(mayUse)
	e.Tenant, e.DecidedBy = tenant, rule
	if err != nil {
		return nil, tenant, err
	}
	st, err := s.await(ctx, c.IndexToken)
	if err != nil {
		return nil, tenant, err
	}
	if err := s.fresh.Usable(); err != nil {
		return nil, tenant, err
	}
	e.StateIndex = st.Index()
	return st, tenant, nil
}

// through runs the work and passes its result through the gate.
func through[T any](ctx context.Context, s *Service, c Call, e audit.Event, authorise func(*fsm.State) error,
	work func(context.Context) (T, error), wipe func(T), describe func(T, *audit.Event),
) (T, error) {
	var none T
	if c.DryRun {
		return none, s.refuse(e, ErrDryRun)
	}
	pending, err := gate.Compute(ctx, func(ctx context.Context) (T, error) {
		v, err := work(ctx)
		describe(v, &e)
		if err == nil {
			err = s.confirm(ctx, c)
		}
		return v, err
	}, wipe)
	if err != nil {
		return none, s.refuse(e, err)
	}
	return gate.Release(ctx, s.gate, pending, e, authorise)
}

// seal makes a blob under the key's current version.
func (s *Service) seal(ctx context.Context, st *fsm.State, t target, h [32]byte, plaintext []byte) (Sealed, error) {
	v := t.key.Current()
	header := blobHeader{key: t.key.ID, version: v.Version}
	if err := s.random.read(ctx, header.nonce[:]); err != nil {
		return Sealed{}, err
	}
	blob := newBlob(header, len(plaintext))
	keys, err := s.deriver.Derive(ctx, hsmRef(st, t.key, v), messageInput(blob, h), hsm.Seal)
	if err != nil {
		return Sealed{}, err
	}
	defer keys.Wipe()
	blob, err = sealBlob(&keys, blob, h, plaintext)
	if err != nil {
		return Sealed{}, err
	}
	return Sealed{Ciphertext: blob, KeyARN: t.arn(st), Version: v.Version, IndexToken: IndexToken(st)}, nil
}

// open opens a blob under the version it names. Every failure that is the
// ciphertext's fault is the same one.
func (s *Service) open(ctx context.Context, st *fsm.State, t target, header blobHeader, h [32]byte, blob []byte) ([]byte, error) {
	v := t.key.Version(header.version)
	if v == nil {
		return nil, ErrCiphertext
	}
	keys, err := s.deriver.Derive(ctx, hsmRef(st, t.key, v), messageInput(blob, h), hsm.Open)
	if err != nil {
		return nil, err
	}
	defer keys.Wipe()
	return openBlob(&keys, blob, h)
}

// Encrypt seals 1..4,096 bytes under the key's current version.
func (s *Service) Encrypt(ctx context.Context, c Call, key string, plaintext []byte, pairs []Pair) (Sealed, error) {
	e := begin("Encrypt", c)
	if len(plaintext) == 0 || len(plaintext) > MaxPlaintext {
		return Sealed{}, s.refuse(e, invalid("plaintext of %d bytes: must be 1 to %d; larger data is sealed with a data key", len(plaintext), MaxPlaintext))
	}
	return s.sealCall(ctx, c, e, key, pairs, func(in sealContext) (Sealed, error) {
		return s.seal(ctx, in.st, in.t, in.h, plaintext)
	})
}

// GenerateDataKey makes n random bytes (1..1,024) and seals them; the answer holds
// both forms.
func (s *Service) GenerateDataKey(ctx context.Context, c Call, key string, n int, pairs []Pair) (Sealed, error) {
	return s.dataKey(ctx, c, "GenerateDataKey", key, n, pairs, true)
}

// GenerateDataKeyWithoutPlaintext makes a data key and keeps its plaintext to
// itself.
func (s *Service) GenerateDataKeyWithoutPlaintext(ctx context.Context, c Call, key string, n int, pairs []Pair) (Sealed, error) {
	return s.dataKey(ctx, c, "GenerateDataKeyWithoutPlaintext", key, n, pairs, false)
}

func (s *Service) dataKey(ctx context.Context, c Call, name, key string, n int, pairs []Pair, keep bool) (Sealed, error) {
	e := begin(name, c)
	if n < 1 || n > MaxRandom {
		return Sealed{}, s.refuse(e, invalid("data key of %d bytes: must be 1 to %d", n, MaxRandom))
	}
	return s.sealCall(ctx, c, e, key, pairs, func(in sealContext) (Sealed, error) {
		plaintext := make([]byte, n)
		if err := s.random.read(ctx, plaintext); err != nil {
			return Sealed{}, err
		}
		sealed, err := s.seal(ctx, in.st, in.t, in.h, plaintext)
		if err != nil || !keep {
			clear(plaintext)
			return sealed, err
		}
		sealed.Plaintext = plaintext
		return sealed, nil
	})
}

// sealContext is what a sealing call has found out before its work.
type sealContext struct {
	st *fsm.State
	t  target
	h  [32]byte
}

// sealCall is what all calls that make a new ciphertext have in common.
func (s *Service) sealCall(ctx context.Context, c Call, e audit.Event, key string, pairs []Pair, work func(sealContext) (Sealed, error)) (Sealed, error) {
	e.Context = contextMap(pairs)
	h, err := contextHash(pairs)
	if err != nil {
		return Sealed{}, s.refuse(e, err)
	}
	st, tenant, err := s.enter(ctx, c, &e)
	if err != nil {
		return Sealed{}, s.refuse(e, err)
	}
	ref, err := parseReference(st, tenant, key)
	if err != nil {
		return Sealed{}, s.refuse(e, err)
	}
	t, err := find(st, tenant, ref)
	if t.key != nil {
		t.describe(&e, t.key.Current().Version)
	}
	if err != nil {
		return Sealed{}, s.refuse(e, err)
	}
	return through(ctx, s, c, e, t.authorise,
		func(context.Context) (Sealed, error) { return work(sealContext{st, t, h}) },
		func(r Sealed) { clear(r.Plaintext) },
		func(r Sealed, e *audit.Event) { e.CiphertextSHA256 = digest(r.Ciphertext) })
}

// source is a ciphertext that a call is about to open.
type source struct {
	target
	header blobHeader
	h      [32]byte
}

// findSource finds the key that a blob names; key, unless empty, must name it too.
func (s *Service) findSource(st *fsm.State, tenant string, header blobHeader, h [32]byte, key string) (source, error) {
	src := source{header: header, h: h}
	ref := reference{id: header.key}
	if key != "" {
		named, err := parseReference(st, tenant, key)
		if err != nil {
			return src, err
		}
		k, err := named.resolve(st, tenant)
		if err != nil {
			return src, err
		}
		if k.ID != header.key {
			return src, invalid("the ciphertext names key %s, the request key %s", header.key, k.ID)
		}
		ref = named
	}
	var err error
	src.target, err = find(st, tenant, ref)
	return src, err
}

// Decrypt opens a ciphertext. key may be empty; otherwise the ciphertext must name
// it.
func (s *Service) Decrypt(ctx context.Context, c Call, blob []byte, key string, pairs []Pair) (Opened, error) {
	e := begin("Decrypt", c)
	e.Context, e.CiphertextSHA256 = contextMap(pairs), digest(blob)
	header, h, err := parseSource(blob, pairs)
	if err != nil {
		return Opened{}, s.refuse(e, err)
	}
	e.KeyID, e.KeyVersion = header.key.String(), header.version
	st, tenant, err := s.enter(ctx, c, &e)
	if err != nil {
		return Opened{}, s.refuse(e, err)
	}
	src, err := s.findSource(st, tenant, header, h, key)
	if err != nil {
		return Opened{}, s.refuse(e, err)
	}
	e.Alias = src.ref.alias
	return through(ctx, s, c, e, src.authorise, func(ctx context.Context) (Opened, error) {
		plaintext, err := s.open(ctx, st, src.target, header, h, blob)
		return Opened{Plaintext: plaintext, KeyARN: src.arn(st), Version: header.version, IndexToken: IndexToken(st)}, err
	}, func(r Opened) { clear(r.Plaintext) }, func(Opened, *audit.Event) {})
}

// ReEncryption says what ReEncrypt is to do.
type ReEncryption struct {
	Ciphertext         []byte
	SourceKey          string // may be empty
	SourceContext      []Pair
	DestinationKey     string // empty: the same key
	DestinationContext []Pair
}

// ReEncrypt opens a ciphertext and seals its plaintext anew; nobody sees it. A
// ciphertext that is already under the destination's current version and context
// comes back as it is, after it has been opened.
func (s *Service) ReEncrypt(ctx context.Context, c Call, r ReEncryption) (Moved, error) {
	e := begin("ReEncrypt", c)
	e.Context, e.CiphertextSHA256 = contextMap(r.SourceContext), digest(r.Ciphertext)
	header, h, err := parseSource(r.Ciphertext, r.SourceContext)
	if err != nil {
		return Moved{}, s.refuse(e, err)
	}
	e.KeyID, e.KeyVersion = header.key.String(), header.version
	to, err := contextHash(r.DestinationContext)
	if err != nil {
		return Moved{}, s.refuse(e, err)
	}
	st, tenant, err := s.enter(ctx, c, &e)
	if err != nil {
		return Moved{}, s.refuse(e, err)
	}
	src, err := s.findSource(st, tenant, header, h, r.SourceKey)
	if err != nil {
		return Moved{}, s.refuse(e, err)
	}
	dst := src.target
	if r.DestinationKey != "" {
		ref, err := parseReference(st, tenant, r.DestinationKey)
		if err == nil {
			dst, err = find(st, tenant, ref)
		}
		if err != nil {
			return Moved{}, s.refuse(e, err)
		}
	}
	e.Alias, e.Target = src.ref.alias, dst.arn(st)
	authorise := func(st *fsm.State) error { return errors.Join(src.authorise(st), dst.authorise(st)) }
	return through(ctx, s, c, e, authorise, func(ctx context.Context) (Moved, error) {
		return s.move(ctx, st, src, dst, to, r.Ciphertext)
	}, func(Moved) {}, func(Moved, *audit.Event) {})
}

func (s *Service) move(ctx context.Context, st *fsm.State, src source, dst target, to [32]byte, blob []byte) (Moved, error) {
	moved := Moved{SourceARN: src.arn(st), SourceVersion: src.header.version}
	plaintext, err := s.open(ctx, st, src.target, src.header, src.h, blob)
	defer clear(plaintext)
	if err != nil {
		return moved, err
	}
	current := dst.key.Current().Version
	if dst.key.ID == src.key.ID && current == src.header.version && to == src.h {
		moved.Unchanged = true
		moved.Sealed = Sealed{Ciphertext: bytes.Clone(blob), KeyARN: moved.SourceARN, Version: current, IndexToken: IndexToken(st)}
		return moved, nil
	}
	moved.Sealed, err = s.seal(ctx, st, dst, to, plaintext)
	return moved, err
}

// GenerateRandom returns n random bytes, 1..1,024.
func (s *Service) GenerateRandom(ctx context.Context, c Call, n int) ([]byte, error) {
	e := begin("GenerateRandom", c)
	if n < 1 || n > MaxRandom {
		return nil, s.refuse(e, invalid("%d random bytes: must be 1 to %d", n, MaxRandom))
	}
	if _, _, err := s.enter(ctx, c, &e); err != nil {
		return nil, s.refuse(e, err)
	}
	return through(ctx, s, c, e, func(*fsm.State) error { return nil }, func(ctx context.Context) ([]byte, error) {
		b := make([]byte, n)
		return b, s.random.read(ctx, b)
	}, func(b []byte) { clear(b) }, func([]byte, *audit.Event) {})
}

func parseSource(blob []byte, pairs []Pair) (blobHeader, [32]byte, error) {
	header, err := parseBlob(blob)
	if err != nil {
		return header, [32]byte{}, err
	}
	h, err := contextHash(pairs)
	return header, h, err
}

func digest(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
