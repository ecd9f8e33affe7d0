package kms

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha3"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

const (
	// maxPairs is how many data key pairs are made at one time; other calls wait for
	// their turn. RSA takes a processor for up to seconds.
	maxPairs = 2
	// pairSeed is how many random bytes a pair is made from.
	pairSeed = 64
	// pairLabel begins what the generator of a pair absorbs.
	pairLabel = "quorumkms/data-key-pair/v1"

	rsaExponent = 65537
	// primeTests are the rounds of Miller-Rabin, beside which Go makes a Lucas test.
	primeTests = 20
)

// GenerateDataKeyPair makes a pair (RSA or EC), and seals the private half, PKCS #8 DER,
// under a symmetric key; the answer holds both forms of it, and the public half.
func (s *Service) GenerateDataKeyPair(ctx context.Context, c Call, key string, spec fsm.KeySpec, pairs []Pair) (Sealed, error) {
	return s.dataKeyPair(ctx, c, "GenerateDataKeyPair", key, spec, pairs, true)
}

// GenerateDataKeyPairWithoutPlaintext makes a pair and keeps the private half's plaintext
// to itself.
func (s *Service) GenerateDataKeyPairWithoutPlaintext(ctx context.Context, c Call, key string, spec fsm.KeySpec, pairs []Pair) (Sealed, error) {
	return s.dataKeyPair(ctx, c, "GenerateDataKeyPairWithoutPlaintext", key, spec, pairs, false)
}

func (s *Service) dataKeyPair(ctx context.Context, c Call, name, key string, spec fsm.KeySpec, pairs []Pair, keep bool) (Sealed, error) {
	e := begin(name, c)
	if !spec.Pair() {
		return Sealed{}, s.refuse(e, early{invalid("data key pair of spec %.80q: must be RSA_2048, RSA_3072, RSA_4096, ECC_NIST_P256 or ECC_NIST_P384", spec)})
	}
	return s.sealCall(ctx, c, &e, key, pairs, func(ctx context.Context, in sealContext) (Sealed, error) {
		private, public, err := s.makePair(ctx, spec)
		if err != nil {
			return Sealed{}, err
		}
		sealed, err := s.seal(ctx, in.st, in.t, in.h, private)
		sealed.Public = public
		if err != nil || !keep {
			clear(private)
			return sealed, err
		}
		sealed.Plaintext = private
		return sealed, nil
	})
}

// makePair makes a pair: PKCS #8 and SubjectPublicKeyInfo, DER. Its randomness is that of
// data keys, the HSM's and the process's, stretched by SHAKE256; Go's own generation of RSA
// keys takes no other than the process's.
func (s *Service) makePair(ctx context.Context, spec fsm.KeySpec) (private, public []byte, err error) {
	free, err := s.place(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer free()
	seed := make([]byte, pairSeed)
	defer clear(seed)
	if err := s.random.read(ctx, seed); err != nil {
		return nil, nil, err
	}
	stream := sha3.NewSHAKE256()
	defer stream.Reset()
	_, _ = stream.Write([]byte(pairLabel)) // which never fails
	_, _ = stream.Write(seed)
	kind := kindOf(spec, "")
	if kind.Class == hsm.ClassRSA {
		key, err := rsaPair(ctx, stream, int(kind.Bits))
		if err != nil {
			return nil, nil, err
		}
		defer wipe(append(key.Primes, key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv)...)
		return marshalPair(key, &key.PublicKey)
	}
	key, err := ecPair(stream, kind)
	if err != nil {
		return nil, nil, err
	}
	return marshalPair(key, &key.PublicKey)
}

// place waits for one of the places for pairs: RSA keys are searched for, in the process
// and in the HSM, for up to seconds each, and must not hold up what others do.
func (s *Service) place(ctx context.Context) (free func(), err error) {
	select {
	case s.pairs <- struct{}{}:
		return func() { <-s.pairs }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func marshalPair(key, half any) (private, public []byte, err error) {
	if private, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return nil, nil, err
	}
	public, err = x509.MarshalPKIXPublicKey(half)
	return private, public, err
}

// ecPair takes the first number of a stream that is a private key: one of the range.
func ecPair(random io.Reader, kind hsm.Kind) (*ecdsa.PrivateKey, error) {
	curve := elliptic.P256()
	if int(kind.Bits) != curve.Params().BitSize {
		curve = elliptic.P384()
	}
	scalar := make([]byte, kind.Bits/8)
	defer clear(scalar)
	for {
		if _, err := io.ReadFull(random, scalar); err != nil {
			return nil, err
		}
		if key, err := ecdsa.ParseRawPrivateKey(curve, scalar); err == nil {
			return key, nil
		}
	}
}

// rsaPair makes an RSA key of two random probable primes (FIPS 186-5, A.1.3).
func rsaPair(ctx context.Context, random io.Reader, bits int) (*rsa.PrivateKey, error) {
	one, e := big.NewInt(1), big.NewInt(rsaExponent)
	for {
		p, err := prime(ctx, random, bits/2)
		if err != nil {
			return nil, err
		}
		q, err := prime(ctx, random, bits/2)
		if err != nil {
			wipe(p)
			return nil, err
		}
		if new(big.Int).Sub(p, q).BitLen() <= bits/2-100 { // never seen
			continue
		}
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		key := &rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: rsaExponent},
			D:         new(big.Int).ModInverse(e, phi), Primes: []*big.Int{p, q},
		}
		wipe(phi)
		key.Precompute()
		if err := key.Validate(); err != nil || key.N.BitLen() != bits {
			return nil, fmt.Errorf("an RSA key of %d bits that is none: %w", key.N.BitLen(), err)
		}
		return key, nil
	}
}

// prime takes the first number of a stream that is a prime of so many bits, the upper two
// of which are set, and one less than which has no factor in common with the exponent.
func prime(ctx context.Context, random io.Reader, bits int) (*big.Int, error) {
	candidate, p, rest := make([]byte, bits/8), new(big.Int), new(big.Int)
	defer clear(candidate)
	one, e := big.NewInt(1), big.NewInt(rsaExponent) // a prime: what it does not divide is coprime to it
	for ctx.Err() == nil {
		if _, err := io.ReadFull(random, candidate); err != nil {
			return nil, err
		}
		candidate[0] |= 0xc0
		candidate[len(candidate)-1] |= 1
		p.SetBytes(candidate)
		if p.ProbablyPrime(primeTests) && rest.Mod(p, e).Cmp(one) != 0 {
			return p, nil
		}
	}
	return nil, ctx.Err()
}

// wipe overwrites numbers.
func wipe(numbers ...*big.Int) {
	for _, n := range numbers {
		clear(n.Bits())
	}
}
