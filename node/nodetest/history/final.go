package history

import (
	"cmp"
	"fmt"
	"slices"
)

// checkLost: a key whose creation was acknowledged is there at the end, on every
// node that was asked.
func checkLost(ops []Operation) []Violation {
	acknowledged := slices.IndexFunc(ops, func(o Operation) bool { return o.Kind == Create && o.Outcome == OK })
	if acknowledged < 0 {
		return nil
	}
	var out []Violation
	for _, o := range ops {
		if o.Kind == Final && (o.Outcome != OK || o.Value == Absent) {
			out = append(out, Violation{"lost key", "an acknowledged key cannot be read at the end", []Operation{ops[acknowledged], o}})
		}
	}
	return out
}

// checkSessions: a client that has seen an index, and says so, never gets an older
// state.
func checkSessions(all []Operation) []Violation {
	var out []Violation
	sessions := map[int][]Operation{}
	for _, o := range all {
		if o.Outcome == OK && o.Index != 0 {
			sessions[o.Client] = append(sessions[o.Client], o)
		}
	}
	for _, ops := range sessions {
		out = append(out, checkSession(ops)...)
	}
	slices.SortFunc(out, func(a, b Violation) int { return cmp.Compare(a.Operations[0].ID, b.Operations[0].ID) })
	return out
}

func checkSession(ops []Operation) []Violation {
	var out []Violation
	byEnd := slices.SortedFunc(slices.Values(ops), func(a, b Operation) int { return cmp.Compare(a.End, b.End) })
	slices.SortStableFunc(ops, func(a, b Operation) int { return cmp.Compare(a.Begin, b.Begin) })
	var newest *Operation // with the highest index of those that ended before o began
	seen := 0
	for _, o := range ops {
		for ; seen < len(byEnd) && byEnd[seen].End < o.Begin; seen++ {
			if newest == nil || byEnd[seen].Index > newest.Index {
				newest = &byEnd[seen]
			}
		}
		if o.Kind.Writes() || o.Kind.OfRights() || o.Kind == Remove {
			continue // a repeated request is answered with the index of the first
		}
		switch {
		case o.Index < o.After:
			out = append(out, Violation{"session", fmt.Sprintf("a call that carried index %d was answered from %d", o.After, o.Index), []Operation{o}})
		case newest != nil && o.Index < newest.Index:
			out = append(out, Violation{"session", "a client saw an older state than before", []Operation{o, *newest}})
		}
	}
	return out
}

// checkDigests: nodes that have applied the same entries have the same hash.
func checkDigests(digests []Digest) []Violation {
	var out []Violation
	first := map[uint64]Digest{}
	for _, d := range digests {
		other, ok := first[d.Index]
		if !ok {
			first[d.Index] = d
			continue
		}
		if other.Hash != d.Hash {
			out = append(out, Violation{Rule: "divergence", Text: fmt.Sprintf(
				"at index %d node %s has the hash %s, node %s %s", d.Index, other.Node, other.Hash, d.Node, d.Hash)})
		}
	}
	return out
}
