//go:build mutant

package nodetest

import (
	"flag"
	"slices"
	"testing"

	"github.com/quorumkms/quorumkms/node/nodetest/history"
	"github.com/quorumkms/quorumkms/node/rules"
)

var mutantRuns = flag.Int("sim.mutants", 5, "how often each script is run without its rule")

// TestMutants: without its rule, no script is survived, not once.
func TestMutants(t *testing.T) {
	for _, sc := range scripts() {
		t.Run(sc.rule.String()+"/"+sc.name, func(t *testing.T) {
			defer rules.Leave(sc.rule)()
			for run := range *mutantRuns {
				violations := perform(t, sc)
				if sc.breaks != "" {
					violations = slices.DeleteFunc(violations, func(v history.Violation) bool { return v.Rule != sc.breaks })
				}
				if len(violations) == 0 {
					t.Fatalf("run %d: the simulation does not see that %s is missing", run, sc.rule)
				}
				if run == 0 {
					t.Log(violations[0])
				}
			}
		})
	}
}
