package soft

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

// Config says where an embedded partition keeps its keys.
type Config struct {
	// Dir is the directory of the key file, made if absent. One process at a time
	// can open it. Empty: the partition is in memory only and gone when closed.
	Dir string
	// PIN seals the key file; the first Open sets it. Not used without Dir.
	PIN []byte
	// Label is for people.
	Label string
	// TrustAll trusts every transfer key, without Trust.
	TrustAll bool
	// OAEPHash is what transfer keys of this partition ask the donor for: zero or
	// hsm.OAEPSHA256, or hsm.OAEPSHA1 if the donor's token has no other. As a donor
	// the partition has both.
	OAEPHash uint8
	// Cloned is the transfer profile cloned: no domain key is exported or imported.
	Cloned bool
}

// Partition is an embedded partition.
type Partition struct {
	info     hsm.Info
	trustAll bool
	cloned   bool
	oaepHash uint8
	identity []byte // SPKI
	nik      *ecdsa.PrivateKey

	meter hsm.Meter

	mu       sync.RWMutex
	closed   bool
	contents *contents       // replaced as a whole, never changed
	transfer *rsa.PrivateKey // nil: no transfer is under way
	trusted  map[string]bool // fingerprints, of a partition in memory only
	twins    map[twin]bool   // they end with the process
	// recovered is what ImportRecovery has taken in, by cluster id, hex: it goes before contents.
	recovered map[string]*domain

	// Of a partition with a directory; nil otherwise.
	root   *os.Root
	lock   io.Closer
	sealer *sealer
}

var _ hsm.Partition = (*Partition)(nil)

// Open opens the partition of c.Dir, or makes an empty one. ErrPIN: the PIN is not
// the one of the key file. ErrCorrupt: the key file is damaged. ErrRefused: an unknown
// OAEP hash. ErrUnavailable: another process has it open, or the directory cannot be
// used.
func Open(c Config) (*Partition, error) {
	if c.OAEPHash == 0 {
		c.OAEPHash = hsm.OAEPSHA256
	}
	if _, err := hsm.NewOAEPHash(c.OAEPHash); err != nil {
		return nil, err
	}
	p := &Partition{trustAll: c.TrustAll, cloned: c.Cloned, oaepHash: c.OAEPHash, trusted: make(map[string]bool), twins: make(map[twin]bool), recovered: make(map[string]*domain)}
	if err := p.load(c); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.info = hsm.Info{
		Kind: "embedded", Manufacturer: "QuorumKMS", Model: "soft", Label: c.Label,
		Serial: strings.TrimPrefix(hsm.Fingerprint(p.identity), "SHA256:")[:16],
	}
	return p, nil
}

func (p *Partition) load(c Config) error {
	if c.Dir != "" {
		if err := p.openDir(c.Dir, c.PIN); err != nil {
			return err
		}
	}
	if p.contents == nil {
		if err := p.initialize(); err != nil {
			return err
		}
	}
	return p.readIdentity()
}

func (p *Partition) readIdentity() error {
	parsed, err := x509.ParsePKCS8PrivateKey(p.contents.Identity)
	if err != nil {
		return fmt.Errorf("%w: identity key: %w", hsm.ErrCorrupt, err)
	}
	nik, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || nik.Curve != elliptic.P256() {
		return fmt.Errorf("%w: identity key is not of P-256", hsm.ErrCorrupt)
	}
	p.nik = nik
	if p.identity, err = x509.MarshalPKIXPublicKey(&nik.PublicKey); err != nil {
		return fmt.Errorf("%w: identity key: %w", hsm.ErrCorrupt, err)
	}
	return nil
}

