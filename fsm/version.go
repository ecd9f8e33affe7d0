package fsm

import (
	"fmt"
	"slices"
)

// VersionState is the state of one version of a key.
type VersionState string

// The states of a version. A record that was written before versions had states has
// none: it is enabled.
const (
	VersionEnabled          VersionState = ""
	VersionDisabled         VersionState = "DISABLED"
	VersionDestroyScheduled VersionState = "DESTROY_SCHEDULED"
	VersionDestroyed        VersionState = "DESTROYED"
)

// Usable is nil if the version may be used, or the sentinel of the state that forbids it.
func (v *KeyVersion) Usable() error {
	switch v.State {
	case VersionEnabled:
		return nil
	case VersionDisabled, VersionDestroyScheduled:
		return fmt.Errorf("%w: version %d", ErrVersionDisabled, v.Version)
	case VersionDestroyed:
		return fmt.Errorf("%w: version %d", ErrVersionDestroyed, v.Version)
	case VersionPendingRotation:
		return fmt.Errorf("%w: version %d is used when the key is rotated", ErrVersionDisabled, v.Version)
	}
	return fmt.Errorf("%w: version %d has the unknown state %q", ErrUnsupported, v.Version, v.State)
}

// VersionRef names a version of a key.
type VersionRef struct {
	KeyRef
	Version uint32 `json:"version"`
}

func (r VersionRef) validate() error {
	if r.Version == 0 {
		return invalid("key version is missing: versions count from 1")
	}
	return r.KeyRef.validate()
}

// changeVersion lets f edit a copy of the version and stores it.
func (r VersionRef) changeVersion(t *tx, f func(k *Key, v *KeyVersion) error) (Result, error) {
	return r.change(t, OpEdit, func(k *Key) error {
		if k.Version(r.Version) == nil {
			return fmt.Errorf("%w: key %s has no version %d", ErrNotFound, k.ID, r.Version)
		}
		k.Versions = slices.Clone(k.Versions)
		v := k.Version(r.Version)
		if v.State == VersionPendingRotation {
			return fmt.Errorf("%w of key %s: rotate the key, or delete that material", v.Usable(), k.ID)
		}
		return f(k, v)
	})
}

// DisableKeyVersion makes one version unusable: what it has sealed does not open. The
// current one can be disabled too, then nothing is sealed.
type DisableKeyVersion struct{ VersionRef }

func (c *DisableKeyVersion) apply(t *tx) (Result, error) {
	return c.changeVersion(t, func(_ *Key, v *KeyVersion) error {
		if v.State == VersionEnabled {
			v.State = VersionDisabled
			return nil
		}
		if v.State == VersionDestroyed {
			return v.Usable()
		}
		return nil
	})
}

// EnableKeyVersion makes a disabled version usable again.
type EnableKeyVersion struct{ VersionRef }

func (c *EnableKeyVersion) apply(t *tx) (Result, error) {
	return c.changeVersion(t, func(k *Key, v *KeyVersion) error {
		switch v.State {
		case VersionDestroyScheduled:
			return v.goes(k)
		case VersionDestroyed:
			return v.Usable()
		case VersionEnabled, VersionDisabled, VersionPendingRotation:
		}
		v.State = VersionEnabled
		return nil
	})
}

// goes refuses what cannot be done while the version waits for its destruction.
func (v *KeyVersion) goes(k *Key) error {
	return fmt.Errorf("%w: version %d of key %s is to be destroyed: cancel that first", ErrVersionDisabled, v.Version, k.ID)
}

// ScheduleKeyVersionDestruction makes one version unusable at once and sets the date at
// which its material goes. The current version cannot go: rotate first. What stands against
// the key's deletion stands against this.
type ScheduleKeyVersionDestruction struct {
	VersionRef
	Days uint32 `json:"days"` // 7..30
}

func (c *ScheduleKeyVersionDestruction) validate() error {
	if c.Days < MinDeletionDays || c.Days > MaxDeletionDays {
		return invalid("waiting period of %d days: must be %d to %d", c.Days, MinDeletionDays, MaxDeletionDays)
	}
	return c.VersionRef.validate()
}

func (c *ScheduleKeyVersionDestruction) apply(t *tx) (Result, error) {
	return c.changeVersion(t, func(k *Key, v *KeyVersion) error {
		if v.Version == k.Current().Version {
			return fmt.Errorf("%w: version %d of key %s seals what is new: rotate the key first, or schedule the key's deletion", ErrVersionCurrent, v.Version, k.ID)
		}
		switch v.State {
		case VersionDestroyScheduled:
			return v.goes(k)
		case VersionDestroyed:
			return v.Usable()
		case VersionEnabled, VersionDisabled, VersionPendingRotation:
		}
		if err := t.s.deletable(k); err != nil {
			return err
		}
		v.State, v.Destroy = VersionDestroyScheduled, t.seconds()+int64(c.Days)*secondsPerDay
		return nil
	})
}

// CancelKeyVersionDestruction takes a version back; it is disabled afterwards.
type CancelKeyVersionDestruction struct{ VersionRef }

func (c *CancelKeyVersionDestruction) apply(t *tx) (Result, error) {
	return c.changeVersion(t, func(k *Key, v *KeyVersion) error {
		if v.State != VersionDestroyScheduled {
			return fmt.Errorf("%w: version %d of key %s is not to be destroyed", ErrNotPendingDeletion, v.Version, k.ID)
		}
		v.State, v.Destroy = VersionDisabled, 0
		return nil
	})
}

// DestroyKeyVersions takes the material of every version away whose waiting period is
// over.
type DestroyKeyVersions struct {
	KeyRef
	At int64 `json:"at"` // unix seconds: what the clocks of a majority have reached
}

func (c *DestroyKeyVersions) apply(t *tx) (Result, error) {
	old, err := c.find(t)
	if err != nil {
		return Result{}, err
	}
	k, n := *old, 0
	k.Versions = slices.Clone(k.Versions)
	for i := range k.Versions {
		if v := &k.Versions[i]; v.State == VersionDestroyScheduled && v.Destroy <= c.At {
			v.State, v.Destroy = VersionDestroyed, c.At
			v.loseMaterial()
			n++
		}
	}
	if n == 0 {
		return Result{}, fmt.Errorf("%w: no version of key %s is due to be destroyed at %d", ErrConflict, c.ID, c.At)
	}
	t.putKey(&k)
	return Result{ID: k.ID.String(), Version: k.Current().Version}, nil
}
