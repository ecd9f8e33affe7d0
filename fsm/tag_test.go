package fsm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// tags gives n tags, k00 upwards from the first.
func tags(first, n int) []Tag {
	var out []Tag
	for i := first; i < first+n; i++ {
		out = append(out, Tag{fmt.Sprintf("k%02d", i), fmt.Sprintf("v%d", i)})
	}
	return out
}

func TestTagAndUntag(t *testing.T) {
	w := oneKey(t)
	for _, step := range []struct {
		command Command
		want    []Tag
	}{
		{&TagKey{ref(1), []Tag{{"b", "1"}, {"a", ""}}}, []Tag{{"a", ""}, {"b", "1"}}},
		{&TagKey{ref(1), []Tag{{"c", "3"}, {"b", "2"}}}, []Tag{{"a", ""}, {"b", "2"}, {"c", "3"}}},
		{&TagKey{ref(1), []Tag{{"B", "x"}}}, []Tag{{"B", "x"}, {"a", ""}, {"b", "2"}, {"c", "3"}}},
		{&UntagKey{ref(1), []string{"b", "never there", "b"}}, []Tag{{"B", "x"}, {"a", ""}, {"c", "3"}}},
		{&UntagKey{ref(1), []string{"never there"}}, []Tag{{"B", "x"}, {"a", ""}, {"c", "3"}}},
		{&UntagKey{ref(1), []string{"a", "c", "B"}}, nil},
		{&TagKey{ref(1), []Tag{{"a", "<&>"}}}, []Tag{{"a", "<&>"}}},
	} {
		if got := w.do(step.command); got.ID != keyID(1).String() || got.Version != 1 {
			t.Errorf("%+v: result %+v", step.command, got)
		}
		if got := w.key(1); !slices.Equal(got.Tags, step.want) || got.Revision != w.s.Index() {
			t.Errorf("%+v: tags %v at revision %d, want %v", step.command, got.Tags, got.Revision, step.want)
		}
	}
}

func TestTagCount(t *testing.T) {
	w := oneKey(t)
	w.do(&TagKey{ref(1), tags(0, 49)})
	w.refuse(&TagKey{ref(1), tags(49, 2)}, ErrLimit, "would have 51 tags, at most 50")
	w.do(&TagKey{ref(1), tags(49, 1)})
	w.do(&TagKey{ref(1), tags(0, 50)})
	w.refuse(&TagKey{ref(1), tags(50, 1)}, ErrLimit, "would have 51 tags, at most 50")
	w.refuse(&TagKey{ref(1), tags(20, 31)}, ErrLimit, "would have 51 tags")
	w.do(&UntagKey{ref(1), []string{"k00"}})
	w.do(&TagKey{ref(1), tags(50, 1)})
	if got := len(w.key(1).Tags); got != 50 {
		t.Errorf("%d tags, want 50", got)
	}
}

// TestTagRules: the same rules hold where a key is made and where it is tagged.
func TestTagRules(t *testing.T) {
	long := func(n int) string { return strings.Repeat("ß", n) }
	var ok []accepted
	var bad []refusal
	both := func(given []Tag) map[string]Command {
		return map[string]Command{"create ": create(func(c *CreateKey) { c.Tags = given }), "tag ": &TagKey{ref(1), given}}
	}
	for _, row := range []struct {
		name string
		tags []Tag
		text string // "" where the tags are right
	}{
		{"key of 1 character", []Tag{{"k", "v"}}, ""},
		{"key of 128 characters", []Tag{{long(128), "v"}}, ""},
		{"value of 256 characters", []Tag{{"k", long(256)}}, ""},
		{"empty value", []Tag{{"k", ""}}, ""},
		{"kms inside", []Tag{{"akms:x", ""}, {"kms", ""}, {"kmsx:", ""}}, ""},
		{"50 tags", tags(0, 50), ""},
		{"51 tags", tags(0, 51), "51 tags given, at most 50"},
		{"empty key", []Tag{{"", "v"}}, "tag key is empty"},
		{"key of 129 characters", []Tag{{long(129), "v"}}, "tag key has 129 characters, at most 128"},
		{"value of 257 characters", []Tag{{"k", long(257)}}, "tag value has 257 characters, at most 256"},
		{"reserved", []Tag{{"kms:x", "v"}}, "prefix kms: is reserved"},
		{"reserved, capitals", []Tag{{"a", ""}, {"KmS:", ""}}, "prefix kms: is reserved"},
		{"twice", []Tag{{"a", "1"}, {"b", ""}, {"a", "1"}}, `tag key "a" is given twice`},
	} {
		for prefix, c := range both(row.tags) {
			if row.text == "" {
				ok = append(ok, accepted{prefix + row.name, c})
			} else {
				bad = append(bad, refusal{prefix + row.name, c, ErrInvalid, row.text})
			}
		}
	}
	testAccepted(t, oneKey, ok)
	testRefusals(t, oneKey, bad)
	testRefusals(t, oneKey, []refusal{{"no tags", &TagKey{ref(1), nil}, ErrInvalid, "no tags given"}})
}

func TestUntagRefused(t *testing.T) {
	var names []string
	for _, tag := range tags(0, 51) {
		names = append(names, tag.Key)
	}
	testAccepted(t, oneKey, []accepted{{"50 keys", &UntagKey{ref(1), names[:50]}}})
	testRefusals(t, oneKey, []refusal{
		{"51 keys", &UntagKey{ref(1), names}, ErrInvalid, "51 tag keys given: must be 1 to 50"},
		{"no keys", &UntagKey{ref(1), nil}, ErrInvalid, "0 tag keys given: must be 1 to 50"},
		{"empty key", &UntagKey{ref(1), []string{"a", ""}}, ErrInvalid, "tag key is empty"},
		{"key of 129 characters", &UntagKey{ref(1), []string{strings.Repeat("x", 129)}}, ErrInvalid, "129 characters"},
		{"reserved", &UntagKey{ref(1), []string{"kms:x"}}, ErrInvalid, "reserved"},
	})
}
