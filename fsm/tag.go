package fsm

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of tags.
const (
	MaxTags     = 50  // a key
	MaxTagKey   = 128 // characters, at least 1
	MaxTagValue = 256 // characters, may be empty
)

// Tag is one label of a key.
type Tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// TagKey sets tags: a key that is there already gets the new value.
type TagKey struct {
	KeyRef
	Tags []Tag `json:"tags"`
}

func (c *TagKey) validate() error {
	if err := c.KeyRef.validate(); err != nil {
		return err
	}
	if len(c.Tags) == 0 {
		return invalid("no tags given")
	}
	_, err := normalTags(c.Tags)
	return err
}

func (c *TagKey) apply(t *tx) (Result, error) {
	return c.change(t, OpEdit, func(k *Key) error {
		tags := slices.DeleteFunc(slices.Clone(k.Tags), func(old Tag) bool {
			return slices.ContainsFunc(c.Tags, func(n Tag) bool { return n.Key == old.Key })
		})
		tags = append(tags, c.Tags...)
		if len(tags) > MaxTags {
			return fmt.Errorf("%w: key %s would have %d tags, at most %d", ErrLimit, k.ID, len(tags), MaxTags)
		}
		k.Tags = sortTags(tags)
		return nil
	})
}

// UntagKey removes tags by their keys; keys that are not there are ignored.
type UntagKey struct {
	KeyRef
	TagKeys []string `json:"tag_keys"`
}

func (c *UntagKey) validate() error {
	if err := c.KeyRef.validate(); err != nil {
		return err
	}
	if len(c.TagKeys) == 0 || len(c.TagKeys) > MaxTags {
		return invalid("%d tag keys given: must be 1 to %d", len(c.TagKeys), MaxTags)
	}
	for _, k := range c.TagKeys {
		if err := validTag(Tag{Key: k}); err != nil {
			return err
		}
	}
	return nil
}

func (c *UntagKey) apply(t *tx) (Result, error) {
	return c.change(t, OpEdit, func(k *Key) error {
		k.Tags = slices.DeleteFunc(slices.Clone(k.Tags), func(old Tag) bool { return slices.Contains(c.TagKeys, old.Key) })
		return nil
	})
}

// normalTags returns the tags sorted by key, or says what is wrong with them.
func normalTags(tags []Tag) ([]Tag, error) {
	if len(tags) > MaxTags {
		return nil, invalid("%d tags given, at most %d", len(tags), MaxTags)
	}
	for _, t := range tags {
		if err := validTag(t); err != nil {
			return nil, err
		}
	}
	sorted := sortTags(slices.Clone(tags))
	for i := 1; i < len(sorted); i++ {
		if sorted[i].Key == sorted[i-1].Key {
			return nil, invalid("tag key %q is given twice", sorted[i].Key)
		}
	}
	return sorted, nil
}

func sortTags(tags []Tag) []Tag {
	slices.SortFunc(tags, func(a, b Tag) int { return cmp.Compare(a.Key, b.Key) })
	return tags
}

func validTag(t Tag) error {
	switch {
	case !utf8.ValidString(t.Key) || !utf8.ValidString(t.Value):
		return invalid("tag is not valid UTF-8")
	case t.Key == "":
		return invalid("tag key is empty")
	case utf8.RuneCountInString(t.Key) > MaxTagKey:
		return invalid("tag key has %d characters, at most %d", utf8.RuneCountInString(t.Key), MaxTagKey)
	case utf8.RuneCountInString(t.Value) > MaxTagValue:
		return invalid("tag value has %d characters, at most %d", utf8.RuneCountInString(t.Value), MaxTagValue)
	case strings.HasPrefix(strings.ToLower(t.Key), "kms:"):
		return invalid("tag key %q: the prefix kms: is reserved", t.Key)
	}
	return nil
}
