package fsm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// KeyUsage is what a key may be used for; one usage a key, for life.
type KeyUsage string

// The usages.
const (
	UsageEncryptDecrypt KeyUsage = "ENCRYPT_DECRYPT"
	UsageSignVerify     KeyUsage = "SIGN_VERIFY"
	UsageMac            KeyUsage = "GENERATE_VERIFY_MAC"
)

// KeySpec is the kind of key material.
type KeySpec string

// The specs. SpecSymmetric is an AES-256 key, the HMAC keys have as many bits as the hash
// that is named, the others are pairs.
const (
	SpecSymmetric KeySpec = "SYMMETRIC"
	SpecHMAC256   KeySpec = "HMAC_256"
	SpecHMAC384   KeySpec = "HMAC_384"
	SpecHMAC512   KeySpec = "HMAC_512"
	SpecRSA2048   KeySpec = "RSA_2048"
	SpecRSA3072   KeySpec = "RSA_3072"
	SpecRSA4096   KeySpec = "RSA_4096"
	SpecP256      KeySpec = "ECC_NIST_P256"
	SpecP384      KeySpec = "ECC_NIST_P384"
)

// MaxPublicKey is the size of a pair's public half, DER SubjectPublicKeyInfo, in bytes:
// more than RSA of 4,096 bits needs.
const MaxPublicKey = 1024

// keySpecs is the one table of the specs: their usages, and whether they are pairs.
var keySpecs = map[KeySpec]struct {
	usages []KeyUsage
	pair   bool
}{
	SpecSymmetric: {[]KeyUsage{UsageEncryptDecrypt}, false},
	SpecHMAC256:   {[]KeyUsage{UsageMac}, false},
	SpecHMAC384:   {[]KeyUsage{UsageMac}, false},
	SpecHMAC512:   {[]KeyUsage{UsageMac}, false},
	SpecRSA2048:   {[]KeyUsage{UsageSignVerify, UsageEncryptDecrypt}, true},
	SpecRSA3072:   {[]KeyUsage{UsageSignVerify, UsageEncryptDecrypt}, true},
	SpecRSA4096:   {[]KeyUsage{UsageSignVerify, UsageEncryptDecrypt}, true},
	SpecP256:      {[]KeyUsage{UsageSignVerify}, true},
	SpecP384:      {[]KeyUsage{UsageSignVerify}, true},
}

// Usages are what keys of the spec may be used for: one of them each. None: the spec is
// unknown.
func (s KeySpec) Usages() []KeyUsage { return slices.Clone(keySpecs[s].usages) }

// Pair tells whether keys of the spec have a public half.
func (s KeySpec) Pair() bool { return keySpecs[s].pair }

func validKind(spec KeySpec, usage KeyUsage) error {
	usages := keySpecs[spec].usages
	if usages == nil {
		return invalid("key spec %.80q is unknown", spec)
	}
	if slices.Contains(usages, usage) {
		return nil
	}
	var names []string
	for _, u := range usages {
		names = append(names, string(u))
	}
	if usage == "" {
		return invalid("keys of spec %s are for %s: name the usage", spec, strings.Join(names, " or "))
	}
	return invalid("keys of spec %s are for %s, not for %.80q", spec, strings.Join(names, " or "), usage)
}

// symmetric refuses what only symmetric keys know.
func (k *Key) symmetric(what string) error {
	if k.Spec == SpecSymmetric {
		return nil
	}
	return fmt.Errorf("%w: %s is for keys of spec %s; key %s is %s", ErrUnsupported, what, SpecSymmetric, k.ID, k.Spec)
}

// checkKind checks a record against what keys of its spec can have.
func (k *Key) checkKind() error {
	if err := validKind(k.Spec, k.Usage); err != nil {
		return err
	}
	for _, v := range k.Versions {
		if err := validPublic(k.Spec, v.Public); err != nil {
			return err
		}
	}
	if k.Rotation != nil || len(k.Versions) > 1 || k.Required != nil || k.Service != "" {
		return k.symmetric("what the key has")
	}
	return nil
}

// CreateKeyOfSpec makes a key of another spec than SYMMETRIC, whose only version is
// already wrapped. (Those of that spec are made by the command of the first release, which
// clusters that are not upgraded know.)
type CreateKeyOfSpec struct {
	ID          ID       `json:"id"`
	Tenant      string   `json:"tenant"`
	Description string   `json:"description,omitempty"`
	Usage       KeyUsage `json:"usage"`
	Spec        KeySpec  `json:"spec"`
	Tags        []Tag    `json:"tags,omitempty"`
	Generation  uint32   `json:"generation"`
	Token       []byte   `json:"token"`            // of version 1
	Public      []byte   `json:"public,omitempty"` // of a pair: DER SubjectPublicKeyInfo
}

func (c *CreateKeyOfSpec) validate() error {
	if c.ID == uuid.Nil {
		return invalid("key id is missing")
	}
	if err := validKind(c.Spec, c.Usage); err != nil {
		return err
	}
	if c.Spec == SpecSymmetric {
		return invalid("keys of spec %s are made by CreateKey", c.Spec)
	}
	if err := validDescription(c.Description); err != nil {
		return err
	}
	if _, err := normalTags(c.Tags); err != nil {
		return err
	}
	if err := validPublic(c.Spec, c.Public); err != nil {
		return err
	}
	return validToken(c.Token)
}

func validPublic(spec KeySpec, public []byte) error {
	if spec.Pair() != (len(public) > 0) || len(public) > MaxPublicKey {
		return invalid("public key of %d bytes with a key of spec %s: pairs have one of 1 to %d, other keys none", len(public), spec, MaxPublicKey)
	}
	return nil
}

func (c *CreateKeyOfSpec) apply(t *tx) (Result, error) {
	return t.createKey(&Key{ID: c.ID, Tenant: c.Tenant, Description: c.Description, Usage: c.Usage, Spec: c.Spec, Tags: c.Tags},
		KeyVersion{Version: 1, Generation: c.Generation, Token: c.Token, Public: c.Public})
}
