package trail

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	originPrefix = "quorumkms/audit/v1/"
	timePrefix   = "time "
	// MaxCheckpoint is more than the size of any checkpoint, in bytes.
	MaxCheckpoint = 2 << 10
	// algECDSA is the type of ECDSA signatures in C2SP signed-note.
	algECDSA = 2
)

// ErrCheckpoint means: what should be a checkpoint is none, or its signature does not verify.
var ErrCheckpoint = errors.New("audit checkpoint refused")

// Checkpoint is the size and root of a node's tree at a time.
type Checkpoint struct {
	Cluster string
	Node    string // raft id
	Size    int64  // records
	Root    Hash
	Time    time.Time // by the node's clock, of milliseconds
}

// Convicts tells whether a node that signed one checkpoint, and another that is remembered and
// that it does not go on from, is convicted by the two: it signed this one later, or two trees of
// one size. One that it signed earlier, which anybody may bring again, convicts nobody.
func (c Checkpoint) Convicts(remembered Checkpoint) bool {
	if c.Size == remembered.Size {
		return c.Root != remembered.Root
	}
	return c.Time.After(remembered.Time)
}

func (c Checkpoint) text() string {
	return fmt.Sprintf("%s%s/%s\n%d\n%s\n%s%d\n", originPrefix, c.Cluster, c.Node, c.Size, c.Root, timePrefix, c.Time.UnixMilli())
}

// Sign makes the note of a checkpoint. sign gives the ECDSA signature, ASN.1 DER, over
// SHA-256 of a message by the key of spki.
func (c Checkpoint) Sign(spki []byte, sign func(message []byte) ([]byte, error)) ([]byte, error) {
	return note.Sign(&note.Note{Text: c.text()}, &identity{name: c.Node, spki: spki, sign: sign})
}

// OpenCheckpoint reads a checkpoint and verifies its signature by the key of spki.
// ErrCheckpoint.
func OpenCheckpoint(b, spki []byte) (Checkpoint, error) {
	c, err := parseCheckpoint(b)
	if err != nil {
		return c, err
	}
	if _, err := note.Open(b, note.VerifierList(&identity{name: c.Node, spki: spki})); err != nil {
		return c, fmt.Errorf("%w: of %d records: %w", ErrCheckpoint, c.Size, err)
	}
	return c, nil
}

// parseCheckpoint reads a checkpoint and verifies nothing.
func parseCheckpoint(b []byte) (c Checkpoint, err error) {
	bad := func(what string) (Checkpoint, error) { return Checkpoint{}, fmt.Errorf("%w: %s", ErrCheckpoint, what) }
	if len(b) > MaxCheckpoint {
		return bad("too long")
	}
	text, _, ok := strings.Cut(string(b), "\n\n")
	lines := strings.Split(text, "\n")
	if !ok || len(lines) != 4 {
		return bad("not 4 lines and a signature")
	}
	origin, ok := strings.CutPrefix(lines[0], originPrefix)
	if c.Cluster, c.Node, ok = cut(origin, ok); !ok {
		return bad("its first line")
	}
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 || strconv.FormatInt(c.Size, 10) != lines[1] {
		return bad("its size")
	}
	if c.Root, err = tlog.ParseHash(lines[2]); err != nil {
		return bad("its root")
	}
	at, ok := strings.CutPrefix(lines[3], timePrefix)
	ms, err := strconv.ParseInt(at, 10, 64)
	if !ok || err != nil {
		return bad("its time")
	}
	c.Time = time.UnixMilli(ms).UTC()
	if c.text() != text+"\n" {
		return bad("not in its canonical form")
	}
	return c, nil
}

func cut(origin string, ok bool) (cluster, node string, _ bool) {
	if !ok {
		return "", "", false
	}
	cluster, node, ok = strings.Cut(origin, "/")
	return cluster, node, ok && cluster != "" && node != "" && !strings.Contains(node, "/")
}

// identity signs and verifies notes with a node's identity key. It implements note.Signer
// and note.Verifier.
type identity struct {
	name string
	spki []byte
	sign func(message []byte) ([]byte, error)
}

func (i *identity) Name() string { return i.name }

// KeyHash is as C2SP signed-note defines it.
func (i *identity) KeyHash() uint32 {
	h := sha256.New()
	h.Write([]byte(i.name + "\n"))
	h.Write([]byte{algECDSA})
	h.Write(i.spki)
	return binary.BigEndian.Uint32(h.Sum(nil))
}

func (i *identity) Sign(message []byte) ([]byte, error) { return i.sign(message) }

func (i *identity) Verify(message, signature []byte) bool {
	key, ok := identityKey(i.spki)
	if !ok {
		return false
	}
	digest := sha256.Sum256(message)
	return ecdsa.VerifyASN1(key, digest[:], signature)
}

func identityKey(spki []byte) (*ecdsa.PublicKey, bool) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, false
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	return key, ok && key.Curve == elliptic.P256()
}

func validIdentity(spki []byte) bool {
	_, ok := identityKey(spki)
	return ok
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Claimed is the cluster and the node that a directory's newest checkpoint says it is of; empty
// if there is none. Nothing is verified.
func Claimed(dir string) (cluster, node string, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+CheckpointsEnd))
	if err != nil {
		return "", "", err
	}
	slices.Sort(files)
	for _, file := range slices.Backward(files) {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", "", fmt.Errorf("%w: %w", ErrTrail, err)
		}
		if c, note, _, _ := LastCheckpoint(b); note != nil {
			return c.Cluster, c.Node, nil
		}
	}
	return "", "", nil
}

// splitCheckpoints calls f with each checkpoint of a file of them. One that a crash has torn
// at the end is left out.
func splitCheckpoints(b []byte, f func(note []byte) error) error {
	rest := string(b)
	for rest != "" {
		body := strings.Index(rest, "\n\n")
		if body < 0 {
			return nil
		}
		end := strings.IndexByte(rest[body+2:], '\n')
		if end < 0 {
			return nil
		}
		end += body + 3
		if err := f([]byte(rest[:end])); err != nil {
			return err
		}
		rest = rest[end:]
	}
	return nil
}

// LastCheckpoint is the last checkpoint of a file of them, not verified, and at which byte it
// ends. What follows there is torn, or err says why it is none. The note is nil if there is none.
func LastCheckpoint(b []byte) (c Checkpoint, last []byte, whole int, err error) {
	at := 0
	split := splitCheckpoints(b, func(note []byte) error {
		at += len(note)
		p, bad := parseCheckpoint(note)
		if err = bad; bad == nil {
			c, last, whole = p, note, at
		}
		return nil
	})
	return c, last, whole, errors.Join(err, split)
}

// Checkpoints are the whole checkpoints of a file of them.
func Checkpoints(b []byte) (all [][]byte, err error) {
	err = splitCheckpoints(b, func(note []byte) error {
		all = append(all, note)
		return nil
	})
	return all, err
}

// CheckpointTimes are the times of the first and the last whole checkpoint of a file of them,
// not verified; zero if there are none.
func CheckpointTimes(b []byte) (first, last time.Time, err error) {
	all, err := Checkpoints(b)
	if err != nil || len(all) == 0 {
		return first, last, err
	}
	a, err := parseCheckpoint(all[0])
	if err != nil {
		return first, last, err
	}
	z, err := parseCheckpoint(all[len(all)-1])
	return a.Time, z.Time, err
}
