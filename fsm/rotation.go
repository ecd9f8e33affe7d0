package fsm

import (
	"fmt"
	"slices"
)

// Limits of rotation schedules, in seconds. Nodes may want longer periods.
const (
	MinRotationPeriod     = 60
	MaxRotationPeriod     = 2560 * secondsPerDay
	DefaultRotationPeriod = 365 * secondsPerDay
)

// maxTime is the last second that the next is computed from: far off, and no overflow.
const maxTime = 1 << 40

// Rotation is a key's schedule: a new version each Period.
type Rotation struct {
	Period int64 `json:"period"` // seconds
	Next   int64 `json:"next"`   // unix seconds: when the next version is due
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
		if err := k.symmetric("rotation"); err != nil {
			return err
		}
		if k.Origin == OriginExternal {
			return fmt.Errorf("%w: key %s rotates to material that was imported: import new material first", ErrUnsupported, k.ID)
		}
		return t.addVersion(k, KeyVersion{Version: c.Version, Generation: c.Generation, Cause: once(c.Cause), Token: c.Token})
	})
}

// addVersion makes a version the current one.
func (t *tx) addVersion(k *Key, v KeyVersion) error {
	if err := t.s.generationActive(v.Generation); err != nil {
		return err
	}
	if want := t.s.NextVersion(k); v.Version != want {
		return fmt.Errorf("%w: key %s: version %d was made, %d is next", ErrConflict, k.ID, v.Version, want)
	}
	if len(k.Versions) >= MaxKeyVersions {
		return fmt.Errorf("%w: key %s has %d versions", ErrLimit, k.ID, len(k.Versions))
	}
	v.Created = t.seconds()
	k.Versions = append(slices.Clip(k.Versions), v)
	return nil
}

// EnableKeyRotation sets a key's schedule. The first rotation is due a period from now;
// the same period again changes nothing.
type EnableKeyRotation struct {
	KeyRef
	Period int64 `json:"period"` // seconds
}

func (c *EnableKeyRotation) validate() error {
	if c.Period < MinRotationPeriod || c.Period > MaxRotationPeriod {
		return invalid("rotation period of %d s: must be %d s to %d days", c.Period, MinRotationPeriod, MaxRotationPeriod/secondsPerDay)
	}
	return c.KeyRef.validate()
}

func (c *EnableKeyRotation) apply(t *tx) (Result, error) {
	return c.change(t, OpRotation, func(k *Key) error {
		if err := k.scheduled(); err != nil {
			return err
		}
		if k.Rotation == nil || k.Rotation.Period != c.Period {
			k.Rotation = &Rotation{Period: c.Period, Next: t.seconds() + c.Period}
		}
		return nil
	})
}

// DisableKeyRotation ends a key's schedule.
type DisableKeyRotation struct{ KeyRef }

func (c *DisableKeyRotation) apply(t *tx) (Result, error) {
	return c.change(t, OpRotation, func(k *Key) error {
		if err := k.scheduled(); err != nil {
			return err
		}
		k.Rotation = nil
		return nil
	})
}

// scheduled refuses keys that are not rotated by themselves.
func (k *Key) scheduled() error {
	if k.Origin == OriginExternal {
		return fmt.Errorf("%w: key %s is of origin %s: import new material, and rotate it on demand", ErrUnsupported, k.ID, k.Origin)
	}
	return k.symmetric("rotation")
}

// RotateKeyOnSchedule adds the version that is due. It is done once: it names the date
// that it is for.
type RotateKeyOnSchedule struct {
	KeyRef
	Due        int64  `json:"due"` // unix seconds: the key's Rotation.Next
	At         int64  `json:"at"`  // unix seconds: what the clocks of a majority have reached
	Version    uint32 `json:"version"`
	Generation uint32 `json:"generation"`
	Token      []byte `json:"token"`
}

func (c *RotateKeyOnSchedule) validate() error {
	if c.At < c.Due || c.At > maxTime {
		return invalid("rotation due at %d, it is %d", c.Due, c.At)
	}
	if err := validToken(c.Token); err != nil {
		return err
	}
	return c.KeyRef.validate()
}

func (c *RotateKeyOnSchedule) apply(t *tx) (Result, error) {
	return c.change(t, OpRotate, func(k *Key) error {
		if k.Rotation == nil || k.Rotation.Next != c.Due {
			return fmt.Errorf("%w: key %s has no rotation due at %d", ErrConflict, k.ID, c.Due)
		}
		next := c.Due + k.Rotation.Period
		if next <= c.At { // it was overdue by more than a period
			next = c.At + k.Rotation.Period
		}
		k.Rotation = &Rotation{Period: k.Rotation.Period, Next: next}
		return t.addVersion(k, KeyVersion{Version: c.Version, Generation: c.Generation, Cause: CauseSchedule, Token: c.Token})
	})
}
