// Package rules names the rules of the lease one by one, so that a test can leave each
// out and see that the simulation finds it missing. In every build without the tag
// mutant no rule is ever off, and the compiler removes the question.
package rules

import "strconv"

// Rule is one rule of the lease.
type Rule int

// The rules, by what goes wrong without them.
const (
	// Wait: a restriction returns at its commit.
	Wait Rule = iota
	// RepeatWaits: a repeated request is answered from memory.
	RepeatWaits
	// Tick: a leader grants because it believes that it leads.
	Tick
	// BoundFirst: the bound of a lease is recorded when its grant has been sent.
	BoundFirst
	// Floor: a new leader waits for no lease that others have granted.
	Floor
	// FloorPerTerm: a leader that is elected again keeps its earlier floor.
	FloorPerTerm
	// Margin: the leader waits no longer than a lease lasts on the lessee's clock.
	Margin
	// SendTime: a lease counts from the grant's arrival.
	SendTime
	// MinIndex: a lease is used whatever state the node has.
	MinIndex
	// InMemory: a lease outlives its process.
	InMemory
	// Leap: a lease is believed though the machine was paused.
	Leap
	// AckApplied: a node confirms what it has received and not applied.
	AckApplied
	// HandedOver: a node confirms while results from earlier states are on their way.
	HandedOver
	// LeavingWaits: nobody waits for the lease of a node that is being removed.
	LeavingWaits
	// RetireWaits: a removed node is gone before its lease is.
	RetireWaits
	// Membership: a removed node does not look at its own membership.
	Membership
	// FinalCheck: nothing is checked behind the work.
	FinalCheck
	// LeaseFirst: the state is read before the lease is checked.
	LeaseFirst
	// Recheck: checks do not get old.
	Recheck

	count
)

var names = [count]string{
	"Wait", "RepeatWaits", "Tick", "BoundFirst", "Floor", "FloorPerTerm", "Margin", "SendTime", "MinIndex", "InMemory", "Leap",
	"AckApplied", "HandedOver", "LeavingWaits", "RetireWaits", "Membership", "FinalCheck", "LeaseFirst", "Recheck",
}

// String is the rule's name.
func (r Rule) String() string {
	if r < 0 || r >= count {
		return strconv.Itoa(int(r))
	}
	return names[r]
}

// All are all rules.
func All() []Rule {
	out := make([]Rule, count)
	for i := range out {
		out[i] = Rule(i)
	}
	return out
}
