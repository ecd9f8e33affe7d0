package main

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// enum is an enum of the protocol as a flag: its names without their prefix, in lower case
// and with dashes. The protocol's own names are understood too.
type enum struct {
	prefix string
	names  map[int32]string
}

// choices are the values but the unset one, in the protocol's order.
func (e enum) choices() []string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(e.names)) {
		if n != 0 {
			out = append(out, e.text(n))
		}
	}
	return out
}

// text is how a value is spelled for the flag; one that this release does not know is a number.
func (e enum) text(n int32) string {
	name, ok := e.names[n]
	if !ok {
		return strconv.FormatInt(int64(n), 10)
	}
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, e.prefix), "_", "-"))
}

// parse reads the value of a flag; empty is the unset one.
func (e enum) parse(flag, text string) (int32, error) {
	if text == "" {
		return 0, nil
	}
	name := e.prefix + strings.ToUpper(strings.ReplaceAll(text, "-", "_"))
	for n, known := range e.names {
		if n != 0 && known == name {
			return n, nil
		}
	}
	return 0, usagef("--%s %q: want %s", flag, text, strings.Join(e.choices(), ", "))
}

// required is parse for what must be given.
func (e enum) required(flag, text string) (int32, error) {
	if text == "" {
		return 0, usagef("--%s is missing: want %s", flag, strings.Join(e.choices(), ", "))
	}
	return e.parse(flag, text)
}
