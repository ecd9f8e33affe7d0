package soft

import (
	"crypto/aes"
	"errors"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

// Tokens with a good MAC that are wrong inside: what a partition with the same
// domain key could make.
func TestOpenTokensWithAGoodMAC(t *testing.T) {
	p, err := Open(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := p.CreateDomain(t.Context(), hsm.ID{}, 1); err != nil {
		t.Fatal(err)
	}
	d := p.domain(hsm.ID{})
	wrap := func(class hsm.Class, key []byte) []byte {
		kek, err := aes.NewCipher(d.key(1, hsm.KeyKind(class)))
		if err != nil {
			t.Fatal(err)
		}
		return wrapKWP(kek, key)
	}
	raw := make([]byte, keySize)
	key, err := p.blockKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	base := hsm.TokenHeader{Class: hsm.ClassAES, Generation: 1, Key: hsm.ID{1}, Version: 1, Created: time.Unix(0, 0)}
	good, err := key.check(base)
	if err != nil {
		t.Fatal(err)
	}
	resident, imported, hmacKey := base, base, base
	resident.Class, resident.Attributes, imported.Attributes, hmacKey.Class = hsm.ClassResident, hsm.AttrResident, hsm.AttrImported, hsm.ClassHMAC

	for _, tc := range []struct {
		name    string
		header  hsm.TokenHeader
		check   [16]byte
		wrapped []byte
		want    error
	}{
		{"good", base, good, wrap(hsm.ClassAES, raw), nil},
		{"imported", imported, good, wrap(hsm.ClassAES, raw), nil},
		{"check value", base, [16]byte{1}, wrap(hsm.ClassAES, raw), hsm.ErrCorrupt},
		{"another key", base, good, wrap(hsm.ClassAES, append(raw[1:], 1)), hsm.ErrCorrupt},
		{"a short key", base, good, wrap(hsm.ClassAES, raw[:16]), hsm.ErrCorrupt},
		{"a long key", base, good, wrap(hsm.ClassAES, make([]byte, 40)), hsm.ErrCorrupt},
		{"under another class", base, good, wrap(hsm.ClassHMAC, raw), hsm.ErrCorrupt},
		{"noise", base, good, make([]byte, 40), hsm.ErrCorrupt},
		{"resident", resident, good, wrap(hsm.ClassResident, raw), hsm.ErrRefused},
		{"mac key", hmacKey, good, wrap(hsm.ClassHMAC, raw), hsm.ErrRefused},
	} {
		token, err := hsm.BuildToken(tc.header, tc.check, tc.wrapped, func(m []byte) ([]byte, error) {
			return mac(d.key(1, hsm.KindMAC), m), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		key, err := p.Open(t.Context(), token, tc.header)
		if !errors.Is(err, tc.want) || (key == nil) != (tc.want != nil) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}
