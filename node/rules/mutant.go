//go:build mutant

package rules

import "sync/atomic"

// Mutants tells whether rules can be left out in this build.
const Mutants = true

var off atomic.Int64 // a rule and one; 0: none

// Off tells whether the rule is left out.
func (r Rule) Off() bool { return off.Load() == int64(r)+1 }

// Leave leaves one rule out, in the whole process, until restore is called.
func Leave(r Rule) (restore func()) {
	off.Store(int64(r) + 1)
	return func() { off.Store(0) }
}
