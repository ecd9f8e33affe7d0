package fsm

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// ID is the UUID of a customer master key or of the cluster.
type ID = uuid.UUID

// Limits of a key.
const (
	MaxDescription  = 8192      // characters
	MaxKeyVersions  = 1000      // versions of one key
	MaxToken        = 8192      // bytes of one wrapped key token
	MaxKeys         = 1_100_000 // keys of one cluster
	MinDeletionDays = 7         // shortest waiting period, days
	MaxDeletionDays = 30        // longest waiting period, days
	DefaultDeletion = 30        // days, where the caller names none
	secondsPerDay   = 86400     // of civil time; leap seconds do not matter here
)

// KeyState is the state of a customer master key.
type KeyState string

// The states of a key.
const (
	KeyEnabled         KeyState = "ENABLED"
	KeyDisabled        KeyState = "DISABLED"
	KeyPendingDeletion KeyState = "PENDING_DELETION"
)

// KeyUsage is what a key may be used for; one usage a key, for life.
type KeyUsage string

// UsageEncryptDecrypt is the usage of symmetric keys.
const UsageEncryptDecrypt KeyUsage = "ENCRYPT_DECRYPT"

// KeySpec is the kind of key material.
type KeySpec string

// SpecSymmetric is an AES-256 key.
const SpecSymmetric KeySpec = "SYMMETRIC"

// Origin says where the key material was made.
type Origin string

// OriginKMS means: generated in a node's HSM partition.
const OriginKMS Origin = "KMS"

// Manager says who manages the key.
type Manager string

// ManagerCustomer means: the tenant's key administrators.
const ManagerCustomer Manager = "CUSTOMER"

// VersionCause says why a key version was made.
type VersionCause string

// The causes of a version.
const (
	CauseCreated  VersionCause = "CREATED"
	CauseOnDemand VersionCause = "ON_DEMAND"
)

// Key is a customer master key. Records are immutable once published: a change
// makes a new one.
type Key struct {
	ID          ID           `json:"id"`
	Tenant      string       `json:"tenant"`
	Description string       `json:"description,omitempty"`
	State       KeyState     `json:"state"`
	Usage       KeyUsage     `json:"usage"`
	Spec        KeySpec      `json:"spec"`
	Origin      Origin       `json:"origin"`
	Manager     Manager      `json:"manager"`
	Created     int64        `json:"created"`            // unix seconds
	Deletion    int64        `json:"deletion,omitempty"` // unix seconds; set while pending deletion
	Revision    uint64       `json:"revision"`           // log index of the last change
	Tags        []Tag        `json:"tags,omitempty"`     // sorted by key
	Versions    []KeyVersion `json:"versions"`           // ascending; the last is the current one
}

// KeyVersion is one version of a key's material.
type KeyVersion struct {
	Version    uint32       `json:"version"`
	Generation uint32       `json:"generation"` // of the domain key that wraps the token
	Created    int64        `json:"created"`    // unix seconds
	Cause      VersionCause `json:"cause"`
	Token      []byte       `json:"token"` // KWT1, opaque here
}

// Current is the version that encrypts.
func (k *Key) Current() *KeyVersion { return &k.Versions[len(k.Versions)-1] }

// Version returns the version with that number, or nil.
func (k *Key) Version(n uint32) *KeyVersion {
	i, found := slices.BinarySearchFunc(k.Versions, n, func(v KeyVersion, n uint32) int {
		return int(int64(v.Version) - int64(n))
	})
	if !found {
		return nil
	}
	return &k.Versions[i]
}

// KeyOperation groups the operations that a key's state allows or forbids alike.
type KeyOperation int

// The groups of operations (semantics: state x operation).
const (
	OpUse            KeyOperation = iota // every cryptographic call
	OpEdit                               // alias to it, tag, untag, description
	OpEnableDisable                      // enable, disable
	OpRotate                             // rotation on demand
	OpSchedule                           // schedule deletion
	OpCancelDeletion                     // cancel deletion
)

