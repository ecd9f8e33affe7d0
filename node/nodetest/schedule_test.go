package nodetest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// fault is one line of a schedule. Who leads when it begins is not known before: then
// A and B count from the leader (0), in the order of the others' names.
type fault struct {
	at, lasts time.Duration
	kind      faultKind
	a, b      int
	part      float64       // of messages or operations that it hits
	delay     time.Duration // at most
}

func (f fault) String() string {
	return fmt.Sprintf("%10s for %8s  %-14s a=%d b=%d part=%.2f delay=%s",
		f.at.Round(time.Millisecond), f.lasts.Round(time.Millisecond), f.kind, f.a, f.b, f.part, f.delay.Round(time.Millisecond))
}

type faultKind string

// The kinds of faults. Numbers are those of machines, unless counted from the leader.
const (
	isolate    faultKind = "isolate"     // machine a is cut off both ways
	deaf       faultKind = "deaf"        // nothing reaches a
	mute       faultKind = "mute"        // nothing leaves a
	oneWay     faultKind = "one-way"     // nothing from a to b
	bridge     faultKind = "bridge"      // a and b see each other through others only
	alone      faultKind = "alone"       // the leader is cut off
	withHung   faultKind = "with-hung"   // the leader keeps one follower only, whose disk hangs
	aloneHung  faultKind = "alone-hung"  // the leader is cut off, and its disk hangs
	split      faultKind = "split"       // the machines up to a, and the others
	late       faultKind = "late"        // part of all messages is late
	lateLink   faultKind = "late-link"   // all messages from a to b may be late
	loss       faultKind = "loss"        // part of all messages is lost
	hungDisk   faultKind = "hung-disk"   // of a
	hungOthers faultKind = "hung-others" // the disks of all followers
	pauses     faultKind = "pauses"      // part of the operations is held up
	transfer   faultKind = "transfer"    // of the leadership, to follower a
	crash      faultKind = "crash"       // of a; it comes back at the end
	crashLead  faultKind = "crash-leader"
	crashAll   faultKind = "crash-all" // power
	restart    faultKind = "restart"   // of a, in an orderly way
	rejoin     faultKind = "rejoin"    // a is removed and comes back as a new node
	revote     faultKind = "revote"    // a loses its vote and gets it back
)

// chance is how often a kind is drawn, and how long it lasts, in seconds.
type chance struct {
	kind        faultKind
	weight      int
	least, most float64
}

var chances = []chance{
	{isolate, 6, 1, 12},
	{deaf, 4, 1, 10},
	{mute, 4, 1, 10},
	{oneWay, 4, 1, 12},
	{bridge, 4, 1, 12},
	{alone, 8, 1, 12},
	{withHung, 8, 2, 10},
	{aloneHung, 4, 2, 10},
	{split, 3, 1, 10},
	{late, 5, 2, 10},
	{lateLink, 5, 2, 12},
	{loss, 4, 2, 8},
	{hungDisk, 7, 0.3, 9},
	{hungOthers, 3, 0.3, 5},
	{pauses, 10, 3, 15},
	{transfer, 5, 0, 0},
	{crash, 6, 0.5, 10},
	{crashLead, 5, 0.5, 8},
	{crashAll, 1, 0.5, 2},
	{restart, 3, 0.5, 5},
	{rejoin, 4, 1, 5},
	{revote, 4, 1, 8},
}

// schedule is what a seed does to a cluster: it depends on nothing else.
func schedule(seed uint64, machines int, duration time.Duration) []fault {
	random := rand.New(rand.NewPCG(seed, 0xfa17))
	total := 0
	for _, c := range chances {
		total += c.weight
	}
	between := func(least, most float64) time.Duration {
		return time.Duration((least + random.Float64()*(most-least)) * float64(time.Second))
	}
	var out []fault
	for range 2 { // two streams, so that faults overlap
		for at := between(0.5, 3); at < duration; {
			n := random.IntN(total)
			i := 0
			for ; n >= chances[i].weight; i++ {
				n -= chances[i].weight
			}
			f := fault{
				at: at, lasts: between(chances[i].least, chances[i].most), kind: chances[i].kind,
				a: random.IntN(machines), b: random.IntN(machines - 1), part: 0.05 + random.Float64()*0.4, delay: between(0.1, 8),
			}
			if f.b >= f.a {
				f.b++
			}
			f.lasts = min(f.lasts, duration-at)
			out = append(out, f)
			at += f.lasts + between(0.2, 5)
		}
	}
	slices.SortStableFunc(out, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return out
}

func describe(faults []fault) string {
	var b strings.Builder
	for _, f := range faults {
		b.WriteString(f.String() + "\n")
	}
	return b.String()
}
