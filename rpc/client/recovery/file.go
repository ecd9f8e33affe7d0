package recovery

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
)

const (
	// Format is the release of the files that this package writes, and the only one
	// that it reads.
	Format = 1
	// KeyBits is the modulus of a recovery key.
	KeyBits = 4096
	// MaxName is the length of a recovery key's name, in bytes.
	MaxName = 64
	// MaxFile is the size of the largest file, in bytes.
	MaxFile = 1 << 20

	maxSignature = KeyBits / 8
	maxText      = 255 // bytes of a name of something else
)

// ErrRefused means: a file is not what it should be, or does not belong to the others.
// The text says which and why.
var ErrRefused = errors.New("recovery refused")

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// ValidName says what is wrong with the name of a recovery key, if anything.
func ValidName(name string) error {
	if len(name) > MaxName || !validName.MatchString(name) {
		return refused("name %.80q: want 1 to %d of a to z, 0 to 9 and -, not at its ends", name, MaxName)
	}
	return nil
}

// signed is a file that a recovery key has signed, or the token that it is in.
type signed interface {
	label() string
	signature() *[]byte
}

// message is what is signed of a file: it has to have been given an empty signature.
func message(f signed) ([]byte, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	return append([]byte(f.label()), b...), nil
}

var pss = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}

func sign(f signed, key *rsa.PrivateKey) error {
	*f.signature() = nil
	m, err := message(f)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(m)
	*f.signature(), err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], pss)
	return err
}

// signWith has a token sign a file.
func signWith(f signed, sign Signer) error {
	*f.signature() = nil
	m, err := message(f)
	if err != nil {
		return err
	}
	*f.signature(), err = sign(m)
	return err
}

// verify checks that a recovery key, or the token that it is in, has signed a file, and leaves
// the file as it was.
func verify(f signed, by *PublicKey) error {
	signature := *f.signature()
	*f.signature() = nil
	m, err := message(f)
	*f.signature() = signature
	if err != nil {
		return err
	}
	digest := sha256.Sum256(m)
	if by.Kind == KindToken {
		key, err := parseIdentity(by.Identity)
		if err != nil {
			return err
		}
		if !ecdsa.VerifyASN1(key, digest[:], signature) {
			return refused("its signature does not verify: it was altered after it was made, or another token made it")
		}
		return nil
	}
	key, err := by.public()
	if err != nil {
		return err
	}
	if err := rsa.VerifyPSS(key, crypto.SHA256, digest[:], signature, pss); err != nil {
		return refused("its signature does not verify: it was altered after it was made, or another key made it")
	}
	return nil
}

// encode is the file of a value, which may be a share: the caller overwrites it. What
// encoding/json keeps in its pool of buffers cannot be reached.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	return append(append(make([]byte, 0, len(b)+1), b...), '\n'), nil
}

// decode reads a file in its canonical form. It leaves no copy of it behind but in into: a
// json.Decoder would, in its buffer.
func decode(b []byte, what string, into any) error {
	if len(b) > MaxFile {
		return refused("%s of more than %d bytes", what, MaxFile)
	}
	var release struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &release); err == nil && release.Format != Format {
		return refused("%s of format %d, this release reads %d", what, release.Format, Format)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return refused("no %s: %w", what, err)
	}
	again, err := encode(into)
	if err != nil {
		return err
	}
	defer clear(again)
	if !bytes.Equal(again, b) {
		return refused("no %s in canonical form: it is another kind of file, was edited, or bytes follow its end", what)
	}
	return nil
}

// Fingerprint names a public key for people: "SHA256:" and the 64 hex digits of the
// SHA-256 of its SubjectPublicKeyInfo.
func Fingerprint(spki []byte) string {
	sum := sha256.Sum256(spki)
	return "SHA256:" + hex.EncodeToString(sum[:])
}

// parseIdentity reads the SPKI of a token's identity key.
func parseIdentity(spki []byte) (*ecdsa.PublicKey, error) {
	if len(spki) > maxTransfer {
		return nil, refused("identity key of %d bytes", len(spki))
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, refused("identity key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, refused("identity key is not of P-256")
	}
	again, err := x509.MarshalPKIXPublicKey(key)
	if err != nil || !bytes.Equal(again, spki) {
		return nil, refused("identity key is not canonical DER")
	}
	return key, nil
}

// parseKey reads the SPKI of a recovery key.
func parseKey(spki []byte) (*rsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, refused("public key: %w", err)
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok || key.N.BitLen() != KeyBits || key.E != 65537 {
		return nil, refused("public key is not RSA-%d with exponent 65537", KeyBits)
	}
	again, err := x509.MarshalPKIXPublicKey(key)
	if err != nil || !bytes.Equal(again, spki) {
		return nil, refused("public key is not canonical DER")
	}
	return key, nil
}
