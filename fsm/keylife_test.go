package fsm

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestScheduleAndCancel(t *testing.T) {
	for _, days := range []uint32{7, 8, 30} {
		w := oneKey(t)
		w.do(&DisableKey{ref(1)})
		want := *w.key(1)
		w.clock += 90*second + 1
		w.do(&ScheduleKeyDeletion{KeyRef: ref(1), Days: days})
		want.State, want.Revision = KeyPendingDeletion, 4
		want.Deletion = startTime/second + 90 + int64(days)*86400
		wantKey(t, w, &want)
		w.do(&CancelKeyDeletion{ref(1)})
		want.State, want.Revision, want.Deletion = KeyDisabled, 5, 0
		wantKey(t, w, &want)
		w.do(&EnableKey{ref(1)})
		want.State, want.Revision = KeyEnabled, 6
		wantKey(t, w, &want)
	}
}

func TestScheduleRefused(t *testing.T) {
	for _, days := range []uint32{0, 6, 31, 1 << 31} {
		oneKey(t).refuse(&ScheduleKeyDeletion{KeyRef: ref(1), Days: days}, ErrInvalid, fmt.Sprintf("waiting period of %d days: must be 7 to 30", days))
	}
}

func TestRotateKey(t *testing.T) {
	w := oneKey(t)
	want := *w.key(1)
	w.clock += 5 * second
	c := rotateKey(1, 2)
	c.Token = []byte("token 2")
	if got := w.do(c); got != (Result{Index: 3, ID: keyID(1).String(), Version: 2}) {
		t.Errorf("result %+v", got)
	}
	want.Revision = 3
	want.Versions = append(want.Versions, KeyVersion{Version: 2, Generation: 1, Created: startTime/second + 5, Cause: "ON_DEMAND", Token: []byte("token 2")})
	wantKey(t, w, &want)

	k := w.key(1)
	if k.Current().Version != 2 || k.Version(1) != &k.Versions[0] || k.Version(2) != &k.Versions[1] {
		t.Errorf("versions are not found")
	}
	for _, n := range []uint32{0, 3, 1 << 31, 1<<32 - 1} {
		if v := k.Version(n); v != nil {
			t.Errorf("version %d is %+v", n, v)
		}
	}
}

func TestRotateRefused(t *testing.T) {
	rotate := func(f func(*RotateKey)) *RotateKey { return edited(rotateKey(1, 2), f) }
	testRefusals(t, oneKey, []refusal{
		{"the present version", rotateKey(1, 1), ErrConflict, "version 1 was made, 2 is next"},
		{"a version left out", rotateKey(1, 3), ErrConflict, "version 3 was made, 2 is next"},
		{"version 0", rotateKey(1, 0), ErrConflict, "version 0 was made, 2 is next"},
		{"other generation", rotate(func(c *RotateKey) { c.Generation = 2 }), ErrConflict, "generation 1 is active, not 2"},
		{"no token", rotate(func(c *RotateKey) { c.Token = nil }), ErrInvalid, "token of 0 bytes"},
		{"token of 8193 bytes", rotate(func(c *RotateKey) { c.Token = make([]byte, 8193) }), ErrInvalid, "token of 8193 bytes"},
		{"unknown cause", rotate(func(c *RotateKey) { c.Cause = "CREATED" }), ErrInvalid, `cause "CREATED"`},
		{"no cause", rotate(func(c *RotateKey) { c.Cause = "" }), ErrInvalid, `cause ""`},
	})
}

func TestRotateLimit(t *testing.T) {
	w := oneKey(t)
	w.edit(func(t *tx) {
		k := *w.key(1)
		for n := uint32(2); n <= 999; n++ {
			k.Versions = append(k.Versions, KeyVersion{Version: n, Generation: 1, Cause: CauseOnDemand, Token: []byte{1}})
		}
		t.putKey(&k)
	})
	w.do(rotateKey(1, 1000))
	w.refuse(rotateKey(1, 1001), ErrLimit, "has 1000 versions")
	if got := w.key(1).Current().Version; got != 1000 {
		t.Errorf("current version %d, want 1000", got)
	}
}

// TestLargestKey: a key at every limit fits a snapshot's frame.
func TestLargestKey(t *testing.T) {
	w := initialized(t)
	w.edit(func(t *tx) {
		k := &Key{ID: keyID(1), Tenant: DefaultTenant, Usage: UsageEncryptDecrypt, Spec: SpecSymmetric, State: KeyEnabled, Description: strings.Repeat("<", MaxDescription)}
		for _, tag := range tags(0, MaxTags) {
			k.Tags = append(k.Tags, Tag{tag.Key + strings.Repeat("<", MaxTagKey-len(tag.Key)), strings.Repeat("<", MaxTagValue)})
		}
		for n := uint32(1); n <= MaxKeyVersions; n++ {
			k.Versions = append(k.Versions, KeyVersion{
				Version: n, Generation: 1, Cause: CauseOnDemand, Token: make([]byte, MaxToken), State: VersionDestroyScheduled, Destroy: start + 30*day,
			})
		}
		k.Current().State, k.Current().Destroy = VersionEnabled, 0
		for i := range byte(MaxRequiredContext) {
			k.Required = append(k.Required, string('a'+i)+strings.Repeat("<", MaxContextKey-1))
		}
		k.Rotation, k.Policy = &Rotation{MaxRotationPeriod, start}, 1
		t.putPolicy(&Policy{Tenant: DefaultTenant, Key: k.ID, Number: 1, Text: strings.Repeat("<", MaxPolicyText)})
		t.putKey(k)
	})
	if err := w.s.Check(); err != nil {
		t.Fatal(err)
	}
	if restored := reread(t, w.s); !reflect.DeepEqual(restored.Keys(DefaultTenant, ID{}, 1)[0], w.key(1)) {
		t.Error("the largest key came back otherwise")
	}
}

func TestKeysPages(t *testing.T) {
	w := initialized(t)
	w.edit(func(t *tx) { t.putTenant(&Tenant{Name: "acme"}); t.putTenant(&Tenant{Name: "zeta"}) })
	for n := uint64(1); n <= 7; n++ {
		c := createKey(n)
		c.Tenant = []string{"acme", DefaultTenant, "zeta"}[n%3]
		w.do(c)
	}
	w.do(&DisableKey{ref(4)})
	for _, row := range []struct {
		tenant string
		after  ID
		limit  int
		want   []ID
	}{
		{DefaultTenant, ID{}, 10, []ID{keyID(1), keyID(4), keyID(7)}},
		{DefaultTenant, ID{}, 2, []ID{keyID(1), keyID(4)}},
		{DefaultTenant, keyID(4), 2, []ID{keyID(7)}},
		{DefaultTenant, keyID(2), 10, []ID{keyID(4), keyID(7)}},
		{DefaultTenant, keyID(7), 10, nil},
		{DefaultTenant, ID{}, 0, nil},
		{"acme", ID{}, 10, []ID{keyID(3), keyID(6)}},
		{"zeta", keyID(2), 10, []ID{keyID(5)}},
		{"nobody", ID{}, 10, nil},
	} {
		var got []ID
		for _, k := range w.s.Keys(row.tenant, row.after, row.limit) {
			got = append(got, k.ID)
		}
		if !reflect.DeepEqual(got, row.want) {
			t.Errorf("keys of %q after %v, at most %d: %v, want %v", row.tenant, row.after, row.limit, got, row.want)
		}
	}
}
