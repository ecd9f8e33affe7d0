package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// HandOver is how long after its checks a result may still be handed over.
const HandOver = 100 * time.Millisecond

// DefaultUndecided bounds the search for a linearization of one key's history.
const DefaultUndecided = 30 * time.Second

// Rules are what Check allows.
type Rules struct {
	// Slack is added to HandOver: what the test's own view of a hand-over may be
	// late by. Zero in virtual time.
	Slack time.Duration
	// Undecided bounds the search for a linearization of one key, in real time; a
	// search that ends undecided is reported. Zero means DefaultUndecided.
	Undecided time.Duration
}

// Violation is a rule that a history breaks.
type Violation struct {
	Rule       string // "restriction", "right", "linearizability", "session", "state", "lost key", "divergence"
	Text       string
	Operations []Operation // that break it, or the key's, where all of them together do
}

// maxShown bounds the operations that a violation's text lists.
const maxShown = 60

// String is the violation for people, an operation a line.
func (v Violation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", v.Rule, v.Text)
	for i, o := range v.Operations {
		if i == maxShown {
			fmt.Fprintf(&b, "\n    … %d more", len(v.Operations)-i)
			break
		}
		b.WriteString("\n    " + o.String())
	}
	return b.String()
}

// String is one line with everything that is known of the operation.
func (o Operation) String() string {
	end := "never"
	if o.End != Never {
		end = o.End.String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "#%d client %d at %s: %s %s, begun %s, ended %s: %s", o.ID, o.Client, o.Node, o.Kind, o.Key, o.Begin, end, o.Outcome)
	for _, part := range []struct {
		show bool
		text string
	}{
		{len(o.Under) > 0, fmt.Sprintf(", under %s", strings.Join(o.Under, " and "))},
		{o.Lacks != "", fmt.Sprintf(", for want of %s", o.Lacks)},
		{o.Value != "", fmt.Sprintf(", saw %s", o.Value)},
		{o.Index != 0, fmt.Sprintf(", index %d", o.Index)},
		{o.After != 0, fmt.Sprintf(", after index %d", o.After)},
		{o.Authorised != 0, fmt.Sprintf(", authorised %s", o.Authorised)},
		{o.HandedOver != 0, fmt.Sprintf(", handed over %s", o.HandedOver)},
		{o.Note != "", fmt.Sprintf(" (%s)", o.Note)},
	} {
		if part.show {
			b.WriteString(part.text)
		}
	}
	return b.String()
}

// Check applies every rule.
func Check(h History, r Rules) []Violation {
	r.Undecided = cmp.Or(r.Undecided, DefaultUndecided)
	var out []Violation
	keys := byKey(h.Operations)
	for _, key := range sortedKeys(keys) {
		out = append(out, checkRestrictions(keys[key], r)...)
		out = append(out, checkLinear(key, keys[key], r)...)
		out = append(out, checkStates(key, keys[key], r)...)
		out = append(out, checkLost(keys[key])...)
	}
	rights := byRight(h.Operations)
	for _, right := range sortedKeys(rights) {
		out = append(out, checkRestrictions(rights[right], r)...)
		out = append(out, checkRight(right, rights[right])...)
	}
	out = append(out, checkRemovals(h.Operations)...)
	out = append(out, checkSessions(h.Operations)...)
	return append(out, checkDigests(h.Digests)...)
}

func byKey(all []Operation) map[string][]Operation {
	keys := map[string][]Operation{}
	for _, o := range all {
		if o.Kind != Remove && !o.Kind.OfRights() {
			keys[o.Key] = append(keys[o.Key], o)
		}
	}
	return keys
}

// byRight gives what changes a right, and the uses that need it.
func byRight(all []Operation) map[string][]Operation {
	rights := map[string][]Operation{}
	for _, o := range all {
		if o.Kind.OfRights() {
			rights[o.Key] = append(rights[o.Key], o)
		}
		for _, right := range o.Under {
			rights[right] = append(rights[right], o)
		}
	}
	return rights
}

func sortedKeys(m map[string][]Operation) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
