package fsm

import (
	"bytes"
	"crypto/sha256"
	"reflect"
	"strings"
	"testing"
)

// rewrapped is an item that moves a version of a key that is there, or looks so.
func rewrapped(w *world, key uint64, version uint32) RewrapItem {
	item := RewrapItem{Key: keyID(key), Version: version, Old: make([]byte, 32), Token: []byte("moved")}
	if k, ok := w.s.Key(item.Key); ok && k.Version(version) != nil {
		sum := sha256.Sum256(k.Version(version).Token)
		item.Old = sum[:]
	}
	return item
}

// succeed makes generation 2 the active one, with keys 1 and 2 under generation 1.
func succeed(t *testing.T) *world {
	w := initialized(t)
	w.do(createKey(1))
	w.do(rotateKey(1, 2))
	w.do(createKey(2))
	w.do(proposeGeneration(2))
	w.do(&ActivateGeneration{2})
	return w
}

func TestRewrapMovesTokensAlone(t *testing.T) {
	w := succeed(t)
	before, _ := w.s.Key(keyID(1))
	stale := rewrapped(w, 2, 1)
	stale.Old = bytes.Repeat([]byte{1}, 32)
	w.do(&RewrapKeyVersions{2, []RewrapItem{rewrapped(w, 1, 1), stale, rewrapped(w, 7, 1), rewrapped(w, 1, 9)}})
	after, _ := w.s.Key(keyID(1))
	want := *before
	want.Versions = append([]KeyVersion(nil), before.Versions...)
	want.Versions[0].Token, want.Versions[0].Generation = []byte("moved"), 2
	if !reflect.DeepEqual(*after, want) {
		t.Errorf("a key is %+v after the move of one version, want %+v", *after, want)
	}
	if k, _ := w.s.Key(keyID(2)); k.Versions[0].Generation != 1 {
		t.Error("a token was replaced that was not the expected one")
	}
	if n := w.s.CountTokens(); n[1] != 2 || n[2] != 1 {
		t.Errorf("generations wrap %v", n)
	}
	w.do(&DisableKey{KeyRef{keyID(1), DefaultTenant, before.Revision}}) // a revision that a caller knows stays good
	w.do(&RewrapKeyVersions{2, []RewrapItem{rewrapped(w, 1, 2)}})       // whatever the key's state
	w.do(&RewrapKeyVersions{2, []RewrapItem{{keyID(1), 2, rewrapped(w, 2, 1).Old, []byte("another")}}})
	if k, _ := w.s.Key(keyID(1)); string(k.Versions[1].Token) != "moved" {
		t.Error("a version was moved with another's token as the expected one")
	}
}

func TestRewrapOfDestroyedVersions(t *testing.T) {
	w := succeed(t)
	item := rewrapped(w, 1, 1)
	w.do(&ScheduleKeyVersionDestruction{VersionRef{ref(1), 1}, 7})
	w.clock += 8 * 86400 * second
	w.do(&DestroyKeyVersions{ref(1), w.clock / second})
	w.do(&RewrapKeyVersions{2, []RewrapItem{item}})
	if k, _ := w.s.Key(keyID(1)); k.Versions[0].Token != nil {
		t.Error("a destroyed version has a token again")
	}
	empty := sha256.Sum256(nil)
	w.do(&RewrapKeyVersions{2, []RewrapItem{{keyID(1), 1, empty[:], []byte("moved")}}})
	if k, _ := w.s.Key(keyID(1)); k.Versions[0].Token != nil {
		t.Error("a destroyed version got a token by the hash of nothing")
	}
}

