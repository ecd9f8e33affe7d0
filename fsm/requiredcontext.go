package fsm

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of required context keys.
const (
	MaxRequiredContext = 16  // a key
	MaxContextKey      = 512 // bytes
)

// SetRequiredContext says which keys the encryption context of every call must have.
// No keys end it.
type SetRequiredContext struct {
	KeyRef
	Keys []string `json:"keys,omitempty"`
}

func (c *SetRequiredContext) validate() error {
	if len(c.Keys) > MaxRequiredContext {
		return invalid("%d required context keys, at most %d", len(c.Keys), MaxRequiredContext)
	}
	sorted := slices.Sorted(slices.Values(c.Keys))
	for i, k := range sorted {
		switch {
		case k == "" || len(k) > MaxContextKey || !utf8.ValidString(k):
			return invalid("required context key has %d bytes: must be 1 to %d of valid UTF-8", len(k), MaxContextKey)
		case strings.HasPrefix(k, "kms:"):
			return invalid("required context key %q: the prefix kms: is reserved", k)
		case i > 0 && k == sorted[i-1]:
			return invalid("required context key %q is given twice", k)
		}
	}
	return c.KeyRef.validate()
}

func (c *SetRequiredContext) apply(t *tx) (Result, error) {
	return c.change(t, OpEdit, func(k *Key) error {
		if err := k.symmetric("an encryption context"); err != nil {
			return err
		}
		k.Required = slices.Sorted(slices.Values(c.Keys))
		return nil
	})
}

// HasContext is nil if an encryption context has every key that the key requires.
func (k *Key) HasContext(context []Tag) error {
	for _, want := range k.Required {
		if !slices.ContainsFunc(context, func(t Tag) bool { return t.Key == want }) {
			return invalid("key %s requires the encryption context key %q", k.ID, want)
		}
	}
	return nil
}
