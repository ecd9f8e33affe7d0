package fsm

import (
	"bytes"
	"cmp"
	"slices"
)

// Due is something that the cluster does by itself at a time: rotate or delete a key,
// destroy a version, take imported material away, end a grant.
type Due struct {
	At    int64 // unix seconds
	Grant bool  // of a grant; otherwise of a key
	ID    ID
}

// dueBefore orders what is due by time.
func dueBefore(a, b Due) bool {
	kind := func(d Due) int {
		if d.Grant {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(kind(a), kind(b)), bytes.Compare(a.ID[:], b.ID[:])) < 0
}

// Due returns up to limit of what is due at a time (unix seconds), the oldest first. It
// reads an index ordered by time: what is not due costs nothing.
func (s *State) Due(at int64, limit int) []Due {
	var out []Due
	s.due.tree.Scan(func(d Due) bool {
		if d.At > at || len(out) >= limit {
			return false
		}
		out = append(out, d)
		return true
	})
	return out
}

// EndingMaterial is imported material of a version that ends.
type EndingMaterial struct {
	Key     *Key
	Version uint32
	At      int64 // unix seconds
}

// EndingMaterial returns up to limit of the imported material that ends by a time (unix
// seconds) and that somebody may still want: not of what is to be deleted or destroyed anyway.
// Nothing of a key is due later than that, so what is due later is not looked at.
func (s *State) EndingMaterial(by int64, limit int) (out []EndingMaterial) {
	s.due.tree.Scan(func(d Due) bool {
		if d.At > by || len(out) >= limit {
			return false
		}
		if d.Grant {
			return true
		}
		k, ok := s.Key(d.ID)
		if !ok || k.State == KeyPendingDeletion {
			return true
		}
		for i := range k.Versions {
			v := &k.Versions[i]
			if v.expired(by) && v.State != VersionDestroyScheduled && len(out) < limit {
				out = append(out, EndingMaterial{k, v.Version, v.Import.Expires})
			}
		}
		return true
	})
	return out
}

// due is when the cluster next has something to do about a key.
func (k *Key) due() (Due, bool) {
	at := int64(0)
	soonest := func(t int64) {
		if t != 0 && (at == 0 || t < at) {
			at = t
		}
	}
	soonest(k.Deletion)
	for i := range k.Versions {
		if k.Versions[i].State == VersionDestroyScheduled {
			soonest(k.Versions[i].Destroy)
		}
		if v := &k.Versions[i]; v.Import != nil && v.Token != nil {
			soonest(v.Import.Expires)
		}
	}
	if k.LimitDue() {
		soonest(1) // at once
	}
	if k.RotationDue() {
		soonest(k.Rotation.Next)
	}
	return Due{At: at, ID: k.ID}, at != 0
}

// RotationDue tells whether the key is rotated at its date: it has a schedule, is
// enabled, and has room for a version.
func (k *Key) RotationDue() bool {
	return k.Rotation != nil && k.State == KeyEnabled && len(k.Versions) < MaxKeyVersions
}

func (g *Grant) due() (Due, bool) { return Due{At: g.Expires, Grant: true, ID: g.ID}, g.Expires != 0 }

// DestructionDue tells whether a version's waiting period is over at a time (unix seconds).
func (k *Key) DestructionDue(at int64) bool {
	return slices.ContainsFunc(k.Versions, func(v KeyVersion) bool { return v.State == VersionDestroyScheduled && v.Destroy <= at })
}
