// Package soft is the embedded partition: hsm.Partition in pure Go, for
// development and tests only. Its keys are in the memory of this process, and
// whoever can write to its directory is its Security Officer; nothing of what a
// hardware module promises holds.
//
// Reading order: partition.go (life, identity), domain.go (domain keys), key.go
// and secret.go (customer master keys), transfer.go (DKX1), trust.go, file.go (the key file),
// kwp.go (RFC 5649).
package soft
