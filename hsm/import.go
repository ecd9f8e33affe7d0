package hsm

import (
	"crypto"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// Key material comes in from outside wrapped under an RSA pair that a partition makes for
// one key. The private half leaves the partition as a KWT1 token only, which is the import
// token that the caller brings back with the material: so any partition of the domain can
// take the material in, and nothing has to be remembered.

// ImportAlgorithm is how material is wrapped on its way in, by its name in AWS KMS.
type ImportAlgorithm string

// The algorithms. With OAEP (no label, MGF1 with the same hash) the material is the
// plaintext. With AES key wrap an AES-256 key of one use is, which wraps the material by
// RFC 5649: the RSA ciphertext and the wrapped material follow one another.
const (
	ImportOAEPSHA1      ImportAlgorithm = "RSAES_OAEP_SHA_1"
	ImportOAEPSHA256    ImportAlgorithm = "RSAES_OAEP_SHA_256"
	ImportAESWrapSHA1   ImportAlgorithm = "RSA_AES_KEY_WRAP_SHA_1"
	ImportAESWrapSHA256 ImportAlgorithm = "RSA_AES_KEY_WRAP_SHA_256"
)

type importAlgorithm struct {
	name   ImportAlgorithm
	number uint32
	hash   crypto.Hash
	wraps  bool // an AES key comes between
}

// importAlgorithms is the one table of them. Their numbers are part of import tokens.
var importAlgorithms = []importAlgorithm{
	{ImportOAEPSHA1, 1, crypto.SHA1, false},
	{ImportOAEPSHA256, 2, crypto.SHA256, false},
	{ImportAESWrapSHA1, 3, crypto.SHA1, true},
	{ImportAESWrapSHA256, 4, crypto.SHA256, true},
}

func (a ImportAlgorithm) row() int {
	for i := range importAlgorithms {
		if importAlgorithms[i].name == a {
			return i
		}
	}
	return -1
}

// Known tells whether there is such an algorithm.
func (a ImportAlgorithm) Known() bool { return a.row() >= 0 }

// Hash is the hash of its OAEP; 0 if it is unknown.
func (a ImportAlgorithm) Hash() crypto.Hash {
	if i := a.row(); i >= 0 {
		return importAlgorithms[i].hash
	}
	return 0
}

// Wraps tells whether an AES key wraps the material.
func (a ImportAlgorithm) Wraps() bool { i := a.row(); return i >= 0 && importAlgorithms[i].wraps }

const (
	// importVersions begins the version numbers of import tokens: the algorithm's is added.
	// They bind the token to it. No version of a key has such a number, which a state gives
	// out: the greatest is below 0xfff00400.
	importVersions = 0xffffff00
	// ephemeralSize is the size of the AES key of one use, in bytes.
	ephemeralSize = 32
	// maxImportMaterial is the longest material, in bytes: HMAC_512.
	maxImportMaterial = 64
)

// ImportPairSpec says which pair to make for the import into a key.
type ImportPairSpec struct {
	Cluster    ID
	Generation uint32
	Key        ID
	Bits       uint16 // 2048, 3072 or 4096
	Algorithm  ImportAlgorithm
	Created    time.Time // stored to the second
}

// header is the header of the import token of a pair, of a class by which the partition
// that makes it decides what the private half may do.
func (s ImportPairSpec) header(c Class) (TokenHeader, error) {
	i := s.Algorithm.row()
	if i < 0 {
		return TokenHeader{}, fmt.Errorf("%w: %.80q is no algorithm of imports", ErrRefused, s.Algorithm)
	}
	k := KeySpec{
		Cluster: s.Cluster, Generation: s.Generation, Class: ClassRSA, Key: s.Key,
		Version: importVersions | importAlgorithms[i].number, Created: s.Created, Bits: s.Bits,
	}
	h, err := k.Header()
	h.Class = c
	return h, err
}

// InsideHeader is the header of a pair whose private half unwraps in the partition and
// does nothing else: the plaintext stays there.
func (s ImportPairSpec) InsideHeader() (TokenHeader, error) { return s.header(ClassImportRSA) }

// RawHeader is the header of a pair whose private half decrypts blocks, for partitions
// that lack the algorithm's OAEP: the process decodes it (DecodeOAEP). Its token is under
// the domain key of RSA keys, which lets them decrypt; that of import pairs does not.
func (s ImportPairSpec) RawHeader() (TokenHeader, error) { return s.header(ClassRSA) }

// ImportToken is what an import token says. It proves nothing before a partition has
// opened it (ImportKey).
type ImportToken struct {
	Header    TokenHeader
	Algorithm ImportAlgorithm
}

// ParseImportToken reads an import token: ErrRefused unless it has the form of one.
func ParseImportToken(b []byte) (ImportToken, error) {
	t, err := ParseToken(b)
	if err != nil {
		return ImportToken{}, fmt.Errorf("%w: no import token: %v", ErrRefused, err) //nolint:errorlint // what a caller sends is no corrupt material
	}
	h := t.Header
	i := slices.IndexFunc(importAlgorithms, func(a importAlgorithm) bool { return h.Version == importVersions|a.number })
	if i < 0 || h.Attributes != 0 || h.Class != ClassImportRSA && h.Class != ClassRSA {
		return ImportToken{}, fmt.Errorf("%w: no import token, but a token of another kind", ErrRefused)
	}
	return ImportToken{Header: h, Algorithm: importAlgorithms[i].name}, nil
}

// ImportRequest asks a partition to take key material in.
type ImportRequest struct {
	Token      []byte // the import token
	Ciphertext []byte // the wrapped material
	Spec       KeySpec
}

// Check reads the import token and compares it with what is asked for, and makes the
// header of the new key. ErrRefused names what is wrong.
func (r ImportRequest) Check() (ImportToken, TokenHeader, error) {
	t, err := ParseImportToken(r.Token)
	if err != nil {
		return t, TokenHeader{}, err
	}
	if t.Header.Key != r.Spec.Key || t.Header.Cluster != r.Spec.Cluster {
		return t, TokenHeader{}, fmt.Errorf("%w: the import token is of another key", ErrRefused)
	}
	if r.Spec.Kind().MaterialSize() == 0 {
		return t, TokenHeader{}, fmt.Errorf("%w: no material of keys of class %d is imported", ErrRefused, r.Spec.Class)
	}
	h, err := r.Spec.Header()
	h.Attributes = AttrImported
	return t, h, err
}

// MaterialSize is how many bytes the material of a key has that can be imported; 0 if that
// of keys of the kind cannot be.
func (k Kind) MaterialSize() int {
	switch {
	case k.Valid() != nil:
		return 0
	case k.Class == ClassAES:
		return ephemeralSize
	case k.Class == ClassHMAC:
		return int(k.Bits) / 8
	}
	return 0
}

// Split takes a ciphertext apart: what is under an RSA key of so many bytes, and, of
// algorithms that wrap, what is under the AES key. ErrCiphertext if it has another size.
func (a ImportAlgorithm) Split(ciphertext []byte, modulus int) (block, wrapped []byte, err error) {
	n := len(ciphertext) - modulus
	if !a.Wraps() && n != 0 || a.Wraps() && (n < MinWrapped || n > maxImportMaterial+8 || n%8 != 0) {
		return nil, nil, ErrCiphertext
	}
	return ciphertext[:modulus:modulus], ciphertext[modulus:], nil
}

// MaxImportCiphertext is the longest wrapped material, in bytes.
const MaxImportCiphertext = 512 + maxImportMaterial + 8

// DecodeOAEP takes the padding of EME-OAEP (RFC 8017, 7.1.2; no label) off a block of the
// size of the modulus, in place: what it returns is a part of the block, which the caller
// wipes. What is wrong with a block is not told, nor by the time that it takes: whoever
// learns at which step blocks fail can open ciphertexts (Manger). How long the message is
// may be told.
func DecodeOAEP(h crypto.Hash, block []byte) ([]byte, error) {
	size := h.Size()
	if len(block) < 2*size+2 {
		return nil, ErrCiphertext
	}
	seed, db := block[1:1+size], block[1+size:]
	mask(h, seed, db)
	mask(h, db, seed)
	empty := h.New().Sum(nil)
	good := subtle.ConstantTimeByteEq(block[0], 0) & subtle.ConstantTimeCompare(db[:size], empty)
	// After the hash of the label: zeros, a one, the message.
	rest := db[size:]
	looking, start := 1, 0
	for i, b := range rest {
		one := subtle.ConstantTimeByteEq(b, 1)
		zero := subtle.ConstantTimeByteEq(b, 0)
		start = subtle.ConstantTimeSelect(looking&one, i+1, start)
		good &= 1 ^ looking&(1^one)&(1^zero)
		looking &= 1 ^ one
	}
	good &= 1 ^ looking
	if good != 1 {
		return nil, ErrCiphertext
	}
	return rest[start:], nil
}

// mask XORs MGF1 of a seed onto out.
func mask(h crypto.Hash, out, seed []byte) {
	var counter [4]byte
	var sum []byte
	defer func() { clear(sum) }()
	for n := uint32(0); len(out) > 0; n++ {
		binary.BigEndian.PutUint32(counter[:], n)
		d := h.New()
		d.Write(seed)
		d.Write(counter[:])
		sum = d.Sum(sum[:0])
		out = out[subtle.XORBytes(out, out, sum):]
	}
}
