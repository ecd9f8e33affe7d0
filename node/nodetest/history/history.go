// Package history records what the clients of a cluster did and saw, and judges it.
// It knows nothing of how the cluster runs: simulated nodes and real processes are
// judged alike.
//
// A test begins a Call on a Recorder for each operation, ends it with what came back,
// and gives the whole to Check:
//
//	rec := history.NewRecorder(history.Since(time.Now()))
//	call := rec.Begin(history.Operation{Client: 1, Node: "kms-1", Kind: history.Disable, Key: id})
//	err := client.DisableKey(ctx, id)
//	call.End(history.OK, history.Answer{Index: index})
//	…
//	violations := history.Check(rec.History(), history.Rules{Slack: 2 * time.Second})
//
// Reading order: history.go (what is recorded), file.go (how it is kept), check.go,
// restrict.go, right.go, linear.go, final.go (the rules), summary.go.
package history

import (
	"sync"
	"time"
)

// Kind is what an operation does.
type Kind string

// The kinds of operations. The model of a key is: absent until Create, then Enabled;
// Enable and Disable move it between Enabled and Disabled; Schedule makes it Pending,
// which only Cancel undoes, to Disabled. Touch and Rotate change the key in a way that
// no Value shows; Touch is refused while it is absent or Pending, Rotate unless it is
// Enabled.
const (
	Create   Kind = "create"
	Enable   Kind = "enable"
	Disable  Kind = "disable"  // restricts
	Schedule Kind = "schedule" // its deletion; restricts
	Cancel   Kind = "cancel"   // its deletion
	Touch    Kind = "touch"
	Rotate   Kind = "rotate"

	// Use is a cryptographic operation with the key.
	Use Kind = "use"
	// Read is an ordinary read, answered by the node's own state.
	Read Kind = "read"
	// QuorumRead is a read that promises the latest state.
	QuorumRead Kind = "quorum-read"
	// Final is a read at the end, after the node has caught up with all writes.
	Final Kind = "final"
	// Remove takes the node whose name is Key out of the cluster; restricts.
	Remove Kind = "remove"

	// Of these, Key is a right that uses may need (Operation.Under), such as a grant, a
	// principal's or a tenant's. Grant gives it, and holds on every node when it has
	// returned; Permit gives it, and nodes may hear of that later; Forbid takes it;
	// restricts.
	Grant  Kind = "grant"
	Permit Kind = "permit"
	Forbid Kind = "forbid"
)

// Restricts tells whether an acknowledged operation of this kind binds every node.
func (k Kind) Restricts() bool {
	return k == Disable || k == Schedule || k == Remove || k == Forbid
}

// OfRights tells whether the kind is about a right and not about a key.
func (k Kind) OfRights() bool { return k == Grant || k == Permit || k == Forbid }

// loosens tells whether the kind gives back what a restriction has taken.
func (k Kind) loosens() bool { return k == Enable || k == Grant || k == Permit }

// Writes tells whether the kind changes a key.
func (k Kind) Writes() bool {
	switch k {
	case Create, Enable, Disable, Schedule, Cancel, Touch, Rotate:
		return true
	case Use, Read, QuorumRead, Final, Remove, Grant, Permit, Forbid:
	}
	return false
}

// Value is a key as reads show it.
type Value string

// The values of a key.
const (
	Absent   Value = "absent"
	Enabled  Value = "ENABLED"
	Disabled Value = "DISABLED"
	Pending  Value = "PENDING_DELETION"
)

// Outcome is how an operation ended.
type Outcome string

// The outcomes.
const (
	OK Outcome = "ok"
	// Refused means: the key's state forbade it, or a right that it lacks.
	Refused Outcome = "refused"
	// Failed means: it certainly had no effect and gave nothing away, and says
	// nothing about the key: no lease, no leader, withheld.
	Failed Outcome = "failed"
	// Unknown means: it may have happened, and may yet happen.
	Unknown Outcome = "unknown"
)

// Never is the End of an operation that has not ended.
const Never = time.Duration(1<<63 - 1)

