package fsm

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func keyOfSpec(n uint64, spec KeySpec, usage KeyUsage) *CreateKeyOfSpec {
	c := &CreateKeyOfSpec{ID: keyID(n), Tenant: DefaultTenant, Usage: usage, Spec: spec, Generation: 1, Token: []byte("token 1")}
	if spec.Pair() {
		c.Public = []byte("public 1")
	}
	return c
}

func TestKeyOfSpec(t *testing.T) {
	for spec, row := range keySpecs {
		for _, usage := range row.usages {
			w := oneKey(t)
			if spec == SpecSymmetric {
				continue
			}
			c := edited(keyOfSpec(2, spec, usage), func(c *CreateKeyOfSpec) { c.Tags = tags(0, 2) })
			if got := w.do(c); got != (Result{Index: 3, ID: keyID(2).String(), Version: 1}) {
				t.Errorf("%s: result %+v", spec, got)
			}
			want := &Key{
				ID: keyID(2), Tenant: DefaultTenant, State: "ENABLED", Usage: usage, Spec: spec, Origin: "KMS", Manager: "CUSTOMER",
				Created: start, Revision: 3, Tags: tags(0, 2),
				Versions: []KeyVersion{{Version: 1, Generation: 1, Created: start, Cause: "CREATED", Token: []byte("token 1"), Public: c.Public}},
			}
			if got := w.key(2); !reflect.DeepEqual(got, want) {
				t.Errorf("key is %+v, want %+v", got, want)
			}
			// What only symmetric keys know.
			for _, c := range []Command{
				rotateKey(2, 2), &EnableKeyRotation{ref(2), period}, &DisableKeyRotation{ref(2)}, &SetRequiredContext{ref(2), []string{"a"}},
			} {
				w.refuse(c, ErrUnsupported, string(spec))
			}
			// What all know, and what a state forbids comes first.
			w.do(&DisableKey{ref(2)})
			w.refuse(rotateKey(2, 2), ErrDisabled, "")
			w.do(&EnableKey{ref(2)})
			w.do(&SetKeyDecryptOnly{ref(2)})
			of := edited(createGrant(5, 2), func(c *CreateGrant) { c.Operations = []GrantOperation{GrantDescribeKey} })
			w.do(of)
			w.refuse(edited(of, func(c *CreateGrant) { c.Grant, c.Constraints.Subset = grantID(6), pairs("a") }), ErrUnsupported, string(spec))
			w.do(&DisableKeyVersion{version(2, 1)})
			w.do(&ScheduleKeyDeletion{ref(2), 7})
		}
	}
}

func TestKeyOfSpecRefused(t *testing.T) {
	ec := func(f func(*CreateKeyOfSpec)) *CreateKeyOfSpec {
		return edited(keyOfSpec(2, SpecP256, UsageSignVerify), f)
	}
	hmac := func(f func(*CreateKeyOfSpec)) *CreateKeyOfSpec { return edited(keyOfSpec(2, SpecHMAC256, UsageMac), f) }
	testAccepted(t, oneKey, []accepted{{"the longest public key", ec(func(c *CreateKeyOfSpec) { c.Public = bytes.Repeat([]byte{1}, MaxPublicKey) })}})
	testRefusals(t, oneKey, []refusal{
		{"no id", ec(func(c *CreateKeyOfSpec) { c.ID = ID{} }), ErrInvalid, "key id is missing"},
		{"id taken", ec(func(c *CreateKeyOfSpec) { c.ID = keyID(1) }), ErrExists, keyID(1).String()},
		{"no spec", ec(func(c *CreateKeyOfSpec) { c.Spec = "" }), ErrInvalid, `key spec "" is unknown`},
		{"unknown spec", ec(func(c *CreateKeyOfSpec) { c.Spec = "RSA_1024" }), ErrInvalid, `"RSA_1024" is unknown`},
		{"symmetric", ec(func(c *CreateKeyOfSpec) { c.Spec, c.Usage = SpecSymmetric, UsageEncryptDecrypt }), ErrInvalid, "made by CreateKey"},
		{"no usage", ec(func(c *CreateKeyOfSpec) { c.Spec, c.Usage = SpecRSA2048, "" }), ErrInvalid, "for SIGN_VERIFY or ENCRYPT_DECRYPT: name the usage"},
		{"EC that encrypts", ec(func(c *CreateKeyOfSpec) { c.Usage = UsageEncryptDecrypt }), ErrInvalid, "ECC_NIST_P256 are for SIGN_VERIFY, not for"},
		{"EC for MACs", ec(func(c *CreateKeyOfSpec) { c.Usage = UsageMac }), ErrInvalid, "SIGN_VERIFY"},
		{"RSA for MACs", ec(func(c *CreateKeyOfSpec) { c.Spec, c.Usage = SpecRSA2048, UsageMac }), ErrInvalid, "SIGN_VERIFY or ENCRYPT_DECRYPT"},
		{"HMAC that signs", hmac(func(c *CreateKeyOfSpec) { c.Usage = UsageSignVerify }), ErrInvalid, "GENERATE_VERIFY_MAC"},
		{"HMAC with a public key", hmac(func(c *CreateKeyOfSpec) { c.Public = []byte{1} }), ErrInvalid, "public key of 1 bytes"},
		{"no public key", ec(func(c *CreateKeyOfSpec) { c.Public = nil }), ErrInvalid, "public key of 0 bytes"},
		{"a long public key", ec(func(c *CreateKeyOfSpec) { c.Public = make([]byte, MaxPublicKey+1) }), ErrInvalid, "1 to 1024"},
		{"no token", ec(func(c *CreateKeyOfSpec) { c.Token = nil }), ErrInvalid, "token of 0 bytes"},
		{"a long description", ec(func(c *CreateKeyOfSpec) { c.Description = strings.Repeat("x", MaxDescription+1) }), ErrInvalid, "8193 characters"},
		{"too many tags", ec(func(c *CreateKeyOfSpec) { c.Tags = tags(0, 51) }), ErrInvalid, "51 tags given"},
		{"no tenant", ec(func(c *CreateKeyOfSpec) { c.Tenant = "acme" }), ErrNotFound, `tenant "acme"`},
		{"other generation", ec(func(c *CreateKeyOfSpec) { c.Generation = 2 }), ErrConflict, "generation 1 is active, not 2"},
	})
}
