//go:build cgo

package p11

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// withTwin is a token with generations 1 and 2, a key under 1, and the twin of 1.
func withTwin(t *testing.T) (token string, p *Partition, ref hsm.Ref) {
	t.Helper()
	token = newToken(t)
	p = mustOpen(t, config(token))
	first, err := p.CreateDomain(t.Context(), testCluster, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateDomain(t.Context(), testCluster, 2); err != nil {
		t.Fatal(err)
	}
	spec := hsm.KeySpec{Cluster: testCluster, Generation: 1, Class: hsm.ClassAES, Key: hsm.ID{7}, Version: 1, Created: time.Unix(1, 0)}
	made, err := p.GenerateKey(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	want, err := spec.Header()
	if err != nil {
		t.Fatal(err)
	}
	transfer, err := p.NewTransfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustTrust(t, token, transfer.SPKI)
	message, err := p.Export(t.Context(), hsm.ExportRequest{
		Cluster: testCluster, Generation: 1, Donor: "a", Recipient: "a", Transfer: transfer, RecipientIdentity: p.Identity(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.InstallTwin(t.Context(), message, hsm.ImportExpectation{
		Cluster: testCluster, Donor: "a", Recipient: "a", DonorIdentity: p.Identity(), Generation: first,
	}); err != nil {
		t.Fatal(err)
	}
	return token, p, hsm.Ref{Token: made.Token, Want: want, Kind: spec.Kind()}
}

// TestTwinOutlivesTheProcess: a node that dies while it rewraps starts again, its
// self-test knows the twin, and it goes on.
func TestTwinOutlivesTheProcess(t *testing.T) {
	token, p, ref := withTwin(t)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = mustOpen(t, config(token))
	if twins, err := p.Twins(t.Context(), testCluster); err != nil || !slices.Equal(twins, []uint32{1}) {
		t.Fatalf("twins %v, %v", twins, err)
	}
	moved, err := p.Rewrap(t.Context(), ref, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hsm.Rewrapped(ref.Token, moved); err != nil {
		t.Error(err)
	}
}

// TestFalseTwin: what is named like a twin and is none keeps the partition from serving.
func TestFalseTwin(t *testing.T) {
	token := newToken(t)
	p := mustOpen(t, config(token))
	id := domainID{testCluster, 1}
	err := p.do(t.Context(), func(s *session) error {
		false1 := p.traits.twin(hsm.KeyKind(hsm.ClassEC), id.twinName(hsm.KeyKind(hsm.ClassEC)), true).with(flag(pkcs11.CKA_WRAP, true))
		_, err := s.generate(pkcs11.CKM_AES_KEY_GEN, false1.with(number(pkcs11.CKA_VALUE_LEN, hsm.DomainKeySize)))
		return err
	})
	if err = errors.Join(err, p.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), config(token))
	if !errors.Is(err, hsm.ErrSelfTest) || !strings.Contains(err.Error(), probeTemplates) || !strings.Contains(err.Error(), "/ec/twin") {
		t.Errorf("error %v", err)
	}
}

// TestWhatATwinAllows says what SoftHSM lets the holder of the PIN do with a twin, as
// SECURITY.md tells. The last step is the exposure of a ceremony.
func TestWhatATwinAllows(t *testing.T) {
	_, p, ref := withTwin(t)
	parsed, err := hsm.ParseToken(ref.Token)
	if err != nil {
		t.Fatal(err)
	}
	err = p.do(t.Context(), func(s *session) error {
		all, err := s.twins(testCluster)
		if err != nil {
			return err
		}
		twin := all[1][hsm.KeyKind(hsm.ClassAES)]
		next, err := p.domain(s, domainID{testCluster, 2})
		if err != nil {
			return err
		}
		known, err := s.create(known(pkcs11.CKK_AES, make([]byte, 32), pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP))
		if err != nil {
			return err
		}
		denied := func(what string, err error) {
			t.Helper()
			if err == nil {
				t.Errorf("the token allows %s", what)
			}
		}
		_, err = s.wrap(p.traits.keyWrap(), known, twin)
		denied("to wrap the twin out", err)
		_, err = s.wrap(p.traits.keyWrap(), next[hsm.KeyKind(hsm.ClassAES)], twin)
		denied("to wrap the twin under a domain key", err)
		_, err = s.wrap(p.traits.keyWrap(), twin, next[hsm.KeyKind(hsm.ClassAES)])
		denied("a twin to wrap", err)
		_, err = s.copied(twin, template{flag(pkcs11.CKA_EXTRACTABLE, true)})
		denied("to copy the twin", err)
		_, err = s.unwrap(p.traits.keyWrap(), twin, parsed.Wrapped, masterKey(true).with(flag(pkcs11.CKA_SENSITIVE, false)))
		denied("to unwrap a key readable", err)
		_, err = s.unwrap(p.traits.keyWrap(), twin, parsed.Wrapped, masterKey(true).with(flag(pkcs11.CKA_DECRYPT, true)))
		denied("to unwrap a key with another usage", err)

		// WRAP_WITH_TRUSTED on the keys would keep them from every key but a trusted one:
		// from the domain key too, which no Security Officer has made.
		bound, err := s.unwrap(p.traits.keyWrap(), twin, parsed.Wrapped, masterKey(true).with(flag(pkcs11.CKA_WRAP_WITH_TRUSTED, true)))
		if err != nil {
			return err
		}
		_, err = s.wrap(p.traits.keyWrap(), next[hsm.KeyKind(hsm.ClassAES)], bound)
		denied("a domain key to wrap what only trusted keys may", err)

		loose, err := s.unwrap(p.traits.keyWrap(), twin, parsed.Wrapped, masterKey(true))
		if err != nil {
			return err
		}
		out, err := s.wrap(p.traits.keyWrap(), known, loose)
		if err != nil {
			return err
		}
		stolen, err := s.unwrap(p.traits.keyWrap(), known, out, plain(pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT))
		if err != nil {
			return err
		}
		value, err := s.attribute(stolen, pkcs11.CKA_VALUE)
		if err != nil {
			return err
		}
		if len(value) != keySize || bytes.Equal(value, make([]byte, keySize)) {
			t.Errorf("the key that was taken out has %d bytes", len(value))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
