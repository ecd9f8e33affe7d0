package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// next is the model of one key: whether an operation may have that outcome in that
// state, and the state afterwards.
func next(v Value, o Operation) (ok bool, after Value) {
	switch o.Kind {
	case Read, QuorumRead, Final:
		return o.Value == v, v
	case Create, Enable, Disable, Schedule, Cancel, Touch, Rotate:
	case Use, Remove, Grant, Permit, Forbid:
		return true, v
	}
	to, possible := written(v, o.Kind)
	switch o.Outcome {
	case OK:
		return possible, to
	case Refused:
		return !possible, v
	case Unknown, Failed:
		if possible {
			return true, to
		}
	}
	return true, v
}

// written is the value after a write, if the value allows it.
func written(v Value, k Kind) (to Value, possible bool) {
	live := v == Enabled || v == Disabled
	switch k {
	case Create:
		return Enabled, v == Absent
	case Enable:
		return Enabled, live
	case Disable:
		return Disabled, live
	case Schedule:
		return Pending, live
	case Cancel:
		return Disabled, v == Pending
	case Touch:
		return v, live
	case Rotate:
		return v, v == Enabled
	case Use, Read, QuorumRead, Final, Remove, Grant, Permit, Forbid:
	}
	return v, false
}

func model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return Absent },
		Step: func(state, input, _ any) (bool, any) {
			ok, after := next(state.(Value), input.(Operation))
			return ok, after
		},
	}
}

// checkLinear: writes and quorum reads of a key, and its final reads, have an order
// that agrees with real time.
func checkLinear(key string, ops []Operation, r Rules) []Violation {
	var history []porcupine.Operation
	var shown []Operation
	for _, o := range ops {
		relevant := o.Kind.Writes() || o.Kind == QuorumRead || o.Kind == Final
		if !relevant || o.Outcome == Failed || o.Outcome == Unknown && !o.Kind.Writes() || o.Kind == Final && o.Outcome != OK {
			continue
		}
		history = append(history, porcupine.Operation{ClientId: o.Client, Input: o, Call: int64(o.Begin), Return: int64(o.End)})
		shown = append(shown, o)
	}
	return decide("linearizability", "key "+key+": the writes and reads that promise the latest state have no order", history, shown, r)
}

// checkStates: ordered by index, writes and all reads agree: a state at an index is
// what the writes up to that index made, on whichever node it was read. A write's
// entry lies between what was known when it was begun and the index it answered.
func checkStates(key string, ops []Operation, r Rules) []Violation {
	var history []porcupine.Operation
	var shown []Operation
	known := knownIndexes(ops)
	told := map[Answer]bool{} // a node that stands still tells the same all the time: any order of that would be tried
	for _, o := range ops {
		at := 2 * int64(o.Index) // indexes are far below 2^62
		call, back := at+1, at+1
		switch {
		case o.Kind == Use || o.Outcome == Failed:
			continue
		case o.Kind.Writes():
			call, back = 2*int64(known(o.Begin))+2, at // as above
			if o.Outcome == Unknown || o.Index == 0 {
				back = math.MaxInt64
			}
		case o.Outcome != OK || o.Index == 0 || told[Answer{Index: o.Index, Value: o.Value}]:
			continue
		default:
			told[Answer{Index: o.Index, Value: o.Value}] = true
		}
		history = append(history, porcupine.Operation{ClientId: o.Client, Input: o, Call: call, Return: back})
		shown = append(shown, o)
	}
	return decide("state", "key "+key+": reads do not show what the writes up to their index made", history, shown, r)
}

// knownIndexes gives the highest index that any operation had answered before a time.
func knownIndexes(ops []Operation) func(time.Duration) uint64 {
	byEnd := slices.SortedFunc(slices.Values(ops), func(a, b Operation) int { return cmp.Compare(a.End, b.End) })
	highest := make([]uint64, len(byEnd)+1) // of the first n
	for i, o := range byEnd {
		highest[i+1] = highest[i]
		if o.Outcome == OK {
			highest[i+1] = max(highest[i], o.Index)
		}
	}
	return func(at time.Duration) uint64 {
		n, _ := slices.BinarySearchFunc(byEnd, at, func(o Operation, at time.Duration) int { return cmp.Compare(o.End, at) })
		return highest[n]
	}
}

func decide(rule, text string, history []porcupine.Operation, shown []Operation, r Rules) []Violation {
	switch result := porcupine.CheckOperationsTimeout(model(), history, r.Undecided); result {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return []Violation{{rule, fmt.Sprintf("%s (undecided after %s)", text, r.Undecided), shown}}
	case porcupine.Illegal:
	}
	return []Violation{{rule, text, shown}}
}
