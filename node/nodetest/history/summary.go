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
	Rights       int             // uses that needed a right, and gave a result
	Lacking      int             // that were refused for want of one
	Grants       []time.Duration // how long each acknowledged one took, sorted
}

// Summarize counts.
func Summarize(h History) Summary {
	var s Summary
	for _, o := range h.Operations {
		switch {
		case o.Lacks != "":
			s.Lacking++
		case len(o.Under) > 0 && o.Outcome == OK:
			s.Rights++
		case o.Kind == Grant && o.Outcome == OK:
			s.Grants = append(s.Grants, o.End-o.Begin)
		}
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
		case o.Kind.Writes(), o.Kind.OfRights():
			s.Writes++
		default:
			s.Reads++
		}
	}
	slices.Sort(s.Restrictions)
	slices.Sort(s.Grants)
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
	s.Rights += o.Rights
	s.Lacking += o.Lacking
	s.Grants = append(s.Grants, o.Grants...)
	slices.Sort(s.Grants)
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
	fmt.Fprintf(&b, "restrictions %d, waited over a second %d%s\n", len(s.Restrictions), s.Waited(time.Second), quantiles(s.Restrictions))
	fmt.Fprintf(&b, "grants %d%s; uses with a right released %d, refused for want of one %d", len(s.Grants), quantiles(s.Grants), s.Rights, s.Lacking)
	return b.String()
}

func quantiles(sorted []time.Duration) (out string) {
	for _, q := range []float64{0.5, 0.9, 0.99, 1} {
		out += fmt.Sprintf(", p%g %s", q*100, Quantile(sorted, q).Round(time.Millisecond))
	}
	return out
}
