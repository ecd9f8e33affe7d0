package kms

import (
	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// RefOf names a key version for a partition, as the service names it for the node's own:
// for who opens a backup's keys without a cluster.
func RefOf(st *fsm.State, k *fsm.Key, v *fsm.KeyVersion) hsm.Ref { return hsmRef(st, k, v) }
