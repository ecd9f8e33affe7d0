package fsm

import (
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// Protection is where a key works; one level a key, for life.
type Protection string

// The protection levels. A rooted key derives the keys of its messages in the HSM, and the
// process encrypts. Keys that are not symmetric work in the HSM only, and have no other
// level than the first either.
const (
	ProtectionRooted   Protection = ""
	ProtectionResident Protection = "HSM_RESIDENT" // the HSM encrypts whole messages under the key itself
)

// Limits of the messages of one version of a resident key. They are encrypted under one
// AES-GCM key with random IVs of 96 bits: NIST SP 800-38D allows 2^32. What is counted is
// what nodes have reserved, so the count is never less than what was encrypted.
const (
	MaxMessages    = 1 << 31             // of one version
	RotateMessages = MaxMessages - 1<<27 // from here on the leader makes another version
	MaxReservation = 1 << 20             // in one command
)

// residentKind is the kind of the domain key that wraps resident keys. Generations that
// releases before have made lack it.
const residentKind = 6

// CauseLimit means: the version before had encrypted nearly as many messages as it may.
const CauseLimit VersionCause = "LIMIT"

// Resident tells whether the HSM encrypts whole messages under the key.
func (k *Key) Resident() bool { return k.Protection == ProtectionResident }

// CreateResidentKey makes a symmetric key that works in the HSM only, whose first version is
// already wrapped.
type CreateResidentKey struct {
	ID          ID     `json:"id"`
	Tenant      string `json:"tenant"`
	Description string `json:"description,omitempty"`
	Tags        []Tag  `json:"tags,omitempty"`
	Generation  uint32 `json:"generation"`
	Token       []byte `json:"token"` // of version 1
}

func (c *CreateResidentKey) validate() error {
	if c.ID == uuid.Nil {
		return invalid("key id is missing")
	}
	if err := validDescription(c.Description); err != nil {
		return err
	}
	if _, err := normalTags(c.Tags); err != nil {
		return err
	}
	return validToken(c.Token)
}

func (c *CreateResidentKey) apply(t *tx) (Result, error) {
	g, err := t.s.ActiveGeneration()
	if err != nil {
		return Result{}, err
	}
	if !slices.ContainsFunc(g.Checks, func(k DomainCheck) bool { return k.Kind == residentKind }) {
		return Result{}, fmt.Errorf("%w: generation %d of the domain key was made before there were keys of protection level %s and wraps none: rotate the domain key first, with kmsctl domain rotate",
			ErrGeneration, g.Number, ProtectionResident)
	}
	return t.createKey(&Key{
		ID: c.ID, Tenant: c.Tenant, Description: c.Description, Usage: UsageEncryptDecrypt, Spec: SpecSymmetric, Tags: c.Tags, Protection: ProtectionResident,
	}, KeyVersion{Version: 1, Generation: c.Generation, Token: c.Token})
}

// ReserveMessages lets the node that proposes it encrypt so many messages under a version.
// It is no change of the key to its administrators: the revision stays.
type ReserveMessages struct {
	VersionRef
	Count uint64 `json:"count"`
}

func (c *ReserveMessages) validate() error {
	if c.Count == 0 || c.Count > MaxReservation {
		return invalid("%d messages reserved: must be 1 to %d", c.Count, MaxReservation)
	}
	return c.VersionRef.validate()
}

func (c *ReserveMessages) apply(t *tx) (Result, error) {
	old, err := c.find(t)
	if err != nil {
		return Result{}, err
	}
	if err := old.Allows(OpSeal); err != nil {
		return Result{}, err
	}
	if !old.Resident() {
		return Result{}, fmt.Errorf("%w: key %s is not of protection level %s: its messages are not counted", ErrUnsupported, c.ID, ProtectionResident)
	}
	k := *old
	k.Versions = slices.Clone(k.Versions)
	v := k.Version(c.Version)
	if v == nil {
		return Result{}, fmt.Errorf("%w: key %s has no version %d", ErrNotFound, k.ID, c.Version)
	}
	if err := v.Usable(); err != nil {
		return Result{}, err
	}
	if v.Messages+c.Count > MaxMessages {
		return Result{}, fmt.Errorf("%w: version %d of key %s: %d messages are reserved, at most %d are encrypted under one version: rotate the key (the leader does as long as it can: see its log)",
			ErrMessages, v.Version, k.ID, v.Messages, uint64(MaxMessages))
	}
	v.Messages += c.Count
	t.keepKey(&k)
	return Result{ID: k.ID.String(), Version: v.Version}, nil
}

// LimitDue tells whether the key is rotated because of the messages that its current version
// has encrypted. One that nothing is encrypted under waits: a new version would end that.
func (k *Key) LimitDue() bool {
	if !k.Resident() || len(k.Versions) == 0 {
		return false
	}
	v := k.Current()
	return v.Messages >= RotateMessages && k.State == KeyEnabled && v.State == VersionEnabled && len(k.Versions) < MaxKeyVersions
}

// RotateKeyAtLimit adds a version because of the messages of the current one. It is done
// once: the new one has none.
type RotateKeyAtLimit struct {
	KeyRef
	Version    uint32 `json:"version"`
	Generation uint32 `json:"generation"`
	Token      []byte `json:"token"`
}

func (c *RotateKeyAtLimit) validate() error {
	if err := validToken(c.Token); err != nil {
		return err
	}
	return c.KeyRef.validate()
}

func (c *RotateKeyAtLimit) apply(t *tx) (Result, error) {
	return c.change(t, OpRotate, func(k *Key) error {
		if !k.LimitDue() {
			return fmt.Errorf("%w: key %s has no version that is near its limit of messages", ErrConflict, k.ID)
		}
		return t.addVersion(k, KeyVersion{Version: c.Version, Generation: c.Generation, Cause: CauseLimit, Token: c.Token})
	})
}

// countAnew has a new history take what is not known of the lost one for the most that is
// harmless: nodes may have reserved messages there that are in no count here. The leader
// rotates such keys at once.
func (t *tx) countAnew() {
	for _, item := range t.s.keys.all() {
		if !item.key.Resident() || item.key.Current().Messages >= RotateMessages {
			continue
		}
		k := *item.key
		k.Versions = slices.Clone(k.Versions)
		k.Current().Messages = RotateMessages
		t.keepKey(&k)
	}
}

// checkMessages checks what only resident keys have.
func (k *Key) checkMessages() error {
	switch k.Protection {
	case ProtectionRooted:
	case ProtectionResident:
		if k.Spec != SpecSymmetric || k.Service != "" {
			return fmt.Errorf("protection level %s of a key of spec %s, service %q", k.Protection, k.Spec, k.Service)
		}
	default:
		return fmt.Errorf("unknown protection level %q", k.Protection)
	}
	for _, v := range k.Versions {
		if v.Messages > MaxMessages || v.Messages > 0 && !k.Resident() {
			return fmt.Errorf("version %d with %d messages", v.Version, v.Messages)
		}
	}
	return nil
}
