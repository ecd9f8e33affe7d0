package kms

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of an encryption context.
const (
	MaxContextPairs = 64
	MaxContextBytes = 8 << 10 // in canonical form

	contextMagic    = "KEC1"
	reservedContext = "kms:"
)

// Pair is one pair of an encryption context.
type Pair struct{ Key, Value string }

// CanonicalContext encodes an encryption context as KEC1: "KEC1", the number of
// pairs u16, then the pairs sorted by the bytes of their keys, each as key length
// u16, key, value length u16, value; big-endian. Nothing is normalised. An empty
// context is "KEC1" and 0. ErrInvalid says what is wrong with a bad one.
func CanonicalContext(pairs []Pair) ([]byte, error) {
	if len(pairs) > MaxContextPairs {
		return nil, invalid("encryption context has %d pairs, at most %d", len(pairs), MaxContextPairs)
	}
	sorted := pairs
	if len(pairs) > 1 {
		sorted = slices.Clone(pairs)
		slices.SortFunc(sorted, func(a, b Pair) int { return cmp.Compare(a.Key, b.Key) })
	}
	size := len(contextMagic) + 2
	for i, p := range sorted {
		switch {
		case !utf8.ValidString(p.Key) || !utf8.ValidString(p.Value):
			return nil, invalid("encryption context is not valid UTF-8 (pair %.80q)", strings.ToValidUTF8(p.Key, "?"))
		case p.Key == "":
			return nil, invalid("encryption context has an empty key")
		case strings.HasPrefix(p.Key, reservedContext):
			return nil, invalid("encryption context key %.80q: the prefix %s is reserved", p.Key, reservedContext)
		case i > 0 && p.Key == sorted[i-1].Key:
			return nil, invalid("encryption context has the key %.80q twice", p.Key)
		}
		if size += 4 + len(p.Key) + len(p.Value); size > MaxContextBytes {
			return nil, invalid("encryption context is larger than %d bytes", MaxContextBytes)
		}
	}
	out := make([]byte, 0, size)
	out = append(out, contextMagic...)
	out = appendLength(out, len(sorted))
	for _, p := range sorted {
		out = append(appendLength(out, len(p.Key)), p.Key...)
		out = append(appendLength(out, len(p.Value)), p.Value...)
	}
	return out, nil
}

func appendLength(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint16(b, uint16(n)) //nolint:gosec // bounded by MaxContextBytes
}

// noContext is the hash of an empty encryption context.
var noContext = sha256.Sum256([]byte(contextMagic + "\x00\x00"))

// contextHash is H: what binds a ciphertext to its context.
func contextHash(pairs []Pair) ([32]byte, error) {
	if len(pairs) == 0 {
		return noContext, nil
	}
	canonical, err := CanonicalContext(pairs)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(canonical), nil
}

func contextMap(pairs []Pair) map[string]string {
	if len(pairs) == 0 {
		return nil
	}
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		m[p.Key] = p.Value
	}
	return m
}
