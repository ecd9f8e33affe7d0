package kms

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// imports is a key of origin EXTERNAL, and what is brought to it.
type imports struct {
	*env
	key      string
	material []byte
}

func newImports(t *testing.T) *imports {
	e := newEnv(t)
	m, _, err := e.CreateKey(t.Context(), as(ada), KeyParams{Spec: fsm.SpecSymmetric, Origin: fsm.OriginExternal})
	e.ok(err)
	if m.State != fsm.KeyPendingImport {
		t.Errorf("a new key is %s", m.State)
	}
	x := &imports{e, m.Key.ID.String(), make([]byte, 32)}
	_, _ = rand.Read(x.material)
	return x
}

// wrap wraps material by OAEP with SHA-256.
func (x *imports) wrap(material []byte) Material {
	x.t.Helper()
	p, _, err := x.GetParametersForImport(x.t.Context(), as(ada), x.key, 2048, hsm.ImportOAEPSHA256)
	x.ok(err)
	public, err := x509.ParsePKIXPublicKey(p.Public)
	x.ok(err)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), material, nil)
	x.ok(err)
	return Material{Token: p.Token, Wrapped: wrapped}
}

func (x *imports) bring(m Material) error {
	return last(x.ImportKeyMaterial(x.t.Context(), as(ada), x.key, m, 0))
}

func TestImportTokenEnds(t *testing.T) {
	x := newImports(t)
	m := x.wrap(x.material)
	x.clock.advance(importValidity - time.Second)
	x.ok(x.bring(m))
	x.clock.advance(2 * time.Second)
	x.refused(x.bring(m), ErrImportToken, "it was good until")
	x.ok(x.bring(x.wrap(x.material)))
}

// TestImportExpiry: on this node's clock, before anybody has taken the material away.
func TestImportExpiry(t *testing.T) {
	x := newImports(t)
	m := x.wrap(x.material)
	m.Expires = x.clock.Now().Unix() + 100
	x.ok(x.bring(m))
	x.ok(x.encrypts(as(uma), x.key))
	blob := x.sealed(as(uma), x.key)
	x.clock.advance(99 * time.Second)
	x.ok(x.opens(as(uma), blob))
	x.clock.advance(time.Second)
	x.refused(x.opens(as(uma), blob), fsm.ErrPendingImport, x.key)
	x.refused(x.encrypts(as(uma), x.key), fsm.ErrPendingImport, x.key)
	d, _, err := x.DescribeKey(t.Context(), as(ada), x.key)
	x.ok(err)
	if d.State != fsm.KeyPendingImport || d.Key.State != fsm.KeyEnabled {
		t.Errorf("it is %s, its record %s", d.State, d.Key.State)
	}
	x.ok(x.bring(x.wrap(x.material))) // which brings it back before it went
	x.ok(x.opens(as(uma), blob))
}

// TestImportIsRepeated: a request id gives the first answer, and stands for its bytes.
func TestImportIsRepeated(t *testing.T) {
	x := newImports(t)
	m := x.wrap(x.material)
	c := as(ada)
	c.RequestID = "import"
	first, _, err := x.ImportKeyMaterial(t.Context(), c, x.key, m, 0)
	x.ok(err)
	x.clock.advance(2 * importValidity) // the token is too old, the answer is not
	again, _, err := x.ImportKeyMaterial(t.Context(), c, x.key, m, 0)
	x.ok(err)
	if first.ID != again.ID || first.Version != again.Version {
		t.Errorf("%+v, then %+v", first, again)
	}
	m.Wrapped[0] ^= 1
	_, _, err = x.ImportKeyMaterial(t.Context(), c, x.key, m, 0)
	x.refused(err, fsm.ErrRequestReused, "")
}

// TestImportChoosesTheVersion by what is missing.
func TestImportChoosesTheVersion(t *testing.T) {
	x := newImports(t)
	isNew := x.wrap(x.material)
	isNew.Type = ImportExisting
	x.refused(x.bring(isNew), fsm.ErrInvalid, "import it as new")
	isNew.Type = ImportNew
	x.ok(x.bring(isNew)) // the first is new as well
	next := x.wrap([]byte("another 32 bytes of key material"))
	next.Type = ImportNew
	x.ok(x.bring(next))
	x.ok(last(x.RotateKeyOnDemand(t.Context(), as(ada), x.key, 0)))
	x.ok(last(x.DeleteImportedKeyMaterial(t.Context(), as(ada), x.key, 1, 0)))
	r, _, err := x.ImportKeyMaterial(t.Context(), as(ada), x.key, x.wrap(x.material), 0)
	x.ok(err)
	if r.Version != 1 {
		t.Errorf("imported into version %d", r.Version)
	}
	x.refused(x.bring(x.wrap(x.material)), fsm.ErrMaterial, "version 2") // the current one
	x.ok(last(x.DeleteImportedKeyMaterial(t.Context(), as(ada), x.key, 0, 0)))
	if v := x.stored(x.key).Missing(0); v == nil || v.Version != 2 {
		t.Errorf("missing: %+v", v)
	}
	bad := x.wrap(x.material[:16])
	x.refused(x.bring(bad), ErrKeyMaterial, "does not unwrap")
	if err := x.bring(bad); errors.Is(err, hsm.ErrCiphertext) {
		t.Errorf("more is told: %v", err)
	}
}

// TestMaterialIsTakenAway by the leader, when its time is over.
func TestMaterialIsTakenAway(t *testing.T) {
	x := newImports(t)
	m := x.wrap(x.material)
	m.Expires = x.clock.Now().Unix() + 100
	x.ok(x.bring(m))
	k := x.stored(x.key)
	for at, want := range map[int64]string{m.Expires - 1: "", m.Expires: "ExpireKeyMaterial"} {
		name, c, err := x.dueCommand(t.Context(), x.log.State(), fsm.Due{At: m.Expires, ID: uuid.MustParse(x.key)}, time.Unix(at, 0), nil)
		x.ok(err)
		if name != want || want != "" && *c.(*fsm.ExpireKeyMaterial) != (fsm.ExpireKeyMaterial{KeyRef: fsm.KeyRef{ID: k.ID, Tenant: k.Tenant, Expect: k.Revision}, At: at}) {
			t.Errorf("at %d: %q, %+v", at, name, c)
		}
	}
}
