package hsm

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // OAEP with SHA-1 is all that some tokens have, and is sound
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// The hashes of OAEP and of its MGF1, in Transfer and in DKX1. Tokens differ in
// which of them they have; every provider has at least one.
const (
	OAEPSHA1   = 1
	OAEPSHA256 = 2
)

const (
	// TransferKeyBits is the modulus of a transfer key.
	TransferKeyBits = 3072
	// RecoveryKeyBits is the modulus of a recovery key. It is another size, so that
	// neither is ever taken for the other.
	RecoveryKeyBits = 4096

	labelTransferKey  = "quorumkms/transfer-key/v1"
	fingerprintPrefix = "SHA256:"
)

// OAEPName names a hash of OAEP for people. It is empty if the number is unknown.
func OAEPName(number uint8) string {
	switch number {
	case OAEPSHA1:
		return "SHA-1"
	case OAEPSHA256:
		return "SHA-256"
	default:
		return ""
	}
}

// NewOAEPHash is a hash of OAEP. ErrRefused if the number is unknown.
func NewOAEPHash(number uint8) (hash.Hash, error) {
	switch number {
	case OAEPSHA1:
		return sha1.New(), nil //nolint:gosec // see the import
	case OAEPSHA256:
		return sha256.New(), nil
	default:
		return nil, fmt.Errorf("%w: unknown oaep hash %d", ErrRefused, number)
	}
}

// TransferKeyMessage is what the recipient's NIK signs to vouch for a transfer key
// and for the hash it is to be used with (Transfer.Signature):
//
//	"quorumkms/transfer-key/v1" | OAEP hash u8 | SPKI
func TransferKeyMessage(t Transfer) []byte {
	return append(append([]byte(labelTransferKey), t.OAEPHash), t.SPKI...)
}

// Verify checks a transfer key that came from elsewhere: a known hash, a key as
// TransferPublicKey wants it, and the signature of the recipient's NIK (SPKI) over
// both. It returns the key. ErrRefused.
func (t Transfer) Verify(identity []byte) (*rsa.PublicKey, error) {
	if OAEPName(t.OAEPHash) == "" {
		return nil, fmt.Errorf("%w: transfer key: unknown oaep hash %d", ErrRefused, t.OAEPHash)
	}
	pub, err := TransferPublicKey(t.SPKI)
	if err != nil {
		return nil, err
	}
	if err := VerifyIdentitySignature(identity, TransferKeyMessage(t), t.Signature); err != nil {
		return nil, fmt.Errorf("transfer key: %w", err)
	}
	return pub, nil
}

// TransferPublicKey reads the SPKI of a transfer key. ErrRefused unless it is the
// canonical DER of an RSA key of TransferKeyBits with the exponent 65537.
func TransferPublicKey(spki []byte) (*rsa.PublicKey, error) {
	return rsaPublicKey("transfer key", spki, TransferKeyBits)
}

// RecoveryPublicKey reads the SPKI of a recovery key, as TransferPublicKey does.
func RecoveryPublicKey(spki []byte) (*rsa.PublicKey, error) {
	return rsaPublicKey("recovery key", spki, RecoveryKeyBits)
}

// RecipientPublicKey reads the SPKI of what a Security Officer may trust: a transfer key
// or a recovery key. ErrRefused.
func RecipientPublicKey(spki []byte) (*rsa.PublicKey, error) {
	if pub, err := RecoveryPublicKey(spki); err == nil {
		return pub, nil
	}
	return TransferPublicKey(spki)
}

func rsaPublicKey(what string, spki []byte, bits int) (*rsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrRefused, what, err)
	}
	pub, ok := parsed.(*rsa.PublicKey)
	if !ok || pub.N.BitLen() != bits || pub.E != 65537 {
		return nil, fmt.Errorf("%w: %s is not RSA-%d with exponent 65537", ErrRefused, what, bits)
	}
	canonical, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil || !bytes.Equal(canonical, spki) {
		return nil, fmt.Errorf("%w: %s is not canonical DER", ErrRefused, what)
	}
	return pub, nil
}

// Fingerprint names a public key for people: "SHA256:" and the 64 lower-case hex
// digits of SHA-256(SPKI).
func Fingerprint(spki []byte) string {
	sum := sha256.Sum256(spki)
	return fingerprintPrefix + hex.EncodeToString(sum[:])
}

// ParseFingerprint reads a fingerprint as people type it (either case, digits
// grouped by spaces or colons, with or without the prefix) and returns it in the
// form of Fingerprint. ErrRefused.
func ParseFingerprint(s string) (string, error) {
	digits := strings.TrimSpace(s)
	if n := len(fingerprintPrefix); len(digits) >= n && strings.EqualFold(digits[:n], fingerprintPrefix) {
		digits = digits[n:]
	}
	sum, err := hex.DecodeString(strings.NewReplacer(" ", "", ":", "").Replace(digits))
	if err != nil || len(sum) != sha256.Size {
		return "", fmt.Errorf("%w: a fingerprint is %d hex digits", ErrRefused, 2*sha256.Size)
	}
	return fingerprintPrefix + hex.EncodeToString(sum), nil
}
