package fsm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestSetRequiredContext(t *testing.T) {
	w := oneKey(t)
	for _, step := range []struct{ keys, want []string }{
		{[]string{"tenant", "resource"}, []string{"resource", "tenant"}},
		{[]string{"Ä", "a", "A"}, []string{"A", "a", "Ä"}},
		{[]string{}, nil},
		{[]string{"tenant"}, []string{"tenant"}},
		{nil, nil},
	} {
		c := &SetRequiredContext{ref(1), slices.Clone(step.keys)}
		w.do(c)
		if got := w.key(1).Required; !slices.Equal(got, step.want) || !slices.Equal(c.Keys, step.keys) {
			t.Errorf("%v became %v, want %v", step.keys, got, step.want)
		}
	}
}

func TestRequiredContextRefused(t *testing.T) {
	var many []string
	for i := range MaxRequiredContext + 1 {
		many = append(many, fmt.Sprintf("%02d", i)+strings.Repeat("k", MaxContextKey-2))
	}
	require := func(keys ...string) *SetRequiredContext { return &SetRequiredContext{ref(1), keys} }
	testAccepted(t, oneKey, []accepted{{"16 of 512 bytes", require(many[1:]...)}})
	testRefusals(t, oneKey, []refusal{
		{"17", require(many...), ErrInvalid, "17 required context keys, at most 16"},
		{"an empty one", require("a", ""), ErrInvalid, "required context key has 0 bytes: must be 1 to 512"},
		{"513 bytes", require(many[0] + "k"), ErrInvalid, "required context key has 513 bytes"},
		{"twice", require("b", "a", "b"), ErrInvalid, `required context key "b" is given twice`},
		{"reserved", require("kms:x"), ErrInvalid, "the prefix kms: is reserved"},
		{"no key", &SetRequiredContext{ref(0), nil}, ErrInvalid, "key id is missing"},
	})
}

func TestHasContext(t *testing.T) {
	k := &Key{ID: keyID(1), Required: []string{"resource", "tenant"}}
	for _, row := range []struct {
		context []Tag
		lacks   string
	}{
		{nil, "resource"},
		{[]Tag{{"resource", ""}}, "tenant"},
		{[]Tag{{"tenant", "x"}, {"Resource", "x"}}, "resource"},
		{[]Tag{{"tenant", "x"}, {"more", "x"}, {"resource", ""}}, ""},
	} {
		err := k.HasContext(row.context)
		if row.lacks == "" && err != nil {
			t.Errorf("%v: %v", row.context, err)
		} else if row.lacks != "" {
			wantError(t, err, ErrInvalid, fmt.Sprintf("requires the encryption context key %q", row.lacks))
		}
	}
	if err := (&Key{}).HasContext(nil); err != nil {
		t.Error(err)
	}
}
