//go:build mutant

package cluster

import (
	"sync"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/rules"
)

var keptLeases sync.Map // raft id -> *lessee

// surviving gives a process the leases of the one before it, where rules.InMemory is
// left out.
func surviving(id string, fresh *lessee) *lessee {
	if !rules.InMemory.Off() {
		return fresh
	}
	kept, _ := keptLeases.LoadOrStore(id, fresh)
	return kept.(*lessee)
}

// repeats tells whether the entry at an index repeats an earlier request.
func (e *engine) repeats(p fsm.Proposal, index uint64) bool {
	first, ok := e.machine.State().Request(p.Principal, p.Request)
	return ok && first.Index != index
}
