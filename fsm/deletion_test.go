package fsm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestDeletionProtection(t *testing.T) {
	w := oneKey(t)
	w.do(&SetDeletionProtection{ref(1), true})
	w.do(&SetDeletionProtection{ref(1), true})
	w.refuse(&ScheduleKeyDeletion{ref(1), 7}, ErrProtected, keyID(1).String())
	w.do(&SetDeletionProtection{ref(1), false})
	w.do(&ScheduleKeyDeletion{ref(1), 7})
	w.refuse(&SetDeletionProtection{ref(1), true}, ErrPendingDeletion, keyID(1).String())
}

// TestDeletionNamesResources: the first five by name, and how many more there are.
func TestDeletionNamesResources(t *testing.T) {
	w := oneKey(t)
	for n, text := range map[int]string{
		1: "protects r1",
		2: "protects r1, r2",
		5: "protects r1, r2, r3, r4, r5",
		6: "protects r1, r2, r3, r4, r5 and 1 more",
		8: "protects r1, r2, r3, r4, r5 and 3 more",
	} {
		w := &world{t: t, s: w.s, clock: w.clock}
		for i := n; i > 0; i-- {
			w.do(bind(1, fmt.Sprintf("r%d", i)))
		}
		_, err := w.apply(w.entry(), &ScheduleKeyDeletion{ref(1), 7})
		wantError(t, err, ErrInUse, text)
		if want := fmt.Sprintf("%v: %s %s", ErrInUse, keyID(1), text); err.Error() != want {
			t.Errorf("error is %q, want %q", err, want)
		}
		for i := 1; i <= n; i++ {
			w.do(release(1, fmt.Sprintf("r%d", i)))
		}
		w.do(&ScheduleKeyDeletion{ref(1), 7})
	}
}

func TestDeleteKeyTooEarly(t *testing.T) {
	w := oneKey(t)
	w.refuse(&DeleteKey{ref(1), start + 30*day}, ErrNotPendingDeletion, keyID(1).String())
	w.do(&ScheduleKeyDeletion{ref(1), 7})
	w.refuse(&DeleteKey{ref(1), start + 7*day - 1}, ErrConflict, fmt.Sprintf("is to be deleted at %d, it is %d", start+7*day, start+7*day-1))
	w.do(&CancelKeyDeletion{ref(1)})
	w.refuse(&DeleteKey{ref(1), start + 7*day}, ErrNotPendingDeletion, keyID(1).String())
	w.clock += day * second
	w.do(&ScheduleKeyDeletion{ref(1), 7})
	w.refuse(&DeleteKey{ref(1), start + 7*day}, ErrConflict, "is to be deleted at")
	w.do(&DeleteKey{ref(1), start + 8*day})
}

// TestDeleteKey: everything of the key goes with it, and nothing of another one.
func TestDeleteKey(t *testing.T) {
	full := func(w *world, n uint64) {
		w.do(rotateKey(n, 2))
		w.do(&EnableKeyRotation{ref(n), period})
		w.do(&ScheduleKeyVersionDestruction{version(n, 1), 30})
		w.do(&CreateAlias{alias(fmt.Sprintf("alias/%d", n), n)})
		w.do(edited(createGrant(10*n, n), func(c *CreateGrant) {
			c.Name, c.Retiring, c.Expires, c.Operations = "nightly", other, start+99, append(c.Operations, GrantCreateGrant)
		}))
		w.as(user, func() {
			w.do(edited(createGrant(10*n+1, n), func(c *CreateGrant) { c.Parent, c.Expires = grantID(10*n), start+99 }))
		})
		for _, text := range []string{"a", "b", "c"} {
			w.do(&PutPolicy{Tenant: DefaultTenant, Key: keyID(n), Text: text})
		}
		w.do(&RecordUse{[]Use{{keyID(n), 1, start}, {keyID(n), 2, start}}})
		w.do(&ScheduleKeyDeletion{ref(n), 7})
	}
	w := twoKeys(t)
	w.do(&PutPolicy{Tenant: DefaultTenant, Text: "the tenant's"})
	full(w, 2)
	due := w.s.Due(1<<62, 100)
	full(w, 1)
	want := withoutKey(records(t, w.s), 1)
	before := snapshotOf(t, w.s)
	old := w.s
	if got := w.do(&DeleteKey{ref(1), start + 7*day}); got != (Result{Index: w.s.Index(), ID: keyID(1).String()}) {
		t.Errorf("result %+v", got)
	}
	wantSame(t, "what is left", []byte(records(t, w.s)), []byte(want))
	if got := w.s.Due(1<<62, 100); !slices.Equal(got, due) {
		t.Errorf("%v are due, want %v", got, due)
	}
	if a, b, c := w.s.CountGrants(keyID(1)), len(w.s.RetirableGrants(other, ID{}, 10)), w.s.TenantKeys(DefaultTenant); a != 0 || b != 1 || c != 1 {
		t.Errorf("%d grants of the key, %d that can be retired, %d keys", a, b, c)
	}
	wantSame(t, "the state before", snapshotOf(t, old), before)
	for name, c := range keyChanges(ref(1)) {
		if name == "CreateAlias" || name == "UpdateAlias" {
			continue
		}
		w.refuse(c, ErrNotFound, keyID(1).String())
	}
	w.do(createKey(1)) // its names are free again
	w.do(&CreateAlias{alias("alias/1", 1)})
	if n := len(w.s.Policies(DefaultTenant, keyID(1))); n != 0 {
		t.Errorf("a new key has %d policies", n)
	}
}

// withoutKey is records without those that name the n-th key.
func withoutKey(records string, n uint64) string {
	lines := strings.SplitAfter(records, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, keyID(n).String()) }), "")
}
