package fsm

import (
	"strings"
	"testing"
)

func bind(n uint64, resource string) *BindResource { return &BindResource{ref(n), resource} }

func release(n uint64, resource string) *ReleaseResource {
	return &ReleaseResource{KeyRef: ref(n), Resource: resource}
}

func TestBindings(t *testing.T) {
	w := twoKeys(t)
	revision := w.key(1).Revision
	w.as(storage, func() {
		if got := w.do(bind(1, "bucket/a")); got != (Result{Index: 4, ID: keyID(1).String()}) {
			t.Errorf("result %+v", got)
		}
	})
	want := Binding{Key: keyID(1), Resource: "bucket/a", By: storage, Created: start, Revision: 4}
	w.clock += second
	w.do(bind(1, "bucket/a")) // registered it is
	if got, ok := w.s.Binding(keyID(1), "bucket/a"); !ok || *got != want {
		t.Errorf("binding is %+v, want %+v", got, want)
	}
	w.do(bind(2, "bucket/a")) // by two keys
	if n := w.s.CountBindings(keyID(1)); n != 1 || w.key(1).Revision != revision {
		t.Errorf("%d bindings, the key is at revision %d", n, w.key(1).Revision)
	}

	mine := edited(release(1, "bucket/a"), func(c *ReleaseResource) { c.By = admin })
	w.refuse(mine, ErrNotFound, `has no binding to "bucket/a"`)
	mine.By = storage
	w.do(mine)
	w.refuse(mine, ErrNotFound, `has no binding to "bucket/a"`)
	w.do(release(2, "bucket/a")) // whoever registered it
	if a, b := w.s.CountBindings(keyID(1)), w.s.CountBindings(keyID(2)); a != 0 || b != 0 {
		t.Errorf("%d and %d bindings are left", a, b)
	}
}

func TestBindingsRefused(t *testing.T) {
	long := strings.Repeat("r", MaxResource)
	testAccepted(t, oneKey, []accepted{{"512 bytes", bind(1, long)}, {"any text", bind(1, "<&> \u2028")}})
	testRefusals(t, oneKey, []refusal{
		{"no resource", bind(1, ""), ErrInvalid, "resource has 0 bytes: must be 1 to 512"},
		{"513 bytes", bind(1, long+"r"), ErrInvalid, "resource has 513 bytes"},
		{"released, no resource", release(1, ""), ErrInvalid, "resource has 0 bytes"},
		{"released, no key", release(0, "r"), ErrInvalid, "key id is missing"},
		{"released, unknown key", release(9, "r"), ErrNotFound, keyID(9).String()},
		{"released, never bound", release(1, "r"), ErrNotFound, `has no binding to "r"`},
	})
	w := oneKey(t)
	w.do(bind(1, "r"))
	w.refuse(&ReleaseResource{KeyRef: KeyRef{ID: keyID(1), Tenant: "acme"}, Resource: "r"}, ErrNotFound, keyID(1).String())
	w.refuse(&ReleaseResource{KeyRef: KeyRef{ID: keyID(1), Tenant: DefaultTenant, Expect: 9}, Resource: "r"}, ErrConflict, "expected 9")
	w.do(&DisableKey{ref(1)})
	w.do(release(1, "r")) // in every state: nothing has to be used for it
}

func TestBindingLimit(t *testing.T) {
	w := oneKey(t)
	w.edit(func(t *tx) {
		t.putBinding(&Binding{Key: keyID(1), Resource: "r"})
		t.addTo(countBindings, keyID(1), MaxBindings-1)
	})
	_, err := w.s.Try(bind(1, "s"))
	wantError(t, err, ErrLimit, "protects 100000 resources")
	if _, err := w.s.Try(bind(1, "r")); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	w = twoKeys(t)
	w.do(bind(1, "r"))
	w.edit(func(t *tx) { t.addTo(countTenantBindings+DefaultTenant, ID{}, MaxTenantBindings-1) })
	_, err = w.s.Try(bind(2, "s"))
	wantError(t, err, ErrLimit, "the keys of tenant default protect 1000000 resources")
	if n := reread(t, w.s).count(countTenantBindings+DefaultTenant, ID{}); n != 1 {
		t.Errorf("%d are counted in what is read back, there is one", n)
	}
}

func TestBindingPages(t *testing.T) {
	w := twoKeys(t)
	for _, r := range []string{"c", "a", "b"} {
		w.do(bind(1, r))
		w.do(bind(2, r+"2"))
	}
	for _, row := range []struct {
		key   uint64
		after string
		limit int
		want  string
	}{
		{1, "", 10, "a b c"},
		{1, "", 2, "a b"},
		{1, "b", 2, "c"},
		{1, "aa", 9, "b c"},
		{1, "c", 9, ""},
		{1, "", 0, ""},
		{2, "", 10, "a2 b2 c2"},
		{3, "", 10, ""},
	} {
		var got []string
		for _, b := range w.s.Bindings(keyID(row.key), row.after, row.limit) {
			got = append(got, b.Resource)
		}
		if s := strings.Join(got, " "); s != row.want {
			t.Errorf("key %d after %q, at most %d: %s, want %s", row.key, row.after, row.limit, s, row.want)
		}
	}
}
