// Package fsm is the replicated state of a QuorumKMS cluster and its rules.
//
// The laws of this package:
//
//   - It is pure. No clock, no randomness, no I/O, no logging, no HSM. Time, ids,
//     random bytes and wrapped keys enter through the entry; applying an entry
//     computes nothing that could differ between two nodes.
//   - State is a value. Apply returns a new one and leaves the old untouched, so a
//     reader keeps what it holds, and a snapshot is the state itself, taken in O(1).
//   - An entry is strict, canonical JSON of one command of one literal table
//     (command.go). What this release does not know stops the node; it never
//     guesses.
//   - A refused command changes nothing but the index, the time and the running
//     hash.
//   - Every record that an entry writes goes into the running hash, so two nodes
//     whose states differ cannot have equal hashes at the same index.
//
// New fields of records and commands are always omitempty, so that what was written
// before stays canonical.
//
// A wrapped key is an opaque string here, and so is its public half: this package never
// looks into either.
//
// Reading order: errors.go, keyspec.go, key.go, version.go, rotation.go, import.go, deletion.go, alias.go,
// tag.go, requiredcontext.go, binding.go, use.go, servicekey.go, tenant.go, principal.go,
// policy.go, operation.go, grant.go, member.go, cluster.go, domain.go (what there is), state.go and tables.go (how
// it is held, indexed and applied), due.go (what comes by itself), command.go (the table),
// entry.go (the bytes) and proposal.go, request.go (idempotence), recovery.go, snapshot.go,
// check.go (invariants), raft.go (the only file that knows Raft).
package fsm
