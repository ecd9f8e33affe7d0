package recovery

import (
	"crypto/rsa"
)

// The kinds of recovery keys.
const (
	// KindShares is a key whose private half is split among people.
	KindShares = "SHARES"
	// KindToken is a key whose private half is in an HSM token, made there, and never
	// leaves it.
	KindToken = "TOKEN"
)

const maxOAEPHash = 2 // hsm.OAEPSHA1 and hsm.OAEPSHA256

// Limits of a split.
const (
	MaxShares    = 32
	MinThreshold = 2 // one share alone would be a copy of the key
)

// PublicKey is the public half of a recovery key, as the cluster is given it.
type PublicKey struct {
	Format int    `json:"format"`
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	// Of kind SHARES: how many shares open it, and how many were made.
	Threshold int    `json:"threshold,omitempty"`
	Shares    int    `json:"shares,omitempty"`
	SPKI      []byte `json:"spki"`
	// Split, of kind SHARES, is the SHA-256 of what all shares have in common: the
	// commitments and the sealed private half.
	Split []byte `json:"split,omitempty"`
	// Of kind TOKEN: the hash of OAEP that the token has, and the SubjectPublicKeyInfo of its
	// identity key, which signs this file and the reports of drills.
	OAEPHash  uint8  `json:"oaep_hash,omitempty"`
	Identity  []byte `json:"identity,omitempty"`
	Signature []byte `json:"signature"`
}

func (k *PublicKey) label() string      { return "quorumkms/recovery/key/v1" }
func (k *PublicKey) signature() *[]byte { return &k.Signature }

// Fingerprint names the key for people.
func (k *PublicKey) Fingerprint() string { return Fingerprint(k.SPKI) }

// Encode is the file.
func (k *PublicKey) Encode() ([]byte, error) { return encode(k) }

// ParsePublicKey reads and verifies the file of a public key. ErrRefused.
func ParsePublicKey(b []byte) (*PublicKey, error) {
	k := new(PublicKey)
	if err := decode(b, "recovery key", k); err != nil {
		return nil, err
	}
	return k, k.check()
}

func (k *PublicKey) check() error {
	if err := ValidName(k.Name); err != nil {
		return err
	}
	if len(k.Signature) > maxSignature {
		return refused("recovery key %s: signature of %d bytes", k.Name, len(k.Signature))
	}
	if err := k.checkKind(); err != nil {
		return err
	}
	if _, err := k.public(); err != nil {
		return err
	}
	return verify(k, k)
}

// checkKind checks what a key has for its kind, and that it has nothing of the other.
func (k *PublicKey) checkKind() error {
	switch k.Kind {
	case KindShares:
		if len(k.Split) != 32 || k.OAEPHash != 0 || k.Identity != nil {
			return refused("recovery key %s of kind %s: hash of %d bytes, or a token's identity", k.Name, k.Kind, len(k.Split))
		}
		return validSplit(k.Threshold, k.Shares)
	case KindToken:
		if k.Threshold != 0 || k.Shares != 0 || k.Split != nil {
			return refused("recovery key %s of kind %s has shares", k.Name, k.Kind)
		}
		if k.OAEPHash < 1 || k.OAEPHash > maxOAEPHash {
			return refused("recovery key %s: unknown oaep hash %d", k.Name, k.OAEPHash)
		}
		_, err := parseIdentity(k.Identity)
		return err
	default:
		return refused("recovery key %s is of kind %.40q, this release knows %s and %s", k.Name, k.Kind, KindShares, KindToken)
	}
}

// Signer signs a message with a token's identity key: ECDSA P-256 of its SHA-256, in ASN.1 DER.
type Signer func(message []byte) ([]byte, error)

// NewToken is the file of a recovery key that is in a token, whose identity key signs it.
func NewToken(k PublicKey, sign Signer) ([]byte, error) {
	k.Format, k.Kind = Format, KindToken
	if err := signWith(&k, sign); err != nil {
		return nil, err
	}
	if err := k.check(); err != nil {
		return nil, err
	}
	return k.Encode()
}

func (k *PublicKey) public() (*rsa.PublicKey, error) { return parseKey(k.SPKI) }

func validSplit(threshold, shares int) error {
	if shares < 1 || shares > MaxShares || threshold < MinThreshold || threshold > shares {
		return refused("%d of %d shares: want at most %d shares, and %d to all of them to open", threshold, shares, MaxShares, MinThreshold)
	}
	return nil
}