// Allows is the one table of what a key's state allows: nil, or the sentinel of
// the state that forbids it.
func (k *Key) Allows(op KeyOperation) error {
	switch k.State {
	case KeyEnabled:
		if op == OpCancelDeletion {
			return fmt.Errorf("%w: %s", ErrNotPendingDeletion, k.ID)
		}
		return nil
	case KeyDisabled:
		switch op {
		case OpUse, OpRotate:
			return fmt.Errorf("%w: %s", ErrDisabled, k.ID)
		case OpCancelDeletion:
			return fmt.Errorf("%w: %s", ErrNotPendingDeletion, k.ID)
		case OpEdit, OpEnableDisable, OpSchedule:
			return nil
		}
	case KeyPendingDeletion:
		if op == OpCancelDeletion {
			return nil
		}
		return fmt.Errorf("%w: %s", ErrPendingDeletion, k.ID)
	}
	return fmt.Errorf("%w: key %s has the unknown state %q", ErrUnsupported, k.ID, k.State)
}

// CreateKey makes a key whose first version is already wrapped.
type CreateKey struct {
	ID          ID       `json:"id"`
	Tenant      string   `json:"tenant"`
	Description string   `json:"description,omitempty"`
	Usage       KeyUsage `json:"usage"`
	Spec        KeySpec  `json:"spec"`
	Tags        []Tag    `json:"tags,omitempty"`
	Version     uint32   `json:"version"`
	Generation  uint32   `json:"generation"`
	Token       []byte   `json:"token"`
}

func (c *CreateKey) validate() error {
	if c.ID == uuid.Nil {
		return invalid("key id is missing")
	}
	if c.Usage != UsageEncryptDecrypt || c.Spec != SpecSymmetric {
		return invalid("key spec %q with usage %q: only %s with %s is known", c.Spec, c.Usage, SpecSymmetric, UsageEncryptDecrypt)
	}
	if err := validDescription(c.Description); err != nil {
		return err
	}
	if _, err := normalTags(c.Tags); err != nil {
		return err
	}
	if c.Version != 1 {
		return invalid("first key version is %d, must be 1", c.Version)
	}
	return validToken(c.Token)
}

func (c *CreateKey) apply(t *tx) (Result, error) {
	if _, ok := t.s.Tenant(c.Tenant); !ok {
		return Result{}, fmt.Errorf("%w: tenant %q", ErrNotFound, c.Tenant)
	}
	if _, ok := t.s.Key(c.ID); ok {
		return Result{}, fmt.Errorf("%w: key %s", ErrExists, c.ID)
	}
	if t.s.KeyCount() >= MaxKeys {
		return Result{}, fmt.Errorf("%w: the cluster has %d keys", ErrLimit, MaxKeys)
	}
	if err := t.s.generationActive(c.Generation); err != nil {
		return Result{}, err
	}
	tags, err := normalTags(c.Tags)
	if err != nil {
		return Result{}, err
	}
	now := t.seconds()
	t.putKey(&Key{
		ID: c.ID, Tenant: c.Tenant, Description: c.Description,
		State: KeyEnabled, Usage: c.Usage, Spec: c.Spec, Origin: OriginKMS, Manager: ManagerCustomer,
		Created: now, Tags: tags,
		Versions: []KeyVersion{{Version: c.Version, Generation: c.Generation, Created: now, Cause: CauseCreated, Token: c.Token}},
	})
	return Result{ID: c.ID.String(), Version: c.Version}, nil
}

// KeyRef names the key a command changes, in which tenant, and the revision it
// expects: 0 expects none.
type KeyRef struct {
	ID     ID     `json:"id"`
	Tenant string `json:"tenant"`
	Expect uint64 `json:"expect,omitempty"`
}

func (r KeyRef) validate() error {
	if r.ID == uuid.Nil {
		return invalid("key id is missing")
	}
	return nil
}

// change loads the key, checks tenant, revision and state, lets f edit a copy and
// stores it.
func (r KeyRef) change(t *tx, op KeyOperation, f func(k *Key) error) (Result, error) {
	old, ok := t.s.Key(r.ID)
	if !ok || old.Tenant != r.Tenant {
		return Result{}, fmt.Errorf("%w: key %s", ErrNotFound, r.ID)
	}
	if r.Expect != 0 && r.Expect != old.Revision {
		return Result{}, fmt.Errorf("%w: key %s is at revision %d, expected %d", ErrConflict, r.ID, old.Revision, r.Expect)
	}
	if err := old.Allows(op); err != nil {
		return Result{}, err
	}
	k := *old
	if err := f(&k); err != nil {
		return Result{}, err
	}
	t.putKey(&k)
	return Result{ID: k.ID.String(), Version: k.Current().Version}, nil
}

// UpdateKeyDescription replaces the description.
type UpdateKeyDescription struct {
	KeyRef
	Description string `json:"description"`
}

