package history

import (
	"cmp"
	"fmt"
	"slices"
)

// checkRight judges the operations of one right: once it was granted, no use that begins
// afterwards is refused for want of it, on no node, unless something that takes it away
// may have begun before the use had ended.
func checkRight(right string, ops []Operation) []Violation {
	var grants, takings []Operation
	for _, o := range ops {
		switch {
		case o.Kind == Grant && o.Outcome == OK:
			grants = append(grants, o)
		case o.Kind == Forbid && mayHaveHappened(o):
			takings = append(takings, o)
		}
	}
	slices.SortFunc(grants, func(a, b Operation) int { return cmp.Compare(b.End, a.End) }) // the latest first
	var out []Violation
	for _, use := range ops {
		if use.Kind != Use || use.Outcome != Refused || use.Lacks != right {
			continue
		}
		i := slices.IndexFunc(grants, func(grant Operation) bool { return grant.End < use.Begin })
		if i < 0 {
			continue
		}
		taken := slices.ContainsFunc(takings, func(o Operation) bool { return o.End >= grants[i].Begin && o.Begin <= use.End })
		if !taken {
			out = append(out, Violation{
				"right", fmt.Sprintf("a use begun %s after %s was granted was refused for want of it", use.Begin-grants[i].End, right),
				[]Operation{grants[i], use},
			})
		}
	}
	return out
}
