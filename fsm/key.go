package fsm

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
	"unique"

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

// The states of a key. DecryptOnly behaves as Enabled, but nothing new is encrypted.
const (
	KeyEnabled         KeyState = "ENABLED"
	KeyDisabled        KeyState = "DISABLED"
	KeyPendingDeletion KeyState = "PENDING_DELETION"
	KeyDecryptOnly     KeyState = "DECRYPT_ONLY"
)

// Origin says where the key material was made.
type Origin string

// OriginKMS means: generated in a node's HSM partition.
const OriginKMS Origin = "KMS"

// Manager says who manages the key.
type Manager string

// The managers of keys.
const (
	ManagerCustomer Manager = "CUSTOMER" // the tenant's key administrators
	ManagerService  Manager = "SERVICE"  // a storage service, for that tenant
)

// VersionCause says why a key version was made.
type VersionCause string

// The causes of a version.
const (
	CauseCreated  VersionCause = "CREATED"
	CauseOnDemand VersionCause = "ON_DEMAND"
	CauseSchedule VersionCause = "SCHEDULE"
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
	Versions    []KeyVersion `json:"versions"`           // ascending; see Current
	Service     string       `json:"service,omitempty"`  // name of the service that manages it
	Rotation    *Rotation    `json:"rotation,omitempty"` // nil: it is not rotated by itself
	Protected   bool         `json:"protected,omitempty"`
	Required    []string     `json:"required,omitempty"` // keys that every encryption context must have, sorted
	Policy      uint32       `json:"policy,omitempty"`   // number of its present policy; 0: none
	Protection  Protection   `json:"protection,omitempty"`
}

// KeyVersion is one version of a key's material.
type KeyVersion struct {
	Version    uint32       `json:"version"`
	Generation uint32       `json:"generation"` // of the domain key that wraps the token
	Created    int64        `json:"created"`    // unix seconds
	Cause      VersionCause `json:"cause"`
	Token      []byte       `json:"token"`              // KWT1, opaque here; nil once destroyed, or while there is no material
	State      VersionState `json:"state,omitempty"`    // empty: enabled
	Destroy    int64        `json:"destroy,omitempty"`  // unix seconds: when it is to be destroyed, or was
	Public     []byte       `json:"public,omitempty"`   // of a pair: DER SubjectPublicKeyInfo, which the token's check value names
	Messages   uint64       `json:"messages,omitempty"` // of a resident key: reserved by nodes so far
	Import     *Import      `json:"import,omitempty"`   // of a key of origin EXTERNAL, whose token may be missing
}

// Current is the version that encrypts: the last one, but for imported material that waits
// for the key's rotation.
func (k *Key) Current() *KeyVersion {
	if k.Waiting() != nil {
		return &k.Versions[len(k.Versions)-2]
	}
	return &k.Versions[len(k.Versions)-1]
}

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
	OpOpen           KeyOperation = iota // every cryptographic call that makes nothing new: Decrypt, Verify, …
	OpSeal                               // Encrypt, GenerateDataKey, Sign, …
	OpGrant                              // create a grant
	OpEdit                               // alias to it, tags, description, versions, protection, resources, required context
	OpEnable                             // enable
	OpDisable                            // disable
	OpDecryptOnly                        // set decrypt only
	OpRotate                             // rotation on demand
	OpRotation                           // the schedule of rotations
	OpImport                             // import of material
	OpSchedule                           // schedule deletion
	OpCancelDeletion                     // cancel deletion
)

// forbidden is the one table of what a key's state forbids: the sentinel of the state, or
// nil. What is not in a state's row is allowed in it.
var forbidden = map[KeyState]map[KeyOperation]error{
	KeyEnabled: {OpCancelDeletion: ErrNotPendingDeletion},
	KeyDecryptOnly: {
		OpSeal: ErrDecryptOnly, OpRotate: ErrDecryptOnly, OpRotation: ErrDecryptOnly,
		OpCancelDeletion: ErrNotPendingDeletion,
	},
	KeyDisabled: {
		OpOpen: ErrDisabled, OpSeal: ErrDisabled, OpGrant: ErrDisabled, OpRotate: ErrDisabled, OpRotation: ErrDisabled, OpDecryptOnly: ErrDisabled,
		OpCancelDeletion: ErrNotPendingDeletion,
	},
	KeyPendingDeletion: {
		OpOpen: ErrPendingDeletion, OpSeal: ErrPendingDeletion, OpGrant: ErrPendingDeletion, OpEdit: ErrPendingDeletion,
		OpEnable: ErrPendingDeletion, OpDisable: ErrPendingDeletion, OpDecryptOnly: ErrPendingDeletion,
		OpRotate: ErrPendingDeletion, OpRotation: ErrPendingDeletion, OpImport: ErrPendingDeletion, OpSchedule: ErrPendingDeletion,
	},
	KeyPendingImport: {
		OpOpen: ErrPendingImport, OpSeal: ErrPendingImport, OpGrant: ErrPendingImport, OpEnable: ErrPendingImport,
		OpDisable: ErrPendingImport, OpDecryptOnly: ErrPendingImport, OpRotate: ErrPendingImport, OpRotation: ErrUnsupported,
		OpCancelDeletion: ErrNotPendingDeletion,
	},
}

// Allows tells whether a key's state allows an operation: nil, or the sentinel of the
// state that forbids it.
func (k *Key) Allows(op KeyOperation) error { return k.AllowsAt(op, 0) }

