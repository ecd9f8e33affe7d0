package soft

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"

	"github.com/quorumkms/quorumkms/hsm"
)

// The key file, integers big endian:
//
//	 0 "QSP1" | 4 PBKDF2 iterations u32 | 8 salt 16 | 24 nonce 12
//	36 AES-256-GCM of the JSON of contents n + 16 | SHA-256 of all before 32
//
// The key is PBKDF2-HMAC-SHA256 of the PIN, the additional data the first 36
// bytes. The SHA-256 tells a damaged file from a wrong PIN; it proves nothing.
const (
	fileName    = "keys.qsp"
	lockName    = "lock"
	fileMagic   = "QSP1"
	fileHeader  = 36
	saltSize    = 16
	gcmNonce    = 12
	gcmTag      = 16
	maxFileSize = 4 << 20 // bytes

	pinIterations    = 200_000 // of new files
	minPINIterations = 100_000
	maxPINIterations = 10_000_000
)

// sealer seals contents under a PIN.
type sealer struct {
	iterations uint32
	salt       [saltSize]byte
	aead       cipher.AEAD
}

func newSealer(pin []byte, iterations uint32, salt [saltSize]byte) (*sealer, error) {
	key, err := pbkdf2.Key(sha256.New, string(pin), salt[:], int(iterations), 32)
	if err != nil {
		return nil, fmt.Errorf("%w: pin: %w", hsm.ErrUnavailable, err)
	}
	defer clear(key)
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("%w: key file: %w", hsm.ErrUnavailable, err)
	}
	aead, err := cipher.NewGCM(b)
	if err != nil {
		return nil, fmt.Errorf("%w: key file: %w", hsm.ErrUnavailable, err)
	}
	return &sealer{iterations, salt, aead}, nil
}

// freshSealer is a sealer for a new file.
func freshSealer(pin []byte) (*sealer, error) {
	var salt [saltSize]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, fmt.Errorf("%w: random: %w", hsm.ErrUnavailable, err)
	}
	return newSealer(pin, pinIterations, salt)
}

// seal is the file of c.
func (s *sealer) seal(c *contents) ([]byte, error) {
	plain, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("%w: key file: %w", hsm.ErrUnavailable, err)
	}
	defer clear(plain)
	b := binary.BigEndian.AppendUint32([]byte(fileMagic), s.iterations)
	b = append(b, s.salt[:]...)
	var nonce [gcmNonce]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, fmt.Errorf("%w: random: %w", hsm.ErrUnavailable, err)
	}
	b = append(b, nonce[:]...)
	b = s.aead.Seal(b, nonce[:], plain, b)
	sum := sha256.Sum256(b)
	if b = append(b, sum[:]...); len(b) > maxFileSize {
		return nil, fmt.Errorf("%w: key file is full", hsm.ErrUnavailable)
	}
	return b, nil
}

// unseal reads a key file: ErrCorrupt if it is damaged, ErrPIN if the PIN is not
// the one it was sealed with.
func unseal(b, pin []byte) (*contents, *sealer, error) {
	if len(b) < fileHeader+gcmTag+sha256.Size || string(b[:4]) != fileMagic {
		return nil, nil, fmt.Errorf("%w: key file is damaged or of another release", hsm.ErrCorrupt)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if s := sha256.Sum256(body); !bytes.Equal(s[:], sum) {
		return nil, nil, fmt.Errorf("%w: key file is damaged: wrong checksum", hsm.ErrCorrupt)
	}
	iterations := binary.BigEndian.Uint32(b[4:])
	if iterations < minPINIterations || iterations > maxPINIterations {
		return nil, nil, fmt.Errorf("%w: key file asks for %d iterations", hsm.ErrCorrupt, iterations)
	}
	s, err := newSealer(pin, iterations, [saltSize]byte(b[8:24]))
	if err != nil {
		return nil, nil, err
	}
	plain, err := s.aead.Open(nil, b[24:fileHeader], body[fileHeader:], b[:fileHeader])
	if err != nil {
		return nil, nil, fmt.Errorf("key file: %w", hsm.ErrPIN)
	}
	defer clear(plain)
	c, err := parseContents(plain)
	if err != nil {
		return nil, nil, err
	}
	return c, s, nil
}

// contents is all that a partition keeps.
type contents struct {
	Identity []byte             `json:"identity"`           // PKCS#8 of the NIK
	Domains  map[string]*domain `json:"domains"`            // by cluster id, hex
	Recovery map[string][]byte  `json:"recovery,omitempty"` // PKCS #8 of recovery keys, by name
}

// with is a copy of c, to be changed.
func (c *contents) with() *contents {
	next := *c
	next.Domains, next.Recovery = maps.Clone(c.Domains), maps.Clone(c.Recovery)
	return &next
}

// domain is what a partition holds of one cluster. Every key has
// hsm.DomainKeySize bytes.
type domain struct {
	LogRoot     []byte                            `json:"log_root"`
	Generations map[uint32]map[hsm.KeyKind][]byte `json:"generations"` // every kind but KindLog
}

func parseContents(b []byte) (*contents, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var c contents
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("%w: key file: %w", hsm.ErrCorrupt, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: key file: trailing bytes", hsm.ErrCorrupt)
	}
	if c.Domains == nil {
		return nil, fmt.Errorf("%w: key file: no domains", hsm.ErrCorrupt)
	}
	for cluster, domain := range c.Domains {
		if domain == nil || !domain.valid() {
			return nil, fmt.Errorf("%w: key file: domain of %q is incomplete", hsm.ErrCorrupt, cluster)
		}
	}
	return &c, nil
}

// valid tells whether every generation has exactly the keys it must have, which in those
// that an earlier release made are fewer.
func (d *domain) valid() bool {
	for number, keys := range d.Generations {
		known := 1 // the log root key, which stands for itself
		for _, kind := range hsm.DomainKinds() {
			switch n := len(d.key(number, kind)); {
			case n == hsm.DomainKeySize:
				known++
			case n != 0 || !kind.Later() || keys[kind] != nil:
				return false
			}
		}
		if len(keys) != known-2 {
			return false
		}
	}
	return len(d.LogRoot) == hsm.DomainKeySize
}

// readFile reads a file of at most maxFileSize bytes; fs.ErrNotExist if there is
// none.
func readFile(root *os.Root, name string) (b []byte, err error) {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err = io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	if len(b) > maxFileSize {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", hsm.ErrCorrupt, name, maxFileSize)
	}
	return b, nil
}

// writeFile replaces a file so that a crash leaves the old one or the new one.
func writeFile(root *os.Root, name string, b []byte) error {
	tmp := name + ".tmp"
	steps := func() error {
		f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		if err := root.Rename(tmp, name); err != nil {
			return err
		}
		return syncDir(root, path.Dir(name))
	}
	if err := steps(); err != nil {
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return nil
}
