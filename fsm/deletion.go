package fsm

import (
	"fmt"
	"slices"
	"strings"
)

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
		if err := t.s.deletable(k); err != nil {
			return err
		}
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

// SetDeletionProtection makes a key refuse its deletion, and that of its versions, or
// takes that back. A key of which something is to go already is not protected.
type SetDeletionProtection struct {
	KeyRef
	On bool `json:"on"`
}

func (c *SetDeletionProtection) apply(t *tx) (Result, error) {
	return c.change(t, OpEdit, func(k *Key) error {
		if v := k.going(); v != nil && c.On {
			return v.goes(k)
		}
		k.Protected = c.On
		return nil
	})
}

// going is the first version that waits for its destruction; nil if none does.
func (k *Key) going() *KeyVersion {
	i := slices.IndexFunc(k.Versions, func(v KeyVersion) bool { return v.State == VersionDestroyScheduled })
	if i < 0 {
		return nil
	}
	return &k.Versions[i]
}

// namedResources is how many of a key's resources a refusal names.
const namedResources = 5

// deletable tells what stands against a key's deletion, and that of its versions.
func (s *State) deletable(k *Key) error {
	if k.Protected {
		return fmt.Errorf("%w: %s", ErrProtected, k.ID)
	}
	bound := s.Bindings(k.ID, "", namedResources+1)
	if len(bound) == 0 {
		return nil
	}
	var names []string
	for _, b := range bound[:min(len(bound), namedResources)] {
		names = append(names, b.Resource)
	}
	more := ""
	if n := s.CountBindings(k.ID); n > len(names) {
		more = fmt.Sprintf(" and %d more", n-len(names))
	}
	return fmt.Errorf("%w: %s protects %s%s", ErrInUse, k.ID, strings.Join(names, ", "), more)
}

// DeleteKey takes a key away for good when its waiting period is over: its tokens, so
// that nothing that it sealed can be opened, and its aliases, grants and policies. It has
// no bindings: while it is pending none is made.
type DeleteKey struct {
	KeyRef
	At int64 `json:"at"` // unix seconds: what the clocks of a majority have reached
}

func (c *DeleteKey) apply(t *tx) (Result, error) {
	k, err := c.find(t)
	switch {
	case err != nil:
		return Result{}, err
	case k.State != KeyPendingDeletion:
		return Result{}, fmt.Errorf("%w: %s", ErrNotPendingDeletion, c.ID)
	case c.At < k.Deletion:
		return Result{}, fmt.Errorf("%w: key %s is to be deleted at %d, it is %d", ErrConflict, c.ID, k.Deletion, c.At)
	}
	for _, a := range t.s.AliasesOf(k.ID) {
		t.dropAlias(a)
	}
	for _, g := range t.s.GrantsOf(k.ID, ID{}, MaxGrants) {
		t.dropGrant(g)
	}
	for _, p := range t.s.Policies(k.Tenant, k.ID) {
		t.dropPolicy(p)
	}
	if u, ok := t.s.LastUse(k.ID); ok {
		t.dropUse(u)
	}
	t.dropKey(k)
	return Result{ID: k.ID.String()}, nil
}
