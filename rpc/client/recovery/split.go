package recovery

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"
)

const (
	labelSeal = "quorumkms/recovery/seal/v1"

	elementSize = 32 // bytes of a scalar, and of an element, of ristretto255
	minSealed   = 16 // bytes: the tag of AES-256-GCM
	maxSealed   = 8 << 10
)

// The group that the secret is split in. Its order is a prime of 252 bits, and its
// arithmetic takes the same time whatever the secret.
func splitGroup() group.Group { return group.Ristretto255 }

// Share is what one holder has.
type Share struct {
	Format      int       `json:"format"`
	Key         PublicKey `json:"key"`
	Number      int       `json:"number"` // 1 to Key.Shares
	Value       []byte    `json:"value"`
	Commitments [][]byte  `json:"commitments"` // Key.Threshold of them
	Sealed      []byte    `json:"sealed"`      // the private half
}

// Encode is the file, in clear: whoever has enough of them has the key.
func (s *Share) Encode() ([]byte, error) { return encode(s) }

// Wipe overwrites what is secret of a share.
func (s *Share) Wipe() { clear(s.Value) }

// ParseShare reads the file of a share and verifies it by itself. ErrRefused. The caller
// overwrites b, and wipes the share.
func ParseShare(b []byte) (*Share, error) {
	s := new(Share)
	err := decode(b, "share", s)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		s.Wipe()
		return nil, err
	}
	return s, nil
}

func (s *Share) check() error {
	if s.Key.Format != Format {
		return refused("share of a recovery key of format %d, this release reads %d", s.Key.Format, Format)
	}
	if err := s.Key.check(); err != nil {
		return err
	}
	if s.Key.Kind != KindShares {
		return refused("share of a recovery key of kind %s, which has none", s.Key.Kind)
	}
	if s.Number < 1 || s.Number > s.Key.Shares || len(s.Commitments) != s.Key.Threshold || len(s.Sealed) < minSealed || len(s.Sealed) > maxSealed {
		return refused("share %d with %d commitments and %d sealed bytes, of a recovery key of %d of %d shares",
			s.Number, len(s.Commitments), len(s.Sealed), s.Key.Threshold, s.Key.Shares)
	}
	if !bytes.Equal(s.split(), s.Key.Split) {
		return refused("share %d of recovery key %s was altered: its commitments or the sealed key are others than those that were made", s.Number, s.Key.Name)
	}
	share, err := s.scalar()
	if err != nil {
		return err
	}
	defer wipeScalars(share)
	var commitments secretsharing.SecretCommitment
	for i, c := range s.Commitments {
		e := splitGroup().NewElement()
		if err := canonical(e.UnmarshalBinary(c), e.MarshalBinaryCompress, c); err != nil {
			return refused("share %d of recovery key %s: commitment %d: %w", s.Number, s.Key.Name, i+1, err)
		}
		commitments = append(commitments, e)
	}
	if !secretsharing.Verify(uint(s.Key.Threshold-1), share, commitments) {
		return refused("share %d of recovery key %s is wrong: it is not the one that was made", s.Number, s.Key.Name)
	}
	return nil
}

// wipeScalars overwrites the secret halves of shares as circl has them: a scalar is an array
// that SetUint64 writes over. What its arithmetic has had on the stack stays, and so do the
// coefficients of a polynomial (New), of which it gives away copies only.
func wipeScalars(parts ...secretsharing.Share) {
	for _, p := range parts {
		p.Value.SetUint64(0)
	}
}

func (s *Share) scalar() (secretsharing.Share, error) {
	value := splitGroup().NewScalar()
	var kept []byte
	again := func() (b []byte, err error) {
		kept, err = value.MarshalBinary()
		return kept, err
	}
	defer func() { clear(kept) }()
	if err := canonical(value.UnmarshalBinary(s.Value), again, s.Value); err != nil {
		return secretsharing.Share{}, refused("share %d of recovery key %s: value: %w", s.Number, s.Key.Name, err)
	}
	return secretsharing.Share{ID: splitGroup().NewScalar().SetUint64(uint64(s.Number)), Value: value}, nil //nolint:gosec // not negative
}

// canonical refuses other encodings of a value than its own.
func canonical(err error, again func() ([]byte, error), b []byte) error {
	if err != nil {
		return err
	}
	c, err := again()
	if err != nil {
		return err
	}
	if len(b) != elementSize || !bytes.Equal(b, c) {
		return errors.New("not in canonical form")
	}
	return nil
}

// split is the hash of what all shares have in common.
func (s *Share) split() []byte {
	h := sha256.New()
	h.Write([]byte("quorumkms/recovery/split/v1"))
	for _, b := range append(s.Commitments, s.Sealed) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b)))) //nolint:gosec // bounded
		h.Write(b)
	}
	return h.Sum(nil)
}

