package history

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Summary counts what a history is worth: a history in which nothing was released,
// or no restriction had to wait, proves nothing.
type Summary struct {
	Released     int             // uses that gave a result
	Withheld     int             // uses that did not
	Writes       int             // acknowledged
	Reads        int             // answered
	Unknown      int             // outcomes
	Restrictions []time.Duration // how long each acknowledged one took, sorted
}

// Summarize counts.
func Summarize(h History) Summary {
	var s Summary
	for _, o := range h.Operations {
		switch {
		case o.Kind == Use && o.Outcome == OK:
			s.Released++
		case o.Kind == Use:
			s.Withheld++
		case o.Outcome == Unknown:
			s.Unknown++
		case o.Outcome != OK:
		case o.Kind.Restricts():
			s.Restrictions = append(s.Restrictions, o.End-o.Begin)
			s.Writes++
		case o.Kind.Writes():
			s.Writes++
		default:
			s.Reads++
		}
	}
	slices.Sort(s.Restrictions)
	return s
}

// Add adds another history's counts.
func (s *Summary) Add(o Summary) {
	s.Released += o.Released
	s.Withheld += o.Withheld
	s.Writes += o.Writes
	s.Reads += o.Reads
	s.Unknown += o.Unknown
	s.Restrictions = append(s.Restrictions, o.Restrictions...)
	slices.Sort(s.Restrictions)
}

// Waited is the number of restrictions that took longer than d.
func (s Summary) Waited(d time.Duration) int {
	i, _ := slices.BinarySearch(s.Restrictions, d+1)
	return len(s.Restrictions) - i
}

// Quantile is the duration that a fraction q of the sorted durations does not exceed.
func Quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// String is the summary for people.
func (s Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "uses released %d, withheld %d; writes %d, reads %d, outcomes unknown %d\n", s.Released, s.Withheld, s.Writes, s.Reads, s.Unknown)
	fmt.Fprintf(&b, "restrictions %d, waited over a second %d", len(s.Restrictions), s.Waited(time.Second))
	for _, q := range []float64{0.5, 0.9, 0.99, 1} {
		fmt.Fprintf(&b, ", p%g %s", q*100, Quantile(s.Restrictions, q).Round(time.Millisecond))
	}
	return b.String()
}
