package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/gate"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// MaxRandom is the largest request of GenerateRandom and the largest data key, in
// bytes.
const MaxRandom = 1024

// Sealed is an answer that holds a new ciphertext.
type Sealed struct {
	Ciphertext []byte
	Plaintext  []byte // of GenerateDataKey and GenerateDataKeyPair only
	Public     []byte // of data key pairs only: DER SubjectPublicKeyInfo
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

// enter is the way in of every cryptographic call: limits, lease and state. The early
// look at the lease only saves work; the gate's decides. But a refusal is decided here, and
// the state is read behind the lease for it: one from before might not know a grant yet
// that is promised to be usable, and be refused under a lease that came with it.
func (s *Service) enter(ctx context.Context, c Call, e *audit.Event) (*fsm.State, error) {
	return s.enterMany(ctx, c, 1, e)
}

// enterMany is enter for a call that counts as n.
func (s *Service) enterMany(ctx context.Context, c Call, n int, e *audit.Event) (*fsm.State, error) {
	e.Tenant = c.acting()
	if err := s.admitMany(ctx, c, mayUse, limit.Use, n, e); err != nil {
		return nil, err
	}
	if _, err := s.await(ctx, c.IndexToken); err != nil {
		return nil, err
	}
	if err := s.fresh.Usable(); err != nil {
		return nil, err
	}
	st := s.log.State()
	if err := s.fresh.Serves(st); err != nil { // nothing waits for this node any more: it may know less than it should
		return nil, err
	}
	e.StateIndex = st.Index()
	return st, nil
}

// through runs the work and passes its result through the gate.
func through[T any](ctx context.Context, s *Service, c Call, e *audit.Event, authorise func(*fsm.State) error,
	work func(context.Context) (T, error), wipe func(T), describe func(T, *audit.Event), used ...*target,
) (T, error) {
	var none T
	if c.DryRun {
		return none, s.refuse(*e, ErrDryRun)
	}
	pending, err := gate.Compute(ctx, func(ctx context.Context) (T, error) {
		v, err := work(ctx)
		describe(v, e)
		if err == nil {
			err = s.confirm(ctx, c)
		}
		return v, err
	}, wipe)
	if err != nil {
		return none, s.refuse(*e, err)
	}
	released, err := gate.Release(ctx, s.gate, pending, e, func(st *fsm.State) error {
		err := authorise(st)
		for _, t := range used {
			s.noteDoomed(e, st, *t, err)
		}
		return err
	})
	if err == nil {
		for _, t := range used {
			s.uses.note(s.log.State(), t.key.ID, t.version, s.now())
		}
	}
	return released, err
}

// seal makes a blob under the key's current version.
func (s *Service) seal(ctx context.Context, st *fsm.State, t target, h [32]byte, plaintext []byte) (Sealed, error) {
	v := t.key.Current()
	sealed := Sealed{KeyARN: t.arn, Version: v.Version, IndexToken: IndexToken(st)}
	if t.key.Resident() {
		var err error
		sealed.Ciphertext, err = s.sealInside(ctx, st, t, h, plaintext)
		return sealed, err
	}
	var nonce [blobNonceSize]byte
	if err := s.random.read(ctx, nonce[:]); err != nil {
		return Sealed{}, err
	}
	blob := newBlob(blobHeader{suite: suite1, key: t.key.ID, version: v.Version, nonce: nonce}, len(plaintext))
	keys, err := s.deriver.Derive(ctx, hsmRef(st, t.key, v), messageInput(blob, h), hsm.Seal)
	if err != nil {
		return Sealed{}, err
	}
	defer keys.Wipe()
	sealed.Ciphertext, err = sealBlob(&keys, blob, h, plaintext)
	return sealed, err
}

// open opens a blob under the version it names. Every failure that is the
// ciphertext's fault is the same one.
func (s *Service) open(ctx context.Context, st *fsm.State, t target, header blobHeader, h [32]byte, blob []byte) ([]byte, error) {
	ref, err := t.opens(st, header)
	if err != nil {
		return nil, err
	}
	if t.key.Resident() {
		return s.openInside(ctx, ref, h, blob)
	}
	keys, err := s.deriver.Derive(ctx, ref, messageInput(blob, h), hsm.Open)
	if err != nil {
		return nil, err
	}
	defer keys.Wipe()
	return s.openWith(ctx, ref, &keys, h, blob)
}

// opens is the key version that a blob names, if it can have been made under it.
func (t target) opens(st *fsm.State, header blobHeader) (hsm.Ref, error) {
	v := t.key.Version(header.version)
	if v == nil || v.Token == nil || (header.suite == suite2) != t.key.Resident() {
		return hsm.Ref{}, ErrCiphertext
	}
	return hsmRef(st, t.key, v), nil
}

// openWith opens a blob with the keys that the HSM has derived for it.
func (s *Service) openWith(ctx context.Context, ref hsm.Ref, keys *hsm.MessageKeys, h [32]byte, blob []byte) ([]byte, error) {
	plaintext, err := openBlob(keys, blob, h)
	if !errors.Is(err, ErrCiphertext) {
		return plaintext, err
	}
	// That the HSM erred is not the ciphertext's fault: it is asked again, and twice.
	again, derived := s.deriver.Derive(ctx, ref, messageInput(blob, h), hsm.Seal)
	defer again.Wipe()
	switch {
	case derived != nil:
		return nil, derived
	case again != *keys:
		return nil, fmt.Errorf("%w: it derives other keys for the same message", hsm.ErrWrongAnswer)
	}
	return nil, err
}

// Encrypt seals 1..4,096 bytes under the current version of a symmetric key, where a is
// empty; otherwise it encrypts with an RSA key, which takes less and has no encryption
// context.
func (s *Service) Encrypt(ctx context.Context, c Call, key string, plaintext []byte, pairs []Pair, a hsm.Algorithm) (Sealed, error) {
	e := begin("Encrypt", c)
	if err := checkPlaintext(plaintext); err != nil {
		return Sealed{}, s.refuse(e, early{err})
	}
	if a != "" {
		return s.encryptPublic(ctx, c, key, plaintext, pairs, a)
	}
	return s.sealCall(ctx, c, &e, key, pairs, func(ctx context.Context, in sealContext) (Sealed, error) {
		return s.seal(ctx, in.st, in.t, in.h, plaintext)
	})
}

func checkPlaintext(b []byte) error {
	if len(b) == 0 || len(b) > MaxPlaintext {
		return invalid("plaintext of %d bytes: must be 1 to %d; larger data is sealed with a data key", len(b), MaxPlaintext)
	}
	return nil
}

func checkDataKey(n int) error {
	if n < 1 || n > MaxRandom {
		return invalid("data key of %d bytes: must be 1 to %d", n, MaxRandom)
	}
	return nil
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
	if err := checkDataKey(n); err != nil {
		return Sealed{}, s.refuse(e, early{err})
	}
	return s.sealCall(ctx, c, &e, key, pairs, func(ctx context.Context, in sealContext) (Sealed, error) {
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
func (s *Service) sealCall(ctx context.Context, c Call, e *audit.Event, key string, pairs []Pair, work func(context.Context, sealContext) (Sealed, error)) (Sealed, error) {
	e.Context = contextMap(pairs)
	nameKey(e, key)
	h, err := contextHash(pairs)
	if err != nil {
		return Sealed{}, s.refuse(*e, early{err})
	}
	st, err := s.enter(ctx, c, e)
	if err != nil {
		return Sealed{}, s.refuse(*e, err)
	}
	t, st, err := s.findSeal(ctx, st, c, key, pairs, e)
	if err != nil {
		return Sealed{}, s.refuseUse(*e, st, t, err)
	}
	return through(ctx, s, c, e, t.authorise,
		func(ctx context.Context) (Sealed, error) { return work(ctx, sealContext{st, t, h}) },
		func(r Sealed) { clear(r.Plaintext) },
		func(r Sealed, e *audit.Event) { e.CiphertextSHA256 = digest(r.Ciphertext) }, &t)
}

// findSeal finds the key that is to seal, and the state that it stands in.
func (s *Service) findSeal(ctx context.Context, st *fsm.State, c Call, key string, pairs []Pair, e *audit.Event) (target, *fsm.State, error) {
	ref, st, err := s.sealReference(ctx, st, c, key, pairs, e)
	if err != nil {
		return target{}, st, err
	}
	t, err := s.find(st, ref, question{caller: c.Caller, needs: mayUse, operation: e.Name, context: pairs}, fsm.OpSeal, 0)
	t.describe(e)
	return t, st, err
}

// sealReference reads which key is to seal. A service that names none gets its own key
// of the tenant, which is made when it is first asked for.
func (s *Service) sealReference(ctx context.Context, st *fsm.State, c Call, key string, pairs []Pair, e *audit.Event) (reference, *fsm.State, error) {
	if key != "" || c.Caller.Class != ClassService {
		ref, err := parseReference(st, c, key)
		return ref, st, err
	}
	return s.serviceKey(ctx, st, c, pairs, e)
}

// refuseUse is refuse for a call that wanted to use a key.
func (s *Service) refuseUse(e audit.Event, st *fsm.State, t target, err error) error {
	s.noteDoomed(&e, st, t, err)
	return s.refuse(e, err)
}

// noteDoomed makes it an alarm that who may use a key could not, and the key is to be
// deleted, whatever else stands against it; and has the key remember. A trial is no use, and
// who may not has no say in it.
func (s *Service) noteDoomed(e *audit.Event, st *fsm.State, t target, err error) {
	if err == nil || e.DryRun || t.key == nil || errors.Is(err, ErrDenied) || errors.Is(err, fsm.ErrPrincipalDisabled) {
		return
	}
	if k, ok := st.Key(t.key.ID); ok && k.State == fsm.KeyPendingDeletion {
		e.Alarm = audit.UseOfDoomedKey
		s.uses.note(st, k.ID, 0, s.now())
	}
}

// Decrypt opens a ciphertext of a symmetric key, where a is empty: key may be empty, too;
// otherwise the ciphertext must name it. With an algorithm it opens one of the RSA key
// that is named.
func (s *Service) Decrypt(ctx context.Context, c Call, blob []byte, key string, pairs []Pair, a hsm.Algorithm) (Opened, error) {
	if a != "" {
		return s.decryptPrivate(ctx, c, blob, key, pairs, a)
	}
	e := begin("Decrypt", c)
	e.Context, e.CiphertextSHA256 = contextMap(pairs), digest(blob)
	header, h, err := parseSource(blob, pairs)
	if err != nil {
		return Opened{}, s.refuse(e, early{err})
	}
	nameKey(&e, key)
	e.KeyID, e.KeyVersion = header.key.String(), header.version
	st, err := s.enter(ctx, c, &e)
	if err != nil {
		return Opened{}, s.refuse(e, err)
	}
	src, err := s.findSource(st, c, header, h, key, question{caller: c.Caller, needs: mayUse, operation: e.Name, context: pairs})
	src.describe(&e)
	if err != nil {
		return Opened{}, s.refuseUse(e, st, src.target, err)
	}
	return through(ctx, s, c, &e, src.authorise, func(ctx context.Context) (Opened, error) {
		plaintext, err := s.open(ctx, st, src.target, header, h, blob)
		return Opened{Plaintext: plaintext, KeyARN: src.arn, Version: header.version, IndexToken: IndexToken(st)}, err
	}, func(r Opened) { clear(r.Plaintext) }, func(Opened, *audit.Event) {}, &src.target)
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
	e.DestinationContext = contextMap(r.DestinationContext)
	nameDestination(&e, r.DestinationKey)
	header, h, err := parseSource(r.Ciphertext, r.SourceContext)
	if err != nil {
		return Moved{}, s.refuse(e, early{err})
	}
	nameKey(&e, r.SourceKey)
	e.KeyID, e.KeyVersion = header.key.String(), header.version
	to, err := contextHash(r.DestinationContext)
	if err != nil {
		return Moved{}, s.refuse(e, early{err})
	}
	st, err := s.enter(ctx, c, &e)
	if err != nil {
		return Moved{}, s.refuse(e, err)
	}
	src, dst, err := s.findMove(st, c, r, header, h)
	src.describe(&e)
	if dst.service != nil {
		dst.describeDestination(&e)
	}
	if err != nil {
		failed := src.target
		if dst.key != nil { // the source has passed
			failed = dst
		}
		return Moved{}, s.refuseUse(e, st, failed, err)
	}
	authorise := func(st *fsm.State) error { return errors.Join(src.authorise(st), dst.authorise(st)) }
	return through(ctx, s, c, &e, authorise, func(ctx context.Context) (Moved, error) {
		return s.move(ctx, st, src, dst, to, r.Ciphertext)
	}, func(Moved) {}, func(r Moved, e *audit.Event) { e.DestinationSHA256 = digest(r.Ciphertext) }, &src.target, &dst)
}

// findMove finds both keys of a ReEncrypt.
func (s *Service) findMove(st *fsm.State, c Call, r ReEncryption, header blobHeader, h [32]byte) (src source, dst target, err error) {
	src, err = s.findSource(st, c, header, h, r.SourceKey,
		question{caller: c.Caller, needs: mayUse, operation: "ReEncryptFrom", context: r.SourceContext})
	if err != nil {
		return src, dst, err
	}
	ref := src.ref
	if r.DestinationKey != "" {
		if ref, err = parseReference(st, c, r.DestinationKey); err != nil {
			return src, dst, err
		}
	}
	dst, err = s.find(st, ref, question{caller: c.Caller, needs: mayUse, operation: "ReEncryptTo", context: r.DestinationContext}, fsm.OpSeal, 0)
	return src, dst, err
}

func (s *Service) move(ctx context.Context, st *fsm.State, src source, dst target, to [32]byte, blob []byte) (Moved, error) {
	moved := Moved{SourceARN: src.arn, SourceVersion: src.header.version}
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
		return nil, s.refuse(e, early{invalid("%d random bytes: must be 1 to %d", n, MaxRandom)})
	}
	st, err := s.enter(ctx, c, &e)
	if err != nil {
		return nil, s.refuse(e, err)
	}
	authorise := func(st *fsm.State) (err error) {
		e.DecidedBy, err = s.decideRandom(st, c)
		return err
	}
	if err := authorise(st); err != nil {
		return nil, s.refuse(e, err)
	}
	return through(ctx, s, c, &e, authorise, func(ctx context.Context) ([]byte, error) {
		b := make([]byte, n)
		return b, s.random.read(ctx, b)
	}, func(b []byte) { clear(b) }, func([]byte, *audit.Event) {})
}

// decideRandom tells whether random bytes may be had: key users by policy, and services,
// who have no tenant of their own: whichever they name has no part in it.
func (s *Service) decideRandom(st *fsm.State, c Call) (string, error) {
	if c.Caller.Class == ClassService {
		return "service", enabled(st, c.Caller)
	}
	return s.decide(st, question{caller: c.Caller, tenant: c.acting(), needs: mayUse, operation: "GenerateRandom"}, nil)
}
