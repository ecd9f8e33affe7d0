package history

import (
	"fmt"
	"time"
)

// checkRestrictions judges the operations of one key or right: once a restriction has
// returned, nothing begun afterwards succeeds, and what is released was authorised
// before and is handed over soon; until the key is enabled, or the right given, again.
func checkRestrictions(ops []Operation, r Rules) []Violation {
	var out []Violation
	for _, restriction := range ops {
		if !restriction.Kind.Restricts() || restriction.Outcome != OK {
			continue
		}
		loosened := firstLoosening(ops, restriction)
		for _, use := range ops {
			if use.Kind != Use || use.Outcome != OK {
				continue
			}
			if text := late(use, restriction.End, loosened, r.Slack); text != "" {
				out = append(out, Violation{"restriction", text, []Operation{restriction, use}})
			}
		}
	}
	return out
}

// late says how a released use breaks a restriction that returned at a time, if it
// does and nothing that may have loosened it had begun before.
func late(use Operation, returned, loosened, slack time.Duration) string {
	out := use.HandedOver
	if out == 0 {
		out = use.End
	}
	breaks := func(at, limit time.Duration) bool { return at > limit && loosened > at }
	switch {
	case breaks(use.Begin, returned) && loosened > out:
		return fmt.Sprintf("a use begun %s after a restriction had returned succeeded", use.Begin-returned)
	case breaks(use.Authorised, returned):
		return fmt.Sprintf("a use was authorised %s after a restriction had returned", use.Authorised-returned)
	case breaks(out, returned+HandOver+slack):
		return fmt.Sprintf("a use was handed over %s after a restriction had returned", out-returned)
	}
	return ""
}

// firstLoosening is when the first operation began that may have undone the
// restriction after it took effect.
func firstLoosening(ops []Operation, restriction Operation) time.Duration {
	first := Never
	for _, o := range ops {
		if o.Kind.loosens() && mayHaveHappened(o) && o.End >= restriction.Begin {
			first = min(first, o.Begin)
		}
	}
	return first
}

func mayHaveHappened(o Operation) bool { return o.Outcome == OK || o.Outcome == Unknown }

// checkRemovals: a removed node releases nothing that was begun afterwards.
func checkRemovals(all []Operation) []Violation {
	var out []Violation
	for _, removal := range all {
		if removal.Kind != Remove || removal.Outcome != OK {
			continue
		}
		for _, use := range all {
			if use.Kind == Use && use.Outcome == OK && use.Node == removal.Key && max(use.Begin, use.Authorised) > removal.End {
				out = append(out, Violation{"restriction", "a node served after its removal had returned", []Operation{removal, use}})
			}
		}
	}
	return out
}
