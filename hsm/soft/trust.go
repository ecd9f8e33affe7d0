package soft

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/quorumkms/quorumkms/hsm"
)

// trustDir holds a file <SHA-256 of the SPKI, hex>.der with the SPKI of every
// trusted transfer key.
const trustDir = "trusted"

func trustFile(spki []byte) string {
	sum := sha256.Sum256(spki)
	return trustDir + "/" + hex.EncodeToString(sum[:]) + ".der"
}

// Trust is the Security Officer's step: it trusts a transfer key or a recovery key (SPKI),
// so that the partition wraps for it. ErrRefused if it is none.
func (p *Partition) Trust(spki []byte) error {
	if _, err := hsm.RecipientPublicKey(spki); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(context.Background()); err != nil {
		return err
	}
	if p.root != nil {
		return writeTrust(p.root, spki)
	}
	p.trusted[hsm.Fingerprint(spki)] = true
	return nil
}

// Trust is Partition.Trust from another process, while a node has the partition
// of dir open. ErrPIN, ErrRefused; ErrUnavailable if there is no partition.
func Trust(dir string, pin, spki []byte) error {
	if _, err := hsm.RecipientPublicKey(spki); err != nil {
		return err
	}
	return asOfficer(dir, pin, func(root *os.Root) error { return writeTrust(root, spki) })
}

// Untrust takes Trust back. ErrPIN; ErrNotTrusted if the key was not trusted;
// ErrUnavailable if there is no partition.
func Untrust(dir string, pin []byte, fingerprint string) error {
	return asOfficer(dir, pin, func(root *os.Root) error {
		_, digits, _ := strings.Cut(fingerprint, ":")
		err := root.Remove(trustDir + "/" + digits + ".der")
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", fingerprint, hsm.ErrNotTrusted)
		}
		return err
	})
}

// asOfficer runs f on the directory of a partition whose PIN is known.
func asOfficer(dir string, pin []byte, f func(*os.Root) error) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	b, err := readFile(root, fileName)
	if err != nil {
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	if _, _, err := unseal(b, pin); err != nil {
		return err
	}
	return f(root)
}

func writeTrust(root *os.Root, spki []byte) error {
	if err := root.Mkdir(trustDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return writeFile(root, trustFile(spki), spki)
}

// isTrusted is nil or ErrNotTrusted (or why it cannot be told).
func (p *Partition) isTrusted(spki []byte) error {
	if p.trustAll || p.trusted[hsm.Fingerprint(spki)] {
		return nil
	}
	if p.root != nil {
		b, err := readFile(p.root, trustFile(spki))
		if err == nil && bytes.Equal(b, spki) {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%s: %w", hsm.Fingerprint(spki), hsm.ErrNotTrusted)
}