func (c *UpdateKeyDescription) validate() error {
	if err := c.KeyRef.validate(); err != nil {
		return err
	}
	return validDescription(c.Description)
}

func (c *UpdateKeyDescription) apply(t *tx) (Result, error) {
	return c.change(t, OpEdit, func(k *Key) error {
		k.Description = c.Description
		return nil
	})
}

// EnableKey makes a disabled key usable; an enabled key stays as it is.
type EnableKey struct{ KeyRef }

func (c *EnableKey) apply(t *tx) (Result, error) { return c.setState(t, KeyEnabled) }

// DisableKey makes a key unusable until it is enabled again.
type DisableKey struct{ KeyRef }

func (c *DisableKey) apply(t *tx) (Result, error) { return c.setState(t, KeyDisabled) }

func (r KeyRef) setState(t *tx, s KeyState) (Result, error) {
	return r.change(t, OpEnableDisable, func(k *Key) error {
		k.State = s
		return nil
	})
}

// ScheduleKeyDeletion makes a key unusable at once and sets the date at which its
// material goes.
type ScheduleKeyDeletion struct {
	KeyRef
	Days uint32 `json:"days"` // 7..30
}

func (c *ScheduleKeyDeletion) validate() error {
	if c.Days < MinDeletionDays || c.Days > MaxDeletionDays {
		return invalid("waiting period of %d days: must be %d to %d", c.Days, MinDeletionDays, MaxDeletionDays)
	}
	return c.KeyRef.validate()
}

func (c *ScheduleKeyDeletion) apply(t *tx) (Result, error) {
	return c.change(t, OpSchedule, func(k *Key) error {
		k.State = KeyPendingDeletion
		k.Deletion = t.seconds() + int64(c.Days)*secondsPerDay
		return nil
	})
}

// CancelKeyDeletion takes a key back; it is Disabled afterwards.
type CancelKeyDeletion struct{ KeyRef }

func (c *CancelKeyDeletion) apply(t *tx) (Result, error) {
	return c.change(t, OpCancelDeletion, func(k *Key) error {
		k.State = KeyDisabled
		k.Deletion = 0
		return nil
	})
}

// RotateKey adds a version, which becomes the current one.
type RotateKey struct {
	KeyRef
	Version    uint32       `json:"version"` // must be the next: see NextVersion
	Generation uint32       `json:"generation"`
	Cause      VersionCause `json:"cause"`
	Token      []byte       `json:"token"`
}

func (c *RotateKey) validate() error {
	if c.Cause != CauseOnDemand {
		return invalid("rotation cause %q is unknown", c.Cause)
	}
	if err := validToken(c.Token); err != nil {
		return err
	}
	return c.KeyRef.validate()
}

func (c *RotateKey) apply(t *tx) (Result, error) {
	return c.change(t, OpRotate, func(k *Key) error {
		if err := t.s.generationActive(c.Generation); err != nil {
			return err
		}
		if want := t.s.NextVersion(k); c.Version != want {
			return fmt.Errorf("%w: key %s: version %d was made, %d is next", ErrConflict, k.ID, c.Version, want)
		}
		if len(k.Versions) >= MaxKeyVersions {
			return fmt.Errorf("%w: key %s has %d versions", ErrLimit, k.ID, len(k.Versions))
		}
		k.Versions = append(slices.Clip(k.Versions), KeyVersion{
			Version: c.Version, Generation: c.Generation, Created: t.seconds(), Cause: c.Cause, Token: c.Token,
		})
		return nil
	})
}

func validDescription(s string) error {
	if !utf8.ValidString(s) {
		return invalid("description is not valid UTF-8")
	}
	if n := utf8.RuneCountInString(s); n > MaxDescription {
		return invalid("description has %d characters, at most %d", n, MaxDescription)
	}
	return nil
}

func validToken(b []byte) error {
	if len(b) == 0 || len(b) > MaxToken {
		return invalid("wrapped key token of %d bytes: must be 1 to %d", len(b), MaxToken)
	}
	return nil
}

// ValidName tells whether s may name a tenant or a node: 1..64 of a-z, 0-9, dot,
// underscore, dash, beginning with a letter or digit (as in the identity's path).
func ValidName(s string) bool {
	if s == "" || len(s) > 64 || strings.IndexByte("._-", s[0]) >= 0 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("._-", c) < 0 {
			return false
		}
	}
	return true
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}
