package recovery

import (
	"crypto/rsa"
)

// KindShares is the kind of a recovery key whose private half is split among people.
const KindShares = "SHARES"

// Limits of a split.
const (
	MaxShares    = 32
	MinThreshold = 2 // one share alone would be a copy of the key
)

// PublicKey is the public half of a recovery key, as the cluster is given it.
type PublicKey struct {
	Format    int    `json:"format"`
	Name      string `json:"name"`
	Kind      string `json:"kind"`
	Threshold int    `json:"threshold"` // shares that open it
	Shares    int    `json:"shares"`    // that were made
	SPKI      []byte `json:"spki"`
	// Split is the SHA-256 of what all shares have in common: the commitments and the
	// sealed private half.
	Split     []byte `json:"split"`
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
	if k.Kind != KindShares {
		return refused("recovery key %s is of kind %.40q, this release knows %s", k.Name, k.Kind, KindShares)
	}
	if err := validSplit(k.Threshold, k.Shares); err != nil {
		return err
	}
	if len(k.Split) != 32 || len(k.Signature) > maxSignature {
		return refused("recovery key %s: hash of %d bytes, signature of %d", k.Name, len(k.Split), len(k.Signature))
	}
	key, err := k.public()
	if err != nil {
		return err
	}
	return verify(k, key)
}

func (k *PublicKey) public() (*rsa.PublicKey, error) { return parseKey(k.SPKI) }

func validSplit(threshold, shares int) error {
	if shares < 1 || shares > MaxShares || threshold < MinThreshold || threshold > shares {
		return refused("%d of %d shares: want at most %d shares, and %d to all of them to open", threshold, shares, MaxShares, MinThreshold)
	}
	return nil
}
