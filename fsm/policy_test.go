package fsm

import (
	"fmt"
	"strings"
	"testing"
)

// putPolicy replaces the policy of the n-th key, or the tenant's if n is 0.
func putPolicy(n uint64, text string) *PutPolicy {
	return &PutPolicy{Tenant: DefaultTenant, Key: keyID(n), Text: text}
}

func expecting(c *PutPolicy, number uint32) *PutPolicy {
	c.Expect = &number
	return c
}

// wantPolicies compares the numbers of the revisions that are kept, and the present one.
func wantPolicies(t *testing.T, w *world, n uint64, present uint32, want ...uint32) {
	t.Helper()
	var got []uint32
	for _, p := range w.s.Policies(DefaultTenant, keyID(n)) {
		got = append(got, p.Number)
		if same, ok := w.s.Policy(DefaultTenant, keyID(n), p.Number); !ok || same != p {
			t.Errorf("policy %d of key %d is not found", p.Number, n)
		}
	}
	tenant, _ := w.s.Tenant(DefaultTenant)
	now := tenant.Policy
	if n != 0 {
		now = w.key(n).Policy
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || now != present {
		t.Errorf("policies of key %d are %v, the present one %d; want %v and %d", n, got, now, want, present)
	}
}

func TestPutPolicy(t *testing.T) {
	for _, n := range []uint64{0, 1} {
		w := twoKeys(t)
		w.do(putPolicy(2, "of another key"))
		w.do(&CreateTenant{Name: "acme", Administrator: acmeAdmin})
		w.do(&PutPolicy{Tenant: "acme", Text: "of another tenant"})
		w.clock += second
		if got := w.do(putPolicy(n, "first")); got != (Result{Index: w.s.Index(), ID: DefaultTenant, Version: 1}) {
			t.Errorf("result %+v", got)
		}
		want := Policy{Tenant: DefaultTenant, Key: keyID(n), Number: 1, Text: "first", By: admin, Created: start + 1, Revision: w.s.Index()}
		if got, ok := w.s.Policy(DefaultTenant, keyID(n), 1); !ok || *got != want {
			t.Errorf("policy is %+v, want %+v", got, want)
		}
		wantPolicies(t, w, n, 1, 1)
		w.do(expecting(putPolicy(n, "second"), 1))
		w.refuse(expecting(putPolicy(n, "third"), 1), ErrConflict, "the policy is at revision 2, expected 1")
		w.refuse(expecting(putPolicy(n, "third"), 0), ErrConflict, "the policy is at revision 2, expected 0")
		wantPolicies(t, w, n, 2, 1, 2)
		w.do(putPolicy(n, "")) // none any more
		wantPolicies(t, w, n, 0, 1, 2, 3)
		w.refuse(expecting(putPolicy(n, "fourth"), 3), ErrConflict, "the policy is at revision 0, expected 3")
		w.do(expecting(putPolicy(n, "fourth"), 0))
		wantPolicies(t, w, n, 4, 1, 2, 3, 4)
		wantPolicies(t, w, 2, 1, 1)
		if got := w.s.Policies("acme", ID{}); len(got) != 1 || got[0].Text != "of another tenant" {
			t.Errorf("acme has %+v", got)
		}
		if got := w.s.Policies("acme", keyID(1)); got != nil {
			t.Errorf("a policy of key 1 is another tenant's too: %+v", got)
		}
	}
}

// TestPolicyHistory: the last 20 are kept, and the numbers go on.
func TestPolicyHistory(t *testing.T) {
	for _, n := range []uint64{0, 1} {
		w := oneKey(t)
		var want []uint32
		for i := uint32(1); i <= MaxPolicyHistory+3; i++ {
			w.do(putPolicy(n, fmt.Sprintf("text %d", i)))
			if want = append(want, i); len(want) > 20 {
				want = want[1:]
			}
			wantPolicies(t, w, n, i, want...)
		}
		if _, ok := w.s.Policy(DefaultTenant, keyID(n), 3); ok {
			t.Error("the third is still there")
		}
	}
}

func TestPolicyRefused(t *testing.T) {
	testAccepted(t, oneKey, []accepted{
		{"32 KiB", putPolicy(1, strings.Repeat("<", 32<<10))},
		{"none expected", expecting(putPolicy(1, "x"), 0)},
		{"none instead of none", putPolicy(0, "")},
	})
	testRefusals(t, oneKey, []refusal{
		{"a byte too long", putPolicy(1, strings.Repeat("x", 32<<10+1)), ErrInvalid, "policy of 32769 bytes, at most 32768"},
		{"no tenant", &PutPolicy{Text: "x"}, ErrNotFound, `tenant ""`},
		{"another tenant", &PutPolicy{Tenant: "acme", Key: keyID(1), Text: "x"}, ErrNotFound, `tenant "acme"`},
		{"no such key", putPolicy(9, "x"), ErrNotFound, keyID(9).String()},
		{"one expected", expecting(putPolicy(1, "x"), 1), ErrConflict, "the policy is at revision 0, expected 1"},
	})
	w := oneKey(t)
	w.do(createTenant("acme"))
	w.refuse(&PutPolicy{Tenant: "acme", Key: keyID(1), Text: "x"}, ErrNotFound, keyID(1).String())
	_, err := EncodeEntry(w.entry(), putPolicy(1, "\xff"), logKey())
	wantError(t, err, ErrInvalid, "policy is not valid UTF-8")
}

// TestPolicyInEveryState: none forbids it.
func TestPolicyInEveryState(t *testing.T) {
	for state := range forbidden {
		if state == KeyPendingImport { // of no record
			continue
		}
		w := inState(t, state)
		w.do(putPolicy(1, "x"))
		if k := w.key(1); k.State != state || k.Policy != 1 || k.Revision != w.s.Index() {
			t.Errorf("key is %+v", k)
		}
	}
}

// TestPolicyTextOfTenant: what a tenant's policies may take together; the oldest revisions of
// a policy make room for its next.
func TestPolicyTextOfTenant(t *testing.T) {
	w := twoKeys(t)
	w.do(putPolicy(1, "first"))
	w.do(putPolicy(1, "second"))
	if n := w.s.count(countPolicyText+DefaultTenant, ID{}); n != len("firstsecond") {
		t.Fatalf("%d bytes are counted", n)
	}
	w.edit(func(t *tx) { t.addTo(countPolicyText+DefaultTenant, ID{}, MaxTenantPolicyText-len("firstsecond")) })
	try := func(c *PutPolicy) (*State, error) { return w.s.After(c) }
	_, err := try(putPolicy(2, "x"))
	wantError(t, err, ErrLimit, "the policies of tenant default and its keys")
	_, err = try(putPolicy(0, "x"))
	wantError(t, err, ErrLimit, "take 67108865 bytes together, at most 67108864")
	if _, err := try(putPolicy(2, "")); err != nil {
		t.Errorf("a policy that is taken away: %v", err)
	}
	after, err := try(putPolicy(1, "third"))
	if err != nil {
		t.Fatal(err)
	}
	if kept := after.Policies(DefaultTenant, keyID(1)); len(kept) != 2 || kept[0].Text != "second" || kept[1].Text != "third" {
		t.Errorf("%d revisions are kept", len(kept))
	}
}

// TestPolicyOfAnotherTenantsKey: nothing of a key is told before its tenant is looked at.
func TestPolicyOfAnotherTenantsKey(t *testing.T) {
	w := twoKeys(t)
	w.do(putPolicy(1, "x"))
	w.do(&CreateTenant{Name: "acme", Administrator: acmeAdmin})
	w.refuse(expecting(&PutPolicy{Tenant: "acme", Key: keyID(1), Text: "y"}, 7), ErrNotFound, keyID(1).String())
}

// TestPolicyPinsItsKey: what was decided on one state of a key is not done to another.
func TestPolicyPinsItsKey(t *testing.T) {
	w := twoKeys(t)
	decided := edited(putPolicy(1, "x"), func(c *PutPolicy) { c.ExpectKey = w.key(1).Revision })
	w.do(&TagKey{ref(1), tags(0, 1)})
	w.refuse(decided, ErrConflict, "expected")
	decided.ExpectKey = w.key(1).Revision
	w.do(decided)
}
