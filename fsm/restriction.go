package fsm

import (
	"cmp"
	"reflect"
	"slices"
)

// MaxRestrictions is how many restrictions a state remembers.
const MaxRestrictions = 256

// Restriction is what an entry may have taken from callers: too much rather than too little.
type Restriction struct {
	Index  uint64 // of the entry
	Tenant string // whose keys it concerns; empty: everybody's
	Key    ID     // zero: all of them
}

// RestrictedSince are the restrictions behind an index, oldest first, that of disabling a
// principal excepted, which concerns no key: Disabled tells. known is false if the state does
// not remember all of them, since they are too many or came with a snapshot. What was refused
// restricts nothing here. It is no part of what is replicated.
func (s *State) RestrictedSince(index uint64) (list []Restriction, known bool) {
	if index < s.forgotten || index > s.index {
		return nil, false
	}
	i, _ := slices.BinarySearchFunc(s.restrictions, index+1, func(r Restriction, at uint64) int { return cmp.Compare(r.Index, at) })
	return s.restrictions[i:], true
}

// restricts notes what a command that was applied may have taken. The list that was there
// belongs to earlier states.
func (s *State) restricts(c Command) {
	r, some := restrictionOf(c)
	if !some {
		return
	}
	r.Index = s.index
	kept := s.restrictions
	if n := len(kept) - MaxRestrictions + 1; n > 0 {
		s.forgotten, kept = kept[n-1].Index, kept[n:]
	}
	s.restrictions = append(slices.Clone(kept), r)
}

// restrictionOf is what a command may take. Who does not know it says everything.
func restrictionOf(c Command) (r Restriction, some bool) {
	if EffectOf(c) != Restricts {
		return r, false
	}
	switch c := c.(type) {
	case *Repeat, *CreateGrant: // their calls wait like a restriction's, but they take nothing
		return r, false
	case *DisablePrincipal:
		return r, false
	case *FreezeTenant:
		return Restriction{Tenant: c.Name}, true
	case *RemoveNode, *RecoverCluster, *RestoreCluster:
		return r, true
	}
	if f := reflect.ValueOf(c).Elem().FieldByName("Tenant"); f.IsValid() && f.Kind() == reflect.String {
		r.Tenant = f.String()
	}
	switch c.(type) {
	case *CreateAlias, *UpdateAlias, *DeleteAlias, *MoveAlias: // of two keys, as a rule, and policies may ask for aliases
	default:
		r.Key, _ = KeyOf(c)
	}
	if r.Tenant == "" {
		r.Key = ID{} // a key of whom?
	}
	return r, true
}
