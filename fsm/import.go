package fsm

import (
	"crypto/hmac"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Keys of origin EXTERNAL are made without material, which their owner imports, version by
// version. It can be taken away again, by hand or by its date, and come back: the same
// bytes only, so that what a version has sealed opens with it or with nothing. A key one of
// whose versions lacks its material is pending import as a whole, as in AWS KMS: who wants
// to be rid of an old version alone has it destroyed. That is no state of the record, which
// keeps its own: a key that was disabled is, when its material comes back.

// OriginExternal means: imported by the key's owner.
const OriginExternal Origin = "EXTERNAL"

// KeyPendingImport is the condition of a key that lacks material. No record has it.
const KeyPendingImport KeyState = "PENDING_IMPORT"

// VersionPendingRotation is the state of a version whose material was imported, and which
// becomes the current one when the key is rotated. It is the last version.
const VersionPendingRotation VersionState = "PENDING_ROTATION"

// Limits of imported material.
const (
	MaxImportDays          = 365                           // days until it ends, at most
	MaxImportSeconds       = MaxImportDays * secondsPerDay // the same
	MaxMaterialDescription = 256                           // characters
	checkSize              = 16                            // bytes of what identifies material
)

// Import is what is known of a version's material in a key of origin EXTERNAL.
type Import struct {
	Check       []byte `json:"check,omitempty"`   // identifies the material, and tells nothing else of it; nil: there never was any
	At          int64  `json:"at,omitempty"`      // unix seconds: when it was last imported
	Expires     int64  `json:"expires,omitempty"` // unix seconds: when it is taken away; 0: never
	Description string `json:"description,omitempty"`
}

// Condition is the state in which a key is at a time (unix seconds): its record's, or
// KeyPendingImport.
func (k *Key) Condition(at int64) KeyState {
	if k.Origin == OriginExternal && k.State != KeyPendingDeletion && k.Missing(at) != nil {
		return KeyPendingImport
	}
	return k.State
}

// Missing is the first version that lacks its material at a time (unix seconds); nil if
// none does. One that is destroyed, or is to be, is not missed.
func (k *Key) Missing(at int64) *KeyVersion {
	i := slices.IndexFunc(k.Versions, func(v KeyVersion) bool { return v.Missing(at) })
	if i < 0 {
		return nil
	}
	return &k.Versions[i]
}

// Missing tells whether the version lacks its material at a time (unix seconds).
func (v *KeyVersion) Missing(at int64) bool {
	return v.Import != nil && (v.State == VersionEnabled || v.State == VersionDisabled) && (v.Token == nil || v.expired(at))
}

// expired tells whether material that is there ought not to be at a time.
func (v *KeyVersion) expired(at int64) bool {
	return v.Import != nil && v.Token != nil && v.Import.Expires != 0 && v.Import.Expires <= at
}

// ExpiryDue tells whether material is to be taken away at a time (unix seconds).
func (k *Key) ExpiryDue(at int64) bool {
	return slices.ContainsFunc(k.Versions, func(v KeyVersion) bool { return v.expired(at) })
}

// Waiting is the version whose material waits for the key's rotation; nil if there is none.
func (k *Key) Waiting() *KeyVersion {
	if last := &k.Versions[len(k.Versions)-1]; last.State == VersionPendingRotation {
		return last
	}
	return nil
}

// external refuses keys whose material is not imported.
func (k *Key) external() error {
	if k.Origin == OriginExternal {
		return nil
	}
	return fmt.Errorf("%w: key %s is of origin %s: material is imported into keys of origin %s", ErrUnsupported, k.ID, k.Origin, OriginExternal)
}

// Imported tells whether material of keys of the spec can be imported.
func (s KeySpec) Imported() bool {
	switch s {
	case SpecSymmetric, SpecHMAC256, SpecHMAC384, SpecHMAC512:
		return true
	default:
		return false
	}
}

// CreateExternalKey makes a key without material.
type CreateExternalKey struct {
	ID          ID       `json:"id"`
	Tenant      string   `json:"tenant"`
	Description string   `json:"description,omitempty"`
	Usage       KeyUsage `json:"usage"`
	Spec        KeySpec  `json:"spec"`
	Tags        []Tag    `json:"tags,omitempty"`
}

func (c *CreateExternalKey) validate() error {
	if c.ID == uuid.Nil {
		return invalid("key id is missing")
	}
	if err := validKind(c.Spec, c.Usage); err != nil {
		return err
	}
	if err := validDescription(c.Description); err != nil {
		return err
	}
	_, err := normalTags(c.Tags)
	return err
}

func (c *CreateExternalKey) apply(t *tx) (Result, error) {
	if !c.Spec.Imported() {
		return Result{}, fmt.Errorf("%w: material of keys of spec %s is not imported: that of SYMMETRIC and HMAC keys is", ErrUnsupported, c.Spec)
	}
	return t.createKey(&Key{ID: c.ID, Tenant: c.Tenant, Description: c.Description, Usage: c.Usage, Spec: c.Spec, Origin: OriginExternal, Tags: c.Tags},
		KeyVersion{Version: 1, Import: &Import{}})
}

// ImportKeyMaterial gives a version its material: one that lacks it, or has it, the same
// bytes as ever; or a new one, which waits for the key's rotation. It only adds: material
// that is there is not made to end earlier (delete it first).
type ImportKeyMaterial struct {
	KeyRef
	Version     uint32 `json:"version"` // one of the key's, or the next: see NextVersion
	Generation  uint32 `json:"generation"`
	Token       []byte `json:"token"`
	Check       []byte `json:"check"`             // of the token, 16 bytes
	Expires     int64  `json:"expires,omitempty"` // unix seconds; 0: never
	Description string `json:"description,omitempty"`
}

func (c *ImportKeyMaterial) validate() error {
	switch n := utf8.RuneCountInString(c.Description); {
	case c.Version == 0:
		return invalid("key version is missing: versions count from 1")
	case len(c.Check) != checkSize:
		return invalid("check value of %d bytes, must be %d", len(c.Check), checkSize)
	case c.Expires < 0 || c.Expires > maxTime:
		return invalid("the material would end at %d", c.Expires)
	case !utf8.ValidString(c.Description) || n > MaxMaterialDescription:
		return invalid("description of the material has %d characters: must be at most %d of valid UTF-8", n, MaxMaterialDescription)
	}
	if err := validToken(c.Token); err != nil {
		return err
	}
	return c.KeyRef.validate()
}

func (c *ImportKeyMaterial) apply(t *tx) (Result, error) {
	r, err := c.change(t, OpImport, func(k *Key) error {
		if err := k.external(); err != nil {
			return err
		}
		if now := t.seconds(); c.Expires != 0 && (c.Expires <= now || c.Expires > now+MaxImportSeconds) {
			return invalid("the material would end at %d, it is %d: must be later, and by at most %d days", c.Expires, now, MaxImportDays)
		}
		if err := t.s.generationActive(c.Generation); err != nil {
			return err
		}
		k.Versions = slices.Clone(k.Versions)
		v := k.Version(c.Version)
		if v == nil {
			if err := c.addTo(t, k); err != nil {
				return err
			}
			v = k.Version(c.Version)
		} else if err := c.fits(k, v); err != nil {
			return err
		}
		v.Generation, v.Token = c.Generation, c.Token
		v.Import = &Import{Check: c.Check, At: t.seconds(), Expires: c.Expires, Description: c.Description}
		return nil
	})
	if err == nil {
		r.Version = c.Version
	}
	return r, err
}

// addTo adds a version that waits for the key's rotation.
func (c *ImportKeyMaterial) addTo(t *tx, k *Key) error {
	if err := k.symmetric("rotation"); err != nil {
		return err
	}
	if v := k.Missing(t.seconds()); v != nil {
		return fmt.Errorf("%w: version %d of key %s lacks its material: import that first", ErrPendingImport, v.Version, k.ID)
	}
	if v := k.Waiting(); v != nil {
		return fmt.Errorf("%w: version %d of key %s waits for the rotation: rotate the key, or delete that material", ErrExists, v.Version, k.ID)
	}
	if err := t.addVersion(k, KeyVersion{Version: c.Version, Generation: c.Generation, Cause: CauseOnDemand, Token: c.Token}); err != nil {
		return err
	}
	k.Versions[len(k.Versions)-1].State = VersionPendingRotation
	return nil
}

// fits refuses material for a version that is there.
func (c *ImportKeyMaterial) fits(k *Key, v *KeyVersion) error {
	switch v.State {
	case VersionDestroyScheduled:
		return v.goes(k)
	case VersionDestroyed:
		return v.Usable()
	case VersionEnabled, VersionDisabled, VersionPendingRotation:
	}
	had := v.Import
	if len(had.Check) > 0 && !hmac.Equal(had.Check, c.Check) {
		return fmt.Errorf("%w: version %d of key %s takes the bytes back that it had, and no other", ErrMaterial, v.Version, k.ID)
	}
	if v.Token != nil && c.Expires != 0 && (had.Expires == 0 || c.Expires < had.Expires) {
		return invalid("version %d of key %s has its material, and it would end earlier: delete it first", v.Version, k.ID)
	}
	return nil
}

// RotateToImported makes the version that waits the current one.
type RotateToImported struct {
	KeyRef
	Version uint32 `json:"version"`
}

func (c *RotateToImported) validate() error { return VersionRef{c.KeyRef, c.Version}.validate() }

func (c *RotateToImported) apply(t *tx) (Result, error) {
	return c.change(t, OpRotate, func(k *Key) error {
		if err := k.external(); err != nil {
			return err
		}
		v := k.Waiting()
		if v == nil || v.Version != c.Version || v.expired(t.seconds()) {
			return fmt.Errorf("%w: key %s rotates to material that was imported, and none waits as version %d: import new material first", ErrUnsupported, k.ID, c.Version)
		}
		k.Versions = slices.Clone(k.Versions)
		v = k.Waiting()
		v.State, v.Created = VersionEnabled, t.seconds()
		return nil
	})
}

// DeleteKeyMaterial takes a version's material away: at once, whatever the key's state. It
// changes nothing where there is none.
type DeleteKeyMaterial struct{ VersionRef }

func (c *DeleteKeyMaterial) apply(t *tx) (Result, error) {
	old, err := c.find(t)
	if err != nil {
		return Result{}, err
	}
	if err := old.external(); err != nil {
		return Result{}, err
	}
	v := old.Version(c.Version)
	if v == nil {
		return Result{}, fmt.Errorf("%w: key %s has no version %d", ErrNotFound, c.ID, c.Version)
	}
	if v.Token == nil {
		return Result{ID: old.ID.String(), Version: c.Version}, nil
	}
	r, err := t.takeMaterial(old, func(v KeyVersion) bool { return v.Version == c.Version })
	r.Version = c.Version
	return r, err
}

// takeMaterial takes the material of some versions away. Nothing was sealed under one that
// waits for the rotation: it goes as a whole.
func (t *tx) takeMaterial(old *Key, of func(KeyVersion) bool) (Result, error) {
	k := *old
	k.Versions = slices.Clone(k.Versions)
	k.Versions = slices.DeleteFunc(k.Versions, func(v KeyVersion) bool { return v.State == VersionPendingRotation && of(v) })
	for i := range k.Versions {
		if v := &k.Versions[i]; of(*v) {
			v.loseMaterial()
		}
	}
	t.putKey(&k)
	return Result{ID: k.ID.String(), Version: k.Current().Version}, nil
}

// loseMaterial takes the token away; what was imported ends no more.
func (v *KeyVersion) loseMaterial() {
	v.Token = nil
	if v.Import != nil {
		had := *v.Import
		had.Expires = 0
		v.Import = &had
	}
}

// ExpireKeyMaterial takes the material of every version away whose time is over.
type ExpireKeyMaterial struct {
	KeyRef
	At int64 `json:"at"` // unix seconds: what the clocks of a majority have reached
}

func (c *ExpireKeyMaterial) apply(t *tx) (Result, error) {
	k, err := c.find(t)
	if err != nil {
		return Result{}, err
	}
	if !k.ExpiryDue(c.At) {
		return Result{}, fmt.Errorf("%w: no material of key %s ends at %d", ErrConflict, c.ID, c.At)
	}
	return t.takeMaterial(k, func(v KeyVersion) bool { return v.expired(c.At) })
}

// DisableAwaitedKey disables a key that lacks material, for when that comes back. Callers
// cannot: it stands for a DisableKey of a history that was lost, in which the material was
// there (Instead).
type DisableAwaitedKey struct{ KeyRef }

func (c *DisableAwaitedKey) apply(t *tx) (Result, error) {
	old, err := c.find(t)
	if err != nil {
		return Result{}, err
	}
	if old.Condition(t.seconds()) != KeyPendingImport {
		return Result{}, fmt.Errorf("%w: key %s lacks no material", ErrConflict, c.ID)
	}
	k := *old
	k.State = KeyDisabled
	t.putKey(&k)
	return Result{ID: k.ID.String(), Version: k.Current().Version}, nil
}

// checkImport checks a version's record against its key's origin.
func (k *Key) checkImport(i int) error {
	v := k.Versions[i]
	switch {
	case (v.Import != nil) != (k.Origin == OriginExternal):
		return fmt.Errorf("version %d in a key of origin %s", v.Version, k.Origin)
	case v.Import == nil && v.State == VersionPendingRotation:
		return fmt.Errorf("version %d waits for a rotation that makes its own material", v.Version)
	case v.Import == nil:
		return nil
	case v.State == VersionPendingRotation && (i == 0 || i != len(k.Versions)-1 || v.Token == nil):
		return fmt.Errorf("version %d waits for the rotation, with a token of %d bytes", v.Version, len(v.Token))
	case v.Token != nil && (len(v.Import.Check) != checkSize || v.Import.At == 0):
		return fmt.Errorf("version %d has material with a check value of %d bytes, imported at %d", v.Version, len(v.Import.Check), v.Import.At)
	case v.Token == nil && v.Import.Expires != 0:
		return fmt.Errorf("version %d has no material, which is to end at %d", v.Version, v.Import.Expires)
	}
	return nil
}