// Operation is one call of one client. Times are those of the recorder's clock.
type Operation struct {
	ID     int    `json:"id"`
	Client int    `json:"client"` // a session: its index tokens only grow
	Node   string `json:"node"`   // which was asked
	Kind   Kind   `json:"kind"`
	Key    string `json:"key"`
	// Under are the rights that a use needs, besides the key.
	Under []string `json:"under,omitempty"`

	Begin time.Duration `json:"begin"`
	// Authorised is when the decision to release was taken, HandedOver when the
	// answer was given to the transport. Zero where the test cannot see them: then
	// only Begin and End count.
	Authorised time.Duration `json:"authorised,omitempty"`
	HandedOver time.Duration `json:"handed_over,omitempty"`
	End        time.Duration `json:"end"`

	After   uint64  `json:"after,omitempty"` // index token that the call carried
	Outcome Outcome `json:"outcome"`
	Answer
}

// Answer is what came back.
type Answer struct {
	// Index is that of the state that answered, or of the write's entry: of the last
	// one, where the write was asked for again under its request id. 0: not known.
	Index uint64 `json:"index,omitempty"`
	Value Value  `json:"value,omitempty"` // of reads
	Lacks string `json:"lacks,omitempty"` // the right for want of which a use was refused
	Note  string `json:"note,omitempty"`  // for people: the error's text, the nonce
}

// Digest is the running hash that a node had at an index.
type Digest struct {
	Node  string `json:"node"`
	Index uint64 `json:"index"`
	Hash  string `json:"hash"`
}

// History is everything that was recorded.
type History struct {
	Operations []Operation // by Begin
	Digests    []Digest
}

// Recorder collects a history. Its methods may be called from any goroutine.
type Recorder struct {
	clock func() time.Duration

	mu      sync.Mutex
	last    time.Duration
	ops     []Operation
	digests map[Digest]struct{}
}

// NewRecorder records with a clock of which only differences matter; one clock for
// all clients and nodes.
func NewRecorder(clock func() time.Duration) *Recorder {
	return &Recorder{clock: clock, digests: map[Digest]struct{}{}}
}

// now is the clock's time, but later than any that was noted before: where a clock
// stands still, as in virtual time, what happens afterwards is seen to be later.
func (r *Recorder) now() time.Duration {
	r.last = max(r.clock(), r.last+1)
	return r.last
}

// Since is the clock that began at a time.
func Since(start time.Time) func() time.Duration {
	return func() time.Duration { return time.Since(start) }
}

// Call is an operation under way.
type Call struct {
	recorder *Recorder
	at       int
}

// Begin notes that a client makes a call now. ID, Begin, End and Outcome are set
// here: until End is called the outcome is unknown.
func (r *Recorder) Begin(o Operation) Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	o.ID, o.Begin, o.End, o.Outcome = len(r.ops), r.now(), Never, Unknown
	r.ops = append(r.ops, o)
	return Call{r, o.ID}
}

func (c Call) note(f func(o *Operation, now time.Duration)) {
	c.recorder.mu.Lock()
	defer c.recorder.mu.Unlock()
	f(&c.recorder.ops[c.at], c.recorder.now())
}

// Key notes which key the operation is about, where only the answer tells: a
// creation's.
func (c Call) Key(key string) { c.note(func(o *Operation, _ time.Duration) { o.Key = key }) }

// Authorised notes that the last check passed now.
func (c Call) Authorised() { c.note(func(o *Operation, now time.Duration) { o.Authorised = now }) }

// HandedOver notes that the answer was given to the transport now.
func (c Call) HandedOver() { c.note(func(o *Operation, now time.Duration) { o.HandedOver = now }) }

// End notes how the call ended, now. An operation whose outcome is unknown has no
// end: it may take effect at any later time.
func (c Call) End(outcome Outcome, a Answer) {
	c.note(func(o *Operation, now time.Duration) {
		o.Outcome, o.Answer, o.End = outcome, a, now
		if outcome == Unknown {
			o.End = Never
		}
	})
}

// Observe notes a node's running hash at an index. Repetitions cost nothing.
func (r *Recorder) Observe(node string, index uint64, hash string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.digests[Digest{node, index, hash}] = struct{}{}
}

// History is what has been recorded so far.
func (r *Recorder) History() History {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := History{Operations: append([]Operation(nil), r.ops...)}
	for d := range r.digests {
		h.Digests = append(h.Digests, d)
	}
	sortDigests(h.Digests)
	return h
}