// openDir locks the directory and reads the key file, if there is one.
func (p *Partition) openDir(dir string, pin []byte) error {
	if len(pin) == 0 {
		return fmt.Errorf("%w: it is empty", hsm.ErrPIN)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	var err error
	if p.root, err = os.OpenRoot(dir); err != nil {
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	if p.lock, err = lock(p.root); err != nil {
		return err
	}
	b, err := readFile(p.root, fileName)
	if errors.Is(err, fs.ErrNotExist) {
		p.sealer, err = freshSealer(pin)
		return err
	}
	if err != nil {
		return err
	}
	p.contents, p.sealer, err = unseal(b, pin)
	return err
}

// initialize makes an identity key, in the place of the one there is.
func (p *Partition) initialize() error {
	nik, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("%w: identity key: %w", hsm.ErrUnavailable, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(nik)
	if err != nil {
		return fmt.Errorf("%w: identity key: %w", hsm.ErrUnavailable, err)
	}
	next := &contents{Identity: der, Domains: map[string]*domain{}}
	if p.contents != nil {
		next.Domains, next.Recovery = p.contents.Domains, p.contents.Recovery
	}
	return p.store(next)
}

// Adopt gives a partition that is a copy of another a node identity key of its own, and
// returns its SPKI.
func Adopt(c Config) (spki []byte, err error) {
	if !c.Cloned || c.Dir == "" {
		return nil, fmt.Errorf("%w: only a partition of the transfer profile cloned, in a directory, is adopted", hsm.ErrRefused)
	}
	p, err := Open(c)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := p.initialize(); err != nil {
		return nil, err
	}
	if err := p.readIdentity(); err != nil {
		return nil, err
	}
	return p.Identity(), nil
}

// store makes c durable, then current.
func (p *Partition) store(c *contents) error {
	if p.root != nil {
		b, err := p.sealer.seal(c)
		if err != nil {
			return err
		}
		if err := writeFile(p.root, fileName, b); err != nil {
			return err
		}
	}
	p.contents = c
	return nil
}

// usable is the first line of every operation, with mu held.
func (p *Partition) usable(ctx context.Context) error {
	if p.closed {
		return fmt.Errorf("%w: partition closed", hsm.ErrUnavailable)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return nil
}

// Info implements hsm.Partition.
func (p *Partition) Info() hsm.Info { return p.info }

// Activity implements hsm.Partition.
func (p *Partition) Activity() hsm.Activity {
	a := p.meter.Count()
	a.OAEPHashes, a.Algorithms = []string{hsm.OAEPName(hsm.OAEPSHA1), hsm.OAEPName(hsm.OAEPSHA256)}, hsm.Algorithms()
	return a
}

// Doubt implements hsm.Partition: what this process computes it need not ask itself again.
func (p *Partition) Doubt(context.Context) error { return p.Healthy() }

// Healthy implements hsm.Partition.
func (p *Partition) Healthy() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.usable(context.Background())
}

// Identity implements hsm.Partition.
func (p *Partition) Identity() []byte { return append([]byte(nil), p.identity...) }

// SignIdentity implements hsm.Partition.
func (p *Partition) SignIdentity(ctx context.Context, message []byte) ([]byte, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	sig, err := p.sign(message)
	p.meter.Done(hsm.CallSign, began, err)
	return sig, err
}

func (p *Partition) sign(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, p.nik, digest[:])
	if err != nil {
		return nil, fmt.Errorf("%w: identity signature: %w", hsm.ErrUnavailable, err)
	}
	return sig, nil
}

// Random implements hsm.Partition.
func (p *Partition) Random(ctx context.Context, b []byte) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.usable(ctx); err != nil {
		return err
	}
	if len(b) == 0 || len(b) > hsm.MaxRandom {
		return fmt.Errorf("%w: random of %d bytes", hsm.ErrRefused, len(b))
	}
	began := time.Now()
	_, err := rand.Read(b)
	if p.meter.Done(hsm.CallRandom, began, err); err != nil {
		return fmt.Errorf("%w: random: %w", hsm.ErrUnavailable, err)
	}
	return nil
}

// Close implements hsm.Partition.
func (p *Partition) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	if p.contents != nil {
		for _, d := range p.contents.Domains {
			d.wipe()
		}
	}
	for _, d := range p.recovered {
		d.wipe()
	}
	p.closed, p.contents, p.recovered, p.transfer, p.sealer = true, nil, nil, nil, nil
	var errs []error
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	if p.root != nil {
		errs = append(errs, p.root.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return nil
}