// New makes a recovery key and splits its private half: threshold of shares open it. The
// private half exists in this process only, for the time of the call; the caller wipes the
// shares. What is secret is overwritten as far as Go and the libraries let it: not what
// crypto/rsa, crypto/aes and encoding/asn1 have copied on their way, nor stacks that have
// grown.
func New(name string, threshold, shares int) (*PublicKey, []*Share, error) {
	if err := errors.Join(ValidName(name), validSplit(threshold, shares)); err != nil {
		return nil, nil, err
	}
	key, err := rsa.GenerateKey(rand.Reader, KeyBits)
	if err != nil {
		return nil, nil, err
	}
	defer Wipe(key)
	g := splitGroup()
	secret := g.RandomNonZeroScalar(rand.Reader)
	defer secret.SetUint64(0)
	parts := secretsharing.New(rand.Reader, uint(threshold-1), secret)
	all := Share{Format: Format}
	for _, c := range parts.CommitSecret() {
		b, err := c.MarshalBinaryCompress()
		if err != nil {
			return nil, nil, err
		}
		all.Commitments = append(all.Commitments, b)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	if all.Sealed, err = seal(key, spki, secret); err != nil {
		return nil, nil, err
	}
	public := PublicKey{Format: Format, Name: name, Kind: KindShares, Threshold: threshold, Shares: shares, SPKI: spki, Split: all.split()}
	if err := sign(&public, key); err != nil {
		return nil, nil, err
	}
	all.Key = public
	scalars := parts.Share(uint(shares))
	defer wipeScalars(scalars...)
	var made []*Share
	for i, part := range scalars {
		s := all
		s.Number = i + 1
		if s.Value, err = part.Value.MarshalBinary(); err != nil {
			wipeAll(made)
			return nil, nil, err
		}
		made = append(made, &s)
	}
	if err := rehearse(made, key); err != nil {
		wipeAll(made)
		return nil, nil, err
	}
	return &public, made, nil
}

// wipeAll wipes shares that nobody gets.
func wipeAll(made []*Share) {
	for _, s := range made {
		s.Wipe()
	}
}

// rehearse opens the key with the first shares, and with the last, before anybody relies
// on them.
func rehearse(made []*Share, key *rsa.PrivateKey) error {
	threshold := made[0].Key.Threshold
	for _, some := range [][]*Share{made[:threshold], made[len(made)-threshold:]} {
		var given []Given
		for _, s := range some {
			given = append(given, Given{"a share that was just made", s})
		}
		opened, err := Combine(given)
		if err != nil {
			return fmt.Errorf("trying the shares: %w", err)
		}
		same := opened.Equal(key)
		Wipe(opened)
		if !same {
			return errors.New("trying the shares: they give another key")
		}
	}
	return nil
}

// sealer is AES-256-GCM under a key that is used once: the nonce is zero.
func sealer(secret group.Scalar) (cipher.AEAD, error) {
	b, err := secret.MarshalBinary()
	if err != nil {
		return nil, err
	}
	defer clear(b)
	key, err := hkdf.Key(sha256.New, b, nil, labelSeal, 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func seal(key *rsa.PrivateKey, spki []byte, secret group.Scalar) ([]byte, error) {
	aead, err := sealer(secret)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return aead.Seal(nil, make([]byte, aead.NonceSize()), der, spki), nil //nolint:gosec // the key is used this once, see sealer
}

func open(s *Share, secret group.Scalar) (*rsa.PrivateKey, error) {
	aead, err := sealer(secret)
	if err != nil {
		return nil, err
	}
	der, err := aead.Open(nil, make([]byte, aead.NonceSize()), s.Sealed, s.Key.SPKI)
	if err != nil {
		return nil, refused("the shares of recovery key %s do not open it", s.Key.Name)
	}
	defer clear(der)
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, refused("recovery key %s: %w", s.Key.Name, err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, refused("recovery key %s holds no RSA key", s.Key.Name)
	}
	public, err := s.Key.public()
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(public) {
		return nil, refused("the sealed half of recovery key %s is of another key", s.Key.Name)
	}
	return key, nil
}

// Given is a share, and where it came from, for people.
type Given struct {
	Source string
	*Share
}

// Combine opens a recovery key. Every share that is wrong is named: of another key, there
// twice, or not the one that was made. ErrRefused.
func Combine(given []Given) (*rsa.PrivateKey, error) {
	if len(given) == 0 {
		return nil, refused("no share is given")
	}
	first := given[0]
	sources := map[int]string{}
	var parts []secretsharing.Share
	defer func() { wipeScalars(parts...) }()
	for _, s := range given {
		if err := s.check(); err != nil { // whoever made the value may have parsed nothing
			return nil, fmt.Errorf("%s: %w", s.Source, err)
		}
		if !bytes.Equal(s.Key.SPKI, first.Key.SPKI) || !bytes.Equal(s.Key.Split, first.Key.Split) {
			return nil, refused("%s is a share of recovery key %s (%s), %s of %s (%s)",
				first.Source, first.Key.Name, first.Key.Fingerprint(), s.Source, s.Key.Name, s.Key.Fingerprint())
		}
		if other, twice := sources[s.Number]; twice {
			return nil, refused("%s and %s are both share %d: give another", other, s.Source, s.Number)
		}
		sources[s.Number] = s.Source
		part, err := s.scalar()
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	if n := first.Key.Threshold; len(parts) < n {
		return nil, refused("%d of the %d shares that open recovery key %s are given", len(parts), n, first.Key.Name)
	}
	secret, err := secretsharing.Recover(uint(first.Key.Threshold-1), parts)
	if err != nil {
		return nil, refused("recovery key %s: %w", first.Key.Name, err)
	}
	defer secret.SetUint64(0)
	return open(first.Share, secret)
}

// Wipe overwrites what is secret of a key, as far as it can be reached.
func Wipe(key *rsa.PrivateKey) {
	for _, n := range append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...) {
		if n != nil {
			clear(n.Bits())
		}
	}
}
