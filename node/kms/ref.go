package kms

import (
	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// HSMRef names a key version of a state for an HSM, for those that work on keys without a
// service: with a backup's state, away from the cluster.
func HSMRef(st *fsm.State, k *fsm.Key, v *fsm.KeyVersion) hsm.Ref { return hsmRef(st, k, v) }
