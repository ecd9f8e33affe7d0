// Package backup is the file format of backups: writing one, reading one, and
// checking one without any key. It imports the standard library only.
//
// # Format QKB1
//
// Everything is big-endian. A file is the magic "QKB1" and then frames:
//
//	kind u8 | length u32 | body
//
//	'B'  the header: canonical JSON of Header, at most 4 KiB; first, once
//	'D'  a piece of the snapshot: 65,536 bytes, the last one 1 to 65,536
//	'S'  the signature: last, once; nothing follows
//
// The pieces together are one snapshot (QKS1, package fsm), which has a count, a
// SHA-256 and a MAC under the cluster's log key of its own; keys are in it wrapped
// only. The signature is ECDSA P-256 in ASN.1 DER, by the node identity key whose
// SubjectPublicKeyInfo the header carries, over the SHA-256 of
//
//	"quorumkms/backup/v1" | SHA-256 of every byte of the file before the frame 'S'
//
// So a backup can be checked in three degrees: Check needs nothing and finds every
// accident; Check with the fingerprint of a node's identity key proves that this
// node wrote the file; a node of the cluster checks the MAC and each record.
package backup

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

const (
	magic = "QKB1"
	// Format is the release of the format that this package writes, and the only one
	// that it reads.
	Format = 1

	signatureLabel = "quorumkms/backup/v1"

	kindHeader    = 'B'
	kindData      = 'D'
	kindSignature = 'S'

	frameHead    = 5
	pieceSize    = 64 << 10 // bytes of a piece of the snapshot
	maxHeader    = 4 << 10  // bytes
	maxSignature = 72       // bytes of an ECDSA P-256 signature in DER
	maxName      = 128      // bytes of a node's name and of its raft id
	maxSigner    = 256      // bytes of a P-256 SubjectPublicKeyInfo, with room

	fingerprintPrefix = "SHA256:"
)

// ErrRefused means: the file is no backup, or it is damaged, cut off, extended,
// altered, of another signer or of a later release. The text says which.
var ErrRefused = errors.New("backup refused")

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Errorf(format, args...).Error())
}

// Header says what a backup holds and who made it.
type Header struct {
	Format        int    `json:"format"`
	Cluster       string `json:"cluster"` // UUID
	RecoveryEpoch uint32 `json:"recovery_epoch"`
	Index         uint64 `json:"index"` // of the last log entry in it
	Term          uint64 `json:"term"`
	Records       uint64 `json:"records"` // of the snapshot
	Keys          uint64 `json:"keys"`    // customer master keys among them
	Node          string `json:"node"`    // raft id of the node that made it
	Name          string `json:"name"`    // its name
	Created       int64  `json:"created"` // unix seconds, by that node's clock
	Signer        []byte `json:"signer"`  // SubjectPublicKeyInfo of its identity key
}

func (h *Header) check() error {
	switch {
	case h.Format != Format:
		return refused("format %d, this release reads %d", h.Format, Format)
	case !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(h.Cluster):
		return refused("cluster %.60q is no UUID", h.Cluster)
	case h.Index == 0 || h.Term == 0:
		return refused("index %d of term %d", h.Index, h.Term)
	case h.Keys > h.Records:
		return refused("%d keys among %d records", h.Keys, h.Records)
	case h.Node == "" || len(h.Node) > maxName || h.Name == "" || len(h.Name) > maxName:
		return refused("the node's name or raft id is missing or has more than %d bytes", maxName)
	case h.Created <= 0:
		return refused("creation date %d", h.Created)
	}
	_, err := parseSigner(h.Signer)
	return err
}

// Fingerprint names the identity key that signed, as kmsctl cluster status shows
// it: "SHA256:" and 64 hex digits.
func (h *Header) Fingerprint() string {
	sum := sha256.Sum256(h.Signer)
	return fingerprintPrefix + hex.EncodeToString(sum[:])
}

// SameFingerprint compares fingerprints as people type them: either case, digits
// grouped by spaces or colons, with or without the prefix.
func SameFingerprint(a, b string) bool {
	x, y := digits(a), digits(b)
	return len(x) == 2*sha256.Size && x == y
}

func digits(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	s = strings.TrimPrefix(s, strings.ToLower(fingerprintPrefix))
	return strings.NewReplacer(" ", "", ":", "").Replace(s)
}

func parseSigner(spki []byte) (*ecdsa.PublicKey, error) {
	if len(spki) > maxSigner {
		return nil, refused("the signer's public key has %d bytes", len(spki))
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, refused("the signer's public key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, refused("the signer's key is not of the curve P-256")
	}
	again, err := x509.MarshalPKIXPublicKey(key)
	if err != nil || !bytes.Equal(again, spki) {
		return nil, refused("the signer's public key is not in canonical form")
	}
	return key, nil
}

// message is what the identity key signs the SHA-256 of.
func message(digest []byte) []byte { return append([]byte(signatureLabel), digest...) }

func verify(signer, digest, signature []byte) error {
	key, err := parseSigner(signer)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(message(digest))
	if !ecdsa.VerifyASN1(key, sum[:], signature) {
		return refused("its signature does not verify: it was altered after it was made")
	}
	return nil
}

// decodeStrict decodes canonical JSON: unknown fields, other spellings, white space
// and trailing bytes are refused.
func decodeStrict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	again, err := json.Marshal(into)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, b) {
		return errors.New("not in canonical form")
	}
	return nil
}