func TestRewrapCeremony(t *testing.T) {
	w := succeed(t)
	w.join("n2", true, MemberActive)
	w.refuse(&BeginRewrap{2, firstNode}, ErrGeneration, "is ACTIVE")
	w.refuse(&BeginRewrap{3, firstNode}, ErrNotFound, "generation 3")
	w.refuse(&BeginRewrap{1, nodeID("n9")}, ErrMember, "no active member")
	w.do(&BeginRewrap{1, nodeID("n2")})
	w.do(&BeginRewrap{1, nodeID("n2")})
	w.refuse(&BeginRewrap{1, firstNode}, ErrGeneration, "stop that first")
	w.refuse(&EndRewrap{2}, ErrNotFound, "")
	if now, ok := w.s.Rewrapping(); !ok || now.Generation != 1 || now.Node != nodeID("n2") || now.By == "" || now.Since == 0 {
		t.Errorf("the ceremony is %+v", now)
	}
	w.do(&RemoveNode{nodeID("n2")})
	if now, ok := w.s.Rewrapping(); ok {
		t.Errorf("a removed node goes on with %+v", now)
	}
	w.do(&BeginRewrap{1, firstNode})
	w.do(&RewrapKeyVersions{2, []RewrapItem{rewrapped(w, 1, 1), rewrapped(w, 1, 2), rewrapped(w, 2, 1)}})
	if w.s.Wraps(1) || !w.s.Wraps(2) {
		t.Errorf("generations wrap %v", w.s.CountTokens())
	}
	w.refuse(&RetireGeneration{1}, ErrGeneration, "by "+firstNode+": see with kmsctl domain status what that waits for, or end it with kmsctl domain rewrap stop 1")
	w.do(&EndRewrap{1})
	w.refuse(&BeginRewrap{1, firstNode}, ErrGeneration, "can be retired")
	w.do(&RetireGeneration{1})
}

func TestRewrapNeedsTheGenericProfile(t *testing.T) {
	w := newWorld(t)
	w.do(edited(initCluster(), func(c *InitCluster) { c.Profile = ProfileCloned }))
	w.do(createKey(1))
	w.do(proposeGeneration(2))
	w.do(&ActivateGeneration{2})
	w.refuse(&BeginRewrap{1, firstNode}, ErrGeneration, "profile cloned")
}

func TestRewrapRefusesMalformedItems(t *testing.T) {
	w := succeed(t)
	good := rewrapped(w, 1, 1)
	for want, edit := range map[string]func(*RewrapKeyVersions){
		"0 key versions":  func(c *RewrapKeyVersions) { c.Items = nil },
		"65 key versions": func(c *RewrapKeyVersions) { c.Items = make([]RewrapItem, 65) },
		"names no key":    func(c *RewrapKeyVersions) { c.Items[0].Version = 0 },
		"has 31 bytes":    func(c *RewrapKeyVersions) { c.Items[0].Old = make([]byte, 31) },
		"token":           func(c *RewrapKeyVersions) { c.Items[0].Token = nil },
	} {
		c := &RewrapKeyVersions{2, []RewrapItem{good}}
		edit(c)
		if err := WellFormed(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	w.refuse(&RewrapKeyVersions{1, []RewrapItem{good}}, ErrConflict, "is active, not 1")
}

func TestWrappedUnder(t *testing.T) {
	w := succeed(t)
	for n := uint64(3); n < 9; n++ {
		w.do(edited(createKey(n), func(c *CreateKey) { c.Generation = 2 }))
	}
	w.do(&RewrapKeyVersions{2, []RewrapItem{rewrapped(w, 1, 1)}})
	if keys, _, done := w.s.WrappedUnder(1, ID{}, 10, 100); len(keys) != 2 || !done {
		t.Errorf("%d keys, done %v", len(keys), done)
	}
	keys, last, done := w.s.WrappedUnder(1, ID{}, 1, 100)
	if len(keys) != 1 || keys[0].ID != keyID(1) || last != keyID(1) || done {
		t.Errorf("%d keys up to %s, done %v", len(keys), last, done)
	}
	if keys, last, done = w.s.WrappedUnder(1, last, 1, 3); len(keys) != 1 || keys[0].ID != keyID(2) || done {
		t.Errorf("%d keys up to %s, done %v", len(keys), last, done)
	}
	if keys, last, done = w.s.WrappedUnder(1, last, 1, 3); len(keys) != 0 || last != keyID(5) || done {
		t.Errorf("%d keys up to %s, done %v", len(keys), last, done)
	}
	if _, _, done = w.s.WrappedUnder(1, keyID(5), 1, 3); !done {
		t.Error("not done at the end")
	}
}
