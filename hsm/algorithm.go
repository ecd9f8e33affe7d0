package hsm

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" //nolint:gosec // OAEP with SHA-1 is all that some tokens have, and is sound
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
	"slices"
)

// Kind says what a key is and what it is for. A key has one kind for life.
type Kind struct {
	Class Class
	// Bits is the size of an HMAC key (256, 384, 512), the modulus of an RSA key (2048,
	// 3072, 4096) or the curve of an EC key (256, 384: NIST P-256, P-384). Of an AES key,
	// resident or not, which has 256 bits, it is 0.
	Bits uint16
	// Decrypts is for RSA keys: it is set for those that decrypt and sign nothing.
	Decrypts bool
}

// Algorithm is a way to use a key of class HMAC, RSA or EC, by its name in AWS KMS.
type Algorithm string

// The algorithms. Signatures are of digests: PSS with a salt of the digest's length,
// ECDSA as ASN.1 DER. OAEP has no label, and its hash for MGF1 too.
const (
	HMACSHA256  Algorithm = "HMAC_SHA_256"
	HMACSHA384  Algorithm = "HMAC_SHA_384"
	HMACSHA512  Algorithm = "HMAC_SHA_512"
	PSSSHA256   Algorithm = "RSASSA_PSS_SHA_256"
	PSSSHA384   Algorithm = "RSASSA_PSS_SHA_384"
	PSSSHA512   Algorithm = "RSASSA_PSS_SHA_512"
	PKCS1SHA256 Algorithm = "RSASSA_PKCS1_V1_5_SHA_256"
	PKCS1SHA384 Algorithm = "RSASSA_PKCS1_V1_5_SHA_384"
	PKCS1SHA512 Algorithm = "RSASSA_PKCS1_V1_5_SHA_512"
	ECDSASHA256 Algorithm = "ECDSA_SHA_256"
	ECDSASHA384 Algorithm = "ECDSA_SHA_384"
	OAEPRSA1    Algorithm = "RSAES_OAEP_SHA_1"
	OAEPRSA256  Algorithm = "RSAES_OAEP_SHA_256"
)

// Scheme is what an algorithm does.
type Scheme uint8

// The schemes.
const (
	SchemeMAC   Scheme = iota + 1 // of a message
	SchemePSS                     // RSASSA-PSS of a digest
	SchemePKCS1                   // RSASSA-PKCS1-v1_5 of a digest
	SchemeECDSA                   // of a digest
	SchemeOAEP                    // RSAES-OAEP: opens a ciphertext
)

// MaxMessage is the longest message that is signed or authenticated, in bytes.
const MaxMessage = 4096

// algorithms is the one table of the algorithms, in the order in which people see them.
var algorithms = []struct {
	name   Algorithm
	scheme Scheme
	class  Class
	hash   crypto.Hash
}{
	{HMACSHA256, SchemeMAC, ClassHMAC, crypto.SHA256},
	{HMACSHA384, SchemeMAC, ClassHMAC, crypto.SHA384},
	{HMACSHA512, SchemeMAC, ClassHMAC, crypto.SHA512},
	{PSSSHA256, SchemePSS, ClassRSA, crypto.SHA256},
	{PSSSHA384, SchemePSS, ClassRSA, crypto.SHA384},
	{PSSSHA512, SchemePSS, ClassRSA, crypto.SHA512},
	{PKCS1SHA256, SchemePKCS1, ClassRSA, crypto.SHA256},
	{PKCS1SHA384, SchemePKCS1, ClassRSA, crypto.SHA384},
	{PKCS1SHA512, SchemePKCS1, ClassRSA, crypto.SHA512},
	{ECDSASHA256, SchemeECDSA, ClassEC, crypto.SHA256},
	{ECDSASHA384, SchemeECDSA, ClassEC, crypto.SHA384},
	{OAEPRSA1, SchemeOAEP, ClassRSA, crypto.SHA1},
	{OAEPRSA256, SchemeOAEP, ClassRSA, crypto.SHA256},
}

