//go:build !mutant

package cluster

import "github.com/quorumkms/quorumkms/fsm"

// surviving is what a process keeps of the leases of the one before it: nothing.
func surviving(_ string, fresh *lessee) *lessee { return fresh }

func (e *engine) repeats(fsm.Proposal, uint64) bool { return false }