// AllowsAt is Allows at a time (unix seconds), on which it depends whether imported
// material is there; at 0 it is if it was not taken away yet.
func (k *Key) AllowsAt(op KeyOperation, at int64) error {
	row, known := forbidden[k.Condition(at)]
	if !known || op < 0 || op > OpCancelDeletion {
		return fmt.Errorf("%w: operation %d on key %s in state %q", ErrUnsupported, op, k.ID, k.State)
	}
	if why := row[op]; why != nil {
		return fmt.Errorf("%w: %s", why, k.ID)
	}
	return nil
}

// manageable refuses what a tenant may not do with a key that a service manages: it may
// rotate it, and enable what a restore has disabled.
func (k *Key) manageable(op KeyOperation) error {
	if k.Manager != ManagerService || op == OpRotate || op == OpRotation || op == OpEnable {
		return nil
	}
	return fmt.Errorf("%w: %s belongs to service %s", ErrServiceManaged, k.ID, k.Service)
}

// CreateKey makes a symmetric key whose first version is already wrapped.
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
	if err := validKind(c.Spec, c.Usage); err != nil {
		return err
	}
	if c.Spec != SpecSymmetric {
		return invalid("key spec %q: CreateKey makes %s keys", c.Spec, SpecSymmetric)
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
	return t.createKey(&Key{ID: c.ID, Tenant: c.Tenant, Description: c.Description, Usage: c.Usage, Spec: c.Spec, Tags: c.Tags},
		KeyVersion{Version: c.Version, Generation: c.Generation, Token: c.Token})
}

// createKey makes a key of a customer's, of its first version.
func (t *tx) createKey(k *Key, first KeyVersion) (Result, error) {
	tenant, ok := t.s.Tenant(k.Tenant)
	if !ok {
		return Result{}, fmt.Errorf("%w: tenant %q", ErrNotFound, k.Tenant)
	}
	if _, ok := t.s.Key(k.ID); ok {
		return Result{}, fmt.Errorf("%w: key %s", ErrExists, k.ID)
	}
	if err := t.s.roomForKey(k.Tenant); err != nil {
		return Result{}, err
	}
	if k.Origin == "" {
		k.Origin = OriginKMS
		if err := t.s.generationActive(first.Generation); err != nil {
			return Result{}, err
		}
	}
	tags, err := normalTags(k.Tags)
	if err != nil {
		return Result{}, err
	}
	first.Created, first.Cause = t.seconds(), CauseCreated
	k.Tenant, k.State, k.Usage, k.Spec, k.Origin, k.Manager = tenant.Name, KeyEnabled, once(k.Usage), once(k.Spec), once(k.Origin), ManagerCustomer
	k.Protection = once(k.Protection)
	k.Created, k.Tags, k.Versions = first.Created, tags, []KeyVersion{first}
	t.putKey(k)
	return Result{ID: k.ID.String(), Version: first.Version}, nil
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

// find loads the key and checks tenant and revision.
func (r KeyRef) find(t *tx) (*Key, error) {
	k, ok := t.s.Key(r.ID)
	if !ok || k.Tenant != r.Tenant {
		return nil, fmt.Errorf("%w: key %s", ErrNotFound, r.ID)
	}
	if r.Expect != 0 && r.Expect != k.Revision {
		return nil, fmt.Errorf("%w: key %s is at revision %d, expected %d", ErrConflict, r.ID, k.Revision, r.Expect)
	}
	return k, nil
}

// change finds the key, checks its state, lets f edit a copy and stores it.
func (r KeyRef) change(t *tx, op KeyOperation, f func(k *Key) error) (Result, error) {
	old, err := r.find(t)
	if err != nil {
		return Result{}, err
	}
	if err := old.AllowsAt(op, t.seconds()); err != nil {
		return Result{}, err
	}
	if err := old.manageable(op); err != nil {
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

func (c *EnableKey) apply(t *tx) (Result, error) { return c.setState(t, OpEnable, KeyEnabled) }

// DisableKey makes a key unusable until it is enabled again.
type DisableKey struct{ KeyRef }

func (c *DisableKey) apply(t *tx) (Result, error) { return c.setState(t, OpDisable, KeyDisabled) }

// SetKeyDecryptOnly lets an enabled key open what it has sealed, and nothing more.
// EnableKey and DisableKey end it.
type SetKeyDecryptOnly struct{ KeyRef }

func (c *SetKeyDecryptOnly) apply(t *tx) (Result, error) {
	return c.setState(t, OpDecryptOnly, KeyDecryptOnly)
}

func (r KeyRef) setState(t *tx, op KeyOperation, s KeyState) (Result, error) {
	return r.change(t, op, func(k *Key) error {
		k.State = s
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

// once keeps a text that many records have in memory once.
func once[T ~string](text T) T { return T(unique.Make(string(text)).Value()) }

// shareTexts keeps what many keys have in memory once. The key is one that nobody
// else sees yet.
func (k *Key) shareTexts() {
	k.Tenant, k.State, k.Usage, k.Spec, k.Origin, k.Manager = once(k.Tenant), once(k.State), once(k.Usage), once(k.Spec), once(k.Origin), once(k.Manager)
	k.Protection = once(k.Protection)
	for i := range k.Versions {
		k.Versions[i].Cause = once(k.Versions[i].Cause)
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}