func (a Algorithm) row() int {
	for i := range algorithms {
		if algorithms[i].name == a {
			return i
		}
	}
	return -1
}

// Scheme is what the algorithm does; 0 if it is unknown.
func (a Algorithm) Scheme() Scheme {
	if i := a.row(); i >= 0 {
		return algorithms[i].scheme
	}
	return 0
}

// Hash is the algorithm's hash; 0 if it is unknown.
func (a Algorithm) Hash() crypto.Hash {
	if i := a.row(); i >= 0 {
		return algorithms[i].hash
	}
	return 0
}

// Signs tells whether it makes signatures.
func (a Algorithm) Signs() bool {
	s := a.Scheme()
	return s == SchemePSS || s == SchemePKCS1 || s == SchemeECDSA
}

// Algorithms are all that there are.
func Algorithms() []Algorithm {
	out := make([]Algorithm, len(algorithms))
	for i, row := range algorithms {
		out[i] = row.name
	}
	return out
}

// Algorithms are the algorithms of all keys of a kind.
func (k Kind) Algorithms() []Algorithm {
	var out []Algorithm
	for i := range algorithms {
		if k.fits(i) {
			out = append(out, algorithms[i].name)
		}
	}
	return out
}

// has tells whether an algorithm is for keys of the kind.
func (k Kind) has(a Algorithm) bool {
	i := a.row()
	return i >= 0 && k.fits(i)
}

// fits tells whether a row's algorithm is for keys of the kind: HMAC and EC keys have the hash
// of their own size only.
func (k Kind) fits(i int) bool {
	if algorithms[i].class != k.Class {
		return false
	}
	if k.Class == ClassRSA {
		return (algorithms[i].scheme == SchemeOAEP) == k.Decrypts
	}
	return int(k.Bits) == 8*algorithms[i].hash.Size()
}

// Valid is nil if there are keys of the kind; otherwise it wraps ErrRefused.
func (k Kind) Valid() error {
	sizes := map[Class][]uint16{
		ClassAES: {0}, ClassResident: {0}, ClassHMAC: {256, 384, 512}, ClassRSA: {2048, 3072, 4096}, ClassEC: {256, 384},
	}
	if !slices.Contains(sizes[k.Class], k.Bits) || k.Decrypts && k.Class != ClassRSA {
		return fmt.Errorf("%w: no keys of class %d have %d bits (decrypting: %t)", ErrRefused, k.Class, k.Bits, k.Decrypts)
	}
	return nil
}

// pair tells whether keys of the kind have a public half.
func (k Kind) pair() bool { return k.Class == ClassRSA || k.Class == ClassEC }

// Accepts is nil if a key of the kind can be used with an algorithm on an input: a message
// of at most MaxMessage bytes that is no check value's, a digest of exactly the hash's
// size, or a ciphertext of the modulus's size. Otherwise it wraps ErrRefused.
func (k Kind) Accepts(a Algorithm, input []byte) error {
	if !k.has(a) {
		return fmt.Errorf("%w: %.80q is no algorithm of keys of class %d with %d bits", ErrRefused, a, k.Class, k.Bits)
	}
	want := a.Hash().Size()
	switch a.Scheme() {
	case SchemeMAC:
		if len(input) > MaxMessage || bytes.HasPrefix(input, []byte(LabelCheckValue)) {
			return fmt.Errorf("%w: message of %d bytes, or one that begins with %q", ErrRefused, len(input), LabelCheckValue)
		}
		return nil
	case SchemeOAEP:
		want = int(k.Bits) / 8
	case SchemePSS, SchemePKCS1, SchemeECDSA:
	}
	if len(input) != want {
		return fmt.Errorf("%w: %s of %d bytes, must be %d", ErrRefused, a, len(input), want)
	}
	return nil
}
