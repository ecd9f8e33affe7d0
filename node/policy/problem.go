package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrPolicy is wrapped by what Parse refuses.
var ErrPolicy = errors.New("invalid policy")

// MaxProblems is how many problems an Error lists.
const MaxProblems = 20

// Problem is one thing that is wrong with a text.
type Problem struct {
	Line, Column int // from 1; columns count characters
	Text         string
}

// String is line:column: text.
func (p Problem) String() string { return fmt.Sprintf("%d:%d: %s", p.Line, p.Column, p.Text) }

// Error is what is wrong with a text, in its order. It wraps ErrPolicy.
type Error struct {
	Problems []Problem
	More     int // problems that are not listed
}

// Error lists the problems, separated by "; ".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(ErrPolicy.Error())
	separator := ": "
	for _, p := range e.Problems {
		b.WriteString(separator + p.String())
		separator = "; "
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "; and %d more", e.More)
	}
	return b.String()
}

// Unwrap is ErrPolicy.
func (e *Error) Unwrap() error { return ErrPolicy }

// refuse sorts what was found and drops what was found twice.
func refuse(problems ...Problem) error {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	problems = slices.Compact(problems)
	n := min(len(problems), MaxProblems)
	return &Error{Problems: problems[:n], More: len(problems) - n}
}

// Meant is how a message goes on that named an unknown thing: the nearest known one,
// or all of a few.
func Meant(name string, known []string) string {
	best, distance := "", len(name)
	var longer []string
	for _, k := range known {
		if strings.EqualFold(k, name) {
			return fmt.Sprintf(": did you mean %s?", k)
		}
		if len(name) > 2 && strings.HasPrefix(strings.ToLower(k), strings.ToLower(name)) {
			longer = append(longer, k)
		}
		if d := edits(strings.ToLower(name), strings.ToLower(k)); d < distance {
			best, distance = k, d
		}
	}
	if len(longer) > 0 {
		return fmt.Sprintf(": did you mean %s?", strings.Join(longer[:min(len(longer), 3)], " or "))
	}
	switch {
	case best != "" && distance <= max(2, len(best)/3):
		return fmt.Sprintf(": did you mean %s?", best)
	case len(known) == 0 || len(known) > 8:
		return ""
	}
	return ": there are " + strings.Join(known, ", ")
}

// edits is the Levenshtein distance of two short names, in bytes.
func edits(a, b string) int {
	const most = 100 // longer names are no slips of the pen
	if len(a) > most || len(b) > most {
		return max(len(a), len(b))
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
