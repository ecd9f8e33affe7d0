package fsm

import "slices"

// MaxUses is how many uses one entry may tell: they fit into an entry.
const MaxUses = 8_000

// LastUse is when a key was last used, coarsely: what is stored may be an hour old.
type LastUse struct {
	Key      ID           `json:"key"`
	Refused  int64        `json:"refused,omitempty"`  // unix seconds: the last attempt while pending deletion
	Versions []VersionUse `json:"versions,omitempty"` // by version; those that were used
}

// VersionUse is when a version was last used.
type VersionUse struct {
	Version uint32 `json:"version"`
	Used    int64  `json:"used"` // unix seconds
}

// Used is when any version was last used; 0: never, as far as is known.
func (u *LastUse) Used() int64 {
	at := int64(0)
	for _, v := range u.Versions {
		at = max(at, v.Used)
	}
	return at
}

// Version is when a version was last used; 0: never, as far as is known.
func (u *LastUse) Version(n uint32) int64 {
	i, found := u.find(n)
	if !found {
		return 0
	}
	return u.Versions[i].Used
}

func (u *LastUse) find(n uint32) (int, bool) {
	return slices.BinarySearchFunc(u.Versions, n, func(v VersionUse, n uint32) int { return int(int64(v.Version) - int64(n)) })
}

// LastUse returns when a key was last used.
func (s *State) LastUse(key ID) (*LastUse, bool) { return s.uses.tree.Get(&LastUse{Key: key}) }

// Use is one use of a key that a node has seen.
type Use struct {
	Key     ID     `json:"key"`
	Version uint32 `json:"version,omitempty"` // 0: an attempt while the key was pending deletion
	At      int64  `json:"at"`                // unix seconds
}

// RecordUse tells when keys were last used. Only what is newer than what is known counts.
type RecordUse struct {
	Uses []Use `json:"uses"`
}

func (c *RecordUse) validate() error {
	if len(c.Uses) == 0 || len(c.Uses) > MaxUses {
		return invalid("%d uses told: must be 1 to %d", len(c.Uses), MaxUses)
	}
	return nil
}

func (c *RecordUse) apply(t *tx) (Result, error) {
	uses := slices.SortedStableFunc(slices.Values(c.Uses), func(a, b Use) int { return compareID(a.Key, b.Key) })
	for len(uses) > 0 {
		n := slices.IndexFunc(uses, func(u Use) bool { return u.Key != uses[0].Key })
		if n < 0 {
			n = len(uses)
		}
		t.noteUses(uses[0].Key, uses[:n])
		uses = uses[n:]
	}
	return Result{}, nil
}

// noteUses writes a key's record once, whatever number of its uses is told.
func (t *tx) noteUses(key ID, uses []Use) {
	k, ok := t.s.Key(key)
	if !ok {
		return // deleted meanwhile
	}
	next, news := LastUse{Key: key}, false
	if old, ok := t.s.LastUse(key); ok {
		next = *old
		next.Versions = slices.Clone(old.Versions)
	}
	for _, use := range uses {
		use.At = min(use.At, t.seconds()) // by a clock that is ahead
		if use.Version == 0 || k.Version(use.Version) != nil {
			news = next.note(use) || news
		}
	}
	if news {
		t.putUse(&next)
	}
}

// note takes a use in and tells whether it was news.
func (u *LastUse) note(use Use) bool {
	if use.Version == 0 {
		news := use.At > u.Refused
		u.Refused = max(u.Refused, use.At)
		return news
	}
	if use.At <= u.Version(use.Version) {
		return false
	}
	i, found := u.find(use.Version)
	if !found {
		u.Versions = slices.Insert(u.Versions, i, VersionUse{Version: use.Version})
	}
	u.Versions[i].Used = use.At
	return true
}
