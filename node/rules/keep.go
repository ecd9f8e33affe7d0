//go:build !mutant

package rules

// Mutants tells whether rules can be left out in this build.
const Mutants = false

// Off tells whether the rule is left out: never.
func (Rule) Off() bool { return false }
