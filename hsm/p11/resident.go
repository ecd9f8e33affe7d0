//go:build cgo

package p11

import (
	"context"
	"crypto/subtle"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// ckrAEADDecryptFailed is CKR_AEAD_DECRYPT_FAILED of PKCS #11 v3.0.
const ckrAEADDecryptFailed = 0x42

// residentKind is the domain key that wraps resident keys.
const residentKind = hsm.KeyKind(hsm.ClassResident)

// OpenResident implements hsm.Partition.
func (p *Partition) OpenResident(ctx context.Context, token []byte, want hsm.TokenHeader) (hsm.ResidentKey, error) {
	if err := p.traits.makesResident(); err != nil {
		return nil, err
	}
	t, loaded, err := p.load(ctx, hsm.Ref{Token: token, Want: want, Kind: hsm.Kind{Class: hsm.ClassResident}})
	if err != nil {
		return nil, p.suspect(ctx, err)
	}
	k := &residentKey{loaded, t}
	if err := k.proves(ctx); err != nil {
		k.Close()
		return nil, p.suspect(ctx, err)
	}
	return k, nil
}

// makesResident is nil if the token has what resident keys need.
func (t traits) makesResident() error {
	if t.resident {
		return nil
	}
	return fmt.Errorf("%w: the token has not both AES-GCM and AES-CMAC, which keys of protection level HSM_RESIDENT need", hsm.ErrUnsupported)
}

// residentKey is a loaded key of suite 2. It implements hsm.ResidentKey.
type residentKey struct {
	*loadedKey
	token hsm.Token
}

// proves compares the key's check value with its token's: a known answer, by which a key
// that is well is told from one that is not.
func (k *residentKey) proves(ctx context.Context) error {
	return k.use(ctx, func(s *session) error {
		check, err := hsm.CheckValueCMAC(s.cmac(k.handle), k.token.Header.Key, k.token.Header.Version)
		if err == nil && subtle.ConstantTimeCompare(check[:], k.token.Check[:]) != 1 {
			err = fmt.Errorf("%w: check value", hsm.ErrWrongAnswer) // the token is authentic
		}
		return err
	})
}

// Commit implements hsm.ResidentKey.
func (k *residentKey) Commit(ctx context.Context, t [32]byte) (com [32]byte, err error) {
	err = k.use(ctx, func(s *session) error {
		blocks := hsm.CommitBlocks(t)
		return s.cmac(k.handle)(&com, &blocks)
	})
	return com, err
}

// Seal implements hsm.ResidentKey. The IV and what is done with it follow one another on
// one session.
func (k *residentKey) Seal(ctx context.Context, plaintext []byte, bind hsm.Binding) (ciphertext []byte, err error) {
	if n := len(plaintext); n == 0 || n > hsm.MaxResident {
		return nil, fmt.Errorf("%w: a message of %d bytes", hsm.ErrRefused, n)
	}
	err = k.use(ctx, func(s *session) error {
		ciphertext, err = s.seal(k.handle, plaintext, bind)
		return err
	})
	return ciphertext, err
}

func (s *session) seal(key pkcs11.ObjectHandle, plaintext []byte, bind hsm.Binding) ([]byte, error) {
	drawn, err := s.random(hsm.IVSize)
	if err != nil {
		return nil, err
	}
	if len(drawn) != hsm.IVSize {
		return nil, fmt.Errorf("%w: %d random bytes, %d were asked for", hsm.ErrCorrupt, len(drawn), hsm.IVSize)
	}
	iv := [hsm.IVSize]byte(drawn)
	t, aad := bind(iv)
	var com [32]byte
	defer clear(com[:])
	blocks := hsm.CommitBlocks(t)
	if err := s.cmac(key)(&com, &blocks); err != nil {
		return nil, err
	}
	return counts(s, hsm.CallEncrypt, func() ([]byte, error) {
		return s.link.lib.native.encryptGCM(s.h, key, &iv, aad(&com), plaintext)
	})
}

// Open implements hsm.ResidentKey. Some tokens report a wrong tag like a fault of their
// own, and none says in which state the session is afterwards: so the session is replaced,
// as after every failed call, and on another the key is asked for its known answer, once.
func (k *residentKey) Open(ctx context.Context, iv [hsm.IVSize]byte, ciphertext, aad []byte) (plaintext []byte, err error) {
	if n := len(ciphertext) - hsm.TagSize; n <= 0 || n > hsm.MaxResident {
		return nil, fmt.Errorf("%w: a ciphertext of %d bytes", hsm.ErrRefused, len(ciphertext))
	}
	err = k.use(ctx, func(s *session) error {
		plaintext, err = counts(s, hsm.CallDecrypt, func() ([]byte, error) {
			return s.link.lib.native.decryptGCM(s.h, k.handle, &iv, aad, ciphertext)
		})
		return err
	})
	if err == nil {
		return plaintext, nil
	}
	switch rv := code(err); {
	case rv == pkcs11.CKR_ENCRYPTED_DATA_INVALID, rv == pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, rv == ckrAEADDecryptFailed:
	case isVague(rv):
		if unwell := k.proves(ctx); unwell != nil {
			return nil, unwell
		}
	default:
		return nil, err
	}
	return nil, fmt.Errorf("%w: %v", hsm.ErrCiphertext, err) //nolint:errorlint // no fault of the token: its error is told, not wrapped
}

// cmac makes the CMACs of two blocks.
func (s *session) cmac(key pkcs11.ObjectHandle) func(dst, blocks *[2 * hsm.BlockSize]byte) error {
	return func(dst, blocks *[2 * hsm.BlockSize]byte) error {
		_, err := counts(s, hsm.CallSign, func() (struct{}, error) { return struct{}{}, s.link.lib.native.cmacBlocks(s.h, key, dst, blocks) })
		return err
	}
}

// findResident opens a known key as a resident one and finds out whether the token has what
// those need, by known answers: the CMAC of NIST SP 800-38B (example 10), a message of
// AES-GCM with additional data, its inverse, and that a wrong tag is refused. A token
// without serves all the same: no resident keys are made.
func (b *bench) findResident(f *findings) {
	key, err := b.openResident()
	if err == nil {
		b.resident = key
		err = b.check(key, residentTemplate(false))
	}
	if err == nil {
		err = b.operation(func(h pkcs11.SessionHandle) error {
			s := &session{link: b.link, h: h}
			if err := s.residentAnswers(key); err != nil {
				return err
			}
			return s.refusesWrongTag(key)
		})
	}
	b.traits.resident = err == nil
	if err != nil {
		f.watch(err)
		f.note("no keys of protection level HSM_RESIDENT: %v", err)
	}
}

// openResident wraps a known key with the domain key of resident keys and opens it.
func (b *bench) openResident() (pkcs11.ObjectHandle, error) {
	made, err := b.create(residentTemplate(true).with(octets(pkcs11.CKA_VALUE, residentValue())))
	if err != nil {
		return 0, err
	}
	b.wrappedResident, err = b.wrap(b.traits.keyWrap(), b.domain[residentKind], made)
	if err != nil {
		return 0, err
	}
	return b.unwrap(b.traits.keyWrap(), b.domain[residentKind], b.wrappedResident, residentTemplate(false))
}

// residentValue is the key of the examples of AES-256 in NIST SP 800-38B.
func residentValue() []byte {
	return unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
}

// residentAnswers compares what a key of residentValue makes with the known answers.
func (s *session) residentAnswers(key pkcs11.ObjectHandle) error {
	var macs [2 * hsm.BlockSize]byte
	blocks := [2 * hsm.BlockSize]byte(unhex("6bc1bee22e409f96e93d7e117393172a" + "6bc1bee22e409f96e93d7e117393172a"))
	if err := s.cmac(key)(&macs, &blocks); err != nil {
		return err
	}
	const mac = "28a7023f452e8f82bd4bf28d8c37c35c"
	if macs != [2 * hsm.BlockSize]byte(unhex(mac+mac)) {
		return fmt.Errorf("%w: AES-CMAC", errAnswer)
	}
	iv := knownIV()
	sealed, err := s.link.lib.native.encryptGCM(s.h, key, &iv, []byte(knownData), []byte(knownMessage))
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(sealed, unhex(knownGCM)) != 1 {
		return fmt.Errorf("%w: AES-GCM", errAnswer)
	}
	opened, err := s.link.lib.native.decryptGCM(s.h, key, &iv, []byte(knownData), sealed)
	if err != nil {
		return err
	}
	if string(opened) != knownMessage {
		return fmt.Errorf("%w: AES-GCM decrypts to something else", errAnswer)
	}
	return nil
}

// refusesWrongTag has a message opened whose tag is wrong. The session is not used again.
func (s *session) refusesWrongTag(key pkcs11.ObjectHandle) error {
	iv, sealed := knownIV(), unhex(knownGCM)
	sealed[len(sealed)-1] ^= 1
	if _, err := s.link.lib.native.decryptGCM(s.h, key, &iv, []byte(knownData), sealed); err == nil {
		return fmt.Errorf("%w: AES-GCM opens a message with a wrong tag", errAnswer)
	}
	return nil
}

func knownIV() [hsm.IVSize]byte { return [hsm.IVSize]byte(counting(hsm.IVSize)) }

const (
	knownMessage = "a message to find out whether the token has AES-GCM"
	knownData    = "additional data"
)

// knownGCM is what AES-256-GCM makes of knownMessage and knownData: computed with Go's.
const knownGCM = "6941dc36f737fa19c38036c6ad58f085215ce997d645eebbbdc394851b8461cb771291b9bf1658e746369fe0f35a918e2be1db135be0edbcec4f00c8d347deb4c8090d"

// residentMisused tries every use of a resident key but its own.
func (b *bench) residentMisused(f *findings) {
	if !b.traits.resident {
		return
	}
	const what = "resident key"
	all := b.ciphers()
	all["ECB"] = mechanism(pkcs11.CKM_AES_ECB)
	for name, m := range all {
		f.refuse(what+" encrypts "+name, b.encrypts(m, b.resident))
		f.refuse(what+" decrypts "+name, b.decrypts(m, b.resident))
	}
	for name, m := range map[string]uint{"HMAC": pkcs11.CKM_SHA_1_HMAC, "HMAC-SHA256": pkcs11.CKM_SHA256_HMAC, "AES-MAC": pkcs11.CKM_AES_MAC} {
		f.refuse(what+" signs "+name, b.signs(mechanism(m), b.resident))
	}
	b.wrapsNothing(f, what, b.resident, "", plain(pkcs11.CKK_AES))
}

func (b *bench) residentLeaves(f *findings) {
	if !b.traits.resident {
		return
	}
	b.leaves(f, "resident key", b.resident)
	_, err := b.wrap(b.traits.keyWrap(), b.domain[residentKind], b.resident)
	f.refuse("resident key wrapped with a domain key", err)
}

func (b *bench) residentAltered(f *findings) {
	if !b.traits.resident {
		return
	}
	b.altered(f, "resident key", b.resident, template{
		flag(pkcs11.CKA_SENSITIVE, false), flag(pkcs11.CKA_EXTRACTABLE, true), flag(pkcs11.CKA_WRAP, true),
		flag(pkcs11.CKA_DERIVE, true), flag(pkcs11.CKA_MODIFIABLE, true), flag(ckaCopyable, true),
		mechanisms(pkcs11.CKM_AES_ECB),
	}, residentTemplate(false))
}
